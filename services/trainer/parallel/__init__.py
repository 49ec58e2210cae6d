"""Several processes as one: who they are, what they say to each other, and how a model and its work are divided."""
