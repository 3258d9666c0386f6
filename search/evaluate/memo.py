"""Remembers measurements: values and final latents by schedule digest, in SQLite."""

import errno
import json
import logging
import math
import os
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from search.files import is_inside

log = logging.getLogger("search")
Values = Mapping[str, list[float]]
Result = TypeVar("Result")
EVERY = 64  # latents added, after which the limit is checked
LIMIT = 2**31  # bytes of latents: of the bundled models hundreds of thousands, of FLUX at 1024 pixels a few hundred
PATIENCE = 60.0  # seconds to wait while another process has the file locked
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
_VALUES = TypeAdapter(Annotated[list[Annotated[float, Field(strict=True)]], Field(max_length=100_000)])
_SIZE = Annotated[int, Field(strict=True, ge=1, le=2**31)]
_SHAPE = TypeAdapter(Annotated[list[_SIZE], Field(min_length=1, max_length=8)])
BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH}
CLOSED = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
}


class Memo:
    """Values by (context, digest), and final latents, from which new values follow without a run.

    A context names all else that they depend on: model and weights, prompts, noise. Any number of processes can use
    one file. A faulty file does not end a search: a damaged file is renamed to `<name>.broken.sqlite` and a new one
    started; where the file is locked for a minute or cannot be written, `spare` is used instead. The last values that
    were put are copied to the new file.

    Args:
        path: The file.
        limit: Bytes of latents, beyond which the oldest are deleted.
        spare: The file that is used where `path` cannot be.
        on_message: Called with a text where a file is replaced.
        patience: Seconds to wait for a locked file.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from search.evaluate.memo import Memo
        >>> memo = Memo(Path(tempfile.mkdtemp()) / "memo.sqlite")
        >>> memo.put("pixart, 8 prompts", "sha256:0", {"drift": [0.1, 0.2]})
        >>> memo.get("pixart, 8 prompts", "sha256:0")
        {'drift': [0.1, 0.2]}
    """

    def __init__(
        self,
        path: Path,
        limit: int = LIMIT,
        spare: Path | None = None,
        on_message: Callable[[str], None] = log.warning,
        patience: float = PATIENCE,
    ) -> None:
        self.path, self.limit, self.spare, self.patience = path, limit, spare, patience
        self.on_message = on_message
        self._added = self._file = 0
        self._last: tuple[tuple[str, str], dict[str, list[float]], Tensor | None] | None = None
        self._base: sqlite3.Connection | None = None
        self._do(lambda base: None)

    def get(self, context: str, digest: str) -> dict[str, list[float]]:
        """All remembered per-prompt values by name, `{}` where there are none."""
        query = "select name, value from memo where context = ? and digest = ?"
        rows = self._do(lambda base: base.execute(query, (context, digest)).fetchall())
        return {name: values for name, text in rows if (values := _checked_values(text)) is not None}

    def put(self, context: str, digest: str, values: Values) -> None:
        """Remember per-prompt values by name."""
        rows = [(context, digest, name, json.dumps(value)) for name, value in values.items()]
        self._do(lambda base: base.executemany("insert or replace into memo values (?, ?, ?, ?)", rows))
        values_before, latents = self._latest(context, digest)
        self._last = (context, digest), values_before | dict(values), latents

    def latents(self, context: str, digest: str) -> Tensor | None:
        """Final latents [P, ...] of a schedule, bit for bit; None where they are not remembered."""
        query = "select dtype, shape, data from latents where context = ? and digest = ?"
        row = self._do(lambda base: base.execute(query, (context, digest)).fetchone())
        if row is None:
            return None
        return _checked_latents(*row)

    def put_latents(self, context: str, digest: str, latents: Tensor) -> None:
        """Remember final latents [P, ...]; the oldest of all schedules go where `limit` is exceeded."""
        data = latents.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        if len(data) > self.limit:
            return
        row = (context, digest, str(latents.dtype).removeprefix("torch."), json.dumps(list(latents.shape)), len(data))
        query = "insert or replace into latents (context, digest, dtype, shape, size, data) values (?, ?, ?, ?, ?, ?)"
        self._do(lambda base: base.execute(query, (*row, data)))
        self._last = (context, digest), self._latest(context, digest)[0], latents
        if self._added % EVERY == 0:
            self._do(self._shrink)
        self._added += 1

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        if self._base is not None:
            self._base.close()
            self._base = None

    def _shrink(self, base: sqlite3.Connection) -> None:
        """Delete the oldest latents, a tenth more than needed, so that this is rare."""
        (held,) = base.execute("select coalesce(sum(size), 0) from latents").fetchone()
        if held > self.limit:
            base.execute(
                "delete from latents where id in (select id from (select id, sum(size) over (order by id) as upto "
                "from latents) where upto <= ?)",
                (held - 0.9 * self.limit,),
            )

    def _latest(self, context: str, digest: str) -> tuple[dict[str, list[float]], Tensor | None]:
        """The last values and latents that this process put, if those are of this schedule."""
        if self._last is None or self._last[0] != (context, digest):
            return {}, None
        return self._last[1], self._last[2]

    # Faults of the file

    def _do(self, action: Callable[[sqlite3.Connection], Result]) -> Result:
        """An action as one transaction, on another file where this one cannot be used."""
        for _ in range(3):  # the file is renamed, or replaced by the spare, or both
            try:
                if self._base is None:
                    self._base = self._open()
                with self._base:
                    return action(self._base)
            except sqlite3.DatabaseError as error:
                code = getattr(error, "sqlite_errorcode", -1) & 0xFF
                self._change(error, code)
        raise OSError(errno.EIO, f"neither {self.path} nor another memo can be used")

    def _open(self) -> sqlite3.Connection:
        for part in (self.path.with_name(self.path.name + ending) for ending in ("", "-wal", "-shm", "-journal")):
            if os.path.lexists(part) and not (part.is_file() and is_inside(part, part.parent)):
                raise ValueError(f"{part} is not a file of this folder; remove it, or type runs=<another folder>")
        self._file = _number(self.path)
        base = sqlite3.connect(self.path, timeout=self.patience)
        try:
            if base.execute("select count(*) from sqlite_master where type in ('view', 'trigger')").fetchone()[0]:
                base.close()
                raise _foreign_file()
            base.execute("pragma journal_mode=wal")
            base.execute("pragma synchronous=normal")  # a power cut can lose the last values, never the file
            with base:
                base.execute(
                    "create table if not exists memo (context text, digest text, name text, value text, "
                    "primary key (context, digest, name))"
                )
                base.execute(
                    "create table if not exists latents (id integer primary key, context text, digest text, "
                    "dtype text, shape text, size integer, data blob, unique (context, digest))"
                )
            self._file = _number(self.path)
            return base
        except BaseException:
            base.close()
            raise

    def _change(self, error: sqlite3.DatabaseError, code: int) -> None:
        """Use another file, with the last values that were put; raises errors that are not faults of the file."""
        if code == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, f"no room for {self.path}") from error
        if code in BROKEN:
            self.close()
            self._rename_broken(error)
        elif code in CLOSED and self.spare is not None and self.spare != self.path:
            self.close()
            self.on_message(f"{self.path} cannot be used ({error}); this search keeps what it measures in {self.spare}")
            self.path, self.spare = self.spare, None
        else:
            raise error
        if self._last is not None:
            (context, digest), values, latents = self._last
            if latents is not None:
                self.put_latents(context, digest, latents)
            self.put(context, digest, values)

    def _rename_broken(self, error: sqlite3.DatabaseError) -> None:
        """Rename the file, unless another process already did."""
        if not self._file or _number(self.path) != self._file:
            return
        broken = self.path.with_name(f"{self.path.stem}.broken{self.path.suffix}")
        for ending in ("-wal", "-shm", ""):  # the file last: without its log no process can read it
            part = self.path.with_name(self.path.name + ending)
            if part.exists():
                part.replace(broken.with_name(broken.name + ending))
        self.on_message(f"{self.path} is damaged ({error}); it is now {broken.name}, and a new one is started")


def _foreign_file() -> sqlite3.DatabaseError:
    """The error of a database with views or triggers, which would run on every question; none of ours has any."""
    error = sqlite3.DatabaseError("it is the database of another program")
    error.sqlite_errorcode = sqlite3.SQLITE_NOTADB
    return error


def _checked_values(text: Any) -> list[float] | None:
    """A list of numbers from its JSON; None, as if it had never been put, where it is anything else."""
    try:
        return _VALUES.validate_json(text)
    except ValidationError:
        return None


def _checked_latents(dtype: Any, shape: Any, data: Any) -> Tensor | None:
    """A tensor from its type, shape and bytes; None, as if it had never been put, where these do not fit together."""
    try:
        sizes, kind = _SHAPE.validate_json(shape), TYPES[dtype]
        if not isinstance(data, bytes) or math.prod(sizes) * kind.itemsize != len(data) or not data:
            return None
        return torch.frombuffer(bytearray(data), dtype=kind).reshape(sizes)
    except (ValidationError, KeyError, TypeError):
        return None


def _number(path: Path) -> int:
    """Which file has this name; 0 where none has."""
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0
