"""Programs on top of the services: bench, study, inspect, export."""
