"""Domination, hypervolume and intervals."""
