"""Builds an index from passages and measures its recall."""
