"""The 33 pitfalls of those who apply cache schedules, one test each: B1 to B33, in order.

Each name says what must hold. A docstring says what this machine or this version cannot show.
"""

import copy
import inspect

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    apply_first_block_cache,
)
from diffusers.hooks import apply_group_offloading

from search import Schedule, ScheduleError
from search.kernels.forecast import combine
from search.schedule.apply.forecast import newton_weights
from tests.helpers import pipelines
from tests.helpers.counting_compiler import Counting

RULES = [["transformer_blocks.*:attn2", "CRCRCR"], ["transformer_blocks.1", "CCRCRC"]]


@pytest.fixture
def pipe():
    return pipelines.pixart()


def applied(pipe, rules=RULES, steps=6, **parts):
    return pipelines.schedule(pipe, rules, steps, **parts).apply(pipe)


def call(pipe, latents, t, **arguments):
    given = pipelines.embeddings(len(latents))
    return pipe.transformer(
        latents,
        encoder_hidden_states=given["prompt_embeds"],
        timestep=torch.as_tensor(float(t)).expand(len(latents)),
        **arguments,
    )


def test_b01_steps_are_counted_by_the_scheduler_not_by_calls(pipe):
    """Two calls a step (separate guidance branches), and solvers of two evaluations a step."""
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad(), applied(pipe, [["denoiser", "CRCRCR"]]) as handle:
        pipe.scheduler.set_timesteps(6)
        for i, t in enumerate(pipe.scheduler.timesteps):
            one, two = call(pipe, latents, t).sample, call(pipe, latents + 1, t).sample
            assert handle.clock.step == i
            pipe.scheduler.step(one[:, :4], t, latents)
        assert handle.stats()["nodes"]["denoiser"] == {"C": 6, "R": 6}
        assert not torch.equal(one, two)
    for scheduler in (HeunDiscreteScheduler(), PNDMScheduler()):
        scheduler.set_timesteps(6)
        evaluations = len(scheduler.timesteps)
        pipe.scheduler = scheduler
        with applied(pipe, [["denoiser", "C*5" + "R" * (evaluations - 5)]], steps=evaluations) as handle:
            with pytest.raises(ScheduleError, match=f"this schedule has {evaluations} steps, but the pipeline runs"):
                pipelines.run(pipe, steps=evaluations)
            pipelines.run(pipe, steps=6)
            counts = handle.stats()["nodes"]["denoiser"]
            assert counts == {"C": 1 + 5, "R": evaluations - 5}  # the refused run had made its first call


def test_b02_no_state_reaches_the_next_picture(pipe):
    with applied(pipe):
        first = pipelines.run(pipe)
        with pytest.raises(ZeroDivisionError):
            pipelines.run(pipe, batch=3, callback=lambda *_: 1 / 0, callback_steps=1)
        assert torch.equal(pipelines.run(pipe), first)


def test_b03_another_batch_or_resolution_meets_no_stale_value(pipe):
    with applied(pipe) as handle, torch.no_grad():
        pipelines.run(pipe, batch=2)
        small = pipelines.run(pipe, batch=1, guidance=1.0)
        large = pipelines.run(pipe, size=12)
        pipe.scheduler.set_timesteps(6)  # within a run: a batch of 1 must not broadcast against the kept 2
        t = pipe.scheduler.timesteps[0]
        latents = torch.randn(2, 4, 8, 8)
        pipe.scheduler.step(call(pipe, latents, t).sample[:, :4], t, latents)
        one = call(pipe, latents[:1], t).sample
        with pytest.raises(ScheduleError, match="the denoiser's input changed"):
            call(pipe, latents.half(), t)
        assert handle.stats()["runs"] == 4
    assert torch.equal(one, call(pipe, latents[:1], t).sample)
    with applied(pipe):
        assert torch.equal(pipelines.run(pipe, batch=1, guidance=1.0), small)
    with applied(pipe):
        assert torch.equal(pipelines.run(pipe, size=12), large)


