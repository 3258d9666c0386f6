"""A schedule on the untouched pipeline: what it does, and that it leaves no trace."""

import copy

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

from search import Schedule, ScheduleError
from search.schedule.apply.forecast import newton_weights
from search.schedule.plan.tokens import values_read
from search.testing.models import tiny_model

PROMPTS = ["red apple", "blue boat"]
ALL = "transformer_blocks.*:*"
STATES = ("encoder_hidden_states", "encoder_attention_mask")


@pytest.fixture
def model():
    return tiny_model()


def run(model, n: int = 2, seed: int = 0, **arguments):
    return model.stock(PROMPTS[:n], range(seed, seed + n), output_type="latent", **arguments)


def schedule(model, *rules, **plan) -> Schedule:
    return Schedule.from_dict(model.target.schedule({"plan": {"rules": [list(r) for r in rules], **plan}}))


def trace(model) -> dict:
    """All that applying might leave behind."""
    modules = {name: set(module.__dict__) for name, module in model.denoiser.named_modules()}
    forwards = {n: getattr(m.forward, "__func__", None) for n, m in model.denoiser.named_modules()}
    return {"modules": modules, "forwards": forwards, "scheduler": id(model.pipe.scheduler),
            "scheduler_dict": set(model.pipe.scheduler.__dict__)}  # fmt: skip


def hand_loop(model, tokens: dict, axis_places=None) -> torch.Tensor:
    """The same plan in a loop of its own over blocks and components; knows nothing of hooks."""
    net, scheduler = model.denoiser, copy.deepcopy(model.pipe.scheduler)
    scheduler.set_timesteps(6)
    conditions = model.encode(PROMPTS)
    text = net.caption_projection(conditions["encoder_hidden_states"])
    mask = conditions["encoder_attention_mask"]
    bias = ((1 - mask.to(text.dtype)) * -10000.0)[:, None]
    latents = model.noise([0, 1]) * scheduler.init_noise_sigma
    kept: dict[str, list] = {}

    def act(name, step, compute, like=None):
        token = tokens.get(name, "C" * 6)[step] if name in tokens else "C"
        if token == "C":
            value = compute()
            kept.setdefault(name, []).append((step, value))
            return value
        if token == "S":
            return torch.zeros_like(like) if ":" in name else like
        last = kept[name][-values_read(token) :]
        places = axis_places or list(range(6))
        weights = newton_weights([places[s] for s, _ in last], places[step])
        return sum(w * v for w, (_, v) in zip(weights, last, strict=True))

    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):

            def denoise(i=i, t=t, latents=latents):
                x = net.pos_embed(torch.cat([latents] * 2))
                emb, embedded = net.adaln_single(
                    t.expand(len(x)),
                    {"resolution": None, "aspect_ratio": None},
                    batch_size=len(x),
                    hidden_dtype=x.dtype,
                )
                x = act("transformer_blocks", i, lambda: blocks(x, emb), x)
                shift, scale = (net.scale_shift_table[None] + embedded[:, None]).chunk(2, dim=1)
                x = net.proj_out(net.norm_out(x) * (1 + scale) + shift)
                x = x.reshape(-1, 4, 4, 2, 2, 4)
                return torch.einsum("nhwpqc->nchpwq", x).reshape(-1, 4, 8, 8)

            def blocks(x, emb, i=i):
                for b, block in enumerate(net.transformer_blocks):
                    x = act(f"transformer_blocks.{b}", i, lambda x=x, b=b, block=block: one(x, emb, b, block), x)
                return x

            def one(x, emb, b, block, i=i):
                table = block.scale_shift_table[None] + emb.reshape(len(x), 6, -1)
                s1, c1, g1, s2, c2, g2 = table.chunk(6, dim=1)
                h = block.norm1(x) * (1 + c1) + s1
                x = g1 * act(f"transformer_blocks.{b}:attn1", i, lambda: block.attn1(h), h) + x
                y = x
                x = act(
                    f"transformer_blocks.{b}:attn2", i,
                    lambda: block.attn2(y, encoder_hidden_states=text, attention_mask=bias), y,
                ) + x  # fmt: skip
                z = block.norm2(x) * (1 + c2) + s2
                return g2 * act(f"transformer_blocks.{b}:ff", i, lambda: block.ff(z), z) + x

            out = act("denoiser", i, denoise)
            without, conditional = out.chunk(2)
            prediction = without + 4.0 * (conditional - without)
            latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
    return latents


