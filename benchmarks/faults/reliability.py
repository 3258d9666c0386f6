"""What was counted, in docs/reliability.md: each script fills its own place between two comments."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def write(name: str, text: str, page: Path = PAGE) -> None:
    """Put a text where `<!-- name -->...<!-- end -->` stands; ValueError where it does not."""
    before = page.read_text(encoding="utf-8")
    after, count = re.subn(rf"(<!-- {name} -->).*?(<!-- end -->)", lambda m: m[1] + text + m[2], before, flags=re.S)
    if count != 1:
        raise ValueError(f"{page} has {count} places <!-- {name} -->; it needs one")
    page.write_text(after, encoding="utf-8")
