"""Let an alias of the model registry name a schedule of a finished search."""

from dataclasses import dataclass
from pathlib import Path

from search.results.front import load_schedule, read_front
from search.results.pick import pick_entries
from search.tracking import registry


@dataclass(frozen=True)
class Promoted:
    """Where an alias points now; `before` is the version that had it."""

    model: str
    alias: str
    version: str
    before: str | None
    schedule: str
    store: str

    def __str__(self) -> str:
        was = {None: "new", self.version: "as before"}.get(self.before, f"was version {self.before}")
        return f"{self.alias} of {self.model} is version {self.version} ({was}): {self.schedule}"


def move_alias(folder: Path, pick: str, alias: str, runs: Path, uri: str | None) -> Promoted:
    """Move the alias to the picked schedule, which becomes a version where it is none; ValueError says what to type."""
    if pick == "all":
        raise ValueError("pick=all: an alias names one schedule; type pick=recommended, or a condition")
    entry = pick_entries(read_front(folder), pick)[0]
    name, address = registry.registered_model_of(folder, runs, uri)
    key = registry.registry_key(entry["role"], entry["name"], load_schedule(folder, entry).digest)
    version, before = registry.promote(address, name, key, folder.name, alias)
    return Promoted(name, alias, version, before, f"{entry['name']} of {folder.name}", address)
