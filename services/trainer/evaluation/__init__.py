"""Measures the policy on held-out questions and writes the report."""
