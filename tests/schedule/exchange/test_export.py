"""Plans and bits as files of other tools: what they can say comes back, and what they cannot is said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search import Schedule, ScheduleError
from search.export import main
from search.results import translate as dialects
from search.schedule.exchange import (
    DIALECTS,
    export,
    from_ecad,
    from_scm,
    from_smoothcache,
    losses,
    parts_of,
    read,
    to_cache_dit,
    to_ecad,
    to_scm,
    to_smoothcache,
    to_torchao,
)
from search.schedule.model.identity import model_part
from search.schedule.model.nodes import Tree
from search.schedule.parts.formats import FORMATS
from search.testing.denoisers import unet
from tests.helpers import pipelines
from tests.helpers.component_bits import bits, by_hand
from tests.helpers.finished_search import made_result

PIXART = Tree("PixArtTransformer2DModel", {"transformer_blocks": 4})
DIT = Tree("DiTTransformer2DModel", {"transformer_blocks": 3})
FLUX = Tree("FluxTransformer2DModel", {"transformer_blocks": 2, "single_transformer_blocks": 3})
UNET = Tree.of(unet())
STEPS = 5
TREES = {"pixart": PIXART, "dit": DIT, "flux": FLUX}


def schedule(tree: Tree, *rules: list[str], **parts: Any) -> Schedule:
    """Rules of a plan of five steps, and other parts."""
    data = {"format": "schedule/1", "model": {"class": tree.model_class, "stacks": tree.shape}, "steps": STEPS}
    return Schedule.from_dict(data | ({"plan": {"rules": list(rules)}} if rules else {}) | parts)


def again(text: str, tree: Tree, path: Path) -> Schedule:
    """The schedule of a written file."""
    path.write_text(text)
    data = {"format": "schedule/1", "model": {"class": tree.model_class, "stacks": tree.shape}}
    return Schedule.from_dict(data | read(path, tree))


ACTIONS = st.lists(st.sampled_from("CR"), min_size=STEPS - 1, max_size=STEPS - 1).map(lambda a: "C" + "".join(a))


@st.composite
def components(draw: Any, name: str) -> Schedule:
    """Any component reused at any step but the first."""
    tree = TREES[name]
    names = [node.name for node in tree if node.kind == "component"]
    chosen = draw(st.dictionaries(st.sampled_from(names), ACTIONS))
    return schedule(tree, *map(list, chosen.items()))


# What can be said comes back


@pytest.mark.parametrize("name", TREES)
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_components_come_back_from_ecad(tmp_path_factory, name, data):
    first = data.draw(components(name))
    assert losses(first, "ecad") == []
    assert again(export(first, "ecad"), TREES[name], tmp_path_factory.getbasetemp() / "ecad.json") == first


@pytest.mark.parametrize("name", ["pixart", "dit"])
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_components_come_back_from_smoothcache(tmp_path_factory, name, data):
    first = data.draw(components(name))
    assert losses(first, "smoothcache") == []
    assert again(export(first, "smoothcache"), TREES[name], tmp_path_factory.getbasetemp() / "smooth.json") == first


@settings(max_examples=30, deadline=None)
@given(ACTIONS, st.data())
def test_a_run_of_blocks_comes_back_from_cache_dit(tmp_path_factory, actions, data):
    name = data.draw(st.sampled_from([*TREES]))
    blocks = [node.name for node in TREES[name] if node.kind == "block"]
    first = data.draw(st.integers(1, len(blocks) - 1))
    last = data.draw(st.integers(first + 1, len(blocks)))
    gate = {"group": "+".join(blocks[first:last]), "actions": actions, "value": "residual"}
    found = schedule(TREES[name], gates=[gate])
    assert losses(found, "cache-dit") == []
    assert again(to_cache_dit(found), TREES[name], tmp_path_factory.getbasetemp() / "scm.yaml") == found


@pytest.mark.parametrize("name", TREES)
@settings(max_examples=20, deadline=None)
@given(ACTIONS)
def test_whole_steps_come_back_from_a_mask(tmp_path_factory, name, actions):
    first = schedule(TREES[name], ["denoiser", actions])
    assert losses(first, "scm") == []
    assert again(to_scm(first), TREES[name], tmp_path_factory.getbasetemp() / "mask.txt") == first


def test_files_cell_by_cell():
    found = schedule(DIT, ["transformer_blocks.*:attn1", "CRRCC"], ["transformer_blocks.1:ff", "CCCCR"])
    assert to_smoothcache(found) == {
        "attn1": [1, 0, 0, 1, 1],
        "ff-0": [1, 1, 1, 1, 1],
        "ff-1": [1, 1, 1, 1, 0],
        "ff-2": [1, 1, 1, 1, 1],
    }
    body = to_ecad(found)["cache_schedule"]
    assert body["num_blocks"] == 3 and body["num_inference_steps"] == 5 and "num_single_blocks" not in body
    assert body["schedule"]["001"] == {str(i): {"attn1": False, "ff": True} for i in range(3)}
    assert body["schedule"]["004"]["1"] == {"attn1": True, "ff": False}
    flux = to_ecad(schedule(FLUX, ["single_transformer_blocks.2:proj_out", "CCRCC"]))["cache_schedule"]
    assert flux["num_single_blocks"] == 3 and not flux["schedule"]["002"]["single_2"]["single_proj_out"]
    gate = {"group": "transformer_blocks.[1-2]", "actions": "CCRRC", "value": "residual"}
    assert to_cache_dit(schedule(PIXART, gates=[gate])) == (
        "cache_config:\n  Fn_compute_blocks: 1\n  Bn_compute_blocks: 1\n  max_warmup_steps: 2\n"
        "  num_inference_steps: 5\n  steps_computation_mask: [1, 1, 0, 0, 1]\n  steps_computation_policy: static\n"
    )
    assert to_scm(schedule(UNET, ["denoiser", "CRRCR"])) == "1,0,0,1,0"
    assert '"attn1": [1, 0, 0, 1, 1],' in export(found, "smoothcache")  # a list is a line


def test_a_plan_that_does_nothing_comes_back(tmp_path):
    bare = schedule(PIXART)
    for dialect in ("ecad", "smoothcache", "cache-dit", "scm"):
        assert again(export(bare, dialect), PIXART, tmp_path / "file") == bare


def test_a_written_ecad_file_means_what_hooks_by_hand_do():
    """ECAD has no package: its rule, every component of every block by its bit."""
    pipe, given_bits = pipelines.pixart(), bits(6, 3, 3)
    names = ("attn1", "attn2", "ff")
    rules = [
        [f"transformer_blocks.{i}:{name}", "".join("C" if bit else "R" for bit in given_bits[:, i, j])]
        for i in range(3)
        for j, name in enumerate(names)
    ]
    data = {"format": "schedule/1", "model": model_part(pipe.transformer), "steps": 6, "plan": {"rules": rules}}
    found = Schedule.from_dict(data)
    table = json.loads(export(found, "ecad"))["cache_schedule"]["schedule"]
    told = np.array([[[table[f"{t:03}"][str(i)][name] for name in names] for i in range(3)] for t in range(6)])
    with found.apply(pipe):
        applied = pipelines.run(pipe)
    assert torch.equal(by_hand(pipe, told), applied)


# What cannot be said


LOST = {
    ("ecad", "plan: transformer_blocks@1: C R C R R "): {"rules": [["transformer_blocks.1", "CRCRR"]]},
    ("ecad", r"plan: denoiser: C R\*4 "): {"rules": [["denoiser", "CRRRR"]]},
    ("smoothcache", "plan: ff@0: C C F1 C C "): {"rules": [["transformer_blocks.0:ff", "CCF1CC"]]},
    ("smoothcache", r"plan: attn2@0-1: S C\*4 "): {"rules": [["transformer_blocks.[0-1]:attn2", "SCCCC"]]},
    ("cache-dit", r"plan: attn2@1-2: C C R R C \(cache-dit masks whole steps"): {
        "rules": [["transformer_blocks.[1-2]:attn2", "CCRRC"]]
    },
    ("cache-dit", r"plan: the output of denoiser: C\*4 R "): {"rules": [["denoiser", "CCCCR"]]},
    ("scm", r"plan: the output of transformer_blocks@3: C C R C C \(a mask has whole steps"): {
        "rules": [["transformer_blocks.3", "CCRCC"]]
    },
}


@pytest.mark.parametrize(("dialect", "line"), LOST)
def test_what_a_plan_loses_is_said(dialect, line):
    found = schedule(PIXART, *LOST[dialect, line]["rules"])
    with pytest.raises(ScheduleError, match=f"(?s)a file for {dialect} would lose:.*{line}.*type lossy=true"):
        export(found, dialect)
    (said,) = losses(found, dialect)
    written = export(found, dialect, lossy=True)
    assert said.startswith("plan: ") and losses(Schedule.from_dict(found.to_dict() | parts(written)), dialect) == []


def parts(written: str) -> dict[str, Any]:
    """Of a file's content; a gate takes the place of the plan."""
    import yaml

    found = parts_of(yaml.safe_load(written) if ":" in written else written.strip(), PIXART)
    return {"digest": None, "plan": None, "gates": []} | found


