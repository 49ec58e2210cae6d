"""Pages of the web: fetched politely and from public addresses alone, read as text, recorded."""
