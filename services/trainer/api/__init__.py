"""The trainer's HTTP server: control, status page, metrics for Prometheus."""
