"""Read prompts from a text file."""

from pathlib import Path

from search.config.settings import CONF
from search.files import read_regular_file

MAX_BYTES = 2**26


def read_prompts(path: str) -> list[str]:
    """The prompts of a text file, one per line; lines that begin with # are comments.

    `path` is a file, or the name of one in conf/prompts. ValueError if there is none or it has no prompt.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        file = CONF / "prompts" / path
    hint = "use prompts.calibration=<text file, one prompt a line> and prompts.held_out=<another>"
    if not file.is_file():
        raise ValueError(f"no prompt file {path!r}, here or among those that ship with the project; {hint}")
    try:
        text = read_regular_file(file, MAX_BYTES).decode("utf-8-sig")
        lines = [line.strip() for line in text.splitlines()]
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise ValueError(f"prompt file {path!r} is not UTF-8 text ({reason}); {hint}") from None
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"no prompt in {path!r}; {hint}")
    return prompts
