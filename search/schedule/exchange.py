"""Schedule files of other tools as parts of a schedule.

>>> schedule = load("ecad.json", pipe)  # any of the files below
>>> parts = read("ecad.json", Tree.of(pipe.transformer))  # {"steps": 20, "plan": {"rules": [...]}}

ECAD (arXiv:2506.15682), SmoothCache (arXiv:2411.10510), the step masks of cache-dit, DeepCache (arXiv:2312.00858) and
MagCache (arXiv:2506.09045). No file says which sampler it was made for: the pipeline's own runs. A file is data, as a
schedule is: bounded, and nothing in it is imported or opened.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from search.schedule.errors import ScheduleError
from search.schedule.format import FORMAT, MAX_BYTES
from search.schedule.identity import denoiser_of, model_part
from search.schedule.nodes import ROOT, Tree
from search.schedule.plan import MAX_STEPS, OFF, Plan
from search.schedule.schedule import Schedule

Parts = dict[str, Any]  # of a schedule file: `steps`, and `plan` where anything is reused

ALIASES = {"attn": "attn1", "cross_attn": "attn2", "mlp": "ff", "ffn": "ff"}  # what others call components
MASKS = ("steps_computation_mask", "scm_mask", "compute_bins")  # any of them makes a step mask of an object


def load(path: str | Path, pipe: Any) -> Schedule:
    """The schedule of a pipeline from another tool's file; ScheduleError says what does not fit."""
    denoiser = denoiser_of(pipe)
    return Schedule.from_dict({"format": FORMAT, "model": model_part(denoiser)} | read(path, Tree.of(denoiser)))


def read(path: str | Path, tree: Tree) -> Parts:
    """The parts in a file, JSON or a mask such as `1,1,0,1`, whose kind is recognised."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path that can be no path
        raise ScheduleError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from None
    try:
        return parts_of(_parsed(text), tree)
    except ScheduleError as error:
        raise ScheduleError(f"{path}: {error}") from None


def parts_of(data: Any, tree: Tree) -> Parts:
    """The same of a file's content."""
    return READERS[detect(data)](data, tree)


def detect(data: Any) -> str:
    """Whose file this is: ecad, smoothcache, scm, deepcache or magcache."""
    if isinstance(data, str | list):
        return "scm"
    keys = set(data) if isinstance(data, Mapping) else set()
    for kind, known in (("ecad", {"cache_schedule"}), ("magcache", {"mag_ratios"}), ("deepcache", {"cache_interval"})):
        if known <= keys:
            return kind
    if keys & {*MASKS, "cache_config"}:
        return "scm"
    if keys and all(isinstance(value, list) for value in data.values()):
        return "smoothcache"
    raise ScheduleError(
        "this is no file of ECAD (cache_schedule), SmoothCache (a list for every component), cache-dit "
        f"({', '.join(MASKS)}), DeepCache (cache_interval) or MagCache (mag_ratios)"
        + (f"; it has {', '.join(sorted(map(str, keys)))[:200]}" if keys else "")
    )


def from_ecad(data: Any, tree: Tree) -> Parts:
    """ECAD's bits, `cache_schedule.schedule["007"]["12"]["attn1"]`: true computes, false reuses the last output.

    Blocks are `0`, `1`, … and for Flux also `single_0`, …, whose components carry `full_` and `single_`.
    """
    body = _object(_object(data, "file").get("cache_schedule"), "cache_schedule")
    table = _object(body.get("schedule"), "cache_schedule.schedule")
    places = _ecad_places(tree)
    for field, stack in (("num_blocks", "transformer_blocks"), ("num_single_blocks", "single_transformer_blocks")):
        if (found := body.get(field)) is not None and found != tree.stacks.get(stack):
            raise ScheduleError(
                f"cache_schedule.{field} is {found!r:.40}, but this {tree.model_class} has "
                f"{tree.stacks.get(stack, 'no')} {stack}"
            )
    steps = _steps(body.get("num_inference_steps", len(table)), "cache_schedule.num_inference_steps")
    names_of_steps = [f"{t:03}" for t in range(steps)]
    _same(table, names_of_steps, "cache_schedule.schedule")
    tokens: dict[str, list[str]] = {name: [] for names in places.values() for name in names.values()}
    for step in names_of_steps:
        where = f"cache_schedule.schedule.{step}"
        _same(blocks := _object(table[step], where), places, where)
        for block, names in places.items():
            bits = _object(blocks[block], f"{where}.{block}")
            if code := [key for key in bits if str(key).startswith("custom_compute")]:
                raise ScheduleError(f"{where}.{block} has {code[0]}: it runs code of its own, which no schedule holds")
            _same(bits, names, f"{where}.{block}")
            for component, name in names.items():
                tokens[name].append(_action(bits[component], f"{where}.{block}.{component}"))
    return _parts(tokens, tree, "true")


