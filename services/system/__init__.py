"""The three services as one system: launcher, supervisor, admin token."""
