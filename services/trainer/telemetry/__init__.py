"""What a step shows: metrics, trackers, alarms, console, forecast."""
