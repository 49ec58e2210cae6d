"""`research audit`: what a corpus can answer of a question set."""
