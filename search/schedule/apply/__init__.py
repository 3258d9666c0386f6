"""Applying a schedule to a live pipeline."""
