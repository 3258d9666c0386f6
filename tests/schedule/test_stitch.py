"""Which denoiser runs at each step: stock pipelines under a schedule against loops by hand that change the model."""

import copy
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from search import Schedule, ScheduleError
from search.schedule.document import json_schema
from search.schedule.model.identity import model_part
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.plan.guidance import settle_branches
from search.schedule.plan.plan import Plan
from search.schedule.plan.tokens import denoiser_switches
from tests.helpers import pipelines
from tests.helpers.guidance_by_hand import approximated
from tests.helpers.pixart_by_hand import ByHand

LARGE, SMALL = 3, 1  # blocks


def pair(**config: Any) -> tuple[Any, Any]:
    """A large and a small pipeline of the same latents and text states."""
    return pipelines.pixart(LARGE), pipelines.pixart(SMALL, **config)


def part(small: Any, at: str, **more: Any) -> dict[str, Any]:
    return {"models": {"names": {"S": model_part(small.transformer) | {"name": "tiny"} | more}, "at": at}}


def stitched(large: Any, small: Any, at: str, rules: Any = (), **parts: Any) -> Schedule:
    return pipelines.schedule(large, rules, steps=len(at), **part(small, at), **parts)


class StitchedByHand(ByHand):
    """The loop by hand with another model at some steps; what was kept is thrown away at each change."""

    def __init__(self, large: Any, small: Any, at: str, tokens: Any, axis: str = "index") -> None:
        super().__init__(large, tokens, axis)
        self.models, self.at, self.last = {"L": large.transformer, "S": small.transformer}, at, at[0]

    def act(self, name: str, compute: Any, skip: Tensor | None = None) -> Tensor:
        if name == ROOT:
            letter = self.at[self.step]
            if letter != self.last:
                self.kept.clear()
            self.last, self.model = letter, self.models[letter]
        elif self.at[self.step] == "S":
            return compute()
        return super().act(name, compute, skip)


PLANS = {
    "off": [],
    "components": [["transformer_blocks.*:*", "CCCCRCRR"]],
    "forecast": [["transformer_blocks.[0,2]:ff", "CCCCCF1CF1"], ["transformer_blocks.1:attn2", "CCCSCSRS"]],
    "blocks and the stack": [["transformer_blocks.1", "CCCCCRSC"], ["transformer_blocks", "CCCCCCRS"]],
    "whole steps": [["denoiser", "CRCCCCRF1"]],
    "everything": [["denoiser", "CRCCCRCC"], ["transformer_blocks.*:attn1", "CCCCRCRR"]],
}


@pytest.mark.parametrize("at", ["SSSLLLLL", "SSLLLLLL", "LLLLLLLL"])
@pytest.mark.parametrize("name", PLANS)
def test_the_stock_pipeline_does_what_a_loop_by_hand_does(name, at):
    large, small = pair()
    bare = pipelines.run(large, steps=8)
    schedule = stitched(large, small, at, PLANS[name])
    with schedule.apply(large, models={"S": small}) as handle:
        found, again = pipelines.run(large, steps=8), pipelines.run(large, steps=8)
        assert handle.memory.now == 0
    expected = StitchedByHand(large, small, at, schedule.plan.tokens)(steps=8)
    assert torch.equal(found, again)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(pipelines.run(large, steps=8), bare)
    if "S" in at:
        assert not torch.allclose(found, bare, rtol=1e-3)


def test_models_may_change_back_and_forth():
    large, small = pair()
    at, rules = "SLLSSLLL", [["denoiser", "CCRCRCRC"], ["transformer_blocks.*:ff", "CCCCCCCR"]]
    schedule = stitched(large, small, at, rules[:1])
    with schedule.apply(large, models={"S": small}) as handle:
        found = pipelines.run(large, steps=8)
        stats = handle.stats()
    torch.testing.assert_close(found, StitchedByHand(large, small, at, schedule.plan.tokens)(steps=8))
    assert stats["models"] == {"L": 3, "S": 2} and stats["denoiser_calls"] == 8
    assert stats["nodes"][ROOT] == {"C": 5, "R": 3}
    assert stats["block_executions"] == 3 * LARGE


