"""`POST /answer`: from a question to an answer, with its trace."""
