"""The trained model: rows of episodes in, log-probabilities and a gradient out; adapters and memory."""
