"""What disturbances cost a run: stalls, recovery, lost and repeated work, from its events alone."""

from tutti.observe.resilience.report import resilience_figures, resilience_rows, write_resilience_report

__all__ = ["resilience_figures", "resilience_rows", "write_resilience_report"]
