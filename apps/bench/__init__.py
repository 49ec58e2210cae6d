"""`research bench` and `research report`: strategies against question sets, and what came of it."""
