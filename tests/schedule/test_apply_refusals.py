"""What is refused when a schedule is applied, or while it runs, and that nothing is left behind then."""

import copy
import io
import pickle

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, IPNDMScheduler, UNet2DModel

from search import Schedule, ScheduleError
from search.schedule.model.identity import denoiser_of, fingerprint, model_part
from search.schedule.model.nodes import ROOT, Tree
from tests.helpers import pipelines


def test_another_resolution_in_mid_run_is_refused():
    pipe = pipelines.pixart()
    embeddings = pipelines.embeddings(2)
    with torch.no_grad(), pipelines.schedule(pipe, [["transformer_blocks.1:ff", "CRCRCR"]]).apply(pipe) as handle:
        pipe.scheduler.set_timesteps(6)
        latents = torch.randn(2, 4, 8, 8)

        def call(x, given):
            return pipe.transformer(
                x,
                encoder_hidden_states=given["prompt_embeds"],
                timestep=torch.tensor([500]).expand(len(x)),
                return_dict=False,
            )[0]

        out = call(latents, embeddings)
        pipe.scheduler.step(out.chunk(2, 1)[0], pipe.scheduler.timesteps[0], latents)
        with pytest.raises(
            ScheduleError, match=r"input changed from .*\(2, 4, 8, 8\).* to .*\(2, 4, 6, 8\).* at step 1"
        ):
            call(latents[:, :, :6], embeddings)
        assert handle.stats()["denoiser_calls"] == 1


def test_a_branch_that_computed_nothing_reads_nothing():
    from search.schedule.apply.clock import Clock
    from search.schedule.apply.stores import MemoryMeter, Store
    from search.schedule.plan.plan import Plan

    plan = Plan.resolve([(ROOT, "CR")], Tree("PixArtTransformer2DModel", {"transformer_blocks": 1}), 2)
    store = Store(ROOT, plan, MemoryMeter())
    with pytest.raises(ScheduleError, match="denoiser reads 1 value.* at step 1, but this CFG branch computed 0"):
        store.read(1, 1, Clock())


def test_a_node_called_twice_in_one_call_is_refused():
    pipe = pipelines.pixart()
    with pipelines.schedule(pipe, [["transformer_blocks.1:ff", "CRCRCR"]]).apply(pipe):
        pipe.transformer.transformer_blocks[1].set_chunk_feed_forward(8, 1)
        with pytest.raises(
            ScheduleError, match="transformer_blocks.1:ff was called twice in one denoiser call at step 0"
        ):
            pipelines.run(pipe)


def test_another_number_of_steps_is_refused():
    pipe = pipelines.pixart()
    with pipelines.schedule(pipe, [["denoiser", "CRCRCR"]]).apply(pipe):
        with pytest.raises(
            ScheduleError, match="this schedule has 6 steps, but the pipeline runs 8; call it with num_inf"
        ):
            pipelines.run(pipe, steps=8)
        pipelines.run(pipe)


def test_calls_outside_of_a_run_are_refused():
    pipe = pipelines.pixart()
    given = {"encoder_hidden_states": torch.zeros(1, 5, pipelines.CAPTION), "timestep": torch.tensor([5])}
    with torch.no_grad(), Schedule.off(pipe).apply(pipe):
        with pytest.raises(ScheduleError, match="the denoiser was called outside of a run"):
            pipe.transformer(torch.zeros(1, 4, 8, 8), **given)
        with pytest.raises(ScheduleError, match="scheduler.step was called more often than there are steps"):
            pipe.scheduler.step(torch.zeros(1, 4, 8, 8), 5, torch.zeros(1, 4, 8, 8))
        pipelines.run(pipe)
        with pytest.raises(ScheduleError, match="called outside of a run"):
            pipe.transformer(torch.zeros(1, 4, 8, 8), **given)


def test_partial_runs_are_refused():
    pipe = pipelines.pixart()
    given = {"encoder_hidden_states": torch.zeros(1, 5, pipelines.CAPTION), "timestep": torch.tensor([5])}
    with torch.no_grad(), pipelines.schedule(pipe, [["denoiser", "CRCRCR"]]).apply(pipe):
        pipe.scheduler.set_timesteps(6)
        pipe.scheduler.set_begin_index(3)
        with pytest.raises(ScheduleError, match="has 6 steps, and the run begins at step 3 and makes 3"):
            pipe.transformer(torch.zeros(1, 4, 8, 8), **given)
    pipe.scheduler = DDIMScheduler()  # knows no begin index
    with torch.no_grad(), pipelines.schedule(pipe, [["denoiser", "CRCRCR"]]).apply(pipe):
        pipe.scheduler.set_timesteps(6)
        x = torch.zeros(1, 4, 8, 8)
        out = pipe.transformer(x, **given).sample[:, :4]
        with pytest.raises(ScheduleError, match="has 6 steps, and the run begins at step 2 and makes 4; call"):
            pipe.scheduler.step(out, pipe.scheduler.timesteps[2], x)


