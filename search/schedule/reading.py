"""Read and check a schedule file: bounded, closed, and with errors that name the field."""

import json
from typing import Any

from pydantic import ValidationError

from search.schedule.document import FORMAT, Document, document_digest
from search.schedule.errors import ScheduleError
from search.schedule.parts.part import check_data

MAX_BYTES = 4 * 2**20


def parse_document(text: str | bytes) -> Document:
    """Read a schedule file's content. ScheduleError names the field and the value; nothing else is raised."""
    if len(text) > MAX_BYTES:
        raise ScheduleError(f"the file has more than the {MAX_BYTES} bytes that a schedule may have")
    try:
        data = json.loads(text)
    except RecursionError:
        raise ScheduleError("this is not a schedule: its JSON is nested too deep") from None
    except ValueError as error:
        raise ScheduleError(f"this is not a complete JSON file: {error}") from None
    return validate_document(data)


def validate_document(data: Any) -> Document:
    """Check a decoded document, and its digest where it has one; ScheduleError names the field and the value."""
    if not isinstance(data, dict):
        raise ScheduleError(f"a schedule is a JSON object, not {type(data).__name__}")
    try:
        check_data(data, "file")
        _check_format(data.get("format", None))
        document = Document.model_validate_json(json.dumps(data))
        digest = document_digest(document)
    except ValidationError as error:
        raise ScheduleError(_explain(error)) from None
    if document.digest not in (None, digest):
        raise ScheduleError(
            f"digest is {document.digest!r}, but the content gives {digest!r}: the file was edited; "
            "remove the digest field to accept it as it is"
        )
    return document


def _check_format(value: Any) -> None:
    name, slash, major = value.partition("/") if isinstance(value, str) else ("", "", "")
    if name != "schedule" or not slash or not (major.isascii() and major.isdecimal()) or len(major) > 6:
        raise ScheduleError(f"format is {str(value)[:60]!r}; the format of a schedule file is {FORMAT!r}")
    if int(major) != 1:
        raise ScheduleError(f"format is {value!r}, this version reads {FORMAT!r}: upgrade diffusion-schedule-search")


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if isinstance(inner := first.get("ctx", {}).get("error"), ScheduleError):
        return str(inner)
    parts = [str(part) for part in first["loc"] if part != "int" and not str(part).startswith("list[")]  # of a union
    place = ".".join(parts)[:200] or "file"
    if first["type"] == "extra_forbidden":
        names = ", ".join(field.alias or name for name, field in Document.model_fields.items())
        return f"{place} is not a field of {FORMAT} in this version; the fields at the top are {names}"
    return f"{place} is {str(first.get('input'))[:80]!r}: {first['msg']}"
