"""python -m search.contract: what of a pipeline's denoiser can be planned, by watching one call, and proved there.

    python -m search.contract my_folder call.prompt="a red fox" out=contract.yaml

path=     the pipeline: a folder with model_index.json, a hub id, or the name of a bundled model
call.*=   arguments of the pipeline's call, as YAML: call.prompt="a red fox" call.height=1024; a picture by its file,
          call.image=cat.png. Two steps are enough, call.num_inference_steps=2, which is the default
device=   where to run: cpu, cuda, mps; by default cpu
dtype=    of the weights: float32, bfloat16, float16
out=      writes the contract as YAML, which schedules for this denoiser carry in their file

Stacks are lists of blocks that ran one after another; components are the parts of a block that return states. Each is
first reused and skipped by a schedule and by plain forward hooks; what does not give the same to the bit is left out,
and the table says why.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from search.config.options import Options, run_command

DEFAULTS = {"path": "", "device": "cpu", "dtype": "float32", "out": ""}
DTYPES = ("float32", "bfloat16", "float16")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def main(arguments: Sequence[str]) -> int:
    """Load the pipeline, observe one call of it, print the table."""
    call = [argument.removeprefix("call.") for argument in arguments if argument.startswith("call.")]
    others = [argument for argument in arguments if not argument.startswith("call.")]
    return run_command(others, __doc__, lambda options: _work(options, call), DEFAULTS, first="path")


def _work(options: Options, typed: Sequence[str]) -> None:
    if not options["path"]:
        raise ValueError('type python -m search.contract <folder or hub id> call.prompt="a red fox"')
    if options["dtype"] not in DTYPES:
        raise ValueError(f"dtype={options['dtype']}: give one of {', '.join(DTYPES)}")
    call = dict(_argument(text) for text in typed)
    import torch
    from rich.console import Console

    import search
    from search.config.device import resolve_device
    from search.models.loading import load_any
    from search.observe.table import contracts_yaml, observation_table

    device = resolve_device(options["device"])
    pipe = load_any(options["path"], getattr(torch, options["dtype"])).to(device)
    observation = search.contract(pipe, call=call)
    Console(width=None if sys.stdout.isatty() else 120).print(observation_table(observation))
    if options["out"]:
        Path(options["out"]).write_text(contracts_yaml(observation), encoding="utf-8")
        print(f"wrote {options['out']}")


def _argument(text: str) -> tuple[str, Any]:
    """One argument of the call, `height=1024`."""
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"call.{text}: type call.<argument>=<value>, such as call.num_inference_steps=2")
    if value.lower().endswith(PICTURES):
        from PIL import Image

        try:
            return name, Image.open(value).convert("RGB")
        except OSError as error:
            raise ValueError(f"call.{name}={value}: the picture cannot be read: {error}") from None
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        return name, value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
