"""Queries of many requests become batches: queue, pipeline threads, queries in flight, result cache."""
