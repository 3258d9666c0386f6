"""Whole searches."""