def test_own_at_every_step_is_bit_exact_and_needs_no_other():
    large, small = pair()
    bare = pipelines.run(large)
    schedule = stitched(large, small, "LLLLLL")
    with schedule.apply(large) as handle:
        assert torch.equal(pipelines.run(large), bare)
        assert handle.stats()["models"] == {"L": 6}
    assert schedule == pipelines.schedule(large) and schedule.models is None


@pytest.mark.parametrize("bare", [True, False])
def test_small_at_every_step_is_the_small_pipeline_bit_for_bit(bare):
    large, small = pair()
    own, given = pipelines.run(small), {"S": small.transformer if bare else small}
    with stitched(large, small, "SSSSSS").apply(large, models=given) as handle:
        assert torch.equal(pipelines.run(large), own)
        stats = handle.stats()
        assert stats["models"] == {"L": 0, "S": 6} and stats["block_executions"] == 0
    assert pipelines.traces(large.transformer) == pipelines.traces(small.transformer) == []


def test_the_small_denoiser_keeps_the_hooks_that_it_has():
    large, small = pair()
    seen = []
    small.transformer.register_forward_hook(lambda *_: seen.append(1))
    with stitched(large, small, "SSSLLL").apply(large, models={"S": small}):
        pipelines.run(large)
    assert len(seen) == 3 and len(small.transformer._forward_hooks) == 1


def test_the_solver_goes_on_across_a_switch():
    large, small = pair()
    scheduler, text = copy.deepcopy(large.scheduler), pipelines.embeddings(2)
    states = torch.cat([text["negative_prompt_embeds"], text["prompt_embeds"]])
    mask = torch.cat([text["negative_prompt_attention_mask"], text["prompt_attention_mask"]])
    scheduler.set_timesteps(6)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            network = small.transformer if i < 2 else large.transformer
            micro = {"resolution": None, "aspect_ratio": None}
            given = {"encoder_hidden_states": states, "encoder_attention_mask": mask, "added_cond_kwargs": micro}
            u, c = network(torch.cat([x, x]), timestep=t.expand(4), **given, return_dict=False)[0].chunk(2)
            x = scheduler.step((u + 3.0 * (c - u)).chunk(2, dim=1)[0], t, x).prev_sample
    with stitched(large, small, "SSLLLL").apply(large, models={"S": small}):
        assert torch.equal(pipelines.run(large), x)


@pytest.mark.parametrize("branch", ["CROCAM", "CAOCRA"])
def test_guidance_reads_nothing_from_before_a_switch(branch):
    large, small = pair()
    at, weights = "SSSLLL", {"low": 1.1, "high": 0.8, "radius": 0.3}
    scheduler, embeds = copy.deepcopy(large.scheduler), pipelines.embeddings(2)
    scheduler.set_timesteps(6)
    text, empty = embeds["prompt_embeds"], embeds["negative_prompt_embeds"]
    mask = embeds["prompt_attention_mask"]
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for i, t in enumerate(scheduler.timesteps):
        network = {"S": small, "L": large}[at[i]].transformer

        def call(x: Tensor, states: Tensor, masks: Tensor, network=network, t=t) -> Tensor:
            micro = {"resolution": None, "aspect_ratio": None}
            given = {"encoder_hidden_states": states, "encoder_attention_mask": masks, "added_cond_kwargs": micro}
            with torch.no_grad():
                return network(x, timestep=t.expand(len(x)), **given, return_dict=False)[0]

        if branch[i] == "C":
            u, c = call(torch.cat([x, x]), torch.cat([empty, text]), torch.cat([mask, mask])).chunk(2)
            last = u, u - c
        else:
            c = call(x, empty + 3.0 * (text - empty) if branch[i] == "M" else text, mask)
            u = last[0] if branch[i] == "R" else u
        if branch[i] == "A":
            u = approximated(c, last[1], weights["low"], weights["high"], 2)
        output = c if branch[i] in "OM" else u + 3.0 * (c - u)
        x = scheduler.step(output.chunk(2, dim=1)[0], t, x).prev_sample
    schedule = stitched(large, small, at, guidance={"call": 3.0, "branch": branch, "approximate": weights})
    with schedule.apply(large, models={"S": small}):
        torch.testing.assert_close(pipelines.run(large), x, rtol=1e-5, atol=1e-5)


