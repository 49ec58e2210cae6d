"""What the machine is and what it computes fast; services ask here instead of guessing."""
