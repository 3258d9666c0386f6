"""What a schedule knows of a denoiser: its contract, nodes, layers, identity."""
