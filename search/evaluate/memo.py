"""What was measured is never measured again: values and final latents by schedule digest, in SQLite."""

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

Values = Mapping[str, list[float]]
EVERY = 64  # latents kept, after which the limit is looked at
LIMIT = 2**31  # bytes of latents: of the bundled models hundreds of thousands, of FLUX at 1024 pixels a few hundred


class Memo:
    """Values by (context, digest), and final latents, from which new values follow without a run.

    A context names all else that they depend on: model and weights, prompts, noise. Any number of processes may use
    one file. Where the latents exceed `limit` bytes the oldest go.
    """

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self._base, self.limit, self._kept = sqlite3.connect(path, timeout=60), limit, 0
        self._base.execute("pragma journal_mode=wal")
        self._base.execute("pragma synchronous=normal")  # a power cut may cost the last values, never the file
        with self._base:
            self._base.execute(
                "create table if not exists memo (context text, digest text, name text, value text, "
                "primary key (context, digest, name))"
            )
            self._base.execute(
                "create table if not exists latents (id integer primary key, context text, digest text, dtype text, "
                "shape text, size integer, data blob, unique (context, digest))"
            )

    def get(self, context: str, digest: str) -> dict[str, list[float]]:
        """All known per-prompt values, `{}` where there are none."""
        rows = self._base.execute("select name, value from memo where context = ? and digest = ?", (context, digest))
        return {name: json.loads(value) for name, value in rows}

    def put(self, context: str, digest: str, values: Values) -> None:
        rows = [(context, digest, name, json.dumps(value)) for name, value in values.items()]
        with self._base:
            self._base.executemany("insert or replace into memo values (?, ?, ?, ?)", rows)

    def latents(self, context: str, digest: str) -> Tensor | None:
        """Final latents [P, ...] of a schedule, bit for bit; None where they are not known."""
        query = "select dtype, shape, data from latents where context = ? and digest = ?"
        found = self._base.execute(query, (context, digest)).fetchone()
        if found is None:
            return None
        dtype, shape, data = found
        return torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).reshape(json.loads(shape))

    def keep(self, context: str, digest: str, latents: Tensor) -> None:
        """Remember final latents."""
        data = latents.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        if len(data) > self.limit:
            return
        row = (context, digest, str(latents.dtype).removeprefix("torch."), json.dumps(list(latents.shape)), len(data))
        with self._base:
            self._base.execute(
                "insert or replace into latents (context, digest, dtype, shape, size, data) values (?, ?, ?, ?, ?, ?)",
                (*row, data),
            )
        if self._kept % EVERY == 0:
            self._shrink()
        self._kept += 1

    def _shrink(self) -> None:
        """Forget the oldest latents, a tenth more than needed, so that this is rare."""
        (held,) = self._base.execute("select coalesce(sum(size), 0) from latents").fetchone()
        if held > self.limit:
            with self._base:
                self._base.execute(
                    "delete from latents where id in (select id from (select id, sum(size) over (order by id) as upto "
                    "from latents) where upto <= ?)",
                    (held - 0.9 * self.limit,),
                )

    def close(self) -> None:
        self._base.close()
