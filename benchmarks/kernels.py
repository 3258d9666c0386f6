"""python -m benchmarks.kernels: kernels against a copy of as many bytes, in every form that runs on this machine.

Every round times the copy and each form of each kernel once, taking turns; shares are the copy's time over theirs,
round by round. Compiled forms are compiled in a fresh cache, and the seconds to their first result are told. Writes
docs/benchmarks/kernels.md, or with `--json` a line for each kernel at each size to a file and no page.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from search.kernels import fakequant, forecast, pairwise
from search.kernels.dispatch import has_triton
from search.schedule.apply.rounding import SHRINK, round_activation

NO_GPU = """
There was no GPU: Triton's forms were not timed. Tests compare their results with the references in Triton's interpreter
and compile them for an H100 (sm_90); neither says anything about their speed.
"""
FORMS = {"reference": "eager", "compiled": "torch.compile", "triton": "Triton"}


@dataclass
class Case:
    """One kernel at one size: what it runs in a form, and the bytes that it has to move."""

    kernel: str
    size: str
    moved: int
    run: Callable[[str], object]
    times: dict[str, list[float]] = field(default_factory=dict)  # by form, `copy` among them
    first: dict[str, float] = field(default_factory=dict)  # seconds to the first result


def cases(device: torch.device) -> list[Case]:
    """The bundled model with two guided pictures; PixArt-XL with one at 256, 512 and 1024 pixels."""
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=rng).to(device, dtype)

    found = []
    for steps, shape, dtype, band, l1 in (
        (20, (4, 64, 128), torch.float32, None, False),
        (20, (2, 1024, 1152), torch.bfloat16, None, False),
        (50, (2, 256, 1152), torch.bfloat16, None, False),
        (50, (2, 256, 1152), torch.bfloat16, None, True),
        (50, (2, 256, 1152), torch.bfloat16, 10, True),
    ):
        values = (draw(int(np.prod(shape))) + 0.05 * draw(steps, int(np.prod(shape)))).to(dtype)
        what = _shape(dtype, steps, *shape) + (", with L1" if l1 else "") + (f", band {band}" if band else "")
        moved = pairwise.bytes_moved(values)
        found.append(Case("pairwise", what, moved, lambda f, v=values, b=band, a=l1: pairwise.pairwise(v, b, a, f)))
    for count, shape, dtype in (
        (2, (4, 64, 128), torch.float32),
        (2, (2, 1024, 1152), torch.bfloat16),
        (3, (2, 4096, 1152), torch.bfloat16),
    ):
        kept, weights = [draw(*shape, dtype=dtype) for _ in range(count)], [1.5, -0.75, 0.25][:count]
        moved = forecast.bytes_moved(kept)
        what = _shape(dtype, count, *shape)
        found.append(Case("forecast", what, moved, lambda f, v=kept, w=weights: forecast.combine(v, w, f)))
    for rows, bits, factors in (
        ((1152, 1152), (4,), SHRINK),
        ((41472, 128), (4,), SHRINK),
        ((4608, 1152), (2, 3, 4, 5, 6), SHRINK),
    ):
        weight = draw(*rows)
        what = f"{_shape(torch.float32, *rows)}, {len(bits)} bit-widths × {len(factors)} clippings"
        moved = fakequant.bytes_moved(weight, bits, factors)
        sweep = lambda f, w=weight, b=bits, c=factors: fakequant.sweep(w, b, c, f)  # noqa: E731
        found.append(Case("fakequant", what, moved, sweep))
    return found


def put_aside(device: torch.device) -> list[Case]:
    """What torch.compile does in one pass, so that no kernel of our own is kept for it."""
    x, y = torch.randn(2, 2048, 1152, device=device)
    tokens = torch.randn(2048, 1152, device=device).bfloat16()

    def moments(value: Tensor, truth: Tensor) -> Tensor:
        a, b = value.double(), truth.double()
        return torch.stack([v.sum(0) for v in (a, b, a * a, a * b, b * b)])

    def qdq(value: Tensor) -> Tensor:
        return round_activation(value, 8)

    fused = {f: torch.compile(f) for f in (moments, qdq)}
    pick = lambda f, form: fused[f] if form == "compiled" else f  # noqa: E731
    return [
        Case("moments", _shape(x.dtype, 2, *x.shape), 2 * _bytes(x), lambda form: pick(moments, form)(x, y)),
        Case("tokens", _shape(tokens.dtype, *tokens.shape), 2 * _bytes(tokens), lambda form: pick(qdq, form)(tokens)),
    ]


def measure(given: list[Case], forms: list[str], repeats: int, device: torch.device) -> None:
    def timed(run: Callable[[], object]) -> float:
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        return time.perf_counter() - began

    for case in given:
        half = torch.ones(case.moved // 2, dtype=torch.uint8, device=device)
        other = half.clone()  # of written pages both: fresh ones are slower, or no memory at all
        runs: dict[str, Callable[[], object]] = {"copy": lambda a=half, b=other: a.copy_(b)}
        runs |= {form: (lambda c=case, f=form: c.run(f)) for form in forms}
        case.first = {name: timed(run) for name, run in runs.items()}
        case.times = {name: [] for name in runs}
        for _ in range(repeats):
            for name, run in runs.items():
                case.times[name].append(timed(run))
        print(*_row(case, forms), sep=" | ", flush=True)


def _row(case: Case, forms: list[str]) -> list[str]:
    cells = [case.kernel, case.size, f"{case.moved / 1e6:.1f}"]
    times = {name: np.array(values) for name, values in case.times.items()}
    cells.append(f"{case.moved / np.median(times['copy']) / 1e9:.1f}")
    cells += [_quartiles(100 * times["copy"] / times[form], "{:.3g}") for form in forms]
    cells += [_quartiles(times["reference"] / times[form], "{:.2f}") for form in forms[1:]]
    return [*cells, *(f"{case.first[form]:.1f}" for form in forms[1:])]


def _table(given: list[Case], forms: list[str]) -> str:
    names = [FORMS[form] for form in forms]
    head = ["kernel", "size", "MB moved", "copy, GB/s", *(f"{n}, % of copy" for n in names)]
    head += [f"eager / {n}" for n in names[1:]] + [f"first {n}, s" for n in names[1:]]
    rows = [head, ["---"] * len(head), *(_row(case, forms) for case in given)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _quartiles(values: np.ndarray, form: str) -> str:
    low, middle, high = (form.format(v) for v in np.quantile(values, [0.25, 0.5, 0.75]))
    return f"{middle} ({low}–{high})"


def _shape(dtype: torch.dtype, *sizes: int) -> str:
    return f"{'×'.join(map(str, sizes))} {str(dtype).removeprefix('torch.')}"


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--forms", nargs="*", choices=list(FORMS), help="all that run on the device")
    parser.add_argument("--kernels", nargs="*", help="names of kernels; all of them")
    parser.add_argument("--page", type=Path, default=Path("docs/benchmarks/kernels.md"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    forms = given.forms or ["reference", "compiled", *(["triton"] if device.type == "cuda" and has_triton() else [])]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        kept, aside = (
            [case for case in those if not given.kernels or case.kernel in given.kernels]
            for those in (cases(device), put_aside(device))
        )
        measure(kept, forms, given.repeats, device)
        measure(aside, forms[:2], given.repeats, device)
    if given.json:
        lines = [
            {"kernel": case.kernel, "size": case.size, "bytes": case.moved, "seconds": case.times, "first": case.first}
            for case in (*kept, *aside)
        ]
        with given.json.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        return
    page = report(kept, aside, forms, given.repeats, device)
    given.page.parent.mkdir(parents=True, exist_ok=True)
    given.page.write_text(page, encoding="utf-8")


def report(kept: list[Case], aside: list[Case], forms: list[str], repeats: int, device: torch.device) -> str:
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_processor()}, "
    where += "" if device.type == "cuda" else f"{torch.get_num_threads()} thread(s)"
    missing = "" if "triton" in forms else NO_GPU
    return f"""# Kernels: share of the copy bandwidth

`python -m benchmarks.kernels`: {where}; torch {torch.__version__}; {repeats} rounds, median (quartiles). A share \
is the time of a copy that moves as many bytes over the time of the kernel, side by side: 100 % is as fast as memory \
allows, less where arithmetic is the limit. `first` is the time to the first result, with nothing compiled before.
{missing}
{_table(kept, forms)}

Put aside: no kernel of our own, because torch.compile does them in one pass.

{_table(aside, forms[:2])}

- moments: the five sums per channel of an affine fit. tokens: round to 8 bits and back, one scale per token.
"""


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