def expand(model, *rules) -> dict:
    plan = schedule(model, *rules).plan
    return {name: [("C" if t == "-" else t) for t in tokens] for name, tokens in plan.tokens.items()}


@pytest.mark.parametrize(
    "rules",
    [
        [],
        [(ALL, "CRCRCR")],
        [("transformer_blocks.*:attn1", "CRRCRR"), ("transformer_blocks.[0,2]:ff", "CSCSCS")],
        [("transformer_blocks.*:attn2", "CC F1*2 C F1"), ("transformer_blocks.1:ff", "CCC F2 C F3")],
        [("transformer_blocks.1", "CRSCRF1"), ("transformer_blocks.0", "CSCSCC")],
        [("transformer_blocks", "CRCF1CS")],
        [("denoiser", "CRCF1CF2"), ("transformer_blocks.*:ff", "CCRCRC")],
        [("denoiser", "CCRCCC"), ("transformer_blocks", "CCCRCC"), ("transformer_blocks.2", "CCCCRC"), (ALL, "CRCCCR")],
    ],
    ids=["off", "fora", "skip", "forecast", "block", "stack", "denoiser", "all levels"],
)
def test_the_applied_plan_equals_a_loop_written_by_hand(model, rules):
    with schedule(model, *rules).apply(model.pipe):
        applied = run(model)
    assert torch.allclose(applied, hand_loop(model, expand(model, *rules)), atol=2e-5)


@pytest.mark.parametrize("axis", ["timestep", "sigma", "logsnr"])
def test_forecasts_stand_on_the_true_places(model, axis):
    from search.schedule.schedulers import forecast_coordinates

    rules = [("transformer_blocks.*:ff", "CCF1CF2C")]
    model.pipe.scheduler.set_timesteps(6)
    places = forecast_coordinates(model.pipe.scheduler, axis)
    with schedule(model, *rules, axis=axis).apply(model.pipe):
        applied = run(model)
    assert torch.allclose(applied, hand_loop(model, expand(model, *rules), places), atol=2e-5)
    with schedule(model, *rules, axis="index").apply(model.pipe):
        assert not torch.equal(applied, run(model))


def test_newton_weights_are_exact_for_polynomials_on_uneven_places():
    places, at = [0.0, 1.0, 2.5, 7.0], 9.0
    for degree in range(4):
        weights = newton_weights(places[-(degree + 1) :], at)
        values = [p**degree for p in places[-(degree + 1) :]]
        assert sum(w * v for w, v in zip(weights, values, strict=True)) == pytest.approx(at**degree)
    assert newton_weights([2.0, 4.0], 5.0) == pytest.approx([-0.5, 1.5])
    with pytest.raises(ValueError, match="puts computed steps at equal places"):
        newton_weights([1.0, 1.0], 2.0)


def test_off_is_bit_exact_at_any_number_of_steps(model):
    off = Schedule.off(model.pipe)
    for steps in (6, 9):
        bare = run(model, num_inference_steps=steps)
        with off.apply(model.pipe) as handle:
            assert torch.equal(run(model, num_inference_steps=steps), bare)
            assert handle.stats()["denoiser_calls"] == steps


def test_removing_leaves_no_trace(model):
    before, bare = trace(model), run(model)
    handle = schedule(model, (ALL, "CRCRCR"), ("transformer_blocks.1", "CRCCCC")).apply(model.pipe)
    assert trace(model) != before
    run(model)
    handle.remove()
    handle.remove()
    assert trace(model) == before
    assert torch.equal(run(model), bare)


def test_removing_leaves_no_trace_after_an_exception_in_a_block(model):
    before, bare = trace(model), run(model)
    with schedule(model, ("transformer_blocks.*:attn1", "CRCRCR")).apply(model.pipe) as handle:
        remover = model.denoiser.transformer_blocks[2].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(model)
        assert handle.memory.now == 0  # nothing is kept for a run that will not go on
        remover.remove()
        after_failure = run(model)
    with schedule(model, ("transformer_blocks.*:attn1", "CRCRCR")).apply(model.pipe):
        assert torch.equal(run(model), after_failure)
    assert trace(model) == before
    assert torch.equal(run(model), bare)


def test_an_exception_in_a_callback_is_survived(model):
    bare = run(model)
    with schedule(model, (ALL, "CRCRCR")).apply(model.pipe):
        first = run(model)
        with pytest.raises(ZeroDivisionError):
            run(model, callback=lambda *_: 1 / 0)
        assert torch.equal(run(model), first)
    assert torch.equal(run(model), bare)


