"""The search itself: ask, decode, evaluate, tell, log, checkpoint; then held-out scores and files."""