def test_b04_branches_are_kept_apart_whatever_their_order(pipe):
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad(), applied(pipe, [["denoiser", "CRRRRR"]]):
        pipe.scheduler.set_timesteps(6)
        first = [call(pipe, latents * k, 500).sample for k in (1, 2, 3)]
        pipe.scheduler.step(first[0][:, :4], pipe.scheduler.timesteps[0], latents)
        again = [call(pipe, latents * k, 400).sample for k in (1, 2, 3)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    rules = [
        ["transformer_blocks.0:ff", "CRRRRR"],
        ["transformer_blocks.1", "CCRRRR"],
        ["transformer_blocks", "CCCRRR"],
    ]
    runs = []
    for branches in ((1.0,), (2.0,), (1.0, 2.0)):  # alone, alone, together
        outputs: dict[float, list] = {scale: [] for scale in branches}
        with torch.no_grad(), applied(pipe, rules):
            pipe.scheduler.set_timesteps(6)
            for t in pipe.scheduler.timesteps:
                for scale in branches:
                    outputs[scale].append(call(pipe, latents * scale, t).sample)
                pipe.scheduler.step(latents, t, latents)
        runs.append({scale: torch.stack(found) for scale, found in outputs.items()})
    assert torch.equal(runs[2][1.0], runs[0][1.0]) and torch.equal(runs[2][2.0], runs[1][2.0])
    dit = pipelines.dit()  # one call, conditioned half first
    with applied(dit, [["transformer_blocks.*:attn1", "CRCRCR"]]):
        assert torch.equal(pipelines.classes(dit), pipelines.classes(dit))


def test_b05_guidance_that_ends_in_mid_run_leaves_no_value_of_both_branches(pipe):
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        bare = call(pipe, latents, 999).sample
    with torch.no_grad(), applied(pipe, [["denoiser", "CRCRCR"]]):
        pipe.scheduler.set_timesteps(6)
        t = pipe.scheduler.timesteps[0]
        out = call(pipe, torch.cat([latents] * 2), t).sample
        pipe.scheduler.step(out[:1, :4], t, latents)
        assert torch.equal(call(pipe, latents, 999).sample, bare)


def test_b06_compilation_goes_beneath_the_hooks(pipe):
    """One graph for each set of components that is computed in a block, whatever the number of blocks and steps."""
    before = pipelines.run(pipe)
    with applied(pipe):
        expected = pipelines.run(pipe)
    torch._dynamo.reset()
    backend = Counting()
    try:
        schedule = pipelines.schedule(pipe, RULES)
        with schedule.apply(pipe, compile=backend.compile):
            assert torch.allclose(pipelines.run(pipe), expected, rtol=1e-4, atol=1e-2)
            graphs = backend.graphs
            pipelines.run(pipe)
            assert backend.graphs == graphs  # nothing new at later steps and runs
        assert graphs == 2  # attn2 computed, attn2 reused
        assert pipelines.traces(pipe.transformer) == []  # the compiled forwards are gone too
        assert torch.equal(pipelines.run(pipe), before) and backend.graphs == graphs
        other = pipelines.schedule(pipe, [["transformer_blocks.*:*", "CRRCRC"], ["denoiser", "CCCCCR"]])
        with other.apply(pipe, compile=backend.compile):
            pipelines.run(pipe)
        assert backend.graphs == 4  # no storm: all computed, all reused
        for compiled in ("whole", "in place", "block", "forward"):
            bare = pipelines.pixart()
            denoiser = bare.transformer
            if compiled == "whole":
                bare.transformer = torch.compile(denoiser, backend=backend)
            elif compiled == "in place":
                denoiser.compile(backend=backend)
            elif compiled == "block":
                denoiser.transformer_blocks[1].compile(backend=backend)
            else:
                denoiser.forward = torch.compile(denoiser.forward, backend=backend)
            with pytest.raises(ScheduleError, match=r"the denoiser is compiled.*schedule.apply\(pipe, compile=True"):
                Schedule.off(pipe).apply(bare)
        with applied(pipe):  # compiled over the hooks, after they were applied
            pipe.transformer = torch.compile(pipe.transformer, backend=backend)
            with pytest.raises(
                ScheduleError, match="denoiser was replaced by a OptimizedModule after the schedule was"
            ):
                pipelines.run(pipe)
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize("first", ["offload", "schedule"])
@pytest.mark.parametrize("last", ["offload", "schedule"])
def test_b07_offloading_works_in_every_order(pipe, first, last):
    """Accelerate adds and removes its hooks anew at the end of each call; the CPU stands in for a GPU."""
    pytest.importorskip("accelerate")
    before = pipelines.run(pipe)
    with applied(pipe):
        expected = pipelines.run(pipe)
    if first == "offload":
        pipe.enable_model_cpu_offload(device="cpu")
        handle = applied(pipe)
    else:
        handle = applied(pipe)
        pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(3):
        assert torch.equal(pipelines.run(pipe), expected)
    assert handle.stats()["runs"] == 3 and handle.stats()["nodes"]["transformer_blocks.1"] == {"C": 12, "R": 6}
    if last == "offload":
        pipe.remove_all_hooks()
        assert torch.equal(pipelines.run(pipe), expected)
        handle.remove()
    else:
        handle.remove()
        assert torch.equal(pipelines.run(pipe), before)
        assert hasattr(pipe.transformer, "_hf_hook")
        pipe.remove_all_hooks()
    assert torch.equal(pipelines.run(pipe), before)
    assert [t for t in pipelines.traces(pipe.transformer) if not t.endswith(".forward")] == []
    with applied(pipe):
        assert torch.equal(pipelines.run(pipe), expected)


@pytest.mark.parametrize("first", ["offload", "schedule"])
def test_b07_offloading_module_by_module_works_too(pipe, first):
    accelerate = pytest.importorskip("accelerate")
    before = pipelines.run(pipe)
    rules = [*RULES, ["transformer_blocks.*:ff", "CCF1CF1C"], ["transformer_blocks", "CCCCCR"]]
    with applied(pipe, rules):
        expected = pipelines.run(pipe)
    if first == "schedule":
        handle = applied(pipe, rules)
    accelerate.cpu_offload(pipe.transformer, execution_device=torch.device("cpu"))
    if first == "offload":
        handle = applied(pipe, rules)
    assert torch.equal(pipelines.run(pipe), expected) and torch.equal(pipelines.run(pipe), expected)
    handle.remove()
    assert torch.equal(pipelines.run(pipe), before)
    accelerate.hooks.remove_hook_from_module(pipe.transformer, recurse=True)
    assert torch.equal(pipelines.run(pipe), before)


def test_b08_group_offloading_sees_every_node_at_the_first_step(pipe):
    """A plan starts with C for whatever it reads, and S at step 0 is a plan's own choice; streams need a GPU."""
    with pytest.raises(ScheduleError, match="at step 0 is R"):
        pipelines.schedule(pipe, [["transformer_blocks.1", "RCCCCC"]])
    before = pipelines.run(pipe)
    with applied(pipe):
        expected = pipelines.run(pipe)
    cpu = torch.device("cpu")
    apply_group_offloading(pipe.transformer, cpu, offload_type="leaf_level")
    with applied(pipe):
        assert torch.equal(pipelines.run(pipe), expected)
    assert torch.equal(pipelines.run(pipe), before)
    assert pipe.transformer.transformer_blocks[1].attn2.to_q._diffusers_hook.hooks  # theirs stay


def test_b09_what_a_pipeline_writes_into_is_not_what_is_kept(pipe):
    latents = torch.randn(2, 4, 8, 8)
    with torch.no_grad(), applied(pipe, [["denoiser", "CRRRRC"]]):
        pipe.scheduler.set_timesteps(6)
        first = call(pipe, latents, 500).sample
        expected = first.clone()
        for i in range(5):
            if i:
                value = call(pipe, latents, 500).sample
                assert torch.equal(value, expected)
                value.zero_()  # a reused value too may be written into
            first.mul_(0)
            pipe.scheduler.step(expected[:, :4], pipe.scheduler.timesteps[i], latents)


# B10 and B11, tuples and the order of returned tensors: test_known_contracts.py, for every class that has a contract.


def test_b12_names_that_match_nothing_are_errors(pipe):
    for name in ("transformer_blocks.*:attn", "transformer_blocks.*:ffn", "blocks.*", "transformer_blocks.*:ff.net"):
        with pytest.raises(ScheduleError, match="matches no node of PixArt.*for example 'transformer_blocks.*:ff'"):
            pipelines.schedule(pipe, [[name, "CRCRCR"]])


def test_b13_chunked_feed_forward_is_refused(pipe):
    pipe.transformer.transformer_blocks[1].set_chunk_feed_forward(4, 1)
    with pytest.raises(ScheduleError, match=r"transformer_blocks.1 runs its feed-forward in chunks; call disable_for"):
        applied(pipe)
    assert pipelines.traces(pipe.transformer) == []


def test_b14_fused_projections_and_other_processors_keep_the_hooks(pipe):
    """LoRA and IP-Adapters are not tried; they change values, not modules."""
    from diffusers.models.attention_processor import AttnProcessor

    with applied(pipe) as handle:
        expected = pipelines.run(pipe)
        pipe.transformer.set_attn_processor(AttnProcessor())
        found = pipelines.run(pipe)
        assert (found - expected).norm() < 1e-3 * expected.norm()
        pipe.transformer.fuse_qkv_projections()
        pipelines.run(pipe)
        pipe.transformer.unfuse_qkv_projections()
        assert handle.stats()["nodes"]["transformer_blocks.1"] == {"C": 12, "R": 6}


def test_b15_a_reused_stack_would_drop_what_a_controlnet_adds_between_its_blocks():
    from tests.helpers.denoiser_loops import TINY, pipeline

    pipe = pipeline("FluxTransformer2DModel")
    given = TINY["FluxTransformer2DModel"].given() | {"timestep": torch.full((2,), 0.5)}
    latents = torch.zeros(TINY["FluxTransformer2DModel"].sample)
    added = [torch.zeros(2, 16, 16)] * 2
    for selector, refused in (("transformer_blocks", True), ("transformer_blocks.*:ff", False)):
        with torch.no_grad(), pipelines.schedule(pipe, [[selector, "CRCRCR"]]).apply(pipe):
            pipe.scheduler.set_timesteps(6)
            if refused:
                with pytest.raises(ScheduleError, match="reuses the whole of transformer_blocks, .*ControlNet adds"):
                    pipe.denoiser(latents, **given, controlnet_block_samples=added)
            else:
                pipe.denoiser(latents, **given, controlnet_block_samples=added)


def test_b16_blocks_stay_in_place_for_code_that_reads_them():
    dit = pipelines.dit()  # its last layer reads transformer_blocks[0].norm1.emb
    names = [name for name, _ in dit.transformer.named_parameters()]
    block = dit.transformer.transformer_blocks[0]
    with applied(dit, [["transformer_blocks.0", "CSRSRS"]]):
        assert dit.transformer.transformer_blocks[0] is block and block.norm1.emb is not None
        assert [name for name, _ in dit.transformer.named_parameters()] == names
        assert pipelines.classes(dit).isfinite().all()


def test_b17_the_grid_that_runs_is_the_grid_that_was_written(pipe):
    """No integer casts, no second shift: the arrays are written after set_timesteps. See test_schedule_sampler.py."""
    part = {
        "class": "FlowMatchEulerDiscreteScheduler",
        "config": {"shift": 3.0},
        "timesteps": [990.5, 800.25, 500.0, 10.5],
        "sigmas": [0.9, 0.75, 0.5, 0.25, 0.0],
    }
    with pipelines.schedule(pipe, steps=4, sampler=part).apply(pipe):
        pipe.scheduler.set_timesteps(4)
        assert pipe.scheduler.timesteps.tolist() == part["timesteps"]
        assert torch.equal(pipe.scheduler.sigmas, torch.tensor(part["sigmas"]))
    with pytest.raises(ScheduleError, match="sampler.timesteps must fall strictly"):
        pipelines.schedule(pipe, steps=4, sampler=part | {"timesteps": [9, 9, 8, 7]})


def test_b18_signatures_stay_visible(pipe):
    pipe.scheduler = DDIMScheduler()
    bare = pipe.prepare_extra_step_kwargs(None, 0.5)
    assert set(bare) == {"eta", "generator"}
    parameters = set(inspect.signature(pipe.scheduler.set_timesteps).parameters)
    with Schedule.off(pipe).apply(pipe):
        assert pipe.prepare_extra_step_kwargs(None, 0.5) == bare
        assert set(inspect.signature(pipe.scheduler.set_timesteps).parameters) == parameters


def test_b19_replaced_schedulers_and_copies_are_noticed(pipe):
    with applied(pipe):
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        with pytest.raises(ScheduleError, match="the pipeline's scheduler was replaced by EulerDiscreteScheduler"):
            pipelines.run(pipe)
    with applied(pipe), pytest.raises(ScheduleError, match="a schedule is applied here; remove it before copying"):
        copy.deepcopy(pipe.transformer)


def test_b20_runs_of_another_number_of_steps_are_refused(pipe):
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad(), applied(pipe):
        pipe.scheduler.set_timesteps(6)
        pipe.scheduler.set_begin_index(3)  # as image-to-image pipelines do
        with pytest.raises(ScheduleError, match="this schedule has 6 steps, and the run begins at step 3 and makes 3"):
            call(pipe, latents, pipe.scheduler.timesteps[3])
    with torch.no_grad(), applied(pipe):
        pipe.scheduler.set_timesteps(6)
        for t in pipe.scheduler.timesteps[:3]:  # interrupted, as denoising_end does: the next run is a whole one
            pipe.scheduler.step(call(pipe, latents, t).sample[:, :4], t, latents)
        expected = pipelines.run(pipe)
    with applied(pipe):
        assert torch.equal(pipelines.run(pipe), expected)


def test_b21_stochastic_solvers_draw_the_same_noise(pipe):
    pipe.scheduler = EulerAncestralDiscreteScheduler()
    bare = pipelines.run(pipe)
    with Schedule.off(pipe).apply(pipe):
        assert torch.equal(pipelines.run(pipe), bare)
    with applied(pipe):
        assert torch.equal(pipelines.run(pipe), pipelines.run(pipe))


def test_b22_the_order_may_drop_where_values_are_reused(pipe):
    part = {"class": "DPMSolverMultistepScheduler", "order": "121211"}
    with applied(pipe, [["denoiser", "CCRCRC"]], sampler=part):
        lowered = pipelines.run(pipe)
    with applied(pipe, [["denoiser", "CCRCRC"]], sampler=part | {"order": "122221"}):
        assert not torch.equal(pipelines.run(pipe), lowered)


def test_b23_forecasts_know_uneven_steps_types_and_history(pipe):
    values = [torch.tensor([float(x)], dtype=torch.bfloat16) for x in (1, 2)]
    assert newton_weights([0.0, 4.0], 6.0) == [-0.5, 1.5]
    assert combine(values, [-0.5, 1.5]).dtype == torch.bfloat16 and combine(values, [-0.5, 1.5]).item() == 2.5
    with pytest.raises(ScheduleError, match="transformer_blocks.0:ff at step 2 is F2, which reads 3"):
        pipelines.schedule(pipe, [["transformer_blocks.*:ff", "CCF2CCC"]])
    runs = []
    for axis in ("index", "timestep", "sigma", "logsnr"):
        with applied(pipe, [["denoiser", "CCF1CF2C"]], axis=axis):
            runs.append(pipelines.run(pipe))
    assert all(not torch.equal(a, b) for i, a in enumerate(runs) for b in runs[:i])


def test_b24_a_plan_is_static_and_reads_no_value():
    """No gate, so nothing to synchronise: the whole run is known before it starts."""
    from search.schedule.apply import hooks as actions

    source = inspect.getsource(actions)
    assert ".item()" not in source and ".cpu()" not in source


def test_b25_kept_denoiser_values_are_copies(pipe):
    """A pipeline may write into them. Of CUDA graphs, which write into their own outputs, see the compiled blocks."""
    with torch.no_grad(), applied(pipe, [["denoiser", "CRCRCR"]]) as handle:
        pipe.scheduler.set_timesteps(6)
        out = call(pipe, torch.randn(1, 4, 8, 8), 500).sample
        ((_, kept),) = handle.stores["denoiser"].values[0]
        assert kept.data_ptr() != out.data_ptr() and torch.equal(kept, out)


def test_b26_learned_sigma_and_both_kinds_of_return(pipe):
    latents = torch.randn(1, 4, 8, 8)
    for dictionary in (True, False):
        with torch.no_grad(), applied(pipe, [["denoiser", "CRCRCR"]]):
            pipe.scheduler.set_timesteps(6)
            first = call(pipe, latents, 500, return_dict=dictionary)
            pipe.scheduler.step(first[0][:, :4], pipe.scheduler.timesteps[0], latents)
            again = call(pipe, latents, 500, return_dict=dictionary)
            assert type(again) is type(first) and again[0].shape == (1, 8, 8, 8) and torch.equal(again[0], first[0])


def test_b27_kept_values_hold_no_graph(pipe):
    latents = torch.randn(1, 4, 8, 8)
    rules = [["transformer_blocks.0:ff", "CRCRCR"], ["transformer_blocks.1", "CRCRCR"], ["denoiser", "CCCCCR"]]
    with torch.enable_grad(), applied(pipe, rules) as handle:
        pipe.scheduler.set_timesteps(6)
        assert call(pipe, latents, 500).sample.requires_grad
        kept = [v for store in handle.stores.values() for b in store.values.values() for _, v in b]
        assert len(kept) == 2 and not any(value.requires_grad for value in kept)


def test_b28_one_handle_drives_one_denoiser(pipe):
    """Pipelines of two denoisers have no contract yet; two pipelines at work do not meet."""
    other = pipelines.pixart(blocks=2)
    with applied(pipe), applied(other, [["denoiser", "CRRRRR"]]) as handle:
        expected = pipelines.run(pipe), pipelines.run(other)
        assert handle.stats()["runs"] == 1
    with applied(other, [["denoiser", "CRRRRR"]]):
        assert torch.equal(pipelines.run(other), expected[1])
    with applied(pipe):
        assert torch.equal(pipelines.run(pipe), expected[0])


def test_b29_patched_classes_are_refused(pipe, monkeypatch):
    with applied(pipe):
        pass

    def forward(self, *args, **kwargs):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(type(pipe.transformer), "forward", forward)
        with pytest.raises(
            ScheduleError, match="PixArtTransformer2DModel.forward was replaced by one of .*test_pitfalls; undo that"
        ):
            applied(pipe)
    pipe.transformer._is_cached = True  # cache-dit's mark
    with pytest.raises(ScheduleError, match=r"another cache is enabled on this denoiser; call disable_cache\(\) first"):
        applied(pipe)


def test_b30_models_that_hide_their_parts_are_refused(pipe):
    """Quantised layers keep their places; a denoiser without the contract's modules is named before anything runs."""
    schedule = pipelines.schedule(pipe, RULES)
    del pipe.transformer.transformer_blocks[2].ff
    with pytest.raises(ScheduleError, match="has no transformer_blocks.2:ff: BasicTransformerBlock lacks 'ff'"):
        schedule.apply(pipe)
    assert pipelines.traces(pipe.transformer) == []


def test_b31_resolution_is_part_of_the_fingerprint_and_shifts_are_those_of_the_file(pipe):
    schedule = pipelines.schedule(pipe, RULES)
    larger = pipelines.pixart(sample_size=16)
    with pytest.raises(ScheduleError, match="another architecture or resolution"):
        schedule.apply(larger)
    base = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    base.set_timesteps(4, mu=0.3)
    timesteps, sigmas = base.timesteps.tolist(), base.sigmas.tolist()
    part = {"class": "FlowMatchEulerDiscreteScheduler", "config": {"use_dynamic_shifting": True}}
    pipe.scheduler = base
    sampler = part | {"timesteps": timesteps, "sigmas": sigmas}
    with pipelines.schedule(pipe, steps=4, sampler=sampler).apply(pipe):
        pipe.scheduler.set_timesteps(4, mu=1.5)  # another resolution's shift does not move the schedule
        assert pipe.scheduler.sigmas.tolist() == sigmas


def test_b32_only_the_lowest_level_of_diffusers_hooks_is_used():
    """Other versions of diffusers are the packaging tests' business; what is relied on is looked at here."""
    from pathlib import Path

    from diffusers.hooks import HookRegistry, ModelHook

    import search.schedule as package

    source = "".join(p.read_text() for p in Path(package.__file__).parent.glob("*.py"))
    assert "StateManager" not in source and "cache_context" not in source and "CacheMixin" not in source
    for name in ("check_if_exists_or_initialize", "register_hook", "remove_hook", "get_hook"):
        assert callable(getattr(HookRegistry, name))
    assert ModelHook._is_stateful is False


def test_b33_other_caches_are_refused(pipe):
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ScheduleError, match="transformer_blocks.0 carries the cache hook '.*'; remove the other cache"):
        applied(pipe)
    fresh = pipelines.pixart()
    fresh.transformer.is_cache_enabled = True
    with pytest.raises(
        ScheduleError, match=r"another cache is enabled on this denoiser.*; call disable_cache\(\) first"
    ):
        applied(fresh)
