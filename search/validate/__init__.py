"""Whether a schedule holds elsewhere, why, and how to carry it over."""
