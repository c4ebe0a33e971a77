"""From a configuration to everything that a worker is told: its text, and a value for every `auto`."""

from __future__ import annotations

from tutti import models
from tutti.config import Config
from tutti.core.rundir import RunDirectory
from tutti.core.say import Say
from tutti.data import Prepared
from tutti.data.labelled import PreparedExamples
from tutti.parallel import check_layout, limits_of
from tutti.resolve import Facts, Resolved, resolve
from tutti.starting.checks import check_agreement, check_tuning, spare_memory
from tutti.starting.headed import start_labelled, start_masked
from tutti.starting.preparing import prepare_labelled, prepare_text, with_tokenizer
from tutti.starting.resuming import refuse_other_data
from tutti.tasks import find_manner
from tutti.train.labelled import has_head
from tutti.train.language import source_of


def start_run(
    config: Config,
    say: Say,
    processes: int | None = None,
    *,
    continues: RunDirectory | None = None,
    groups: int = 1,
) -> tuple[Resolved, Prepared | PreparedExamples]:
    """Everything that can be known before a worker starts: the text, and a value for every `auto`.

    `continues`: the run whose text this must be; `groups`: runs that share this machine.
    """
    config = with_tokenizer(config)
    if config.task.masked:
        return start_masked(config, say, processes, continues, groups)
    if has_head(config):
        return start_labelled(config, say, processes, continues, groups)
    prepared: Prepared | PreparedExamples
    if config.task.labelled:
        prepared = prepare_labelled(config, say)
        samples, validation = (prepared.rows(part) for part in ("train", "validation"))
        fingerprint = f"{prepared.fingerprint} train"
    else:
        prepared = prepare_text(config, say)
        prepared.require(config.data.sequence)
        samples, validation = (
            prepared.samples(part, config.data.sequence) for part in ("train", "validation")
        )
        train = source_of(config, prepared, "train")
        assert train is not None, "prepare refuses text without a part to train on"
        fingerprint = train.fingerprint
    if continues is not None:
        refuse_other_data(continues, fingerprint)
    # Laid out here once, so that a model that cannot be is refused before a worker starts.
    blueprint = models.draw_blueprint(
        config.model,
        vocabulary=prepared.vocabulary,
        sequence=config.data.sequence,
        seed=config.train.seed,
        end_token=prepared.end_token,
    )
    model = blueprint.lay_out()
    blueprint.check_weights()
    manner = find_manner(blueprint.twin())
    parameters = models.count_parameters(model).total
    if isinstance(prepared, Prepared):
        config = config.model_copy(update={"data": prepared.resolved(config.data)})
    facts = Facts(
        parameters,
        config.data.sequence,
        validation,
        samples=samples,
        labelled=config.task.labelled,
        pretrained=blueprint.directory is not None,
        processes=processes,
        groups=groups,
    )
    resolved = resolve(config, facts)
    resolved.choices[:0] = [*prepared.choices, *blueprint.choices]
    check_agreement(resolved.config, processes)
    assert isinstance(resolved.config.replicas, int)
    samples = int(resolved.config.train.batch) // resolved.config.replicas
    check_layout(config.layout, limits_of(model, manner, samples))
    check_tuning(resolved.config, model)
    spare_memory(config, resolved, blueprint, manner, samples)
    return resolved, prepared
