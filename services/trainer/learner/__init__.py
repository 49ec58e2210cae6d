"""Episodes to a gradient step: advantages, micro-batches, loss, optimizer."""
