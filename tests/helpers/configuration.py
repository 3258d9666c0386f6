"""The configuration of a search."""

from search.config.compose import composed, normalise
from search.config.settings import Config


def config(runs, uri="null", name="tiny"):
    return Config.check(composed(normalise([f"model.name={name}", f"runs={runs}", f"tracking.uri={uri}"])))
