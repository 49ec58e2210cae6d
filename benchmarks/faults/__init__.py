"""Faults of a running system, and what they cost."""
