"""Raw text made fit to learn from: one small module per step, which `cleaner.Cleaner` runs and counts."""
