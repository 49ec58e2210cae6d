"""`POST /answer`: a question to an answer, with its trace."""
