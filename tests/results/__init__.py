"""The folder of a search."""
