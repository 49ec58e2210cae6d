"""What the HTTP sides of all services share: tokens, errors, bounds. It imports none of them."""
