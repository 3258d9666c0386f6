"""What a refactoring must not change: digests and latents of the published rules, and a small search on every model.

`python -m tests.replay.corpus` computes everything anew and writes it to tests/replay/. Use it only where results are
meant to change, and give the reason in the commit. tests/replay/test_replay.py compares.
"""

import hashlib
import json
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
PRESETS = REPOSITORY / "docs" / "presets"
MODELS = ("pixart", "sd", "flux", "dit")
STORED_LATENTS = HERE / "latents.safetensors"
STORED_DIGESTS = HERE / "presets.json"
STORED_SEARCHES = HERE / "searches.json"

# Three generations of eight candidates each; together the searches decode most spaces.
SMALL = (
    "budget.evaluations=24",
    "budget.generation=8",
    "prompts.calibration_count=2",
    "prompts.held_out_count=2",
    "tracking.enabled=false",
    "certify=off",
    "compute.threads=1",
    "compute.device=cpu",
    "model.steps=8",
    "seed=7",
)
SEARCHES: Mapping[str, tuple[str, ...]] = {
    "pixart cache": ("+space=cache", "model=pixart"),
    "pixart joint": (
        "+space=[timesteps,solver,guidance,stitch]",
        "space.solver.max_order=3",
        "model=pixart",
        "model.small=pixart_small",
    ),
    "sd": ("+space=depth", "model=sd", "engine=nsga2"),
    "flux": ("+space=[timesteps,cache,gates]", "model=flux"),
    "dit": ("+space=[skip,bits]", "model=dit", "engine=nsga2", "initial=presets"),
    "policy": ("+space=cache", "model=policy", "objective=[drift,macs,memory]"),
}
PROMPTS = {"dit": "airplane"}  # a class name; all others take a sentence
MEASURED = ("latency", "speedup", "seconds")  # differ from run to run


def machine() -> dict[str, str]:
    """What the last bits of a float depend on; results are compared bit for bit only where all of it is equal."""
    import diffusers
    import numpy
    import torch

    fields = ("model name", "cpu family", "model", "stepping")
    lines = dict(line.split(":", 1) for line in reversed(_lines("/proc/cpuinfo")) if ":" in line)
    cpu = ", ".join(value.strip() for key, value in lines.items() if key.strip() in fields) or platform.processor()
    return {
        "cpu": cpu,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "numpy": numpy.__version__,
    }


def replay_preset(model: Any, file: Path) -> tuple[Any, Any, Any]:
    """A rule's schedule, final latents [1, C, h, w] of one prompt under it, and what ran (`Handle.stats`)."""
    from search import Schedule

    schedule = Schedule.load(file)
    prompt = PROMPTS.get(model.name, "red apple, 3d style, pink background")
    with model.apply(schedule) as handle:
        latents = model.sample([prompt], [0])
        stats = handle.stats()
    return schedule, latents.float().cpu().contiguous(), stats


def load_model(name: str) -> Any:
    """The bundled model, with the smaller one where some rule hands over to it."""
    from hydra.utils import instantiate

    more = ["model.small=pixart_small"] if name == "pixart" else []
    from search.config.compose import compose_config, normalise_overrides

    raw = compose_config(normalise_overrides(["+space=cache", f"model={name}", *more]))
    return instantiate(dict(raw["model"]) | {"device": "cpu"})


def run_search(name: str) -> dict[str, Any]:
    """What a small search evaluated and put on its front, as plain numbers."""
    from search.config.compose import compose_config, normalise_overrides
    from search.config.settings import Config
    from search.loop.run import run
    from tests.helpers.short_report import untimed_report

    with tempfile.TemporaryDirectory() as folder, untimed_report():
        given = [*SEARCHES[name], *SMALL, f"runs={folder}"]
        made = run(Config.check(compose_config(normalise_overrides(given)))).folder
        return reduced(json.loads((made / "front.json").read_text(encoding="utf-8")))


def reduced(front: Mapping[str, Any]) -> dict[str, Any]:
    """Of a front.json what does not depend on the day: candidates, entries, generations."""
    entries = [
        {
            "role": entry["role"],
            "file": entry.get("file") if entry["role"] == "preset" else None,
            "calibration": _scores(entry["calibration"]),
            "held_out": _scores(entry["held_out"]),
        }
        for entry in front["entries"]
        if not entry["name"].endswith(", fitted")  # those follow from the others
    ]
    points = sorted(front["points"], key=lambda point: point["digest"])
    history = [{k: v for k, v in row.items() if k not in MEASURED} for row in front["history"]]
    return {"points": points, "entries": entries, "history": history}


def _scores(scores: Mapping[str, Any]) -> dict[str, float]:
    return {name: score["value"] for name, score in scores.items() if name not in MEASURED}


def digest_of(tensor: Any) -> str:
    """sha256 of a tensor's bytes."""
    import torch

    return hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def main() -> None:
    """Write the corpus anew."""
    record_presets()
    record_searches()


def record_presets() -> None:
    """Digest and latents of every published rule."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    latents, digests = {}, {}
    for name in MODELS:
        model = load_model(name)
        for file in sorted((PRESETS / name).glob("*.json")):
            key = f"{name}/{file.stem}"
            schedule, result, _ = replay_preset(model, file)
            digests[key] = {"schedule": schedule.digest, "latents": digest_of(result)}
            latents[key] = result.half()
            print(key, digests[key]["latents"][:12], flush=True)
    save_file(latents, STORED_LATENTS)
    STORED_DIGESTS.write_text(json.dumps({"machine": machine(), "digests": digests}, indent=1) + "\n", encoding="utf-8")


def record_searches() -> None:
    """What every small search evaluates."""
    searches = {}
    for name in SEARCHES:
        searches[name] = run_search(name)
        print(name, len(searches[name]["points"]), len(searches[name]["entries"]), flush=True)
    text = json.dumps({"machine": machine(), "searches": searches}, separators=(",", ":"))
    STORED_SEARCHES.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
