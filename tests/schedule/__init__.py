"""The schedule file, plans, and schedules on pipelines."""
