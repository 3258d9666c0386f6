"""The parts of a schedule file."""
