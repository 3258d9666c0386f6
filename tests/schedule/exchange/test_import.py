"""Other tools' files against plans written out by hand, against those tools' own code, and against hooks by hand."""

import json
import sys
from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from search import Schedule, ScheduleError
from search.schedule.exchange import (
    below,
    centred,
    detect,
    from_deepcache,
    from_ecad,
    from_magcache,
    from_scm,
    from_smoothcache,
    load,
    parts_of,
    read,
)
from search.schedule.exchange.files import KEYS
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.plan.plan import Plan
from search.testing.denoisers import unet
from search.testing.pipelines import stable_diffusion
from tests.helpers import pipelines
from tests.helpers.component_bits import bits, by_hand

PIXART = Tree("PixArtTransformer2DModel", {"transformer_blocks": 2})
DIT = Tree("DiTTransformer2DModel", {"transformer_blocks": 2})
FLUX = Tree("FluxTransformer2DModel", {"transformer_blocks": 2, "single_transformer_blocks": 3})
UNET = Tree.of(unet(layers_per_block=2))  # two blocks down and up, attention in the outer ones


def table(parts: dict[str, Any], tree: Tree) -> dict[str, str]:
    """Actions of the nodes that do anything but compute."""
    rules = [tuple(rule) for rule in parts.get("plan", {"rules": []})["rules"]]
    plan = Plan.resolve(rules, tree, parts["steps"])
    assert plan.rules() == rules  # canonical
    return {name: "".join(plan.tokens[name]) for name in plan.planned()}


def ecad(bits: np.ndarray) -> dict[str, Any]:
    """A file as ECAD writes it for PixArt: bits [T, L, 3]."""
    steps, blocks, _ = bits.shape
    schedule = {
        f"{t:03}": {
            str(i): dict(zip(("attn1", "attn2", "ff"), map(bool, bits[t, i]), strict=True)) for i in range(blocks)
        }
        for t in range(steps)
    }
    body = {"num_blocks": blocks, "num_inference_steps": steps, "name": "x", "attributes": {}, "schedule": schedule}
    return {"cache_schedule": body, "config": {"seed": 0}, "metrics": {}}


def ecad_flux(full: np.ndarray, single: np.ndarray) -> dict[str, Any]:
    """The same for Flux: bits [T, L, 3] of double and single blocks."""
    schedule = {}
    for t in range(len(full)):
        blocks = {
            str(i): dict(zip(("full_attn", "full_ff", "full_ff_context"), map(bool, row), strict=True))
            for i, row in enumerate(full[t])
        }
        blocks |= {
            f"single_{i}": dict(zip(("single_attn", "single_proj_mlp", "single_proj_out"), map(bool, row), strict=True))
            for i, row in enumerate(single[t])
        }
        schedule[f"{t:03}"] = blocks
    sizes = {"num_blocks": full.shape[1], "num_single_blocks": single.shape[1], "num_inference_steps": len(full)}
    return {"cache_schedule": sizes | {"schedule": schedule}}


def action(bit: bool) -> str:
    return "C" if bit else "R"


# ECAD


def test_an_ecad_file_cell_by_cell():
    on = {"attn1": True, "attn2": True, "ff": True}
    schedule = {
        "000": {"0": on, "1": on},
        "001": {"0": on | {"attn2": False}, "1": on},
        "002": {"0": on | {"attn2": False}, "1": on | {"attn1": False, "ff": False}},
    }
    found = table(from_ecad({"cache_schedule": {"schedule": schedule}}, PIXART), PIXART)
    assert found == {
        "transformer_blocks.0:attn2": "CRR",
        "transformer_blocks.1:attn1": "CCR",
        "transformer_blocks.1:ff": "CCR",
    }


def test_1680_random_bits_come_back():
    tree = Tree("PixArtTransformer2DModel", {"transformer_blocks": 28})
    given = bits(20, 28, 3)
    parts = from_ecad(json.loads(json.dumps(ecad(given))), tree)
    plan = Schedule.from_dict(
        {"format": "schedule/1", "model": {"class": tree.model_class, "stacks": tree.shape}} | parts
    ).plan
    for i in range(28):
        for j, component in enumerate(("attn1", "attn2", "ff")):
            assert list(plan.tokens[f"transformer_blocks.{i}:{component}"]) == [action(b) for b in given[:, i, j]]