def test_an_exception_while_applying_leaves_no_trace(model):
    before = trace(model)

    def refuse(_):
        raise RuntimeError("no compiler")

    with pytest.raises(RuntimeError, match="no compiler"):
        schedule(model, (ALL, "CRCRCR")).apply(model.pipe, compile=refuse)
    assert trace(model) == before


def test_two_calls_another_batch_another_size_and_guidance_off_and_on(model):
    made = schedule(model, (ALL, "CRCRCR"))
    with made.apply(model.pipe):
        first = run(model)
        one = run(model, n=1)
        wide = run(model, height=24, width=16)
        unguided = run(model, guidance_scale=1.0)
        assert torch.equal(run(model), first)
    assert torch.allclose(one[0], first[0], atol=1e-5)
    assert wide.shape[-2:] == (12, 8)
    for expected, arguments in ((wide, {"height": 24, "width": 16}), (unguided, {"guidance_scale": 1.0})):
        with made.apply(model.pipe):
            assert torch.equal(run(model, **arguments), expected)


def test_two_calls_per_step_are_two_branches_with_values_of_their_own(model):
    """Pipelines that call the denoiser once per CFG branch must get what the batched call gives."""
    made = schedule(model, (ALL, "CRCRCR"), ("denoiser", "CCCCRC"))
    conditions, noise = model.encode(PROMPTS), model.noise([0, 1])
    with made.apply(model.pipe) as handle:
        batched = model.sample(conditions, noise)
        scheduler = model.pipe.scheduler
        scheduler.set_timesteps(6)
        latents = noise * scheduler.init_noise_sigma
        micro = {"resolution": None, "aspect_ratio": None}
        for t in scheduler.timesteps:
            parts = [
                model.denoiser(
                    latents,
                    encoder_hidden_states=text,
                    encoder_attention_mask=mask,
                    timestep=t.expand(2),
                    added_cond_kwargs=micro,
                    return_dict=False,
                )[0]
                for text, mask in zip(*(conditions[name].chunk(2) for name in STATES), strict=True)
            ]
            latents = scheduler.step(parts[0] + 4.0 * (parts[1] - parts[0]), t, latents, return_dict=False)[0]
        assert torch.allclose(latents, batched, atol=1e-5)
        assert handle.stats()["denoiser_calls"] == 6 + 12


def test_stats_count_what_the_plan_says(model):
    made = schedule(
        model, ("transformer_blocks.*:attn1", "CRRCRR"), ("transformer_blocks.1", "CCSCCC"), ("denoiser", "C*5 R")
    )
    with made.apply(model.pipe) as handle:
        run(model)
        run(model)
        stats = handle.stats()
    assert stats["runs"] == 2 and stats["denoiser_calls"] == 12
    assert stats["nodes"]["denoiser"] == {"C": 10, "R": 2}
    assert stats["nodes"]["transformer_blocks.1"] == {"C": 8, "S": 2}
    assert stats["nodes"]["transformer_blocks.1:attn1"] == {"C": 4, "R": 4}
    assert stats["block_executions"] == 2 * (5 * 3 - 1)


def test_values_are_freed_after_their_last_reader(model):
    seen = []
    made = schedule(model, ("transformer_blocks.*:ff", "CRCCRC"))
    with made.apply(model.pipe) as handle:
        run(model, n=1, callback=lambda *_: seen.append(handle.memory.now))
    size = 3 * 2 * 16 * 16 * 4  # blocks x CFG halves x tokens x width x bytes
    # kept after step 0, read and freed at 1, not kept at 2 (computed anew at 3), kept at 3, freed at 4
    assert seen == [size, 0, 0, size, 0, 0]
    assert handle.memory.peak == size


def test_compiled_forwards_beneath_the_hooks_make_no_recompile_storm(model):
    made = schedule(
        model, (ALL, "CRCRCR"), ("transformer_blocks.0:ff", "CCRRCC"), ("transformer_blocks.2:attn2", "CCRCRC")
    )
    with made.apply(model.pipe):
        plain = run(model)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with made.apply(model.pipe, compile=lambda f: torch.compile(f, backend=backend)):
        compiled = run(model)
        after_one = len(graphs)
        run(model)
    assert torch.allclose(compiled, plain, atol=1e-5)
    assert after_one <= 3 * 3  # at most one a component, however often the plan alternates
    assert len(graphs) == after_one


