"""What a search is in MLflow."""