def test_random_bits_of_flux_come_back():
    full, single = bits(7, 2, 3), bits(7, 3, 3)
    found = table(from_ecad(ecad_flux(full, single), FLUX), FLUX)
    expected = {
        f"{stack}.{i}:{component}": "".join(action(b) for b in given[:, i, j])
        for stack, components, given in (
            ("transformer_blocks", ("attn", "ff", "ff_context"), full),
            ("single_transformer_blocks", ("attn", "proj_mlp", "proj_out"), single),
        )
        for i in range(given.shape[1])
        for j, component in enumerate(components)
    }
    assert found == expected and len(found) == 15


def test_all_computed_is_no_plan():
    assert from_ecad(ecad(np.ones((4, 2, 3), dtype=bool)), PIXART) == {"steps": 4}


def test_an_ecad_file_runs_as_hooks_by_hand_do(tmp_path):
    pipe, given = pipelines.pixart(), bits(6, 3, 3)
    bare = pipelines.run(pipe)
    expected = by_hand(pipe, given)
    path = tmp_path / "ecad.json"
    path.write_text(json.dumps(ecad(given)))
    with load(path, pipe).apply(pipe):
        found = pipelines.run(pipe)
    assert torch.equal(found, expected) and not torch.allclose(found, bare, rtol=1e-2)


