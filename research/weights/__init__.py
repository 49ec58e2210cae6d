"""Directories of weights that a run publishes: checksums, origin and quality."""
