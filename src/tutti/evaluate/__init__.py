"""What a model is worth: loss and bits per byte on any samples."""

from tutti.evaluate.loss import (
    Answering,
    Evaluation,
    answers_in,
    evaluation_numbers,
    listening,
    spread,
    sum_losses,
)

__all__ = ["Answering", "Evaluation", "answers_in", "evaluation_numbers", "listening", "spread", "sum_losses"]
