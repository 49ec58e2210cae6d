"""What the HTTP interfaces of all services share: tokens, errors, limits. It imports no service."""
