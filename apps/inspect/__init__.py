"""Reads the episodes of a run: in the terminal and as one HTML page."""
