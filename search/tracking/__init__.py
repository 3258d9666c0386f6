"""What MLflow gets: runs while a search goes on and at its end, charts, registered schedules, what has to wait."""