def broken(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    data = ecad(bits(4, 2, 3))
    change(data["cache_schedule"])
    return data


ECAD_MISTAKES = {
    r"transformer_blocks.1:attn2 is not computed at step 0, .*has to be true": lambda s: s["schedule"]["000"][
        "1"
    ].update(attn2=False),
    "cache_schedule.num_blocks is 28, but this PixArtTransformer2DModel has 2": lambda s: s.update(num_blocks=28),
    "num_single_blocks is 3, but this .* has no single_transformer_blocks": lambda s: s.update(num_single_blocks=3),
    "cache_schedule.schedule lacks '004'; it has to have 000 to 004": lambda s: s.update(num_inference_steps=5),
    "cache_schedule.schedule has '003'": lambda s: s.update(num_inference_steps=3),
    "num_inference_steps is 99999; admissible are 1 to": lambda s: s.update(num_inference_steps=99999),
    "schedule.002 lacks '1'; it has to have 0 to 1": lambda s: s["schedule"]["002"].pop("1"),
    "schedule.002 has '2'": lambda s: s["schedule"]["002"].update({"2": {}}),
    "schedule.001.0 lacks 'ff'; it has to have attn1 to ff": lambda s: s["schedule"]["001"]["0"].pop("ff"),
    "schedule.001.0 has 'mlp'": lambda s: s["schedule"]["001"]["0"].update(mlp=True),
    "schedule.001.0 has custom_compute_attn: it runs code": lambda s: s["schedule"]["001"]["0"].update(
        custom_compute_attn={"name": "f"}
    ),
    "schedule.001.0.ff is 'yes'; each entry is 1": lambda s: s["schedule"]["001"]["0"].update(ff="yes"),
    "schedule.003 is a list; it has to be an object": lambda s: s["schedule"].update({"003": []}),
    "cache_schedule.schedule is a NoneType; it has to be an object": lambda s: s.pop("schedule"),
}


@pytest.mark.parametrize("message", ECAD_MISTAKES)
def test_an_ecad_file_that_does_not_fit_is_refused(message):
    with pytest.raises(ScheduleError, match=message):
        from_ecad(broken(ECAD_MISTAKES[message]), PIXART)


def test_ecad_of_another_class_is_refused():
    with pytest.raises(ScheduleError, match="schedule.000.0 has 'attn2'; it has to have attn1 to ff"):
        from_ecad(ecad(bits(4, 2, 3)), DIT)
    with pytest.raises(ScheduleError, match="ECAD files are for PixArt, DiT and Flux; this is a UNet2DConditionModel"):
        from_ecad(ecad(bits(4, 2, 3)), UNET)


# SmoothCache


def test_a_smoothcache_file_cell_by_cell():
    found = table(from_smoothcache({"attn1": [1, 0, 1, 0], "ff-1": [1, 1, 0, 0]}, DIT), DIT)
    assert found == {
        "transformer_blocks.0:attn1": "CRCR",
        "transformer_blocks.1:attn1": "CRCR",
        "transformer_blocks.1:ff": "CCRR",
    }
    # names of the original DiT, and a block over all of them
    found = table(from_smoothcache({"mlp": [1, 0, 0], "attn": [1, 1, 1], "mlp-0": [1, 1, 0]}, DIT), DIT)
    assert found == {"transformer_blocks.0:ff": "CCR", "transformer_blocks.1:ff": "CRR"}
    found = table(from_smoothcache({"ff": [1, 0], "attn": [1, 0], "proj_out-2": [1, 0]}, FLUX), FLUX)
    names = [n for n in FLUX.nodes if n.endswith((":ff", ":attn"))] + ["single_transformer_blocks.2:proj_out"]
    assert found == dict.fromkeys(names, "CR")
    found = table(
        from_smoothcache({"resnets.1": [1, 0], "attentions.0.transformer_blocks.0.attn2": [1, 0]}, UNET), UNET
    )
    assert len(found) == 5 + 3


def test_smoothcache_files_that_do_not_fit_are_refused():
    with pytest.raises(ScheduleError, match="'norm1' names no component of this DiT.*; it has attn1, ff,.* attn1-0"):
        from_smoothcache({"norm1": [1, 0]}, DIT)
    with pytest.raises(ScheduleError, match="'ff-2' names no component"):
        from_smoothcache({"ff-2": [1, 0]}, DIT)
    with pytest.raises(
        ScheduleError, match="single_transformer_blocks and transformer_blocks both have a block 0 with"
    ):
        from_smoothcache({"attn-0": [1, 0]}, FLUX)
    with pytest.raises(ScheduleError, match="ff has 2 entries, but attn1 has 3"):
        from_smoothcache({"attn1": [1, 0, 0], "ff": [1, 0]}, DIT)
    with pytest.raises(ScheduleError, match=r"attn1\[1\] is 2; each entry is 1 \(compute\) or 0 \(reuse\)"):
        from_smoothcache({"attn1": [1, 2]}, DIT)
    with pytest.raises(
        ScheduleError, match="transformer_blocks.0:attn1 is not computed at step 0.* its entry has to be 1"
    ):
        from_smoothcache({"attn1": [0, 1]}, DIT)
    with pytest.raises(ScheduleError, match="attn1 has 0 entries; it has to be a list of 1 to 10000"):
        from_smoothcache({"attn1": []}, DIT)


# Step masks


@pytest.mark.parametrize(
    "data",
    [
        [1, 1, 0, 0, 1, 0],
        [True, True, False, False, True, False],
        "1,1,0,0,1,0",
        "1 1 0 0 1 0\n",
        {"steps_computation_mask": [1, 1, 0, 0, 1, 0], "steps_computation_policy": "static"},
        {"scm_mask": "1,1,0,0,1,0"},
        {"compute_bins": [2, 1], "cache_bins": [2, 1]},
        {"compute_bins": [2, 1, 5], "cache_bins": [2, 3], "total_steps": 6},
    ],
)
def test_step_masks_cell_by_cell(data):
    assert detect(data) == "scm"
    for tree in (PIXART, FLUX, UNET):
        assert table(from_scm(data, tree), tree) == {ROOT: "CCRRCR"}


def test_bins_of_28_steps_are_the_published_mask():
    slow = {"compute_bins": [8, 3, 3, 2, 1, 1], "cache_bins": [1, 2, 2, 2, 3]}
    mask = "1111111101110011100110010001"
    assert table(from_scm(slow, PIXART), PIXART) == {ROOT: mask.replace("1", "C").replace("0", "R")}


def group(data: Any, tree: Tree) -> dict[str, Any]:
    """The one gate of a configuration."""
    parts = from_scm(data, tree)
    (gate,) = parts.pop("gates")
    assert set(parts) == {"steps"} and gate.pop("value") == "residual"
    return gate


def test_a_configuration_reuses_the_residual_of_a_run_of_blocks():
    tree = Tree("PixArtTransformer2DModel", {"transformer_blocks": 12})
    data = {"scm_mask": [1, 0, 1, 0], "Fn_compute_blocks": 1, "Bn_compute_blocks": 2}
    assert group(data, tree) == {"group": "transformer_blocks.[1-9]", "actions": "CRCR"}
    # cache-dit's own numbers where a configuration says none: 8 blocks at the start, none at the end
    config = {"cache_config": {"steps_computation_mask": [1, 1, 0], "residual_diff_threshold": 0.1}}
    assert group(config, tree) == {"group": "transformer_blocks.[8-11]", "actions": "CCR"}
    # the two stacks of Flux are one chain
    expected = {"group": "transformer_blocks.1+single_transformer_blocks.*", "actions": "CR"}
    assert group({"scm_mask": [1, 0], "Fn_compute_blocks": 1}, FLUX) == expected
    assert from_scm({"scm_mask": [1, 1], "Fn_compute_blocks": 1}, FLUX) == {"steps": 2}


def test_a_configuration_in_yaml(tmp_path):
    path = tmp_path / "scm.yaml"
    path.write_text("# a comment\ncache_config:\n  Fn_compute_blocks: 1\n  steps_computation_mask: [1, 1, 0]\n")
    assert read(path, PIXART)["gates"] == [{"group": "transformer_blocks.1", "actions": "CCR", "value": "residual"}]
    for text in (
        "cache_config: &a\n  b: *a\n",  # an alias
        "cache_config: !!python/object/apply:os.getcwd []\n",
        "a: b: c\n",
        "- 1\n",
        "x" * 2**17,
    ):
        path.write_text(text)
        with pytest.raises(ScheduleError, match="scm.yaml: this is not a complete JSON file"):
            read(path, PIXART)


def test_step_masks_that_do_not_fit_are_refused():
    with pytest.raises(ScheduleError, match="denoiser is not computed at step 0"):
        from_scm([0, 1], PIXART)
    with pytest.raises(ScheduleError, match=r"mask\[1\] is 'x'; each entry is 1"):
        from_scm("1,x", PIXART)
    with pytest.raises(ScheduleError, match="mask has 10001 entries; it has to be a list of 1 to 10000"):
        from_scm([1] * 10_001, PIXART)
    with pytest.raises(ScheduleError, match="mask is a NoneType"):
        from_scm({"cache_config": {"Fn_compute_blocks": 8}}, PIXART)
    with pytest.raises(ScheduleError, match="steps_computation_policy is 'dynamic': .* set it to 'static'"):
        from_scm({"scm_mask": [1, 0], "steps_computation_policy": "dynamic"}, PIXART)
    with pytest.raises(
        ScheduleError, match="Fn_compute_blocks 8 and Bn_compute_blocks 0 leave no block .* 2 transformer_b"
    ):
        from_scm({"scm_mask": [1, 0], "Fn_compute_blocks": 8}, PIXART)
    with pytest.raises(ScheduleError, match="run one after another, which conv_in of UNet2DConditionModel does not"):
        from_scm({"scm_mask": [1, 0], "Fn_compute_blocks": 1}, UNET)
    with pytest.raises(ScheduleError, match="Bn_compute_blocks is -1; it has to be a whole number from 0 on"):
        from_scm({"scm_mask": [1, 0], "Bn_compute_blocks": -1}, PIXART)
    with pytest.raises(ScheduleError, match="Fn_compute_blocks is 0; cache-dit computes the first block always"):
        from_scm({"scm_mask": [1, 0], "Fn_compute_blocks": 0}, PIXART)
    with pytest.raises(ScheduleError, match=r"transformer_blocks.1 is not computed at step 0.* has to be 1"):
        from_scm({"scm_mask": [0, 1], "Fn_compute_blocks": 1}, PIXART)
    with pytest.raises(ScheduleError, match="enable_taylorseer is set: cache-dit's own forecast"):
        from_scm({"cache_config": {"scm_mask": [1, 0], "enable_taylorseer": True}}, PIXART)
    with pytest.raises(
        ScheduleError, match="compute_bins and cache_bins together is 1000001; admissible are 1 to 10000"
    ):
        from_scm({"compute_bins": [1_000_000], "cache_bins": [1]}, PIXART)
    with pytest.raises(ScheduleError, match="cache_bins is a NoneType"):
        from_scm({"compute_bins": [1]}, PIXART)
    with pytest.raises(ScheduleError, match="total_steps is 9, but compute_bins and cache_bins have 3 steps together"):
        from_scm({"compute_bins": [1], "cache_bins": [2], "total_steps": 9}, PIXART)


def test_yaml_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "scm.yaml").write_text("cache_config:\n  steps_computation_mask: [1, 0]\n")
    with pytest.raises(ScheduleError, match="reading YAML takes PyYAML; type: pip install pyyaml"):
        read(tmp_path / "scm.yaml", PIXART)


