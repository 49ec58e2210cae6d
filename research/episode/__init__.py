"""One episode: the agent that writes and searches, its protocol and tags, and what a finished episode shows."""