ASKING = {
    "group": "transformer_blocks.[1-2]",
    "actions": "CGGGC",
    "value": "residual",
    "signal": "first_block_residual",
    "threshold": 0.05,
    "max_run": 2,
}


def test_a_gate_that_cache_dit_asks_too_stays_one():
    found = schedule(PIXART, gates=[ASKING])
    (line,) = losses(found, "cache-dit")
    assert line == (
        "gates: transformer_blocks.[1-2] asks the largest change in the batch (cache-dit asks the mean of the batch)"
    )
    assert to_cache_dit(found, lossy=True) == (
        "cache_config:\n  Fn_compute_blocks: 1\n  Bn_compute_blocks: 1\n  max_warmup_steps: 1\n"
        "  num_inference_steps: 5\n  steps_computation_mask: [1, 0, 0, 0, 1]\n  steps_computation_policy: dynamic\n"
        "  residual_diff_threshold: 0.05\n  max_continuous_cached_steps: 2\n"
    )


@pytest.mark.parametrize(
    "other",
    [
        {"threshold": 1.5},  # which cache-dit takes for always
        {"threshold": [0.0, 0.1, 0.2, 0.1, 0.0]},
        {"value": "out"},
        {"then": "F1", "actions": "CCGGC"},
        {"accumulate": True},
        {"group": "transformer_blocks.[2-3]"},  # its signal is the second block's
        {"signal": "model_input"},
        {"actions": "CRGGC"},
    ],
)
def test_a_gate_that_cache_dit_asks_otherwise_is_lost(other):
    found = schedule(PIXART, gates=[ASKING | other])
    assert "decided while it runs" in losses(found, "cache-dit")[0]
    assert "steps_computation_policy: static" in to_cache_dit(found, lossy=True)


