"""How weights go from the trainer's GPU to the policy's, where both ends must agree."""