# Barriers


@pytest.mark.parametrize(
    ("at", "rules", "words"),
    [
        (
            "SSSLLL",
            [["denoiser", "CCCRCC"]],
            r"denoiser at step 3 is R.* 0 came before since models.at changed at step 3",
        ),
        ("SSSLLL", [["denoiser", "CCCCF1C"]], r"step 4 is F1, .* but 1 came before since models.at changed at step 3"),
        (
            "LLSSLL",
            [["transformer_blocks.*:ff", "CCCCRC"]],
            r"transformer_blocks.0:ff at step 4 is R.* step 4; put 1 more C",
        ),
        ("LLSSLL", [["transformer_blocks", "RCCCCC"]], r"transformer_blocks at step 0 .* but 0 came before; put 1"),
    ],
)
def test_what_was_kept_before_a_switch_cannot_be_read_behind_it(at, rules, words):
    with pytest.raises(ScheduleError, match=words):
        stitched(*pair(), at, rules)


def test_guidance_cannot_read_across_a_switch():
    large, small = pair()
    for branch in ("CCCRCC", "CCCAAA"):
        with pytest.raises(
            ScheduleError, match=r"guidance.branch is . at step 3, .* since models.at changed at step 3"
        ):
            stitched(large, small, "SSSLLL", guidance={"call": 3.0, "branch": branch})
    with pytest.raises(
        ScheduleError, match=r"full|reads 1 unconditional value\(s\), but 0 came before since models.at"
    ):
        rules = [["denoiser", "CCCCRC"]]
        stitched(large, small, "SSSLLL", rules, guidance={"call": 3.0, "branch": "CCCOCC"})


def test_nothing_but_the_denoiser_has_an_action_at_steps_of_another_one():
    large, small = pair()
    rules = [["transformer_blocks.*:ff", "RRRCRR"], ["transformer_blocks.1", "CCSCCC"]]
    schedule = stitched(large, small, "SSSLLL", rules)
    assert schedule.plan.tokens["transformer_blocks.0:ff"] == tuple("---CRR")
    assert schedule.plan.tokens["transformer_blocks.1"] == tuple("---CCC")
    assert schedule.plan.tokens[ROOT] == tuple("CCCCCC")
    assert schedule == stitched(large, small, "SSSLLL", [["transformer_blocks.*:ff", "CCCCRR"]])


LETTERS = st.text(alphabet="SL", min_size=7, max_size=7)
TREE = Tree("PixArtTransformer2DModel", {"transformer_blocks": 2})


@settings(max_examples=60, deadline=None)
@given(at=LETTERS, data=st.data())
def test_what_is_settled_is_always_accepted_and_what_is_accepted_stays(at, data):
    names = [node.name for node in TREE]
    wanted = {n: data.draw(st.lists(st.sampled_from(["C", "R", "F1", "F2"]), min_size=7, max_size=7)) for n in names}
    settled = settle_branches(wanted, TREE, None, at)
    plan = Plan.resolve([(n, "".join(tokens)) for n, tokens in settled.items()], TREE, 7, at)
    for name, tokens in plan.tokens.items():  # brute force: each read has its values behind the last switch
        for step, token in enumerate(tokens):
            if token in ("R", "F1", "F2"):
                began = max([0, *(k for k in range(1, step + 1) if at[k] != at[k - 1])])
                assert tokens[began:step].count("C") >= (1 if token == "R" else int(token[1]) + 1)
            assert name == ROOT or at[step] == "L" or token == "-"
    assert settle_branches(settled, TREE, None, at) == settled