def _ecad_places(tree: Tree) -> dict[str, dict[str, str]]:
    """Node names by ECAD's block and component."""
    prefixes = {"transformer_blocks": ("", "full_"), "single_transformer_blocks": ("single_", "single_")}
    if not set(tree.stacks) <= set(prefixes):
        raise ScheduleError(f"ECAD files are for PixArt, DiT and Flux; this is a {tree.model_class}")
    found: dict[str, dict[str, str]] = {}
    for stack, size in tree.stacks.items():
        block, prefix = prefixes[stack] if len(tree.stacks) > 1 else ("", "")
        for i in range(size):
            names = tree.components(stack, i)
            found[f"{block}{i}"] = {f"{prefix}{component}": f"{stack}.{i}:{component}" for component in names}
    return found


def from_smoothcache(data: Any, tree: Tree) -> Parts:
    """SmoothCache's lists, `{"attn1": [1, 0, …], "ff-12": [1, 1, …]}`: 1 computes, 0 reuses the last output.

    A component with a number is that of one block, without it of all blocks.
    """
    tokens: dict[str, list[str]] = {}
    for key, bits in _object(data, "file").items():
        actions = [_action(bit, f"{key}[{t}]") for t, bit in enumerate(_list(bits, str(key)))]
        if tokens and len(actions) != (steps := len(next(iter(tokens.values())))):
            raise ScheduleError(f"{key} has {len(actions)} entries, but {next(iter(data))} has {steps}")
        tokens |= dict.fromkeys(_smoothcache_nodes(str(key), tree), actions)
    return _parts(tokens, tree, "1")


def _smoothcache_nodes(key: str, tree: Tree) -> list[str]:
    component, _, block = key.partition("-") if re.fullmatch(r"[\w.]+-\d{1,5}", key, re.ASCII) else (key, "", "")
    nodes = [node for node in tree if node.kind == "component"]
    known = dict.fromkeys(node.component for node in nodes)
    component = component if component in known else ALIASES.get(component, component)
    found = [n for n in nodes if n.component == component and block in ("", str(n.block))]
    if not found:
        raise ScheduleError(
            f"{key[:80]!r} names no component of this {tree.model_class}; it has {', '.join(known)[:300]}, in a single "
            f"block for example {next(iter(known))}-0"
        )
    if block and len(stacks := {node.stack for node in found}) > 1:
        raise ScheduleError(f"{key!r}: {' and '.join(sorted(stacks))} both have a block {block} with {component}")
    return [node.name for node in found]


def from_scm(data: Any, tree: Tree) -> Parts:
    """cache-dit's step mask: `[1, 1, 0]`, "1,1,0", or an object with one (`steps_computation_mask`) or with
    `compute_bins` and `cache_bins`, how many steps are computed and reused in turn. 1 computes.

    A reused step is that of the whole denoiser. Where the object has `Fn_compute_blocks` or `Bn_compute_blocks`, the
    first and the last so many blocks of every stack compute at all steps, and the outputs of the others are reused;
    cache-dit adds what those blocks had added instead (their residual).
    """
    config = data.get("cache_config", data) if isinstance(data, Mapping) else {"steps_computation_mask": data}
    config = _object(config, "cache_config")
    if (policy := config.get("steps_computation_policy", "static")) != "static":
        raise ScheduleError(
            f"steps_computation_policy is {policy!r:.40}: what is reused is then decided in the run; "
            "set it to 'static' to reuse at every step of the mask"
        )
    mask = _bins(config) if "compute_bins" in config else _mask(next((config[k] for k in MASKS if k in config), None))
    actions = [_action(bit, f"mask[{t}]") for t, bit in enumerate(mask)]
    first, last = (_count(config.get(f"{end}n_compute_blocks", 0), f"{end}n_compute_blocks") for end in "FB")
    if not first and not last:
        return _parts({ROOT: actions}, tree, "1")
    nodes = []
    for stack, size in tree.stacks.items():
        if not tree.stack(stack).outputs:
            raise ScheduleError(
                f"Fn_compute_blocks and Bn_compute_blocks are for blocks that run one after another, which {stack} of "
                f"{tree.model_class} does not; leave them out to reuse whole steps"
            )
        nodes += [f"{stack}.{i}" for i in range(first, size - last)]
    if not nodes:
        raise ScheduleError(
            f"Fn_compute_blocks {first} and Bn_compute_blocks {last} leave no block of {tree.model_class} to reuse; "
            f"it has {', '.join(f'{size} {stack}' for stack, size in tree.stacks.items())}"
        )
    return _parts(dict.fromkeys(nodes, actions), tree, "1")


def _mask(value: Any) -> Sequence[Any]:
    if isinstance(value, str):
        value = [int(bit) if bit in ("0", "1") else bit for bit in re.split(r"[\s,]+", value[:MAX_BYTES].strip(" \n,"))]
    return _list(value, "mask")


