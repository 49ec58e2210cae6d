"""Reads fetched pages as text, in processes of their own."""
