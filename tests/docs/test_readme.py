import re
from pathlib import Path

import pytest

from search import Schedule
from search.models.pixart import PixArt


def test_pictures_and_links_of_the_readme_are_there(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)h#][^)]*)\)", text):
        assert (root / link).exists(), link
    assert "python -m search +space=cache model=pixart" in text


def test_the_production_code_runs_as_printed(root, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.S)
    model = PixArt()
    parts = {"plan": {"rules": [["transformer_blocks.*:*", "(CR)*10"]]}}
    made = Schedule.from_dict(model.target.schedule(parts)).with_made({"call": dict(model.arguments)})
    made.save(tmp_path / "schedule.json")
    (tmp_path / "search").symlink_to(Path(root) / "search")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert names["image"].size == (64, 64)
    assert names["schedule"].digest == made.digest


@pytest.mark.parametrize("folder", ["search", "spaces", "objectives", "kernels", "conf", "tests", "runs", "benchmarks"])
def test_the_top_level_folders_are_there(root, folder):
    assert (root / folder).is_dir()
