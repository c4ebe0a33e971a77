"""What a model is worth: loss and bits per byte on any samples."""

from tutti.evaluate.loss import Evaluation, spread, sum_losses

__all__ = ["Evaluation", "spread", "sum_losses"]
