"""What talks teach a small model: how it answers before and after, asked by transformers alone.

    make bench-chat DATA=DIR            (or: python -m benchmarks.chat.run --data DIR --help)

DIR holds `techdocs_en` (technical documents: what the first model reads, from nothing) and `aws_cli_howto_qa`
(questions how to do something with the AWS command line, and their answers: `examples/chat.yaml` with two workers). A
tenth of the help files, by the hash of their names, is kept aside; --asked questions of those are put to the model
before and after, by the same template, and it writes what is likeliest. Beside both: the answer to another question,
drawn at random, which has the manner of an answer and knows nothing of what was asked.

`nats a token`: of the right answer; `command`: how many replies hold an `aws SERVICE COMMAND`; `service` and
`right command`: in how many it is the right one; `ends`: how many end by themselves. Runs are kept one by one in
--out: what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.common import ROOT, describe_machine, machine_line, table, write_result
from benchmarks.kept import Kept, Result
from benchmarks.trained import train_to_the_end
from tutti import load_config
from tutti.config.task import TaskConfig
from tutti.tasks import make_writing_task

HERE = Path(__file__).resolve().parent
_COMMAND = re.compile(r"\baws ([a-z0-9-]+) ([a-z0-9-]+)")
_NEW_TOKENS, _AT_ONCE = 128, 25
Talk = dict[str, str]
#: Of each way, what stands in the table, in its order.
FIGURES = {
    "nats": "nats a token",
    "rougeL": "ROUGE-L",
    "command": "command",
    "service": "service",
    "right_command": "right command",
    "ends": "ends",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "chat", help="for the first model")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--asked", type=int, default=200)
    options = parser.parse_args()
    machine = describe_machine()
    kept = Kept(options.out / "chat", machine)
    options.work.mkdir(parents=True, exist_ok=True)
    learned, aside = _talks(options.data / "aws_cli_howto_qa" / "train.jsonl")
    asked = random.Random(0).sample(aside, min(options.asked, len(aside)))
    talks = options.work.absolute() / "talks.jsonl"
    talks.write_text("".join(json.dumps(talk) + "\n" for talk in learned), encoding="utf-8")
    base = _first_model(options.data.absolute() / "techdocs_en", options.work.absolute())
    for seed in range(options.seeds):
        found = kept.once(f"talks-{seed}", partial(_tune, options.work.absolute(), base, talks, asked, seed))
        if found is not None:
            print(f"seed {seed}: {found['after']}", flush=True)
            report(options.out, kept, machine)
    others = random.Random(1).sample(learned, len(asked))
    kept.once("drawn", lambda: {"drawn": _judge([talk["answer"] for talk in others], asked)})
    print("\n" + report(options.out, kept, machine).read_text())


def _talks(file: Path) -> tuple[list[Talk], list[Talk]]:
    """Those to learn from, and those of help files that are kept aside."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    told = [{key: line[key] for key in ("question", "answer", "file")} for line in lines]
    kept_aside = [int(hashlib.sha256(talk["file"].encode()).hexdigest(), 16) % 10 == 0 for talk in told]
    parts: tuple[list[Talk], list[Talk]] = ([], [])
    for talk, aside in zip(told, kept_aside, strict=True):
        parts[aside].append(talk)
    return parts


def _first_model(texts: Path, work: Path) -> Path:
    """A causal model that has read technical documents, as a directory."""
    words = [
        *("name=read", f"runs={work / 'runs'}", f"data.cache={work / 'cache'}", "model=4M", "replicas=2"),
        *(f"data.source={texts / 'train.jsonl'}", f"data.validation_source={texts / 'valid.jsonl'}"),
        *("data.sequence=256", "train.steps=500", "evaluate.prompts=[]"),
    ]
    export = work / "runs" / "read" / "export"
    if not export.exists():
        train_to_the_end(
            load_config(ROOT / "examples" / "your_text.yaml", words), resume=export.parent.exists()
        )
    return export


def _tune(work: Path, base: Path, talks: Path, asked: Sequence[Talk], seed: int) -> Result:
    """One run from `base`, and what both say."""
    words = [
        *(f"name=chat-{seed}", f"runs={work / 'runs'}", f"data.cache={work / 'cache'}", f"model={base}"),
        *(f"data.source={talks}", "task.fields={prompt: question, response: answer}"),
        *(f"train.seed={seed}", "replicas=2"),
    ]
    run = work / "runs" / f"chat-{seed}"
    config = load_config(ROOT / "examples" / "chat.yaml", words)
    finished = run / "report.json"
    result = json.loads(finished.read_text()) if finished.exists() else {}
    if result.get("state") != "finished":
        result = train_to_the_end(config, resume=run.exists())
    tokenizer = AutoTokenizer.from_pretrained(run / "export")  # whose template both are asked by
    before, after = (_ask(place, tokenizer, asked) for place in (base, run / "export"))
    keys = ("steps", "wall_seconds", "parameters", "precision")
    return {"before": before, "after": after, **{key: result[key] for key in keys}}


