"""Where else a run can be looked at: TensorBoard, MLflow, Weights & Biases. They read events and nothing else."""

from tutti.observe.trackers.beside import Trackers, check_trackers

__all__ = ["Trackers", "check_trackers"]
