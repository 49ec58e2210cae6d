"""What the machine is and what it computes well; services ask here instead of guessing."""
