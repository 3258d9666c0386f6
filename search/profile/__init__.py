"""What is known of a model without running a picture: its nodes, its costs."""
