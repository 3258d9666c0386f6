"""Pareto fronts and intervals."""
