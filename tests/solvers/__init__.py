"""Solvers as tables of coefficients."""
