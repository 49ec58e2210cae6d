"""How our processes end: by signals, within seconds, and together with their parent."""
