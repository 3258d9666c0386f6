"""The report of a search as one HTML page that loads nothing from the network: report.html with its content.

Names, prompts and all other foreign text is in the page as JSON only and is shown as text; besides, the page's content
security policy allows no script but the two whose digests it names.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from search.figures.report.content import report_content
from search.results.result import Entry, Result

Track = Callable[[Sequence[Entry]], Iterable[Entry]]


def report_page(result: Result, track: Track = iter) -> str:
    """The HTML of the report.

    Args:
        result: The result with its pictures.
        track: Wraps the entries whose pictures are encoded one by one, for progress bars.
    """
    from plotly.offline import get_plotlyjs

    data = json.dumps(report_content(result, track), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    texts = get_plotlyjs(), _file("report_plan.js") + _file("report.js")
    plotly, script = (text.replace("\r\n", "\n").strip() for text in texts)  # as browsers compute the digests
    parts = {
        "title": html.escape(f"{result.model}, {result.space}: schedules"),
        "policy": html.escape(_policy(plotly, script)),
        "style": _file("report.css"),
        "plotly": plotly,
        "data": data.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"),  # no text can end it
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _file("report.html"))


def _policy(*scripts: str) -> str:
    """Content security policy: these scripts, styles and pictures in the page, and nothing else."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
