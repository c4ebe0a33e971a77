"""Tutti: all your machines, one model."""

__version__ = "0.1.0"
