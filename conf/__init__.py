"""The configuration groups. Hydra's `pkg://search.conf` asks for this file."""
