"""Exact algorithms on tables of costs and errors: segments, knapsacks, shortest paths."""
