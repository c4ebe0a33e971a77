"""Adapters beside plain peft, on the same weights, batches and seed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from encoders import write_encoder
from tutti.config import Config, load_config
from tutti.core import ModelError
from tutti.models import HeadedBlueprint, draw_headed_blueprint
from tutti.models.adalora import adalora_settings
from tutti.models.adapters import adapters_in
from tutti.models.tuning import Tuned, merged, save_adapters, tune
from tutti.train.checkpoints import initialise

STEPS = 24


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("tuning") / "bert")


def model_of(bert: Path) -> Any:
    torch.manual_seed(7)
    return AutoModelForSequenceClassification.from_pretrained(
        bert, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )


def config_of(path: Path, *words: str) -> Config:
    return load_config(
        None, [f"model={path}", "task=classify", f"train.steps={STEPS}", "train.seed=5", *words]
    )


def batch_of(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    dice = torch.Generator().manual_seed(step)
    return torch.randint(5, 40, (8, 6), generator=dice), torch.randint(0, 3, (8,), generator=dice)


def optimizer_of(model: torch.nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)


def learn(tuned: Tuned, optimizer: torch.optim.AdamW, steps: range) -> None:
    """As the training loop does it: the loss of two micro-batches is a sum, and each target carries the penalty."""
    assert tuned.allocation is not None
    model: Any = tuned.model.train()
    for step in steps:
        optimizer.zero_grad()
        ids, labels = batch_of(step)
        for part in (slice(0, 3), slice(3, 8)):
            total = F.cross_entropy(model(ids[part]).logits, labels[part], reduction="sum")
            ((total + len(labels[part]) * tuned.allocation.penalty()) / len(labels)).backward()
        optimizer.step()
        tuned.allocation.after_step(step)


def begin(bert: Path) -> tuple[Tuned, torch.optim.AdamW]:
    tuned = tune(model_of(bert), config_of(bert, "tune={method: adalora, rank: 4}"))
    optimizer = optimizer_of(tuned.model)
    initialise(optimizer)
    assert tuned.allocation is not None
    tuned.allocation.keep_in([optimizer])
    return tuned, optimizer


def test_ranks_are_those_that_peft_gives_and_the_merged_model_is_peft_s(bert: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    mine, optimizer = begin(bert)
    settings = adalora_settings(4, None, 0.0, STEPS, task_type="SEQ_CLS")
    fresh = model_of(bert)
    torch.manual_seed(5)
    theirs: Any = get_peft_model(fresh, settings).train()
    plain = optimizer_of(theirs)
    for step in range(1, STEPS + 1):
        learn(mine, optimizer, range(step, step + 1))
        plain.zero_grad()
        ids, labels = batch_of(step)
        theirs(input_ids=ids, labels=labels).loss.backward()
        plain.step()
        theirs.base_model.update_and_allocate(step)
        ours = dict(mine.model.named_parameters())
        for name, parameter in theirs.base_model.model.named_parameters():
            torch.testing.assert_close(ours[name], parameter, rtol=2e-4, atol=2e-6, msg=f"{step} {name}")
    pattern = theirs.peft_config["default"].rank_pattern
    lost = sum(kept.count(False) for kept in pattern.values())
    assert lost == len(pattern) * (
        settings.init_r - settings.target_r
    )  # the budget, and so something was lost
    save_adapters(
        mine.model, model_of(bert), config_of(bert, "tune={method: adalora, rank: 4}"), tmp_path / "a"
    )
    written = AdaLoraConfig.from_pretrained(str(tmp_path / "a")).rank_pattern
    assert written == {name.replace(".default", ""): kept for name, kept in pattern.items()}
    ids, _ = batch_of(99)
    alone: Any = merged(mine.model).eval()
    opened = PeftModel.from_pretrained(model_of(bert), tmp_path / "a").eval()
    assert not [name for name, _ in alone.named_parameters() if "lora" in name]
    torch.testing.assert_close(opened(ids).logits, alone(ids).logits, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        theirs.merge_and_unload().eval()(ids).logits, alone(ids).logits, rtol=2e-3, atol=1e-4
    )
    sizes = sum(w.numel() for n, w in opened.named_parameters() if ".lora_" in n)
    assert sizes < sum(w.numel() for n, w in mine.model.named_parameters() if ".lora_" in n)


def test_statistics_are_state_of_the_optimizer(bert: Path) -> None:
    """Weights and the optimizer's state are all that a run has to keep to go on as if it had not stopped."""
    whole, optimizer = begin(bert)
    learn(whole, optimizer, range(1, STEPS + 1))
    first, before = begin(bert)
    learn(first, before, range(1, 9))
    second, after = begin(bert)
    second.model.load_state_dict(first.model.state_dict())
    for mine, theirs in zip(before.state.values(), after.state.values(), strict=True):
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            theirs[name].copy_(tensor)
    learn(second, after, range(9, STEPS + 1))
    for (name, one), other in zip(
        whole.model.state_dict().items(), second.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("method", ["lora", "ia3", "adalora"])
def test_what_is_merged_is_what_peft_merges(bert: Path, method: str) -> None:
    tuned = tune(model_of(bert), config_of(bert, f"tune={method}"))
    for _, parameter in tuned.model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    ids, _ = batch_of(0)
    before = tuned.model.eval()(ids).logits
    torch.testing.assert_close(merged(tuned.model)(ids).logits, before, rtol=1e-4, atol=1e-5)


def adapters(bert: Path, place: Path, *words: str) -> Path:
    """Adapters as after training, in a directory of their own."""
    config = config_of(bert, *(words or ("tune=lora",)))
    tuned = tune(model_of(bert), config)
    torch.manual_seed(1)
    for _, parameter in tuned.model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    save_adapters(tuned.model, model_of(bert), config, place)
    return place


def test_adapters_go_on_or_are_merged(bert: Path, tmp_path: Path) -> None:
    place = adapters(bert, tmp_path / "adapters")
    ids, _ = batch_of(0)
    expected = PeftModel.from_pretrained(model_of(bert), place).eval()(ids).logits
    on = tune(model_of(bert), config_of(place, "tune=lora", "tune.rank=2"))
    assert "go on learning" in on.choices[0]
    torch.testing.assert_close(on.model.eval()(ids).logits, expected)
    assert {p.shape[0] for n, p in on.model.named_parameters() if "lora_A" in n} == {8}  # theirs, not 2
    whole = tune(model_of(bert), config_of(place))
    assert "merged" in whole.choices[0]
    assert all(p.requires_grad and "lora" not in n for n, p in whole.model.named_parameters())
    torch.testing.assert_close(whole.model.eval()(ids).logits, expected, rtol=1e-4, atol=1e-5)
    last = tune(model_of(bert), config_of(place, "tune={method: last, layers: 1}"))
    assert sum(p.requires_grad for p in last.model.parameters()) < len(list(last.model.parameters()))
    with pytest.raises(ModelError, match="cannot begin with"):
        tune(model_of(bert), config_of(place, "tune=ia3"))


def test_adapters_for_another_model_are_refused(bert: Path, tmp_path: Path) -> None:
    place = adapters(bert, tmp_path / "adapters")
    settings = json.loads((place / "adapter_config.json").read_text())

    def based_on(base: Path | str, name: str, *, note: bool) -> Path:
        other = tmp_path / name
        shutil.copytree(place, other)
        (other / "adapter_config.json").write_text(
            json.dumps(settings | {"base_model_name_or_path": str(base)})
        )
        if not note:
            (other / "base.json").unlink()
        return other

    modern = write_encoder(tmp_path / "modern", "modernbert")
    with pytest.raises(ModelError, match="learned on other weights"):
        adapters_in(based_on(modern, "hash", note=True))
    moved = based_on(modern, "shapes", note=False)
    with pytest.raises(ModelError, match="do not fit the model in"):
        other = AutoModelForSequenceClassification.from_pretrained(modern, num_labels=3)
        tune(other, config_of(moved, "tune=lora"))
    with pytest.raises(ModelError, match="no model directory here"):
        adapters_in(based_on("somebody/gone", "missing", note=True))
    pickled = based_on(bert, "pickled", note=True)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(ModelError, match="only as pickle"):
        adapters_in(pickled)
    strange = based_on(bert, "strange", note=True)
    (strange / "adapter_config.json").write_text(json.dumps(settings | {"peft_type": "LOHA"}))
    with pytest.raises(ModelError, match="not known here: loha"):
        adapters_in(strange)
    torn = based_on(bert, "torn", note=True)
    (torn / "adapter_model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(ModelError, match="damaged"):
        tune(model_of(bert), config_of(torn, "tune=lora"))


def test_adapters_for_other_labels_get_a_new_head(bert: Path, tmp_path: Path) -> None:
    place = adapters(bert, tmp_path / "adapters")
    five = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=5)
    tuned = tune(five, config_of(place, "tune=lora"))
    lora = next(p for n, p in tuned.model.named_parameters() if "query.lora_B" in n)
    assert lora.abs().max() > 0 and "a new head" in tuned.choices[0]


def test_a_prompt_stands_before_the_text_and_cannot_be_merged(bert: Path, tmp_path: Path) -> None:
    place = adapters(bert, tmp_path / "prompt", "tune={method: prompt, tokens: 3}")
    assert PeftConfig.from_pretrained(str(place)).num_virtual_tokens == 3
    tuned = tune(model_of(bert), config_of(place, "tune={method: prompt, tokens: 3}"))
    learning = {n for n, p in tuned.model.named_parameters() if p.requires_grad}
    assert len(learning) == 3 and any("prompt_encoder" in name for name in learning)  # and the head's two
    ids, _ = batch_of(0)
    plain: Any = model_of(bert).eval()
    head = {
        n.split("classifier.")[1]: w for n, w in tuned.model.state_dict().items() if "modules_to_save" in n
    }
    plain.classifier.load_state_dict({n.split(".")[-1]: w for n, w in head.items()})
    prompt = next(p for n, p in tuned.model.named_parameters() if "prompt_encoder" in n)
    words = plain.get_input_embeddings()(ids)
    by_hand = plain(inputs_embeds=torch.cat([prompt.expand(len(ids), -1, -1), words], dim=1)).logits
    torch.testing.assert_close(tuned.model.eval()(input_ids=ids).logits, by_hand)
    with pytest.raises(ModelError, match="cannot be merged"):
        merged(tuned.model)


def test_a_prompt_is_refused_where_the_last_place_is_read(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50,
        num_labels=3, pad_token_id=0,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="hides from this model where a text ends"):
        tune(LlamaForSequenceClassification(config), config_of(tmp_path, "tune=prompt"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("tune=adalora", "sync=diloco"), "only with sync.policy: allreduce"),
        (("tune=adalora", "sync=auto"), "only with sync.policy: allreduce"),
        (("tune=adalora", "layout=2"), "every worker needs the whole"),
        (("tune=adalora", "train.optimizer=muon"), "single numbers"),
        (("tune=lora", "train.optimizer=adafactor"), "begins at nothing"),
        (("tune=prompt", "task=tag"), "no places of the text"),
        (("tune=lora", "task=chat", "layout.tensor=2"), "layout.shard alone"),
        (("tune=last", "task=language_model", "memory=2GB"), "memory.budget"),
        (("tune=lora", "model={size: 1M}"), "a new one knows nothing"),
    ],
)
def test_what_does_not_go_together_is_refused(bert: Path, words: tuple[str, ...], reason: str) -> None:
    with pytest.raises(Exception, match=reason):
        config_of(bert, *words)


