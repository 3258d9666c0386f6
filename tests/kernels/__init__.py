"""Kernels against their plain-torch reference."""
