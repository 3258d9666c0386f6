"""A finished search as a folder: read, write, pick, compare."""
