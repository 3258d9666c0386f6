"""python -m benchmarks.overhead: what an applied schedule gains, beside what the nodes that it executes allow.

What a schedule allows is measured on the bare pipeline: at each step every node that the schedule does not execute
gives back a tensor at once, without a hook. So

    allowed time = floor + times of all executed nodes, where they run,    efficiency = allowed time / measured time

and what is lost is what hooks, kept values and the wrapped scheduler cost. With compilation the bare pipeline has its
blocks compiled too. All take turns within each round; ratios are of rounds, shown as medians and quartiles. `--size xl`
is PixArt-XL/2 at 256 x 256 of random weights, other names a few blocks of a public denoiser (benchmarks/denoisers.py);
`--path` is any other checkpoint of PixArt. `--write` puts the tables into docs/benchmarks/overhead.md, `--json` adds a
line for each plan to a file.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

from benchmarks.denoisers import NAMES, Denoiser, denoiser
from search import Schedule
from search.schedule.model.identity import model_part
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.plan.tokens import ABSENT, OFF
from search.testing.models import pixart

DOC = Path(__file__).parents[1] / "docs" / "benchmarks" / "overhead.md"
XL = {
    "caption_channels": 4096,
    "cross_attention_dim": 1152,
    "num_layers": 28,
    "out_channels": 8,
    "sample_size": 32,
    "interpolation_scale": 0.5,
    "use_additional_conditions": False,
}
Context = Callable[[], AbstractContextManager]


@dataclass
class Subject:
    """A pipeline without text encoder, and one call of it for so many pictures."""

    name: str
    pipe: Any
    given: Mapping[str, torch.Tensor]
    steps: int
    side: int

    contract = None

    @cached_property
    def tree(self) -> Tree:
        return Tree.of(self.pipe.transformer)

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        return self.pipe(
            **self.given,
            negative_prompt=None,
            num_inference_steps=self.steps,
            height=self.side,
            width=self.side,
            use_resolution_binning=False,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images


def plans_of(subject: Subject | Denoiser) -> dict[str, Schedule]:
    """What takes turns with the bare pipeline, by name."""
    rng, free = np.random.default_rng(0), []
    for node in subject.tree:
        if node.kind == "component":
            free.append([node.name, "C" + "".join(rng.choice(["C", "R"], subject.steps - 1))])
    other = f"(CR)*{subject.steps // 2}"
    stacks = [stack for stack in subject.tree.stacks if subject.tree.components(stack)]
    rules: dict[str, list[list[str]]] = {
        "all computed": [],
        "FORA N=2": [[f"{stack}.*:*", other] for stack in stacks],
        "free components": free,
        "every other block": [[f"{stack}.*", other] for stack in stacks],
        "every other step": [[ROOT, other]],
    }
    part = {"format": "schedule/1", "model": model_part(subject.pipe.transformer, subject.contract)}
    return {
        name: Schedule.from_dict(part | {"steps": subject.steps, "plan": {"rules": those}})
        for name, those in rules.items()
    }


def bundled(path: str | None, device: str, dtype: torch.dtype, batch: int, steps: int) -> Subject:
    model = pixart(path or "pixart", device=device, dtype=str(dtype).removeprefix("torch."))
    texts = model.pipe.encode_prompt(
        "red apple, 3d style", True, negative_prompt="", device=device, clean_caption=False,
        max_sequence_length=model.max_sequence_length,
    )  # fmt: skip
    side = model.pipe.transformer.config.sample_size * model.pipe.vae_scale_factor
    return Subject(path or "bundled pixart", model.pipe, _given([t[0] for t in texts], batch), steps, side)


def xl(device: str, dtype: torch.dtype, batch: int, steps: int) -> Subject:
    torch.manual_seed(0)
    with torch.device(device):
        transformer = PixArtTransformer2DModel(**XL).to(dtype).eval()
        text, mask = torch.randn(120, 4096, dtype=dtype), torch.ones(120, dtype=dtype)
    pipe = PixArtAlphaPipeline(None, None, None, transformer, DPMSolverMultistepScheduler())
    pipe.set_progress_bar_config(disable=True)
    return Subject("PixArt-XL/2, 256 x 256, random weights", pipe, _given([text, mask, text, mask], batch), steps, 256)


def _given(texts: Sequence[torch.Tensor], batch: int) -> dict[str, torch.Tensor]:
    names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    return {name: text[None].repeat(batch, *[1] * text.dim()) for name, text in zip(names, texts, strict=True)}


class Bare:
    """The pipeline without any hook: as it is, or without what a plan does not execute."""

    def __init__(self, subject: Subject | Denoiser, compile: bool) -> None:
        self.subject, self.denoiser = subject, subject.pipe.transformer
        self.tree = subject.tree
        self.modules = {node.name: self.tree.module(self.denoiser, node) for node in self.tree if node.kind != "stack"}
        self.own: dict[str, Callable] = {}  # what runs a block where it is compiled
        for name, module in self.modules.items():
            if compile and self.tree.nodes[name].kind == "block":
                self.own[name] = torch.compile(type(module).forward.__get__(module), dynamic=False)
        self.stand_ins = self._stand_ins()

    @contextmanager
    def whole(self) -> Iterator[None]:
        self._place(dict.fromkeys(self.modules, OFF))
        try:
            yield
        finally:
            self._clear()

    @contextmanager
    def without(self, schedule: Schedule) -> Iterator[None]:
        """At each step what the schedule does not execute gives back a tensor at once."""
        names = [name for name in schedule.plan.planned() if name in self.modules]
        rows = [{name: schedule.plan.tokens[name][step] for name in names} for step in range(self.subject.steps)]
        compute, calls = type(self.denoiser).forward, 0

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            row, calls = rows[calls % len(rows)], calls + 1
            if row.get(ROOT, OFF) != OFF:
                return self.stand_ins[ROOT]()
            self._place({name: token for name, token in row.items() if name != ROOT})
            return compute(self.denoiser, *args, **kwargs)

        with self.whole():
            self.denoiser.__dict__["forward"] = forward
            yield

    def _place(self, row: Mapping[str, str]) -> None:
        for name, token in row.items():
            attributes = self.modules[name].__dict__
            if token not in (OFF, ABSENT):
                attributes["forward"] = self.stand_ins[name]
            elif name in self.own:
                attributes["forward"] = self.own[name]
            else:
                attributes.pop("forward", None)

    def _clear(self) -> None:
        for module in self.modules.values():
            module.__dict__.pop("forward", None)

    def _stand_ins(self) -> dict[str, Callable]:
        """Of every node what gives back a tensor like its own: one for all nodes of a kind."""
        kinds = {n.name: (n.stack, n.component or n.kind) for n in self.tree if n.kind != "stack"}
        values: dict[Any, Any] = {}
        removers = [
            module.register_forward_hook(lambda _, __, output, kind=kinds[name]: values.__setitem__(kind, output))
            for name, module in self.modules.items()
        ]
        self.subject()
        for remover in removers:
            remover.remove()
        found = {kind: lambda *_, value=value, **__: value for kind, value in values.items()}
        return {name: found[kind] for name, kind in kinds.items()}


def contexts(subject: Subject | Denoiser, compile: bool, plans: Mapping[str, Schedule]) -> dict[str, Context]:
    """All that take turns: the bare pipeline, and under each plan the hooks, and what it would be without them."""
    bare = Bare(subject, compile)
    found: dict[str, Context] = {"bare": bare.whole}
    for name, schedule in plans.items():
        if schedule.plan.planned():
            found[f"without: {name}"] = lambda schedule=schedule: bare.without(schedule)
        found[name] = lambda schedule=schedule: schedule.apply(subject.pipe, compile=compile)
    return found


def measure(
    subject: Subject | Denoiser, found: Mapping[str, Context], rounds: int, warm: bool
) -> dict[str, np.ndarray]:
    """Milliseconds of a run under each of them [rounds], the order reversed in every other round.

    On a GPU of wall time; on a CPU, which others use as well, of the process' own. The first round is not counted, nor
    with `warm` the first run under a schedule that was just applied.
    """
    cuda = next(subject.pipe.transformer.parameters()).is_cuda
    clock = time.perf_counter if cuda else time.process_time

    def once() -> float:
        start = clock()
        subject()
        if cuda:
            torch.cuda.synchronize()
        return 1000 * (clock() - start)

    times: dict[str, list[float]] = {name: [] for name in found}
    for i in range(rounds + 1):
        for name in list(found)[:: 1 if i % 2 else -1]:
            with found[name]():
                if warm or not i:
                    once()
                if i:
                    times[name].append(once())
    return {name: np.array(kept) for name, kept in times.items()}


def table(
    subject: Subject | Denoiser, compile: bool, rounds: int, warm: bool, names: Sequence[str], lines_file: Path | None
) -> list[str]:
    plans = {name: schedule for name, schedule in plans_of(subject).items() if not names or name in names}
    times = measure(subject, contexts(subject, compile, plans), rounds, warm)
    bare = times["bare"]
    lines = [
        f"Bare pipeline{' with compiled blocks' if compile else ''}: {np.median(bare):.0f} ms, {subject.steps} steps, "
        f"{len(bare)} rounds.",
        "",
        "| plan | speed-up | allowed | efficiency |",
        "|---|---|---|---|",
    ]
    for name in plans:
        ideal = times.get(f"without: {name}", bare)
        ratios = {"speed-up": bare / times[name], "allowed": bare / ideal, "efficiency": ideal / times[name]}
        lines.append(f"| {name} | {' | '.join(map(_quartiles, ratios.values()))} |")
        if lines_file:
            kept = {"subject": subject.name, "compiled": compile, "plan": name, "bare ms": float(np.median(bare))}
            kept |= {key: np.quantile(values, [0.25, 0.5, 0.75]).round(4).tolist() for key, values in ratios.items()}
            with lines_file.open("a") as file:
                file.write(json.dumps(kept) + "\n")
    return lines


def _quartiles(ratios: np.ndarray) -> str:
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return f"{middle:.3f} ({low:.3f}–{high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=["bundled", "xl", *NAMES], default=["bundled"])
    parser.add_argument("--path")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help="float32 on a CPU, bfloat16 on a GPU where it is not given")
    parser.add_argument("--batch", type=int, default=1, help="pictures a call")
    parser.add_argument("--steps", type=int, help="an even number")
    parser.add_argument("--repeats", type=int, help="rounds")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--blocks", type=int, default=2, help="in each list of a public denoiser")
    parser.add_argument("--plans", nargs="*", default=[], help="names of plans; all of them")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64  # the bare pipeline's blocks share one code object
    kind = torch.device(given.device).type
    dtype = getattr(torch, given.dtype or ("bfloat16" if kind == "cuda" else "float32"))
    lines = [
        f"Device: {torch.cuda.get_device_name() if kind == 'cuda' else _cpu()}, torch {torch.__version__}, {dtype}."
    ]
    for size in given.size:
        steps = given.steps or (4 if (size, kind) == ("xl", "cpu") else 20)
        options = (given.device, dtype, given.batch, steps)
        if size in NAMES:
            subject: Subject | Denoiser = denoiser(size, given.blocks, given.device, dtype, steps)
        else:
            subject = bundled(given.path, *options) if size == "bundled" else xl(*options)
        slow = (size, kind) == ("xl", "cpu")  # a minute for two runs
        rounds = given.repeats or (3 if slow else 20)
        for compile in (False, True) if given.compile and not slow else (False,):
            title = f"{subject.name}{', compiled' if compile else ''}"
            found = [
                f"## {title[0].upper()}{title[1:]}",
                "",
                *table(subject, compile, rounds, not slow, given.plans, given.json),
            ]
            print("\n".join(found), flush=True)
            lines += ["", *found]
    if given.write:
        DOC.write_text("\n".join([*HEAD.strip().splitlines(), "", *lines, ""]))


def _cpu() -> str:
    return f"one core of a CPU ({platform.machine()}), other jobs on it"


HEAD = """
# Overhead of an applied schedule

`python -m benchmarks.overhead --write`: the bare pipeline, the pipeline under five plans, and what
those plans allow, in turns within each round; medians (quartiles) of ratios of rounds.

*allowed* is the speed-up of the bare pipeline where, at each step, every node that the plan does not execute gives back
a tensor at once, without a hook: the floor, and the executed nodes in their places. *efficiency* is speed-up / allowed;
what is missing to 1 is the cost of hooks, kept values and the wrapped scheduler. *all computed* is a schedule without a
plan. *free components* reuses each component of each block at random steps, so that no two rows are alike. With
compilation the bare pipeline has its blocks compiled as well, and schedules are applied with `compile=True`; efficiency
can exceed 1 there, as the bare pipeline's compiled blocks choose among their graphs at every call.

Times on a CPU are those of the process, on a machine that other jobs use as well: values that are kept there also cost
fresh memory, and a short step finds the caches as the long one before has left them. Nothing of this was measured on a
GPU, where `compile=True` brings CUDA graphs in; `benchmarks/gpu.sh` is for that.
"""

if __name__ == "__main__":
    main()
