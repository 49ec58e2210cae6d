"""What load costs: refusals, overload, and an hour of everything at once."""
