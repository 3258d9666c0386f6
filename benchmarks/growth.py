"""python -m benchmarks.growth: how the cost of a search grows with steps, blocks, prompts and population.

Searches of a fixed number of evaluations on small PixArt pipelines of random weights, interval cache space, drift and
MACs. From one base each of the four is doubled twice while the others stay; the exponent is the slope of a straight
line through the logarithms (1: twice as much costs twice as much). Writes docs/benchmarks/growth.md.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from rich.console import Console
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from search.config.compose import compose_config, normalise_overrides
from search.config.settings import Config
from search.engines.predictor import PredictorEngine
from search.loop.search import Search
from search.models.loading import quiet

BASE = {"steps": 10, "blocks": 4, "prompts": 4, "population": 12}
DOUBLED = (1, 2, 4)
WORDS = ("red", "blue", "green", "apple", "boat", "cat", "flat", "round")
WIDTH, TOKENS = 32, 8
MEASURES = {
    "block executions": "block executions",
    "of them calibration": "block executions of calibration",
    "CPU s": "CPU seconds",
    "of them calibration, s": "CPU seconds of calibration",
    "engine, s": "CPU seconds of the engine",
    "states, MiB": "states that runs go on from, MiB",
}
PAGE, DATA = Path("docs/benchmarks/growth.md"), Path("runs/growth/growth.json")


def build(folder: Path, blocks: int) -> Path:
    """Write a pipeline of random weights: 8x8 latents, blocks of width 32."""
    torch.manual_seed(0)
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -6.0), *((f"▁{w}", -4.0) for w in WORDS)]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=TOKENS)
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 2 * WIDTH, "num_layers": 1, "num_heads": 2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    encoder = T5EncoderModel(T5Config(vocab_size=len(tokenizer), is_encoder_decoder=False, **sizes, **special))
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        mid_block_add_attention=False,
    )
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=WIDTH // 2,
        num_layers=blocks,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        sample_size=8,
        use_additional_conditions=False,
    )
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0, lower_order_final=True
    )
    with quiet():
        PixArtAlphaPipeline(tokenizer, encoder, vae, transformer, scheduler).save_pretrained(folder)
    return folder


def searched(sizes: Mapping[str, int], seed: int, evaluations: int, engine: "Clock") -> dict[str, float]:
    """What one search costs, by the names of `MEASURES`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = "\n".join(f"{a} {b}" for a in WORDS for b in WORDS if a < b)
        (folder / "prompts.txt").write_text(text + "\n", encoding="utf-8")
        arguments = {
            "model.path": build(folder / "model", sizes["blocks"]),
            "model.steps": sizes["steps"],
            "model.max_sequence_length": TOKENS,
            "prompts.calibration": folder / "prompts.txt",
            "prompts.calibration_count": sizes["prompts"],
            "engine": "predictor",
            "engine.population": sizes["population"],
            "budget.evaluations": evaluations,
            "compute.threads": 1,
            "tracking.enabled": False,
            "seed": seed,
            "runs": folder,
        }
        overrides = ["+space=cache", "model=pixart", *(f"{k}={v}" for k, v in arguments.items())]
        search = Search(Config.check(compose_config(normalise_overrides(overrides))), Console(quiet=True))
        began = time.process_time()
        search.prepare(folder)
        prepared, calibration = time.process_time(), search.state.block_executions
        engine.seconds = 0.0
        search.loop()
        ended = time.process_time()
        states = search.evaluator.runner.memory.bytes / 2**20  # type: ignore[attr-defined]
        search.close()
    found = (search.state.block_executions, calibration, ended - began, prepared - began, engine.seconds, states)
    return dict(zip(MEASURES, found, strict=True))


class Clock:
    """CPU seconds in the methods of a class that are called from outside of it."""

    def __init__(self, cls: type, *names: str) -> None:
        self.seconds = 0.0
        for name in names:
            setattr(cls, name, self._clocked(getattr(cls, name)))

    def _clocked(self, plain: Callable) -> Callable:
        def clocked(*args: Any) -> Any:
            began = time.process_time()
            try:
                return plain(*args)
            finally:
                self.seconds += time.process_time() - began

        return clocked


def exponent(values: Sequence[float]) -> float:
    """Slope of log y over log of the factors; NaN where something is 0."""
    if min(values) <= 0:
        return float("nan")
    return float(np.polyfit(np.log(DOUBLED), np.log(values), 1)[0])


def page(result: Mapping[str, Any]) -> str:
    base = ", ".join(f"{value} {name}" for name, value in BASE.items())
    lines = [
        "# How the cost of a search grows",
        "",
        f"`python -m benchmarks.growth` writes this page: searches of {result['evaluations']} evaluations on small "
        f"PixArt pipelines of random weights (8x8 latents, blocks of width {WIDTH}), interval cache space, engine "
        f"`predictor`, solvers fitted. From {base} each is doubled twice while the others stay. Medians of "
        f"{result['seeds']} seed(s) of the engine; one thread, {result['machine']}. Seconds are CPU time of the "
        "process. Exponents are slopes over the three sizes: 1 is proportional, 2 quadratic, 0 is free.",
        "",
        "| doubled | " + " | ".join(MEASURES.values()) + " |",
        "|---|" + "---:|" * len(MEASURES),
    ]
    for name in BASE:
        rows = [_median(result, name, factor) for factor in DOUBLED]
        cells = []
        for measure in MEASURES:
            values = [row[measure] for row in rows]
            slope = exponent(values)
            shown = " → ".join(_short(v) for v in values)
            cells.append(f"**{slope:.2f}** ({shown})" if np.isfinite(slope) else shown)
        sizes = " → ".join(str(BASE[name] * factor) for factor in DOUBLED)
        lines.append(f"| {name} {sizes} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *NOTES]) + "\n"


NOTES = [
    "A block execution is one block for one picture, both halves of guidance; what runs begin alike with counts once. "
    "Calibration reuses one step in each of as many rollouts as there are steps: between proportional and quadratic, "
    "because rollouts share their beginnings. It measures on two prompts, whatever their number. More prompts than fit "
    "one batch (8) make candidates race, so twice the prompts are less than twice the work. Population is what the "
    "engine keeps, at the same number of evaluations. So small a denoiser is bound by overhead, and its seconds grow "
    "less than its work. States are those held at the end of the search, at most `compute.states=`.",
]


def _median(result: Mapping[str, Any], name: str, factor: int) -> dict[str, float]:
    rows = result["rows"][f"{name} {factor}" if factor > 1 else "base 1"]
    return {measure: float(np.median([row[measure] for row in rows])) for measure in MEASURES}


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {}
    engine = Clock(PredictorEngine, "ask", "tell")
    searched(BASE, 0, 12, engine)  # what a process does once is not counted
    for seed in range(given.seeds):
        for name in ("base", *BASE):
            for factor in DOUBLED[:1] if name == "base" else DOUBLED[1:]:
                sizes = BASE | ({} if name == "base" else {name: BASE[name] * factor})
                rows.setdefault(f"{name} {factor}", []).append(searched(sizes, seed, given.evaluations, engine))
                print(f"{name} {factor}", json.dumps(rows[f"{name} {factor}"][-1]), flush=True)
    machine = f"{platform.machine()}, torch {torch.__version__}"
    result = {"rows": rows, "evaluations": given.evaluations, "seeds": given.seeds, "machine": machine}
    DATA.parent.mkdir(parents=True, exist_ok=True)
    DATA.write_text(json.dumps(result) + "\n")
    PAGE.write_text(page(result))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
