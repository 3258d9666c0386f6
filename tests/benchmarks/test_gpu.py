"""The script for a GPU, small, on the CPU."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.denoisers import denoiser
from benchmarks.overhead import plans_of


@pytest.mark.slow
def test_every_part_writes_its_lines_and_is_run_once(root: Path, tmp_path: Path) -> None:
    command = ["benchmarks/gpu.sh", "--tiny", str(tmp_path)]
    first = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr + "".join(log.read_text()[-2000:] for log in tmp_path.glob("*.log"))
    lines = [json.loads(line) for line in first.stdout.splitlines()]
    assert {line["plan"] for line in lines if "plan" in line} >= {"all computed", "FORA N=2", "every other step"}
    assert [line["part"] for line in lines if "part" in line] == ["batching", "replay", "spill"]
    assert any(line.get("kernel") == "forecast" for line in lines)
    assert all(way["equal"] for line in lines if line.get("part") == "spill" for way in line["ways"].values())
    (tmp_path / "kernels.log").write_text("not run again")
    assert subprocess.run(command, cwd=root, capture_output=True, text=True).stdout == first.stdout
    assert (tmp_path / "kernels.log").read_text() == "not run again"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux_dev", "wan21_1_3b", "z_image_turbo", "qwen_image"])
def test_denoisers_of_the_script_run_without_arithmetic(name: str, root: Path) -> None:
    assert name in (root / "benchmarks" / "gpu.sh").read_text()
    subject = denoiser(name, 2, "meta", torch.bfloat16, 4)
    with torch.no_grad():
        subject.pipe.transformer(**subject.given)
    assert len(plans_of(subject)) == 5 and all(count == 2 for count in subject.tree.stacks.values())
