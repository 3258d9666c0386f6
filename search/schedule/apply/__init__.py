"""A schedule at work on a live pipeline."""
