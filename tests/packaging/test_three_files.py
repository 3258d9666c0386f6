"""A space, an objective and an engine of three files each: code, YAML, test. No list has to be edited."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.repository import ROOT

pytestmark = pytest.mark.slow
FOLDERS = ("search", "spaces", "objectives", "kernels", "conf", "tests")
EXAMPLES = ROOT / "docs" / "examples" / "my_conf"
FILES = {
    "spaces/period.py": (EXAMPLES / "period.py").read_text(),
    "conf/space/period.yaml": "# @package space.period\n_target_: search.spaces.period.PeriodSpace\nlongest: 5\n",
    "tests/spaces/test_period.py": """
import pytest
from search.spaces.period import PeriodSpace
from search.testing import SpaceContract

class TestPeriod(SpaceContract):
    @pytest.fixture
    def space(self):
        return PeriodSpace()
""",
    "objectives/nfe.py": (EXAMPLES / "nfe.py").read_text(),
    "conf/objective/nfe.yaml": "# @package objective.nfe\n_target_: search.objectives.nfe.Nfe\n",
    "tests/objectives/test_nfe.py": """
import pytest
from search.objectives.nfe import Nfe
from search.testing import CostContract

class TestNfe(CostContract):
    @pytest.fixture
    def objective(self):
        return Nfe()
""",
    "search/engines/hill.py": (EXAMPLES / "hill.py").read_text(),
    "conf/engine/hill.yaml": "_target_: search.engines.hill.HillEngine\n",
    "tests/engines/test_hill.py": """
from search.engines.hill import HillEngine
from search.testing import EvolutionContract

class TestHill(EvolutionContract):
    make = HillEngine
""",
}


def link(source: str, target: str) -> None:
    """A copy that takes no time where the file system can do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def test_what_goes_over_all_of_a_kind_finds_them_and_passes(tmp_path: Path) -> None:
    for folder in FOLDERS:
        shutil.copytree(
            ROOT / folder, tmp_path / folder, copy_function=link, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy2(ROOT / "pyproject.toml", tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k"),
            "period or nfe or hill",
            *(str(name) for name in FILES if name.startswith("tests/")),
            "tests/config/test_yaml.py",
            "tests/objectives/test_every_objective.py",
            "tests/engines/test_every_engine_on_every_space.py",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "failed" not in done.stdout and int(done.stdout.split(" passed")[0].split()[-1]) > 60
