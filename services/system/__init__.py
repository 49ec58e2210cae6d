"""The three services as one system: launcher, supervisor, administrator's token."""
