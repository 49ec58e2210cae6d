"""The fault bench: real services, faults at chosen moments of a run, and what became of the run."""