def _ask(place: Path, tokenizer: PreTrainedTokenizerFast, asked: Sequence[Talk]) -> dict[str, Any]:
    """Figures of what the model in `place` says, and three of its replies."""
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    replies, ended = [], 0
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
    for start in range(0, len(asked), _AT_ONCE):
        prompts = [_template(tokenizer, talk, answered=False) for talk in asked[start : start + _AT_ONCE]]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            written = model.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
                max_new_tokens=_NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )[:, inputs["input_ids"].shape[1] :]  # fmt: skip
        ended += int((written == tokenizer.eos_token_id).any(1).sum())
        replies += tokenizer.batch_decode(written, skip_special_tokens=True)
    shown = [
        {"question": talk["question"], "reply": reply}
        for talk, reply in zip(asked[:3], replies[:3], strict=True)
    ]
    found = _judge(replies, asked) | {"ends": ended / len(asked), "nats": _nats(model, tokenizer, asked)}
    return found | {"shown": shown}


def _nats(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, asked: Sequence[Talk]) -> float:
    """A token of the right answers, as far as they fit in the model."""
    lost, counted = 0.0, 0
    for talk in asked:
        given, whole = (
            tokenizer(_template(tokenizer, talk, answered=answered), add_special_tokens=False)["input_ids"]
            for answered in (False, True)
        )
        whole = whole[: model.config.max_position_embeddings]
        with torch.inference_mode():
            logits = model(torch.tensor([whole])).logits[0, len(given) - 1 : -1]
        wanted = torch.tensor(whole[len(given) :])
        lost += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
        counted += len(wanted)
    return lost / counted


def _template(tokenizer: PreTrainedTokenizerFast, talk: Talk, *, answered: bool) -> str:
    said = [{"role": "user", "content": talk["question"]}]
    if answered:
        said.append({"role": "assistant", "content": talk["answer"]})
    return str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=not answered))


def _judge(replies: Sequence[str], asked: Sequence[Talk]) -> dict[str, float]:
    """ROUGE-L, and what commands there are, of `replies`."""
    task = make_writing_task(TaskConfig.model_validate({"kind": "summarise"}))
    rouge = task.score(replies, [{"wanted": talk["answer"]} for talk in asked])["rougeL"]
    said = [_COMMAND.search(reply) for reply in replies]
    wanted = [_COMMAND.search(talk["answer"]) for talk in asked]
    both = [(a, b) for a, b in zip(said, wanted, strict=True) if a is not None and b is not None]
    return {
        "rougeL": rouge,
        "command": sum(found is not None for found in said) / len(asked),
        "service": sum(a[1] == b[1] for a, b in both) / len(asked),
        "right_command": sum(a[0] == b[0] for a, b in both) / len(asked),
    }


def report(out: Path, kept: Kept, machine: dict[str, Any]) -> Path:
    """The page and its JSON, of every run that is kept."""
    runs, drawn = kept.all("talks-*"), kept.all("drawn")
    ways = {
        "before": [runs[0]["before"]],
        "after": [run["after"] for run in runs],
        "the answer to another question": [one["drawn"] for one in drawn],
    }
    rows = [[way, *(_said(found, key) for key in FIGURES)] for way, found in ways.items() if found]
    replies = [
        f"- {shown['question']}\n\n```text\n{shown['reply'].strip()}\n```"
        for shown in runs[0]["after"]["shown"]
    ]
    page = (
        f"# What talks teach\n\n{machine_line(machine)}\n\n"
        f"A causal model of {runs[0]['parameters'] / 1e6:.1f}M parameters that had read technical documents, "
        f"{runs[0]['steps']:,} steps of `examples/chat.yaml`; mean (least to most) of the seeds: {len(runs)}.\n\n"
        + table(["", *FIGURES.values()], rows)
        + "\n\nThe first replies afterwards:\n\n"
        + "\n".join(replies)
    )
    return write_result(out, "chat", {"machine": machine, "runs": runs, "drawn": drawn}, page)


def _said(found: Sequence[dict[str, Any]], key: str) -> str:
    values = [one[key] for one in found if key in one]
    if not values:
        return ""
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.3f}{spread}"


if __name__ == "__main__":
    main()
