"""From candidates to scores."""
