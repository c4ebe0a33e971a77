"""One strict schema; loading with every problem reported at once."""
