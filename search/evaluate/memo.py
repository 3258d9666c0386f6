"""What was measured is never measured again: per-prompt values by schedule digest, in SQLite."""

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path

Values = Mapping[str, list[float]]


class Memo:
    """Values by (context, digest). A context names all else that a value depends on: model, prompts, noise."""

    def __init__(self, path: Path) -> None:
        self._base = sqlite3.connect(path, timeout=60)
        self._base.execute("pragma journal_mode=wal")
        self._base.execute(
            "create table if not exists memo (context text, digest text, name text, value text, "
            "primary key (context, digest, name))"
        )
        self._base.commit()

    def get(self, context: str, digest: str) -> dict[str, list[float]]:
        """All known per-prompt values, `{}` where there are none."""
        rows = self._base.execute("select name, value from memo where context = ? and digest = ?", (context, digest))
        return {name: json.loads(value) for name, value in rows}

    def put(self, context: str, digest: str, values: Values) -> None:
        rows = [(context, digest, name, json.dumps(value)) for name, value in values.items()]
        with self._base:
            self._base.executemany("insert or replace into memo values (?, ?, ?, ?)", rows)

    def close(self) -> None:
        self._base.close()
