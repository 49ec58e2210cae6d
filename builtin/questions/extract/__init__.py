"""Facts from Wikipedia articles, kind by kind, each with the words that say it."""
