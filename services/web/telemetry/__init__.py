"""What every service tells of its requests: logs, ids, counters of refusals."""
