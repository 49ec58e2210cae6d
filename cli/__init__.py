"""The command line: it alone knows all services."""
