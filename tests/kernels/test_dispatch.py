"""Which form of a kernel runs; Triton's forms in its interpreter, and compiled for a GPU without one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from search.kernels import dispatch
from search.kernels.dispatch import VARIABLE, Kernel, choose, has_triton
from tests.helpers.kernel_forms import DEVICE

NEEDED = pytest.mark.skipif(not has_triton(), reason='needs triton: pip install -e ".[triton]"')
VALUE = torch.zeros(1)
HOPPER = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from search.kernels import fakequant_triton, forecast_triton, pairwise_triton

def build(kernel, constants, **arguments):
    signature = arguments | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    print(kernel.__name__, len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]) > 0)

for kind in ("*fp32", "*bf16", "*fp16"):
    sizes = dict.fromkeys(("steps", "width", "stretch"), "i32")
    tile = {"TILE": pairwise_triton.TILE, "COLUMNS": pairwise_triton.COLUMNS}
    build(pairwise_triton._tables, tile, values=kind, tiles="*i32", partial="*fp32", **sizes)
    values = {"values": (kind,) * 3, "weights": ("fp32",) * 3}
    build(forecast_triton._weighted_sum, {"BLOCK": forecast_triton.BLOCK}, out=kind, size="i32", **values)
tables = dict.fromkeys(("rows", "tops", "factors", "shares", "errors"), "*fp32")
sizes = dict.fromkeys(("count", "width", "n_bits", "n_factors"), "i32") | {"tiny": "fp32"}
for rows, width in ((64, 64), (1, 4096)):
    build(fakequant_triton._errors, {"ROWS": rows, "WIDTH": width}, **tables, **sizes)
"""


def test_what_is_asked_for_runs_else_what_the_environment_says_else_the_reference(monkeypatch):
    assert choose(VALUE) == "reference"
    monkeypatch.setenv(VARIABLE, "compiled")
    assert choose(VALUE) == "compiled"
    assert choose(VALUE, "reference") == "reference"
    kernel = Kernel(lambda x: x + 1, "no.such.module", compiled=lambda x: x + 2)
    assert kernel.of(VALUE)(VALUE).item() == 2 and kernel.of(VALUE, "reference")(VALUE).item() == 1


def test_what_cannot_run_is_told(monkeypatch):
    with pytest.raises(ValueError, match="'cuda' is unknown; use reference, compiled, triton"):
        choose(VALUE, "cuda")
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"runs on cuda, not on cpu; use 'reference', or set TRITON_INTERPRET=1"):
        choose(VALUE, "triton")
    with pytest.raises(ValueError, match="sums in fp32, and the values are torch.float64; use 'reference'"):
        choose(VALUE.double(), "triton")
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    with pytest.raises(ValueError, match=r"needs triton; type: pip install .*\[triton\]"):
        choose(VALUE, "triton")


@NEEDED
@pytest.mark.slow
@pytest.mark.skipif(DEVICE == "cuda", reason="they run on the GPU")
def test_triton_forms_in_the_interpreter(root: Path):
    """It has to be chosen before triton is imported, so they run in a process of their own."""
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", "-m", "not slow", "-k", "triton"]
    files = [f"tests/kernels/test_{name}.py" for name in ("pairwise", "forecast", "fakequant")]
    done = subprocess.run(
        [sys.executable, *command, *files],
        cwd=root,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 30 and "skipped" not in done.stdout


@NEEDED
@pytest.mark.slow
def test_triton_forms_compile_for_a_gpu_that_is_not_here(root: Path, tmp_path: Path):
    script = tmp_path / "build.py"  # Triton reads the source of what it compiles
    script.write_text(HOPPER)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(root), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[:-1] == ["_tables True", "_weighted_sum True"] * 3 + ["_errors True"] * 2