def test_weights_of_adapters_are_read_in_fp32(bert: Path, tmp_path: Path) -> None:
    place = adapters(bert, tmp_path / "adapters")
    found = adapters_in(place)
    assert found is not None
    file = place / "adapter_model.safetensors"
    save_file({name: w.bfloat16() for name, w in found.weights().items()}, file)
    assert {w.dtype for w in found.weights().values()} == {torch.float32}


@pytest.mark.parametrize("method", ["lora", "adalora"])
@pytest.mark.parametrize(
    ("task", "factory", "head"),
    [
        ("tag", AutoModelForTokenClassification, "classifier"),
        ("answer", AutoModelForQuestionAnswering, "qa_outputs"),
    ],
)
def test_heads_of_tags_and_answers_learn_as_a_whole(
    bert: Path, task: str, factory: Any, head: str, method: str
) -> None:
    model = factory.from_pretrained(bert)
    tuned = tune(model, config_of(bert, f"task={task}", f"tune={method}"))
    learns = {name for name, parameter in tuned.model.named_parameters() if parameter.requires_grad}
    of_head = {name for name in learns if f".{head}." in f".{name}"}
    assert of_head and all("lora" not in name for name in of_head)
    assert all("lora" in name for name in learns - of_head) and len(learns) > len(of_head)


