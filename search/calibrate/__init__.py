"""What is measured before a search, and the rows that follow from it."""
