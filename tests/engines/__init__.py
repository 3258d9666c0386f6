"""Engines: which rows they ask for."""
