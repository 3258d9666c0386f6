"""A contract by observation: watch one call of a pipeline, say what can be planned, and prove it."""
