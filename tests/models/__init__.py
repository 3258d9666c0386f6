"""Adapters of model families."""
