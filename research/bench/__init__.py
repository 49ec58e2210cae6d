"""The bench: every strategy against every question set, in records that cannot be mixed up."""
