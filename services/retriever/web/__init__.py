"""The web behind `/search`: search engines, a record of what they answered, and a cap on what they cost."""
