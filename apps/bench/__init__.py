"""`research bench` and `research report`: run strategies on question sets, and report the results."""
