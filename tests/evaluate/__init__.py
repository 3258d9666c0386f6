"""Scores of candidates, and how they are run."""