# DeepCache


class DeepCache:
    """The published rule, on a live UNet: every layer has a place (block, layer) counted from the output."""

    def __init__(self, network: nn.Module, interval: int, branch: int) -> None:
        self.interval, self.branch = interval, divmod(branch, 3)
        self.step, self.kept, self.wrapped = -1, {}, [(network, network.forward)]
        network.forward = self._counted(network.forward)
        self._wrap(network.mid_block, lambda block, layer: True)
        ups = len(network.up_blocks)
        for i, part in enumerate(network.down_blocks):
            deeper = lambda block, layer, i=i: i > block or (i == block and layer == 0)  # noqa: E731
            self._wrap(part, deeper)
            layers = [*enumerate(part.resnets), *enumerate(getattr(part, "attentions", []))]
            for j, module in layers + [(len(part.resnets), sampler) for sampler in part.downsamplers or []]:
                self._wrap(module, lambda block, layer, i=i, j=j: i > block or (i == block and j >= layer))
        for i, part in enumerate(network.up_blocks):
            place = ups - 1 - i
            self._wrap(part, lambda block, layer, place=place: place > block)
            for j, module in [*enumerate(part.resnets), *enumerate(getattr(part, "attentions", []))]:
                back = len(part.resnets) - 1 - j
                self._wrap(module, lambda block, layer, p=place, b=back: p > block or (p == block and b > layer))

    def _counted(self, forward: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.step += 1
            return forward(*args, **kwargs)

        return call

    def _wrap(self, module: nn.Module, deeper: Callable[[int, int], bool]) -> None:
        forward = module.forward
        self.wrapped.append((module, forward))

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.step % self.interval and deeper(*self.branch):
                return self.kept[module]
            self.kept[module] = forward(*args, **kwargs)
            return self.kept[module]

        module.forward = call

    def remove(self) -> None:
        for module, _ in self.wrapped:
            del module.forward


def diffused(pipe: Any) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    states = {f"{sign}prompt_embeds": torch.randn(1, 8, 16, generator=generator) for sign in ("", "negative_")}
    sizes = {"height": 16, "width": 16, "output_type": "latent", "guidance_scale": 3.0}
    with torch.no_grad():
        return pipe(**states, **sizes, num_inference_steps=6, generator=torch.Generator().manual_seed(1)).images


def test_deepcache_runs_as_its_rule_by_hand_does(tmp_path):
    torch.manual_seed(0)
    pipe = stable_diffusion(layers_per_block=2)
    pipe.set_progress_bar_config(disable=True)
    for parameter in pipe.unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    seen = [diffused(pipe)]
    for branch in range(6):
        hand = DeepCache(pipe.unet, interval=3, branch=branch)
        expected = diffused(pipe)
        hand.remove()
        path = tmp_path / "deepcache.json"
        path.write_text(json.dumps({"cache_interval": 3, "cache_branch_id": branch, "num_inference_steps": 6}))
        with load(path, pipe).apply(pipe):
            assert torch.equal(diffused(pipe), expected), branch
        assert not any(torch.equal(expected, other) for other in seen)
        seen.append(expected)


def test_deepcache_cell_by_cell():
    data = {"cache_interval": 2, "cache_branch_id": 4, "num_inference_steps": 4}
    assert table(from_deepcache(data, UNET), UNET) == dict.fromkeys(
        ("down_blocks.1:resnets.1", "mid_block.0", "up_blocks.0:resnets.0"), "CRCR"
    )
    assert below(UNET, 5) == ["mid_block.0"]  # the deepest branch
    uneven = data | {"uniform": False, "center": 1, "num_inference_steps": 8}
    expected = "".join("C" if t in centred(8, 4, 1) else "R" for t in range(8))
    assert table(from_deepcache(uneven, UNET), UNET)["mid_block.0"] == expected


@pytest.mark.parametrize(("steps", "count", "center", "power"), [(50, 10, 15, 1.4), (50, 5, 15, 1.2), (20, 5, 0, 1.8)])
def test_uneven_steps_are_the_published_lists(steps, count, center, power):
    bases = np.linspace(complex(-center) ** (1 / power), (steps - center) ** (1 / power), count + 1)
    bent = np.unique((bases**power).real.astype(int))
    found = centred(steps, count, center, power)
    assert found == [0, *(center + bent[1:-1])] and len(found) == count
    if (steps, count, center) == (50, 10, 15):
        assert found == [0, 5, 9, 13, 17, 21, 26, 31, 37, 43]


def test_the_power_is_lowered_until_there_are_so_many_steps():
    found = centred(10, 8, 5, 2.0)
    assert len(set(found)) == 8 and found == sorted(found) and found[0] == 0 and found[-1] < 10


def test_branches_count_three_layers_in_every_block():
    """As the package does: with two layers, a block's second and third branch are the same."""
    tree = Tree.of(unet(layers_per_block=1))
    assert below(tree, 1) == below(tree, 2) != below(tree, 0)
    assert below(tree, 3)[0] == "down_blocks.1" and below(tree, 5) == ["mid_block.0"]


def test_deepcache_settings_that_do_not_fit_are_refused():
    data = {"cache_interval": 3, "num_inference_steps": 6}
    with pytest.raises(ScheduleError, match="DeepCache is for UNets; this is a PixArtTransformer2DModel"):
        from_deepcache(data, PIXART)
    with pytest.raises(ScheduleError, match="cache_branch_id is 6; admissible are 0 to 5"):
        from_deepcache(data | {"cache_branch_id": 6}, UNET)
    with pytest.raises(ScheduleError, match="cache_interval is 0; admissible are 1 to 10000"):
        from_deepcache(data | {"cache_interval": 0}, UNET)
    with pytest.raises(ScheduleError, match="num_inference_steps is None; admissible are 1 to 10000"):
        from_deepcache({"cache_interval": 3}, UNET)
    with pytest.raises(ScheduleError, match="center is 6; admissible are 0 to 5, one of the steps"):
        from_deepcache(data | {"uniform": False, "center": 6}, UNET)
    with pytest.raises(ScheduleError, match="pow is 1; admissible are numbers above 1 up to 10"):
        from_deepcache(data | {"uniform": False, "center": 2, "pow": 1}, UNET)
    with pytest.raises(ScheduleError, match="no power from 1.2 down gives 6 distinct steps of 6 about 5"):
        from_deepcache({"cache_interval": 1, "num_inference_steps": 6, "uniform": False, "center": 5}, UNET)


# MagCache


@pytest.mark.parametrize("steps", [28, 20, 50])
@pytest.mark.parametrize(
    ("threshold", "longest", "retained"), [(0.06, 3, 0.2), (0.24, 5, 0.1), (0.5, 2, 0.0), (0, 3, 0.2)]
)
def test_magcache_computes_where_diffusers_does(steps, threshold, longest, retained):
    from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS, MagCacheConfig, apply_mag_cache

    settings = {"threshold": threshold, "max_skip_steps": longest, "retention_ratio": retained}
    settings |= {"num_inference_steps": steps, "mag_ratios": [round(float(r), 5) for r in FLUX_MAG_RATIOS]}
    model, ran = pipelines.pixart(blocks=2).transformer, []
    model.transformer_blocks[1].ff.register_forward_hook(lambda *_: ran.append(1))
    apply_mag_cache(model, MagCacheConfig(**settings))
    text, expected = pipelines.embeddings(1)["prompt_embeds"], ""
    with torch.no_grad():
        for _ in range(steps):
            before = len(ran)
            model(torch.ones(1, 4, 4, 4), text, torch.tensor([500]), {"resolution": None, "aspect_ratio": None})
            expected += "C" if len(ran) > before else "R"
    assert detect(settings) == "magcache"
    parts = from_magcache(settings, PIXART)
    assert table(parts, PIXART).get(ROOT, "C" * steps) == expected and parts["steps"] == steps
    assert "R" in expected


def test_magcache_by_hand():
    # |1 - 0.99| = 0.01, then |1 - 0.9801| = 0.0199 on top: 0.0299, and a third step would make 0.0596
    data = {"mag_ratios": [1.0] + [0.99] * 7, "threshold": 0.03, "retention_ratio": 0.25}
    assert table(from_magcache(data, PIXART), PIXART) == {ROOT: "CCRRCRRC"}
    assert from_magcache({"mag_ratios": [1.0]}, PIXART) == {"steps": 1}


def test_magcache_settings_that_do_not_fit_are_refused():
    with pytest.raises(ScheduleError, match="mag_ratios has nan; admissible are numbers from 0 to 100"):
        from_magcache({"mag_ratios": [1.0, float("nan")]}, PIXART)
    with pytest.raises(ScheduleError, match="retention_ratio has 2; admissible are numbers from 0 to 1"):
        from_magcache({"mag_ratios": [1.0, 1.0], "retention_ratio": 2}, PIXART)
    with pytest.raises(ScheduleError, match="max_skip_steps is 1.5; it has to be a whole number"):
        from_magcache({"mag_ratios": [1.0, 1.0], "max_skip_steps": 1.5}, PIXART)
    with pytest.raises(ScheduleError, match="mag_ratios is a str; it has to be a list"):
        from_magcache({"mag_ratios": "1"}, PIXART)


# Files


def test_each_kind_of_file_is_recognised(tmp_path):
    files = {
        "ecad": json.dumps(ecad(bits(4, 2, 3))),
        "smoothcache": json.dumps({"ff": [1, 0]}),
        "magcache": json.dumps({"mag_ratios": [1, 1, 1, 1, 1, 1], "retention_ratio": 0}),
        "scm": "1,1,0\n",
    }
    for kind, text in files.items():
        path = tmp_path / kind
        path.write_text(text)
        assert "R" in json.dumps(read(path, PIXART)["plan"]), kind
    assert detect({"cache_interval": 2}) == "deepcache"
    assert parts_of({"ff": [1, 0]}, PIXART) == {"steps": 2, "plan": {"rules": [["transformer_blocks.*:ff", "CR"]]}}


def test_unknown_files_are_refused(tmp_path):
    for data in ({"plan": 1, "model": {}}, 7, None, {}):
        with pytest.raises(ScheduleError, match=r"not a file of ECAD \(cache_schedule\), SmoothCache .*MagCache"):
            parts_of(data, PIXART)
    with pytest.raises(ScheduleError, match="it has model, plan"):
        parts_of({"plan": 1, "model": {}}, PIXART)
    path = tmp_path / "file"
    for text, message in (
        (b"{", "file: this is not a complete JSON file"),
        (b"\xff\xfe", "not a complete JSON file"),
        (b"[" * 100_000, "nested too deep"),
        (b" " * (2**22 + 1), "more than the 4194304 bytes"),
        (b'{"ff": [0]}', "file: transformer_blocks.0:ff is not computed at step 0"),
    ):
        path.write_bytes(text)
        with pytest.raises(ScheduleError, match=message):
            read(path, PIXART)
    with pytest.raises(ScheduleError, match="cannot read .*nowhere"):
        read(tmp_path / "nowhere", PIXART)
    with pytest.raises(ScheduleError, match="cannot read"):
        read("\0", PIXART)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ANY = {"class": "EulerDiscreteScheduler", "config": {}}


@pytest.mark.parametrize("key", [key for keys in KEYS.values() for key in sorted(keys)] + ["ff", "a"])
@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(st.data())
def test_any_content_is_read_or_refused(key, data):
    content = {key: data.draw(JSON)} | data.draw(st.dictionaries(st.sampled_from(MORE), JSON, max_size=3))
    for tree in (PIXART, UNET):
        try:
            assert parts_of(content, tree, ANY)["steps"] >= 1
        except ScheduleError as error:
            assert str(error)


MORE = ("num_inference_steps", "Fn_compute_blocks", "cache_bins", "scheduler", "call", "cache_branch_id", "uniform")


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(st.text(st.sampled_from("01., -9-sigmac\n\"'"), max_size=30) | st.text(max_size=20))
def test_any_text_is_read_or_refused(text):
    try:
        assert parts_of(text, PIXART, ANY)["steps"] >= 1
    except ScheduleError as error:
        assert str(error)