def _bins(config: Mapping[str, Any]) -> list[int]:
    compute, cache = ([_count(n, k) for n in _list(config.get(k), k)] for k in ("compute_bins", "cache_bins"))
    _steps(sum(compute) + sum(cache), "compute_bins and cache_bins together")
    mask: list[int] = []
    for i in range(max(len(compute), len(cache))):
        mask += [1] * sum(compute[i : i + 1]) + [0] * sum(cache[i : i + 1])
    total = _steps(config.get("total_steps", len(mask)), "total_steps")
    if total > len(mask):
        raise ScheduleError(f"total_steps is {total}, but compute_bins and cache_bins have {len(mask)} steps together")
    return mask[:total]


def from_deepcache(data: Any, tree: Tree) -> Parts:
    """DeepCache's settings: `cache_interval`, `cache_branch_id` and `num_inference_steps`.

    All is computed at every `cache_interval`-th step, or with `uniform` false at as many steps about `center`, by the
    power `pow`. At the others a UNet runs down to the branch only: see `below`.
    """
    config = _object(data, "file")
    steps = _steps(config.get("num_inference_steps"), "num_inference_steps")
    interval = _count(config.get("cache_interval"), "cache_interval")
    if not 1 <= interval <= MAX_STEPS:
        raise ScheduleError(f"cache_interval is {interval}; admissible are 1 to {MAX_STEPS}")
    if config.get("uniform", True):
        computed: Sequence[int] = range(0, steps, interval)
    else:
        center, power = _count(config.get("center"), "center"), config.get("pow", 1.2)
        if isinstance(power, bool) or not isinstance(power, int | float) or not 1 < power <= 10:
            raise ScheduleError(f"pow is {power!r:.40}; admissible are numbers above 1 up to 10")
        computed = centred(steps, math.ceil(steps / interval), center, power)
    actions = [OFF if t in set(computed) else "R" for t in range(steps)]
    nodes = below(tree, _count(config.get("cache_branch_id", 0), "cache_branch_id"))
    return _parts(dict.fromkeys(nodes, actions), tree, "0")


def centred(steps: int, count: int, center: int, power: float = 1.2) -> list[int]:
    """DeepCache's `count` uneven steps: evenly spaced where steps from `center` on are bent by 1/power.

    The power is lowered until there are so many distinct ones. Below the center the base is negative; the published
    lists take the real part of its complex power.
    """
    if not 0 <= center < steps:
        raise ScheduleError(f"center is {center}; admissible are 0 to {steps - 1}, one of the steps")
    bent = power
    while bent > 1:
        low, high = complex(-center) ** (1 / bent), (steps - center) ** (1 / bent)
        bases = [low + (high - low) * i / count for i in range(count + 1)]
        found = sorted({int((base**bent).real) for base in bases})
        if len(found) == count + 1:
            return [0, *(center + place for place in found[1:-1])]
        bent -= 0.02
    raise ScheduleError(f"no power from {power} down gives {count} distinct steps of {steps} about {center}")


def below(tree: Tree, branch: int) -> list[str]:
    """The nodes of a UNet that DeepCache reuses: those that lie deeper than a branch.

    Branches count the layers of the up blocks from the output on: branch 0 computes the last layer of the last up
    block, on top of what enters it, and each further one a layer more and the layer of the down blocks across.
    """
    if not {"down_blocks", "mid_block", "up_blocks"} <= set(tree.stacks):
        raise ScheduleError(f"DeepCache is for UNets; this is a {tree.model_class}")
    ups = tree.stacks["up_blocks"]
    layers = sum(name.startswith("resnets.") for name in tree.components("up_blocks", ups - 1))
    if not 0 <= branch < layers * ups:
        raise ScheduleError(f"cache_branch_id is {branch}; admissible are 0 to {layers * ups - 1}")
    block, layer = divmod(branch, layers)
    up = ups - 1 - block
    found = [f"down_blocks.{i}" for i in range(block + (layer > 0), tree.stacks["down_blocks"])]
    found += ["mid_block.0", *(f"up_blocks.{i}" for i in range(up))]
    for node in tree:
        if node.kind == "component" and not node.nested:
            kind, _, index = node.component.partition(".")
            if node.stack == "down_blocks" and node.block == block and layer > 0:
                found += [node.name] * (kind == "downsamplers" or int(index) >= layer)
            if node.stack == "up_blocks" and node.block == up:
                found += [node.name] * (kind != "upsamplers" and int(index) < layers - 1 - layer)
    return found