def test_settling_by_hand():
    wanted = {
        ROOT: ["C", "R", "C", "R", "R", "F1", "F1"],
        "transformer_blocks.0:ff": ["C", "R", "R", "R", "R", "R", "R"],
    }
    assert settle_branches(wanted, TREE, None, "SSSLLLL") == {
        ROOT: ["C", "R", "C", "C", "R", "R", "R"],
        "transformer_blocks.0:ff": ["C"] * 7,
    }
    assert settle_branches({"transformer_blocks.0:ff": ["R"] * 5}, TREE, None, "LLSLL") == {
        "transformer_blocks.0:ff": ["C", "R", "C", "C", "R"]
    }
    assert denoiser_switches("SSLLS") == {2, 4} and denoiser_switches("") == denoiser_switches("LLL") == frozenset()


# The file


def test_a_schedule_survives_its_file(tmp_path):
    large, small = pair()
    schedule = stitched(large, small, "SSSLLL", [["transformer_blocks.*:ff", "CCCCRR"]])
    assert Schedule.load(schedule.save(tmp_path / "s.json")) == schedule
    assert schedule.to_dict()["models"] == {
        "names": {"S": model_part(small.transformer) | {"name": "tiny"}},
        "at": "SSSLLL",
    }
    assert "models" in json_schema()["properties"]


def test_equal_behaviour_has_one_digest():
    large, small = pair()
    whole = part(small, "SSSLLL")
    whole["models"]["names"]["M"] = whole["models"]["names"]["S"]
    assert pipelines.schedule(large, **whole) == stitched(large, small, "SSSLLL")
    others = [stitched(large, small, "SSLLLL"), pipelines.schedule(large, **part(small, "SSSLLL", name="another"))]
    assert len({stitched(large, small, "SSSLLL"), *others}) == 3
    bits = {"formats": {"w8": {"weight": 8}}, "layers": {"proj_out": "w8"}}
    assert stitched(large, small, "SSSSSS", bits=bits) == stitched(large, small, "SSSSSS")  # nothing runs them
    assert stitched(large, small, "SSSSSL", bits=bits) != stitched(large, small, "SSSSSL")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"at": "SSL"}, "models.at has 3 entries; 6 steps need 6"),
        ({"at": "SSMLLL"}, "models.at is 'M' at step 2, which models.names lacks; there are L, S"),
        ({"at": "ssslll"}, "models.at is 'ssslll'"),
        ({"names": {"L": {"class": "X", "stacks": {}}}}, r"models.names.L.*"),
        ({"names": {"S": {"class": "X", "stacks": {}}}}, "model.class 'X' has no node contract"),
    ],
)
def test_a_part_that_makes_no_sense_is_refused(change, words):
    large, small = pair()
    with pytest.raises(ScheduleError, match=words):
        pipelines.schedule(large, models=part(small, "SSSLLL")["models"] | change)


def test_models_need_steps():
    large, small = pair()
    with pytest.raises(ScheduleError, match="steps is missing; .* models, .* need it"):
        pipelines.schedule(large, steps=None, **part(small, "SSSLLL"))


# What is brought along


def test_what_is_missing_says_what_to_type():
    large, small = pair()
    schedule = stitched(large, small, "SSSLLL")
    with pytest.raises(
        ScheduleError,
        match=r"runs tiny \(PixArtTransformer2DModel\) as S at 3 of 6 steps; .*models=\{'S': small_pipe\}",
    ):
        schedule.apply(large)
    with pytest.raises(ScheduleError, match=r"models has only 'small'; load its pipeline"):
        schedule.apply(large, models={"small": small})
    assert pipelines.traces(large.transformer) == []