@pytest.mark.parametrize("order", ["offload first", "schedule first"])
def test_offload_hooks_in_both_orders(model, order):
    """What enable_model_cpu_offload does, with the CPU as the device: unhook and hook again after each call."""
    accelerate = pytest.importorskip("accelerate")
    bare = run(model)
    made = schedule(model, (ALL, "CRCRCR"))
    with made.apply(model.pipe):
        expected = run(model)

    def offload():
        accelerate.hooks.remove_hook_from_module(model.denoiser, recurse=True)
        accelerate.cpu_offload_with_hook(model.denoiser, "cpu")

    if order == "offload first":
        offload()
        handle = made.apply(model.pipe)
    else:
        handle = made.apply(model.pipe)
        offload()
    for _ in range(2):
        assert torch.equal(run(model), expected)
        offload()  # diffusers does this in maybe_free_model_hooks
    handle.remove()
    assert hasattr(model.denoiser, "_hf_hook")
    assert torch.equal(run(model), bare)
    accelerate.hooks.remove_hook_from_module(model.denoiser, recurse=True)
    assert torch.equal(run(model), bare)


class TestRefusals:
    def test_another_number_of_steps(self, model):
        data = model.target.schedule({"plan": {"rules": [["denoiser", "CRCRCR"]]}})
        del data["sampler"]
        bound = Schedule.from_dict(data)
        with bound.apply(model.pipe), pytest.raises(ScheduleError, match="call it with num_inference_steps=6"):
            run(model, num_inference_steps=9)

    def test_another_model(self, model):
        data = model.target.schedule({})
        data["model"] = {"class": "DiTTransformer2DModel", "stacks": {"transformer_blocks": 3}}
        with pytest.raises(ScheduleError, match="model.class is 'DiTTransformer2DModel', but the pipeline's denoiser"):
            Schedule.from_dict(data).apply(model.pipe)

    def test_another_depth(self, model):
        data = model.target.schedule({})
        data["model"] = dict(data["model"]) | {"stacks": {"transformer_blocks": 4}}
        with pytest.raises(ScheduleError, match=r"model.stacks is \{'transformer_blocks': 4\}, but this"):
            Schedule.from_dict(data).apply(model.pipe)

    def test_another_architecture_unless_not_strict(self, model):
        data = model.target.schedule({})
        data["model"] = dict(data["model"]) | {"fingerprint": "0" * 16}
        other = Schedule.from_dict(data)
        with pytest.raises(ScheduleError, match=r"another architecture or resolution; apply\(pipe, strict=False\)"):
            other.apply(model.pipe)
        with other.apply(model.pipe, strict=False):
            run(model)

    def test_a_pipeline_without_denoiser(self):
        with pytest.raises(ScheduleError, match="SimpleNamespace has neither a transformer, a unet nor a denoiser"):
            from types import SimpleNamespace

            Schedule.off(SimpleNamespace())

    def test_a_denoiser_without_contract(self, model):
        from diffusers import UNet2DModel

        model.pipe.transformer = None
        model.pipe.unet = UNet2DModel(
            block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        )  # fmt: skip
        with pytest.raises(ScheduleError, match="model.class 'UNet2DModel' has no node contract; known"):
            Schedule.off(model.pipe)

    def test_a_second_schedule(self, model):
        made = schedule(model, (ALL, "CRCRCR"))
        with made.apply(model.pipe), pytest.raises(ScheduleError, match="already applied .*; call .remove"):
            made.apply(model.pipe)

    def test_a_swapped_scheduler(self, model):
        with schedule(model, (ALL, "CRCRCR")).apply(model.pipe) as handle:
            model.pipe.scheduler = DPMSolverMultistepScheduler.from_config(model.pipe.scheduler.config)
            with pytest.raises(ScheduleError, match="scheduler was replaced by DPMSolverMultistepScheduler after"):
                run(model)
            mine = model.pipe.scheduler
            handle.remove()
            assert model.pipe.scheduler is mine  # what the user put there stays

    def test_a_copied_pipeline(self, model):
        refused = pytest.raises(ScheduleError, match="remove .* before copying")
        with schedule(model, (ALL, "CRCRCR")).apply(model.pipe), refused:
            copy.deepcopy(model.denoiser)

    def test_a_batch_that_changes_in_mid_run(self, model):
        conditions, noise = model.encode(PROMPTS), model.noise([0, 1])
        with schedule(model, (ALL, "CRCRCR")).apply(model.pipe) as handle:
            calls = []

            def halve(module, arguments, keywords):
                calls.append(1)
                if len(calls) == 3:
                    return (arguments[0][:2],), {k: v[:2] if torch.is_tensor(v) else v for k, v in keywords.items()}

            remover = model.denoiser.register_forward_pre_hook(halve, with_kwargs=True)
            with pytest.raises(ScheduleError, match="input changed from .*4, 4, 8, 8.* to .*2, 4, 8, 8.* at step 2"):
                model.sample(conditions, noise)
            remover.remove()
            assert handle.runs == 1

    def test_a_call_outside_of_a_run(self, model):
        conditions, noise = model.encode(PROMPTS), model.noise([0, 1])
        with schedule(model, (ALL, "CRCRCR")).apply(model.pipe), pytest.raises(ScheduleError, match="outside of a run"):
            model.denoise(conditions, noise, torch.tensor(500))

    def test_more_steps_than_there_are(self, model):
        with schedule(model, (ALL, "CRCRCR")).apply(model.pipe):
            model.sample(model.encode(PROMPTS), model.noise([0, 1]))
            with pytest.raises(ScheduleError, match="called more often than there are steps"):
                model.pipe.scheduler.step(torch.zeros(1), 1, torch.zeros(1))

    def test_partial_runs(self, model):
        with schedule(model, (ALL, "CRCRCR")).apply(model.pipe):
            model.pipe.scheduler.set_timesteps(6)
            model.pipe.scheduler.set_begin_index(3)
            with pytest.raises(ScheduleError, match="starts at step 3; a schedule applies to whole runs"):
                model.once()
            model.pipe.scheduler.set_timesteps(6)
            with pytest.raises(ScheduleError, match="starts at timestep .* instead of .*; a schedule applies to whole"):
                model.pipe.scheduler.step(torch.zeros(1), model.pipe.scheduler.timesteps[2], torch.zeros(1))

    def test_a_compiled_denoiser(self, model):
        model.denoiser.transformer_blocks[0].compile(backend="eager")
        with pytest.raises(ScheduleError, match=r"denoiser is compiled.*schedule.apply\(pipe, compile=True\)"):
            schedule(model, (ALL, "CRCRCR")).apply(model.pipe)

    def test_another_cache(self, model):
        model.denoiser.is_cache_enabled = True
        with pytest.raises(ScheduleError, match=r"another cache is enabled .*; call disable_cache\(\) first"):
            schedule(model, (ALL, "CRCRCR")).apply(model.pipe)

    def test_a_chunked_feed_forward(self, model):
        model.denoiser.transformer_blocks[1].set_chunk_feed_forward(4, 1)
        with pytest.raises(ScheduleError, match="transformer_blocks.1 runs its feed-forward in chunks"):
            schedule(model, (ALL, "CRCRCR")).apply(model.pipe)

    def test_a_branch_that_appears_in_mid_run(self, model):
        conditions, noise = model.encode(PROMPTS), model.noise([0, 1])
        with schedule(model, (ALL, "CRCRCR")).apply(model.pipe):
            scheduler = model.pipe.scheduler
            scheduler.set_timesteps(6)
            arguments = {
                **{name: conditions[name].chunk(2)[1] for name in STATES},
                "timestep": scheduler.timesteps[0].expand(2), "return_dict": False,
                "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            }  # fmt: skip
            out = model.denoiser(noise, **arguments)[0]
            scheduler.step(out, scheduler.timesteps[0], noise)
            model.denoiser(noise, **arguments)
            with pytest.raises(ScheduleError, match="changed from None to"):
                model.denoiser(noise, **arguments)


def test_a_user_scheduler_of_another_class_is_given_back(model):
    mine = EulerDiscreteScheduler()
    model.pipe.scheduler = mine
    with schedule(model, (ALL, "CRCRCR")).apply(model.pipe):
        assert type(model.pipe.scheduler).__name__ == "DPMSolverMultistepScheduler"  # the schedule's own
        run(model)
    assert model.pipe.scheduler is mine


def test_return_dict_gets_the_same_container_from_kept_values(model):
    with schedule(model, ("denoiser", "CRCRCR")).apply(model.pipe):
        scheduler = model.pipe.scheduler
        scheduler.set_timesteps(6)
        conditions, noise = model.encode(PROMPTS), model.noise([0, 1])
        arguments = {
            **{name: conditions[name].chunk(2)[1] for name in STATES},
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}, "timestep": torch.tensor([500, 500]),
        }  # fmt: skip
        computed = model.denoiser(noise, **arguments)
        scheduler.step(computed.sample, scheduler.timesteps[0], noise)
        reused = model.denoiser(noise, **arguments)
        assert type(reused) is type(computed) and torch.equal(reused.sample, computed.sample)
