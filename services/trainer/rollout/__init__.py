"""Questions to groups of scored episodes, recorded as they finish."""
