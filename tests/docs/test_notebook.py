"""The cells of docs/notebook.md, run one after the other as they stand there."""

import re
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_cells_run_as_printed(root, tmp_path, monkeypatch):
    cells = re.findall(r"```python\n(.*?)```", (root / "docs/notebook.md").read_text(encoding="utf-8"), re.S)
    assert len(cells) == 7
    (tmp_path / "search").symlink_to(root / "search")  # for the path of the bundled pipeline
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for cell in cells:
        exec(cell, names)
    assert names["image"].size == (64, 64)
    assert names["choice"].schedule == names["choice"].schedule
    assert "<" in names["result"]._repr_html_() and names["explanation"]._repr_png_()[:4] == b"\x89PNG"
    assert Path("report.html").stat().st_size > 100_000
    assert names["verdict"].exit_code in (0, 3)
