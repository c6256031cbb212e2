"""Rationale: recommendations that reason, end to end on Ray."""

__version__ = "0.1.0"
