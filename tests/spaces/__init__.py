"""Spaces: what their genes mean."""
