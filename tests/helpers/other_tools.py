"""Other tools on the bundled models, each in a process of its own, as some patch whole classes.

python -m tests.helpers.other_tools cache_dit pixart 1 2: prints what the tool did beside what the schedule did,
as JSON.
"""

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import search
from search import Schedule
from search.schedule.exchange import export, load, losses

STEPS = 8
MASK = [1, 1, 0, 1, 0, 0, 1, 0]


class Bench:
    """A bundled model, its latents from one seed, and which inner layers ran."""

    def __init__(self, name: str) -> None:
        self.model = search.load_model(
            {"stable_diffusion": "sd"}.get(name, name), f"model.steps={STEPS}", "compute.device=cpu"
        )
        self.pipe, self.calls = self.model.pipe, []
        for path, module in self.model.denoiser.named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                module.register_forward_hook(lambda *_, path=path: self.calls.append(path))
        self.bare = self.run()[0]

    def run(self) -> tuple[Tensor, list[str]]:
        """Latents, and the layers that were computed, in their order."""
        self.calls.clear()
        found = self.model.sample(["red apple"], [0]).clone()
        return found, [*self.calls]

    def compare(self, schedule: Schedule, peer: Callable[[], contextlib.AbstractContextManager]) -> dict[str, Any]:
        """The schedule applied, then the other tool; both again, to see that no state is left."""
        with schedule.apply(self.pipe):
            ours, layers = self.run()
        with peer():
            theirs, their_layers = self.run()
            again = self.run()[0]
        return {
            "equal": torch.equal(ours, theirs),
            "repeats": torch.equal(theirs, again),
            "same_layers": layers == their_layers,
            "layers": len(layers),
            "their_layers": len(their_layers),
            "difference": relative(theirs, ours),  # RMS, relative to ours
            "drift": relative(ours, self.bare),  # the same, to all computed
        }


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).pow(2).mean().sqrt() / wanted.pow(2).mean().sqrt())


def written(text: str, ending: str) -> Path:
    path = Path(tempfile.mkdtemp()) / f"file{ending}"
    path.write_text(text)
    return path


def cache_dit(name: str, first: str, last: str, threshold: str = "0.3") -> dict[str, Any]:
    """A configuration of cache-dit read, applied, written and run by cache-dit; and a schedule that it cannot say."""
    import cache_dit as tool

    bench = Bench(name)
    own = {"scm_mask": MASK, "Fn_compute_blocks": int(first), "Bn_compute_blocks": int(last)}
    schedule = load(written(json.dumps(own), ".json"), bench.pipe)
    assert losses(schedule, "cache-dit") == []
    path = written(export(schedule, "cache-dit"), ".yaml")
    assert load(path, bench.pipe) == schedule
    whole = load(written(",".join(map(str, MASK)), ".txt"), bench.pipe)  # the denoiser's output is reused
    lossy = written(export(whole, "cache-dit", lossy=True), ".yaml")
    blocks = [node.name for node in bench.model.target.tree if node.kind == "block"]
    gate = {"group": "+".join(blocks[1:]), "actions": "CC" + "G" * (STEPS - 2), "value": "residual", "max_run": 2}
    gate |= {"signal": "first_block_residual", "threshold": float(threshold)}
    asking = Schedule.from_dict({k: v for k, v in schedule.to_dict().items() if k != "digest"} | {"gates": [gate]})
    dynamic = written(export(asking, "cache-dit", lossy=True), ".yaml")
    found = {}
    for key, made, file in (("exact", schedule, path), ("lossy", whole, lossy), ("gate", asking, dynamic)):
        found[key] = bench.compare(made, lambda file=file: enabled(tool, bench.pipe, file))
    return found


@contextlib.contextmanager
def enabled(tool: Any, pipe: Any, path: Path) -> Iterator[None]:
    tool.enable_cache(pipe, **tool.load_configs(str(path)))
    try:
        yield
    finally:
        tool.disable_cache(pipe)


def smoothcache(name: str) -> dict[str, Any]:
    """SmoothCache's own JSON read, applied, written and run by its helper."""
    with contextlib.redirect_stdout(io.StringIO()):
        from SmoothCache import SmoothCacheHelper
    from diffusers.models.attention import BasicTransformerBlock

    bench = Bench(name)
    own = {"attn1": MASK, "ff-3": [1, 0, 0, 0, 1, 1, 1, 1], "ff-5": [1, 1, 1, 1, 1, 1, 0, 0]}
    schedule = load(written(json.dumps(own), ".json"), bench.pipe)
    path = written(export(schedule, "smoothcache"), ".json")
    assert load(path, bench.pipe) == schedule

    @contextlib.contextmanager
    def helper(bits: dict[str, list[int]]) -> Iterator[None]:
        kinds = sorted({key.partition("-")[0] for key in bits})
        made = SmoothCacheHelper(bench.model.denoiser, BasicTransformerBlock, kinds, bits)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a line for every call
            made.enable()
            try:
                yield
            finally:
                made.disable()

    exported = json.loads(path.read_text())
    return {
        "own": bench.compare(schedule, lambda: helper(own)),
        "exported": bench.compare(schedule, lambda: helper(exported)),
    }


def deepcache(*branches: str) -> dict[str, Any]:
    """DeepCache's settings read and applied, and run by its helper."""
    from DeepCache import DeepCacheSDHelper

    bench, found = Bench("stable_diffusion"), {}
    for branch in map(int, branches):
        own = {"cache_interval": 3, "cache_branch_id": branch, "num_inference_steps": STEPS}
        schedule = load(written(json.dumps(own), ".json"), bench.pipe)

        @contextlib.contextmanager
        def helper(branch: int = branch) -> Iterator[None]:
            made = DeepCacheSDHelper(pipe=bench.pipe)
            made.set_params(cache_interval=3, cache_branch_id=branch)
            made.enable()
            try:
                yield
            finally:
                made.disable()

        found[str(branch)] = bench.compare(schedule, helper)
    return found


if __name__ == "__main__":
    tool, *arguments = sys.argv[1:]
    print(
        "\n"
        + json.dumps({"cache_dit": cache_dit, "smoothcache": smoothcache, "deepcache": deepcache}[tool](*arguments))
    )