def test_another_denoiser_than_the_schedule_names_is_refused():
    large, small = pair()
    schedule = stitched(large, small, "SSSLLL")
    with pytest.raises(ScheduleError, match=r"models.names.S.class is 'PixArt.*', but models\['S'\] is a DiT"):
        schedule.apply(large, models={"S": pipelines.dit()})
    other = pipelines.pixart(2)
    with pytest.raises(ScheduleError, match=r"models.names.S.fingerprint is .* strict=False"):
        schedule.apply(large, models={"S": other})
    with schedule.apply(large, models={"S": other}, strict=False) as handle:
        pipelines.run(large)
        assert handle.stats()["models"] == {"L": 3, "S": 3}
    with pytest.raises(ScheduleError, match="object has neither a transformer, a unet nor a denoiser"):
        schedule.apply(large, models={"S": object()})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"in_channels": 3}, "has in_channels 3, but the pipeline's own denoiser has 4; both must share latents"),
        ({"out_channels": 4}, "has out_channels 4, but .* has 8"),
        ({"caption_channels": 6}, "has caption_channels 6, but .* has 12"),
        ({"sample_size": 16}, "has sample_size 16, but .* has 8"),
        (
            {"scheduler": DPMSolverMultistepScheduler(prediction_type="v_prediction")},
            "prediction_type v_prediction, but",
        ),
        ({"scheduler": FlowMatchEulerDiscreteScheduler()}, "prediction_type flow_prediction, but .* epsilon"),
        ({"scheduler": DDIMScheduler(beta_schedule="scaled_linear")}, "with beta_schedule scaled_linear, but"),
    ],
)
def test_what_cannot_take_the_place_of_the_own_denoiser_is_refused(config, words):
    large, small = pair(**config)
    with pytest.raises(ScheduleError, match=rf"models\['S'\].*{words}"):
        stitched(large, small, "SSSLLL").apply(large, models={"S": small})
    assert pipelines.traces(large.transformer) == pipelines.traces(small.transformer) == []


def test_another_resolution_is_accepted_where_that_is_asked_for():
    large, small = pair(sample_size=16)
    with stitched(large, small, "SSSLLL").apply(large, models={"S": small}, strict=False):
        assert torch.isfinite(pipelines.run(large)).all()


def test_another_type_is_refused():
    large, small = pair()
    schedule = stitched(large, small, "SSSLLL")
    with pytest.raises(
        ScheduleError, match=r"is torch.float64 on cpu, but .* torch.float32 on cpu; type small_pipe.to"
    ):
        schedule.apply(large, models={"S": small.to(torch.float64)})


def test_the_own_denoiser_is_no_other_one():
    large, _ = pair()
    with pytest.raises(ScheduleError, match=r"models\['S'\] is the pipeline's own denoiser, which is L"):
        stitched(large, large, "SSSLLL").apply(large, models={"S": large})


def test_a_denoiser_with_a_schedule_of_its_own_is_refused():
    large, small = pair()
    with (
        pipelines.schedule(small).apply(small),
        pytest.raises(ScheduleError, match=r"a schedule is already applied to this denoiser"),
    ):
        stitched(large, small, "SSSLLL").apply(large, models={"S": small})


class Other(nn.Module):
    """Called in another way, though it says that it is a PixArt."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, sample: Tensor, time: Tensor) -> Tensor:
        raise NotImplementedError


def test_a_denoiser_that_is_called_in_another_way_is_refused():
    large, small = pair()
    data = stitched(large, small, "SSSLLL").to_dict()
    del data["digest"]
    contract = {"stacks": [{"name": "layers", "components": []}]}
    data["models"]["names"]["S"] = {"class": "Other", "stacks": {"layers": 1}, "contract": contract}
    with pytest.raises(
        ScheduleError, match=r"takes the arguments sample, time, but the pipeline's PixArt.* takes hidden"
    ):
        Schedule.from_dict(data).apply(large, models={"S": Other()})


def test_an_exception_in_mid_run_leaves_nothing():
    large, small = pair()
    bare = pipelines.run(large)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with stitched(large, small, "SSSLLL").apply(large, models={"S": small}):
        hook = small.transformer.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            pipelines.run(large)
        hook.remove()
        assert torch.isfinite(pipelines.run(large)).all()
    assert pipelines.traces(large.transformer) == pipelines.traces(small.transformer) == []
    assert torch.equal(pipelines.run(large), bare)
