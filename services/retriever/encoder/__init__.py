"""Texts to unit vectors, by torch or ONNX Runtime."""
