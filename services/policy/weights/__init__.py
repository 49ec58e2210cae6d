"""Weights that change while vLLM serves: checks, transaction, transfer to the workers."""