def test_other_parts_are_lost_by_name():
    parts = {
        "guidance": {"call": 4.0, "branch": "CCCOO"},
        "start": {"kind": "noise", "inject": {"strength": 0.003, "below": 500.0}},
        "bits": {"formats": {"w8": {"weight": 8}}, "layers": {"a": "w8", "b": "w8"}},
        "gates": [
            {
                "group": "transformer_blocks.[2-3]",
                "actions": "CGGGC",
                "signal": "first_block_residual",
                "threshold": 0.1,
            }
        ],
    }
    found = losses(schedule(PIXART, **parts), "ecad")
    reason = " (an ECAD file has bits of components, nothing else)"
    assert [line.removesuffix(reason) for line in found] == [
        "gates: transformer_blocks@2-3: C G*3 C, decided while it runs, by first_block_residual",
        "guidance: steps 3-4 run the conditional half alone",
        "start: noise is injected after steps",
        "bits: 2 layers at w8",
    ]
    assert losses(schedule(PIXART, models={"names": {}, "at": "LLLLL"}, guidance={"call": 3.0}), "ecad") == []
    stitched = {"models": {"names": {"S": {"class": PIXART.model_class, "stacks": PIXART.shape}}, "at": "SSLLL"}}
    assert losses(schedule(PIXART, **stitched), "smoothcache")[-1].startswith("models: steps 0-1 run another denoiser")


def test_many_rules_are_counted():
    kinds = {"attn1": "R", "ff": "S"}
    rules = [[f"transformer_blocks.{i}:{c}", f"C{a * i}{'C' * (4 - i)}"] for i in (1, 2, 3) for c, a in kinds.items()]
    found = losses(schedule(PIXART, *rules), "scm")
    assert len(found) == 6
    rules += [[f"transformer_blocks.{i}:attn2", f"S{'C' * i}S{'C' * (3 - i)}"] for i in range(4)]
    found = losses(schedule(PIXART, *rules), "scm")
    assert len(found) == 8 and found[-1] == "plan: 3 more like these"