def from_magcache(data: Any, tree: Tree) -> Parts:
    """MagCache's magnitude ratios `mag_ratios` as a mask of whole steps, which they decide beforehand.

    A step is reused while the error accumulated since the last computed one, of |1 - product of ratios|, stays within
    `threshold` (0.06) and no more than `max_skip_steps` (3) follow; the first `retention_ratio` (0.2) of the
    `num_inference_steps` (as many as ratios) compute. MagCache adds the residual of all blocks where a plan reuses
    the denoiser's output.
    """
    config = _object(data, "file")
    ratios = [_number(ratio, "mag_ratios", 100) for ratio in _list(config["mag_ratios"], "mag_ratios")]
    steps = _steps(config.get("num_inference_steps", len(ratios)), "num_inference_steps")
    threshold = _number(config.get("threshold", 0.06), "threshold", math.inf)
    longest = _count(config.get("max_skip_steps", 3), "max_skip_steps")
    retained = int(_number(config.get("retention_ratio", 0.2), "retention_ratio", 1) * steps + 0.5)
    scale = (len(ratios) - 1) / max(steps - 1, 1)
    own = [ratios[round(t * scale)] for t in range(steps)] if steps > 1 else ratios[-1:]
    actions: list[str] = []
    product, error, reused = 1.0, 0.0, 0
    for t, ratio in enumerate(own):
        if t >= max(retained, 1):
            product, reused = product * ratio, reused + 1
            error += abs(1 - product)
        skipped = t >= max(retained, 1) and error <= threshold and reused <= longest
        actions.append("R" if skipped else OFF)
        if not skipped:
            product, error, reused = 1.0, 0.0, 0
    return _parts({ROOT: actions}, tree, "1")


READERS: Mapping[str, Callable[[Any, Tree], Parts]] = {
    "ecad": from_ecad,
    "smoothcache": from_smoothcache,
    "scm": from_scm,
    "deepcache": from_deepcache,
    "magcache": from_magcache,
}


def _parsed(text: bytes) -> Any:
    if len(text) > MAX_BYTES:
        raise ScheduleError(f"the file has more than the {MAX_BYTES} bytes that a schedule may have")
    try:
        return json.loads(text)
    except RecursionError:
        raise ScheduleError("its JSON is nested too deep") from None
    except ValueError as error:
        if re.fullmatch(rb"[01\s,]+", text):
            return text.decode()
        raise ScheduleError(f"this is no complete JSON file: {error}") from None


def _parts(tokens: Mapping[str, Sequence[str]], tree: Tree, computes: str) -> Parts:
    """The parts for one action per step of some nodes; `computes` is how the file writes that one computes."""
    steps = _steps(len(next(iter(tokens.values()), ())), "the file's number of steps")
    for name, actions in tokens.items():
        if actions[0] != OFF:
            raise ScheduleError(
                f"{name} is not computed at step 0, where there is nothing to reuse yet; its entry has to be {computes}"
            )
    rules = [(name, "".join(actions)) for name, actions in tokens.items()]
    plan = Plan.resolve(rules, tree, steps)
    return {"steps": steps} | ({"plan": {"rules": [list(rule) for rule in plan.rules()]}} if not plan.is_off else {})


def _action(bit: Any, where: str) -> str:
    if isinstance(bit, int) and bit in (0, 1):
        return OFF if bit else "R"
    raise ScheduleError(f"{where[:200]} is {bit!r:.40}; each entry is 1 (compute) or 0 (reuse)")


def _object(value: Any, where: str) -> Mapping[Any, Any]:
    if isinstance(value, Mapping):
        return value
    raise ScheduleError(f"{where} is a {type(value).__name__}; it has to be an object")


def _list(value: Any, where: str) -> Sequence[Any]:
    if isinstance(value, list) and 0 < len(value) <= MAX_STEPS:
        return value
    found = f"has {len(value)} entries" if isinstance(value, list) else f"is a {type(value).__name__}"
    raise ScheduleError(f"{where[:80]} {found}; it has to be a list of 1 to {MAX_STEPS}")


def _same(found: Mapping[Any, Any], wanted: Iterable[str], where: str) -> None:
    """ScheduleError where the keys are not those."""
    names = list(wanted)
    for word, keys in (("lacks", [name for name in names if name not in found]), ("has", set(found) - set(names))):
        if keys:
            wrong = sorted(map(str, keys))[0]
            raise ScheduleError(f"{where} {word} {wrong[:80]!r}; it has to have {names[0]} to {names[-1]}")


def _steps(value: Any, where: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_STEPS:
        return value
    raise ScheduleError(f"{where} is {value!r:.40}; admissible are 1 to {MAX_STEPS}")


def _count(value: Any, where: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ScheduleError(f"{where} is {value!r:.40}; it has to be a whole number from 0 on")


def _number(value: Any, where: str, highest: float) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= highest and value < math.inf:
        return float(value)
    raise ScheduleError(f"{where} has {value!r:.40}; admissible are numbers from 0 to {highest:g}")
