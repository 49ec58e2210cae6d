"""Prompt forms: how a model writes a search, is shown passages, and answers."""
