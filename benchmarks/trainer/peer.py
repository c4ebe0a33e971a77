"""The Hugging Face Trainer as a peer: an encoder learns a small labelled data set, as its documentation shows it.

    torchrun --nproc-per-node 2 -m benchmarks.trainer.peer RECIPE.json

One thread a process, gloo on the CPU, sub-words padded to the longest text of a batch; nothing of Tutti is imported.
Where the choice was ours, it favours the peer: texts are tokenized in one call, nothing is logged or shown.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nervaluate.evaluator import Evaluator
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

IGNORED = -100
Metrics = Callable[[Any], dict[str, float]]


class Rows(Dataset[dict[str, Any]]):
    """Tokenized texts with their labels."""

    def __init__(self, encoded: dict[str, list[Any]], labels: list[Any]) -> None:
        self.columns = {**encoded, "labels": labels}

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {name: column[number] for name, column in self.columns.items()}


class Clock(TrainerCallback):
    """Seconds from the first step's beginning to the last one's end, without validations and saves."""

    def __init__(self) -> None:
        self.steps_seconds = 0.0
        self._since = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.perf_counter()
        self.steps_seconds += now - self._since
        self._since = now

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._since = time.perf_counter()

    on_save = on_evaluate


def read_classified(path: str) -> tuple[list[str], list[str]]:
    """Texts and labels of a file with the columns `text` and `label`."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def read_tagged(path: str) -> tuple[list[list[str]], list[list[str]]]:
    """Words and tags of a CoNLL file."""
    texts: list[list[str]] = []
    tags: list[list[str]] = []
    for block in Path(path).read_text(encoding="utf-8").split("\n\n"):
        lines = [line.split("\t") for line in block.splitlines() if line.strip()]
        if lines:
            texts.append([line[0] for line in lines])
            tags.append([line[-1] for line in lines])
    return texts, tags


def classifier(recipe: dict[str, Any], tokenizer: Any) -> tuple[Any, Rows, Rows, Any, Metrics]:
    """Model, training and validation rows, collator and metrics."""
    parts = [read_classified(recipe[part]) for part in ("train", "dev")]
    names = sorted(set(parts[0][1]))
    train, dev = (
        Rows(
            tokenizer(texts, truncation=True, max_length=recipe["sequence"]),
            [names.index(label) for label in labels],
        )
        for texts, labels in parts
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        recipe["model"], num_labels=len(names), dtype=torch.float32
    )

    def metrics(prediction: Any) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions == prediction.label_ids).mean())}

    return model, train, dev, DataCollatorWithPadding(tokenizer), metrics


def tagger(recipe: dict[str, Any], tokenizer: Any) -> tuple[Any, Rows, Rows, Any, Metrics]:
    """The same of a model that tags words: the first sub-word of each is asked."""
    parts = [read_tagged(recipe[part]) for part in ("train", "dev")]
    kinds = sorted({tag[2:] for tags in parts[0][1] for tag in tags if tag != "O"})
    names = ["O", *(f"{place}-{kind}" for kind in kinds for place in "BI")]

    def rows(texts: list[list[str]], tags: list[list[str]]) -> Rows:
        encoded = tokenizer(texts, is_split_into_words=True, truncation=True, max_length=recipe["sequence"])
        labels = []
        for number, of_text in enumerate(tags):
            words, line = encoded.word_ids(number), []
            for before, word in zip([None, *words], words, strict=False):
                asked = word is not None and word != before
                line.append(names.index(of_text[word]) if asked else IGNORED)
            labels.append(line)
        return Rows(encoded, labels)

    train, dev = rows(*parts[0]), rows(*parts[1])
    model = AutoModelForTokenClassification.from_pretrained(
        recipe["model"], num_labels=len(names), dtype=torch.float32
    )

    def metrics(prediction: Any) -> dict[str, float]:
        # By labels alone: the sampler that groups by length has its own order for validation, too. No text
        # of this data set is cut.
        asked: NDArray[np.bool_] = prediction.label_ids != IGNORED
        true, said = (
            [[names[number] for number in line[there]] for line, there in zip(answers, asked, strict=True)]
            for answers in (prediction.label_ids, prediction.predictions)
        )
        strict = Evaluator(true, said, tags=kinds, loader="list").evaluate()["overall"]["strict"]
        return {"f1": float(strict.f1)}

    return model, train, dev, DataCollatorForTokenClassification(tokenizer), metrics


TASKS = {"intents": classifier, "names": tagger}


def main() -> None:
    recipe = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(recipe["model"])
    model, train, dev, collator, metrics = TASKS[recipe["task"]](recipe, tokenizer)
    clock = Clock()
    arguments = TrainingArguments(
        output_dir=recipe["output"],
        max_steps=recipe["steps"],
        per_device_train_batch_size=recipe["batch"] // int(os.environ["WORLD_SIZE"]),
        per_device_eval_batch_size=recipe["batch"] // int(os.environ["WORLD_SIZE"]),
        train_sampling_strategy="group_by_length" if recipe["grouped"] else "random",
        learning_rate=recipe["learning_rate"],
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": recipe["final_learning_rate"]},
        warmup_steps=recipe["warmup"],
        weight_decay=recipe["weight_decay"],
        adam_beta1=recipe["betas"][0],
        adam_beta2=recipe["betas"][1],
        max_grad_norm=recipe["clip"],
        optim="adamw_torch_fused",
        bf16=recipe["precision"] == "bf16",
        use_cpu=True,
        ddp_backend="gloo",
        ddp_find_unused_parameters=False,
        eval_strategy="steps",
        eval_steps=recipe["every"],
        save_strategy="steps",
        save_steps=recipe["every"],
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=recipe["metric"],
        greater_is_better=True,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=recipe["seed"],
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=dev,
        data_collator=collator,
        compute_metrics=metrics,
        preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1),
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model(f"{recipe['output']}/best")
    if trainer.is_world_process_zero():
        found = {"quality": trainer.state.best_metric, "steps_seconds": clock.steps_seconds}
        Path(recipe["result"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
