"""Tiny models to run tests on: of random weights, and with everything that a real one has."""
