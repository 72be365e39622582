"""Monitoring: objectives, alerts, a dashboard, and the files that Prometheus and its friends read."""
