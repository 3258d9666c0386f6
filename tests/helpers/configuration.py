"""The configuration of a search."""

from search.config.compose import compose_config, normalise_overrides
from search.config.settings import Config


def config(runs, uri="null", name="tiny"):
    return Config.check(
        compose_config(normalise_overrides([f"model.name={name}", f"runs={runs}", f"tracking.uri={uri}"]))
    )
