"""What is measured of a model before a search, and the rows that are proposed from it."""
