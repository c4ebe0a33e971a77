"""A training from its first sample to its last checkpoint: the step, the loop, its state and its worker."""
