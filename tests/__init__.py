"""The tests; README.md says where each belongs."""