def test_the_nearest_file():
    """Where blocks are reused so are their components; a step is a reused one where most of it is."""
    found = schedule(PIXART, ["transformer_blocks.[1-3]", "CCRRC"], ["transformer_blocks.0:ff", "CCCCF1"])
    assert to_smoothcache(found, lossy=True)["ff-0"] == [1, 1, 1, 1, 0]
    assert to_smoothcache(found, lossy=True)["attn1-2"] == [1, 1, 0, 0, 1]
    assert "steps_computation_mask: [1, 1, 0, 0, 1]" in to_cache_dit(found, lossy=True)
    assert to_scm(found, lossy=True) == "1,1,0,0,1"
    outer = schedule(PIXART, ["transformer_blocks.[2-2]", "CCRRC"])
    assert "Fn_compute_blocks: 2\n  Bn_compute_blocks: 1\n" in to_cache_dit(outer, lossy=True)
    # two stacks with one list for both: computed where either is
    found = schedule(FLUX, ["transformer_blocks.*:attn", "CRCRC"], ["single_transformer_blocks.*:attn", "CRRRC"])
    with pytest.raises(ScheduleError, match="attn differs between blocks, and two stacks have it"):
        to_smoothcache(found)
    assert to_smoothcache(found, lossy=True)["attn"] == [1, 0, 1, 0, 1]


def test_dialects_that_do_not_fit_a_model_are_refused():
    found = schedule(UNET, ["mid_block.0", "CRCRC"])
    with pytest.raises(ScheduleError, match="ECAD files are for PixArt, DiT and Flux; this is a UNet2DConditionModel"):
        to_ecad(found, lossy=True)
    with pytest.raises(ScheduleError, match="SmoothCache files are for stacks of transformer blocks; this is a UNet2D"):
        to_smoothcache(found, lossy=True)
    with pytest.raises(ScheduleError, match=r"use a plain mask \(dialect=scm\), to reuse whole steps"):
        to_cache_dit(found, lossy=True)
    bare = Schedule.from_dict({"format": "schedule/1", "model": {"class": DIT.model_class, "stacks": DIT.shape}})
    for dialect in ("ecad", "smoothcache", "cache-dit", "scm"):
        with pytest.raises(ScheduleError, match="the schedule is for any number of steps, and .* an entry for each"):
            export(bare, dialect)
    with pytest.raises(ScheduleError, match="dialect='onnx' is unknown; there are diffusers, cache-dit, scm, comfyui"):
        export(found, "onnx")


# torchao


def quantised(pipe: Any, formats: dict[str, str]) -> Schedule:
    used = {name: FORMATS[name].model_dump(exclude_defaults=True) for name in set(formats.values())}
    data = {"format": "schedule/1", "model": model_part(pipe.transformer), "bits": {"formats": used, "layers": formats}}
    return Schedule.from_dict(data)


def test_torchao_quantises_the_same_layers_to_the_same_bits(tmp_path):
    pytest.importorskip("torchao")
    from diffusers import PixArtTransformer2DModel, TorchAoConfig

    pipe = pipelines.pixart()
    names = [f"transformer_blocks.{i}.{layer}" for i in range(3) for layer in ("attn1.to_q", "ff.net.0.proj")]
    found = quantised(pipe, {name: ("w8", "w8a8d")[i % 2] for i, name in enumerate(names)})
    config = TorchAoConfig.from_dict(json.loads(export(found, "torchao")))
    pipe.transformer.save_pretrained(tmp_path)
    loaded = PixArtTransformer2DModel.from_pretrained(tmp_path, quantization_config=config, torch_dtype=torch.float32)
    with found.apply(pipe, bits="torchao"):
        expected = pipelines.run(pipe)
    for name, module in pipe.transformer.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert (type(loaded.get_submodule(name).weight) is torch.nn.Parameter) == (name not in names)
    original, pipe.transformer = pipe.transformer, loaded.eval()
    assert torch.equal(pipelines.run(pipe), expected)
    pipe.transformer = original
    assert not torch.equal(pipelines.run(pipe), expected)


