"""Observes a run: metrics, trackers, alarms, console, forecast."""
