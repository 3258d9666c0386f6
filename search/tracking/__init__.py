"""MLflow: runs during a search and at its end, charts, registered schedules, and results that wait to be sent."""
