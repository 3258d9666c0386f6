"""Installing."""
