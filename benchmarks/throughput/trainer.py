"""The Hugging Face Trainer as a peer: its defaults, with gloo on the CPU and nothing saved or reported."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from benchmarks.throughput.windows import Windows, read_task
from benchmarks.turns import Turns


class Gate(TrainerCallback):
    """Waits for this peer's turn."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._loss: float | None = None

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if logs and "loss" in logs:
            self._loss = float(logs["loss"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._turns.before_step(self._loss)


def main() -> None:
    task = read_task(sys.argv[1])
    turns = Turns.of_environment(int(os.environ["RANK"]))
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output_dir=output,
            max_steps=1_000_000,
            per_device_train_batch_size=task["micro_batch"],
            learning_rate=task["learning_rate"],
            lr_scheduler_type="constant",
            weight_decay=0.1,
            optim="adamw_torch_fused",
            bf16=task["precision"] == "bf16",
            use_cpu=True,
            ddp_backend="gloo",
            torch_compile="compile" in sys.argv[2:],
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        Trainer(
            model=model,
            args=arguments,
            train_dataset=Windows(task["files"], task["sequence"], shifted=False),
            data_collator=default_data_collator,
            callbacks=[Gate(turns)],
        ).train()


if __name__ == "__main__":
    main()
