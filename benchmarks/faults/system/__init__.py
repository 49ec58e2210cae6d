"""The services under test, and what stands between them."""