SHAPE = {
    "vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 40,
}  # fmt: skip
#: The parts of a classifier that are not in the directory, so that `train.seed` draws them.
BODIES: dict[str, tuple[PreTrainedConfig, Any, set[str]]] = {
    "bert": (BertConfig(**SHAPE), AutoModelForMaskedLM, {"bert.pooler", "classifier"}),
    "distilbert": (
        DistilBertConfig(vocab_size=60, dim=16, hidden_dim=24, n_layers=2, n_heads=2, max_position_embeddings=40),
        AutoModelForMaskedLM,
        {"pre_classifier", "classifier"},
    ),
    "roberta": (RobertaConfig(**SHAPE), AutoModelForMaskedLM, {"classifier"}),
    "modernbert": (
        ModernBertConfig(
            **SHAPE, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
        ),
        AutoModel,
        {"head", "classifier"},
    ),
    "deberta": (DebertaV2Config(**SHAPE), AutoModel, {"pooler", "classifier"}),
    "electra": (ElectraConfig(**SHAPE, embedding_size=12), AutoModel, {"classifier"}),
}  # fmt: skip


def body_in(place: Path, family: str) -> Path:
    """A trained body without all that a classifier needs, as a directory."""
    architecture, factory, _ = BODIES[family]
    torch.manual_seed(7)
    factory.from_config(architecture).save_pretrained(place)
    return place


