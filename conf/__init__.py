"""The configuration groups. This file makes the folder importable, which Hydra's `pkg://search.conf` asks for."""
