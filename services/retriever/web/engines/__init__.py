"""The search engines: how each is asked, and how its answer is read."""
