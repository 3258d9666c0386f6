"""Solvers as linear tables."""
