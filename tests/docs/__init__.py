"""The files that docs/ and README.md show."""
