"""Whether a schedule holds elsewhere."""