def test_formats_that_torchao_does_not_run_are_lost():
    pytest.importorskip("torchao")
    pipe = pipelines.pixart()
    found = quantised(pipe, {"transformer_blocks.0.attn1.to_q": "w8", "transformer_blocks.1.attn1.to_q": "w4"})
    with pytest.raises(
        ScheduleError, match=r"bits: transformer_blocks.1.attn1.to_q stays at full precision \(weight 4"
    ):
        to_torchao(found)
    written = to_torchao(found, lossy=True)
    assert [*written["quant_type"]["default"]["_data"]["fqn_to_config"]] == ["transformer_blocks.0.attn1.to_q"]
    with pytest.raises(ScheduleError, match="no layer of this schedule has a format that torchao runs: w8 or w8a8d"):
        to_torchao(quantised(pipe, {"transformer_blocks.1.attn1.to_q": "w4"}), lossy=True)


# The command


@pytest.fixture
def runs(tmp_path):
    made_result(tmp_path / "runs")
    return tmp_path / "runs"


def test_the_command_writes_a_file_and_says_how_to_use_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = schedule(PIXART, ["transformer_blocks.*:ff", "CRCRC"])
    found.save("schedule.json")
    assert main(["schedule=schedule.json", "dialect=smoothcache"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("schedule.smoothcache.json\n\nUse it:\n") and "lost" not in printed
    assert "SmoothCacheHelper(pipe.transformer, BasicTransformerBlock, kinds, bits).enable()" in printed
    assert "# run it with num_inference_steps=5" in printed
    assert json.loads(Path("schedule.smoothcache.json").read_text()) == to_smoothcache(found)
    assert main(["schedule=schedule.json", "dialect=cache-dit", "out=to/scm.yaml", "lossy=true"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("to/scm.yaml\n  lost: plan: ff: C R C R C (cache-dit")
    assert "cache_dit.enable_cache(pipe, **cache_dit.load_configs('to/scm.yaml'))" in printed


def test_the_command_writes_what_a_search_found(runs, tmp_path, capsys):
    out = tmp_path / "written"
    assert main([f"runs={runs}", "dialect=ecad", f"out={out / 'a.json'}", "lossy=true"]) == 0
    assert json.loads((out / "a.json").read_text())["cache_schedule"]["num_inference_steps"] == 6
    assert main([f"runs={runs}", "dialect=scm", "pick=all", f"out={out / 'all'}", "lossy=true"]) == 0
    assert len([*(out / "all").glob("*.txt")]) == 3


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["dialect=onnx"], "dialect='onnx' is unknown; there are diffusers, cache-dit, scm"),
        (["dialect=scm", "lossy=maybe"], "lossy='maybe' is not understood; type lossy=true or lossy=false"),
        (["dialect=scm", "pick=all", "out=x.txt"], "out='x.txt' is a file name; pick=all writes a folder"),
        (["schedule=x.json"], "schedule= is written in a dialect; type dialect=diffusers"),
        (["schedule=nowhere.json", "dialect=scm"], "cannot read 'nowhere.json'"),
    ],
)
def test_mistakes_say_what_to_type(runs, capsys, arguments, text):
    assert main([f"runs={runs}", *arguments]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_says_how_it_is_used(dialect, tmp_path):
    found = schedule(PIXART, ["denoiser", "CRCRC"])
    lines = DIALECTS[dialect].use(tmp_path / "file", found)
    assert lines and all(lines)
    try:
        path, lost = dialects.write_dialect(found, dialect, tmp_path / "file", lossy=True)
    except ScheduleError as error:
        assert dialect in ("comfyui", "sdnext", "torchao") and "the schedule" in str(error) or "layer" in str(error)
    else:
        assert path.read_text() and lost == losses(found, dialect)


def test_importers_read_what_exporters_of_the_same_name_write():
    found = schedule(DIT, ["transformer_blocks.2:ff", "CRCRC"])
    assert from_ecad(to_ecad(found), DIT) == from_smoothcache(to_smoothcache(found), DIT)
    assert from_scm(to_scm(schedule(DIT, ["denoiser", "CRCRC"])), DIT)["plan"]["rules"] == [["denoiser", "CRCRC"]]