def test_a_swapped_scheduler_is_refused_and_kept():
    pipe = pipelines.pixart()
    swapped = EulerDiscreteScheduler()
    with pipelines.schedule(pipe, [["denoiser", "CRCRCR"]]).apply(pipe):
        pipe.scheduler = swapped
        with pytest.raises(ScheduleError, match="scheduler was replaced by EulerDiscreteScheduler after the schedule"):
            pipelines.run(pipe)
    assert pipe.scheduler is swapped  # the user's choice stays
    pipelines.run(pipe)


def test_a_second_schedule_is_refused():
    pipe = pipelines.pixart()
    with Schedule.off(pipe).apply(pipe), pytest.raises(ScheduleError, match="already applied .*call .remove"):
        Schedule.off(pipe).apply(pipe)
    with Schedule.off(pipe).apply(pipe):
        pipelines.run(pipe)


def test_copies_are_refused():
    pipe = pipelines.pixart()
    with pipelines.schedule(pipe, [["transformer_blocks.*:ff", "CRCRCR"]]).apply(pipe):
        before = pipelines.run(pipe)
        for part in (pipe.transformer, pipe.transformer.transformer_blocks[1], pipe):
            for copied in (copy.deepcopy, pickle.dumps, lambda part: torch.save(part, io.BytesIO())):
                with pytest.raises(ScheduleError, match="a schedule is applied here; remove it before copying or pick"):
                    copied(part)
        with pytest.raises(ScheduleError, match="a schedule is applied here"):
            pickle.dumps(pipe.scheduler)
        assert torch.equal(pipelines.run(pipe), before)
    clean = copy.deepcopy(pipe.transformer)
    assert pipelines.traces(clean) == []


def test_a_failed_apply_leaves_nothing():
    pipe = pipelines.pixart()
    before, scheduler = pipelines.run(pipe), pipe.scheduler

    def broken(forward):
        raise RuntimeError("no compiler")

    with pytest.raises(RuntimeError, match="no compiler"):
        pipelines.schedule(pipe, [["transformer_blocks.*:ff", "CRCRCR"]]).apply(pipe, compile=broken)
    assert pipelines.traces(pipe.transformer) == [] and pipe.scheduler is scheduler
    assert torch.equal(pipelines.run(pipe), before)


def test_other_models_are_refused():
    pipe, other, dit = pipelines.pixart(), pipelines.pixart(blocks=2), pipelines.dit()
    schedule = pipelines.schedule(pipe, [["denoiser", "CRCRCR"]])
    with pytest.raises(ScheduleError, match="model.class is 'PixArt.*', but the pipeline's denoiser is a DiT"):
        schedule.apply(dit)
    with pytest.raises(ScheduleError, match=r"model.stacks is {'transformer_blocks': 3}, but this .* has .*: 2}"):
        schedule.apply(other)
    larger = pipelines.pixart(sample_size=16)
    with pytest.raises(ScheduleError, match=r"model.fingerprint is '\w{16}', but this denoiser's is .*strict=False"):
        schedule.apply(larger)
    with schedule.apply(larger, strict=False):
        pipelines.run(larger)


def test_pipelines_without_a_known_denoiser_are_refused():
    class Nothing:
        pass

    with pytest.raises(ScheduleError, match="Nothing has neither a transformer, a unet nor a denoiser"):
        denoiser_of(Nothing())
    with pytest.raises(ScheduleError, match="model.class 'UNet2DModel' has no node contract; classes with one: DiT"):
        Tree.of(
            UNet2DModel(
                block_out_channels=(4,),
                down_block_types=("DownBlock2D",),
                up_block_types=("UpBlock2D",),
                norm_num_groups=2,
            )
        )


def test_a_contract_that_a_model_breaks_is_named():
    pipe = pipelines.pixart(cross_attention_dim=None, caption_channels=None)
    with pytest.raises(ScheduleError, match="has no transformer_blocks.0:attn2: BasicTransformerBlock lacks 'attn2'"):
        model_part(pipe.transformer)


def test_an_axis_that_the_scheduler_cannot_give_is_refused():
    pipe = pipelines.pixart(scheduler=IPNDMScheduler())
    refused = pytest.raises(ScheduleError, match="plan.axis .logsnr.: IPNDMScheduler has no sigmas; use .index.")
    with pipelines.schedule(pipe, [["denoiser", "CCF1CCC"]], axis="logsnr").apply(pipe), refused:
        pipelines.run(pipe)


def test_the_fingerprint_is_of_the_architecture_alone():
    a, b = pipelines.pixart(), pipelines.pixart()
    torch.nn.init.zeros_(b.transformer.proj_out.weight)
    b.transformer.register_to_config(_name_or_path="/somewhere/else")
    assert fingerprint(a.transformer) == fingerprint(b.transformer)
    assert fingerprint(a.transformer) != fingerprint(pipelines.pixart(sample_size=16).transformer)
