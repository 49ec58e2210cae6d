"""A checkpoint as a model directory with a model card."""
