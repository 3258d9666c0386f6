"""What runs at each step: actions, gates, guidance, batches."""