def blueprint_for(body: Path, config: Config) -> HeadedBlueprint:
    """Of a model for three labels, what is new of it drawn from the seed of `config`."""
    return draw_headed_blueprint(
        config.model,
        config.task.kind,
        vocabulary=60,
        labels=() if config.task.kind == "answer" else ("a", "b", "c"),
        length=16,
        seed=config.train.seed,
        pad=0,
        end=2,
    )


def disturb(model: torch.nn.Module) -> None:
    """As if it had learned: whatever can learn is another."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, mean=0.3, std=0.3)


@pytest.mark.parametrize("method", ["lora", "adalora", "ia3", "prompt"])
@pytest.mark.parametrize("family", BODIES)
def test_adapters_hold_all_that_was_drawn(family: str, method: str, tmp_path: Path) -> None:
    """Opened by peft on a model whose new parts were drawn from another seed, and by a run with another seed."""
    body = body_in(tmp_path / "body", family)
    config = config_of(body, f"tune={method}")
    blueprint = blueprint_for(body, config)
    tuned = tune(blueprint.build(), config)
    names = {n.split(".modules_to_save.")[0] for n, _ in tuned.model.named_parameters() if "modules_to_" in n}
    assert {name.removeprefix("base_model.") for name in names} == BODIES[family][2]
    disturb(tuned.model)
    place = tmp_path / "adapters"
    save_adapters(tuned.model, blueprint.build(), config, place)
    ids = torch.arange(5, 17)[None]
    alone = tuned.model if method == "prompt" else merged(tuned.model)
    expected = alone.eval()(input_ids=ids).logits
    torch.manual_seed(99)
    base = AutoModelForSequenceClassification.from_pretrained(body, num_labels=3)
    opened = PeftModel.from_pretrained(base, place).eval()
    torch.testing.assert_close(opened(input_ids=ids).logits, expected, rtol=1e-4, atol=2e-5)
    if method == "adalora":
        return  # begins no other run
    other = config_of(place, f"tune={method}", "train.seed=6")
    again = tune(blueprint_for(body, other).build(), other).model.eval()
    torch.testing.assert_close(again(input_ids=ids).logits, expected, rtol=1e-4, atol=2e-5)


def test_a_pooler_that_the_model_brings_stays_below_its_adapters(bert: Path) -> None:
    tuned = tune(model_of(bert), config_of(bert, "tune=lora"))
    learns = [n for n, p in tuned.model.named_parameters() if p.requires_grad and ".pooler." in n]
    assert learns and all("lora_" in name for name in learns)


def test_the_adapters_of_a_classifier_begin_one_of_tags(tmp_path: Path) -> None:
    """What only the classifier's head has does not hinder them."""
    body = body_in(tmp_path / "body", "bert")
    config = config_of(body, "tune=lora")
    blueprint = blueprint_for(body, config)
    tuned = tune(blueprint.build(), config)
    disturb(tuned.model)
    save_adapters(tuned.model, blueprint.build(), config, tmp_path / "adapters")
    tags = config_of(tmp_path / "adapters", "tune=lora", "task=tag")
    on = tune(blueprint_for(body, tags).build(), tags)
    query = "bert.encoder.layer.0.attention.self.query.lora_B.default.weight"
    assert torch.equal(on.model.state_dict()[query], tuned.model.state_dict()[query])
    assert "with a new head" in on.choices[0]


def test_the_head_of_an_answerer_is_saved_whatever_it_is_called(tmp_path: Path) -> None:
    body = body_in(tmp_path / "body", "modernbert")
    config = config_of(body, "task=answer", "tune=lora")
    blueprint = blueprint_for(body, config)
    tuned = tune(blueprint.build(), config)
    disturb(tuned.model)
    save_adapters(tuned.model, blueprint.build(), config, tmp_path / "adapters")
    ids = torch.arange(5, 17)[None]
    torch.manual_seed(99)
    base = AutoModelForQuestionAnswering.from_pretrained(body)
    opened = PeftModel.from_pretrained(base, tmp_path / "adapters").eval()
    expected = merged(tuned.model).eval()(input_ids=ids).start_logits
    torch.testing.assert_close(opened(input_ids=ids).start_logits, expected, rtol=1e-4, atol=2e-5)


def test_ia3_is_refused_where_its_places_are_not_known(tmp_path: Path) -> None:
    AutoModel.from_config(AlbertConfig(**SHAPE, embedding_size=16)).save_pretrained(tmp_path)
    config = config_of(tmp_path, "tune=ia3")
    with pytest.raises(ModelError, match=r"with albert: .*keys and values") as refused:
        tune(blueprint_for(tmp_path, config).build(), config)
    assert "distilbert" in str(refused.value) and "tune.method: lora" in str(refused.value)
