"""A pipeline with schedules beside a twin without any: whatever is called on both, nothing is lost and nothing differs.

`machine(kind)` is a state machine of hypothesis over the calls of a user. On the twin the user's own calls are made and
no schedule is ever left applied. After each call all parameters and buffers are equal; after `remove` attributes, hooks
and configuration as well, and outputs are bit for bit. A run under a schedule is the run of the twin with the same
schedule freshly applied, or it is refused by a ScheduleError.
"""

import contextlib
import copy
import gc
import io
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import accelerate
import peft
import pytest
import torch
from accelerate.hooks import remove_hook_from_module
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from diffusers.utils.logging import set_verbosity_error
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from search import Schedule, ScheduleError
from search.schedule.model.identity import denoiser_of
from search.schedule.model.layers import layers_of
from search.schedule.schedulers import public_config, scheduler_grid
from search.testing import pipelines as whole
from search.testing.denoisers import WIDTH
from tests.helpers import pipelines

KINDS = ("pixart", "sd", "flux", "dit")
STEPS = 3
set_verbosity_error()
TOKENS = 4
FORMATS = {
    "w8": {"weight": 8},
    "w4": {"weight": 4},
    "w8a8d": {"weight": 8, "activation": 8},
    "elided": {"elided": True},
}
ELIDED = {
    "pixart": ["adaln_single.linear"],
    "dit": ["transformer_blocks.0.norm1.emb.timestep_embedder.linear_1"],
    "sd": ["time_embedding.linear_1"],
    "flux": [],
}
COMPONENTS = {
    "pixart": "transformer_blocks.*:attn1",
    "dit": "transformer_blocks.*:ff",
    "flux": "single_transformer_blocks.*:proj_mlp",
    "sd": "mid_block.*",
}
TYPES = {"float64": torch.float64, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Stopped(Exception):
    """Raised by a callback."""


@cache
def _pristine(kind: str) -> Any:
    if kind == "pixart":
        return pipelines.pixart(blocks=2)
    torch.manual_seed(0)
    pipe: Any = {"sd": whole.stable_diffusion, "flux": whole.flux, "dit": whole.dit}[kind]()
    if kind == "sd":
        pipe.register_modules(text_encoder=None, tokenizer=None)
    if kind == "flux":
        pipe.register_modules(text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None)
    pipelines.lively(denoiser_of(pipe), 0.2).eval()
    pipe.vae.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline(kind: str) -> Any:
    """A tiny pipeline without text encoders; all of a kind have the same weights."""
    return copy.deepcopy(_pristine(kind))


@torch.no_grad()
def run(kind: str, pipe: Any, steps: int = STEPS, on_step: Callable[[], Any] | None = None) -> Tensor:
    """Latents, of DiT pictures; `on_step` is called when the second step begins."""
    denoiser: Any = denoiser_of(pipe)
    dtype = next((p.dtype for p in denoiser.parameters() if p.is_floating_point()), torch.float32)

    def given(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)

    arguments: dict[str, Any] = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(1)}
    if kind == "pixart":
        text = {f"{sign}prompt_embeds": given(1, TOKENS, pipelines.CAPTION) for sign in ("", "negative_")}
        text |= {f"{name}_attention_mask".replace("embeds_", ""): torch.ones(1, TOKENS) for name in [*text]}
        text = {name.replace("prompt_embeds_attention", "prompt_attention"): value for name, value in text.items()}
        arguments |= text | {"negative_prompt": None, "height": 64, "width": 64, "use_resolution_binning": False}
        arguments |= {"guidance_scale": 3.0, "output_type": "latent"}
    if kind == "sd":
        arguments |= {"prompt_embeds": given(1, TOKENS, WIDTH), "negative_prompt_embeds": given(1, TOKENS, WIDTH)}
        arguments |= {"guidance_scale": 3.0, "output_type": "latent"}
    if kind == "flux":
        arguments |= {"prompt_embeds": given(1, TOKENS, WIDTH), "pooled_prompt_embeds": given(1, WIDTH)}
        arguments |= {"height": 16, "width": 16, "output_type": "latent"}
    if kind == "dit":
        arguments |= {"class_labels": [3], "guidance_scale": 3.0, "output_type": "pt"}
        pipe.vae.to(dtype)
    with _called_at_second_step(denoiser, on_step):
        images = pipe(**arguments).images
    return torch.as_tensor(images)


@contextlib.contextmanager
def _called_at_second_step(denoiser: nn.Module, on_step: Callable[[], Any] | None) -> Iterator[None]:
    """A hook of torch's, as callbacks of the four pipelines differ and DiT's has none."""
    calls = []

    def before(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 2 and on_step is not None:
            on_step()

    remover = denoiser.register_forward_pre_hook(before)
    try:
        yield
    finally:
        remover.remove()


@cache
def schedules(kind: str) -> dict[str, Schedule]:
    """Schedules of each part, alone and together."""
    pipe = _pristine(kind)
    denoiser: Any = denoiser_of(pipe)
    names = [name for name in layers_of(denoiser) if name not in ELIDED[kind]]
    attention = [name for name in names if name.rpartition(".")[2] in ("to_q", "to_k", "to_v")][:4]
    others = [name for name in names if ".ff" in name or "conv" in name or "proj" in name][:3]
    bits = {"formats": FORMATS, "layers": dict.fromkeys(attention, "w4") | dict.fromkeys(others, "w8")}
    inputs = {"formats": FORMATS, "layers": dict.fromkeys([*attention, *others], "w8a8d")}
    tables = {"formats": FORMATS, "layers": dict.fromkeys(ELIDED[kind], "elided") | dict.fromkeys(others, "w4")}
    cache_rules = [[COMPONENTS[kind], "CRC"]]
    base = DDIMScheduler() if kind != "flux" else FlowMatchEulerDiscreteScheduler()
    timesteps, sigmas = scheduler_grid(base, STEPS)
    grid = {"class": type(base).__name__, "config": public_config(base), "timesteps": timesteps}
    grid |= {"sigmas": sigmas} if sigmas else {}
    made = {
        "off": {},
        "bits": {"bits": bits},
        "bits of inputs": {"bits": inputs},
        "tables": {"bits": tables},
        "cache": {"rules": cache_rules},
        "steps": {"rules": [["denoiser", "CRC"]]},
        "grid": {"sampler": grid},
        "bits, cache and grid": {"bits": bits, "rules": cache_rules, "sampler": grid},
    }
    if kind != "flux":
        made["guidance"] = {"guidance": {"call": 3.0, "branch": "CCO"}}
    return {name: pipelines.schedule(pipe, part.pop("rules", ()), STEPS, **part) for name, part in made.items()}


def values(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def differences(pipe: Any, twin: Any, traces: bool) -> list[str]:
    """What differs between two pipelines: weights always, and with `traces` attributes, hooks and configuration."""
    ours, theirs = denoiser_of(pipe), denoiser_of(twin)
    a, b = values(ours), values(theirs)
    found = [] if list(a) == list(b) else [f"names: {set(a) ^ set(b)}"]
    found += [name for name in a.keys() & b.keys() if not same(a[name], b[name])]
    if dict(pipe.config) != dict(twin.config):
        found.append(f"config: {dict(pipe.config)}")
    if traces:
        for (name, x), (_, y) in zip(ours.named_modules(), theirs.named_modules(), strict=True):
            found += [f"{name}.{key}" for key in sorted(_attributes(x).items() ^ _attributes(y).items())]
        found += [f"scheduler.{key}" for key in vars(pipe.scheduler).keys() ^ vars(twin.scheduler).keys()]
        found += [f"type {type(pipe.scheduler)}"] if type(pipe.scheduler) is not type(twin.scheduler) else []
        found += [key for key in vars(pipe).keys() ^ vars(twin).keys() if not key.startswith("_")]  # a run's own
    return [str(line) for line in found]


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in everything; tensors without memory by their shape."""
    if (a.dtype, a.shape, a.device, type(a), a.requires_grad) != (b.dtype, b.shape, b.device, type(b), b.requires_grad):
        return False
    return a.is_meta or torch.equal(a.nan_to_num(), b.nan_to_num())


def _attributes(module: nn.Module) -> dict[str, str]:
    """Attributes of a module as text; a registry of hooks that is empty is none, and the class's own forward too."""
    found = {}
    for key, value in vars(module).items():
        if key == "_diffusers_hook":
            value = sorted(value.hooks)
        if key == "forward" and getattr(value, "__func__", None) is type(module).forward:
            continue
        if isinstance(value, dict):
            value = sorted(map(str, value)) if key.startswith("_") and key != "_internal_dict" else len(value)
        if key.endswith("_hooks"):
            value = len(value)
        if isinstance(value, bool | int | float | str | list | type(None)) and value not in ([], None):
            found[key] = str(value)[:200]
        elif value not in ([], None):
            found[key] = type(value).__name__
    return found


def machine(kind: str, tried: Counter[str]) -> type[RuleBasedStateMachine]:
    """The state machine of a kind of pipeline; `tried` counts its rules, and how each of them ended."""
    names = st.sampled_from(sorted(schedules(kind)))

    class LivePipeline(RuleBasedStateMachine):
        @initialize(name=names)
        def build(self, name: str) -> None:
            self.pipe, self.twin = pipeline(kind), pipeline(kind)
            self.handle, self.schedule = None, None
            self.adapter, self.offload = "", ""
            tried[f"{kind}: pipelines"] += 1
            self.apply(name)

        # What the user calls on both

        def on_both(self, name: str, change: Callable[[Any], Any]) -> None:
            """The same call on both; it ends in the same way, and leaves the same weights."""
            ends = []
            for pipe in (self.twin, self.pipe):
                torch.manual_seed(3)
                try:
                    change(pipe)
                    ends.append("done")
                except Exception as error:
                    ends.append(type(error).__name__)
            assert ends[0] == ends[1], f"{name}: {ends}"
            tried[f"{kind}: {name}: {ends[0]}"] += 1
            self.compare(name)

        def compare(self, name: str) -> None:
            assert not (found := differences(self.pipe, self.twin, self.handle is None)), f"{name}: {found[:9]}"

        def refused_or(self, name: str, act: Callable[[], Any]) -> Any:
            """What a call returns; None where a ScheduleError refused it."""
            try:
                value = act()
            except ScheduleError as error:
                tried[f"{kind}: {name}: refused"] += 1
                assert 20 < len(str(error)) < 700, error
                return None
            tried[f"{kind}: {name}: done"] += 1
            return value

        # Schedules

        @rule(name=names)
        def apply(self, name: str) -> None:
            handle = self.refused_or("apply", lambda: schedules(kind)[name].apply(self.pipe))
            if handle is not None:
                assert self.handle is None, "a second schedule was accepted"
                self.handle, self.schedule = handle, schedules(kind)[name]
            self.compare("apply")

        @precondition(lambda self: self.handle is not None)
        @rule()
        def remove(self) -> None:
            self.handle.remove()
            self.handle = None
            tried[f"{kind}: remove: done"] += 1
            self.compare("remove")
            self.run()

        # Runs

        def expected(self, steps: int = STEPS) -> Tensor | None:
            """The twin's run, under the same schedule freshly applied; None where that is refused."""
            if self.handle is None:
                return run(kind, self.twin, steps)
            try:
                with self.schedule.apply(self.twin):
                    return run(kind, self.twin, steps)
            except ScheduleError:
                return None

        @rule()
        def run(self) -> None:
            """The twin's values bit for bit, or a refusal; the twin is not called then, as it might fail on the way."""
            try:
                value = self.refused_or("run", lambda: run(kind, self.pipe))
            except Exception as error:
                with pytest.raises(type(error)):
                    self.expected()
                tried[f"{kind}: run: fails without a schedule too"] += 1
                return
            if value is not None:
                expected = self.expected()
                assert expected is not None and same(value, expected), "another result"
            if self.handle is not None:
                self.assert_freed()
            else:
                assert value is not None
            self.compare("run")

        @rule(name=names)
        def apply_and_run(self, name: str) -> None:
            self.apply(name)
            self.run()

        def assert_freed(self) -> None:
            assert self.handle.clock.step == -1 and self.handle.memory.now == 0
            assert not any(store.values for store in self.handle.stores.values())

        def interrupted(self, name: str, on_step: Callable[[], Any], *expected: type[BaseException]) -> None:
            """A run that ends at its second step, by an error."""
            ended = ""
            try:
                run(kind, self.pipe, on_step=on_step)
            except expected as error:
                ended = type(error).__name__
            except Exception as error:  # as the mixture does without a schedule
                with contextlib.suppress(ScheduleError):
                    try:
                        self.expected()
                    except Exception as other:
                        assert type(other) is type(error), error
                        ended = f"fails without a schedule too, {type(other).__name__}"
                assert ended, error
            assert ended, name
            tried[f"{kind}: {name}: {ended}"] += 1
            if self.handle is not None:
                self.assert_freed()
                self.compare(name)

        @precondition(lambda self: self.handle is not None)
        @rule()
        def callback_raises(self) -> None:
            self.interrupted("callback raises", self._raise, Stopped, ScheduleError)

        def _raise(self) -> None:
            raise Stopped

        @precondition(lambda self: self.handle is not None)
        @rule()
        def callback_removes(self) -> None:
            self.interrupted("callback removes", lambda: self.handle.remove(), ScheduleError)

        @precondition(lambda self: self.handle is not None)
        @rule()
        def callback_calls_the_pipeline(self) -> None:
            self.interrupted("callback calls the pipeline", lambda: run(kind, self.pipe), ScheduleError)

        @precondition(lambda self: self.handle is not None)
        @rule()
        def call_from_two_threads(self) -> None:
            """The second thread calls at the first one's second step: it is refused, and the first result is right."""
            refused = []

            def call() -> None:
                try:
                    run(kind, self.pipe)
                except ScheduleError as error:
                    refused.append(error)

            def second() -> None:
                thread = threading.Thread(target=call)
                thread.start()
                thread.join()

            try:
                value = self.refused_or("two threads", lambda: run(kind, self.pipe, on_step=second))
            except Exception as error:
                with pytest.raises(type(error)):
                    self.expected()
                return
            if value is not None:
                assert len(refused) == 1, "the second thread was not refused"
                expected = self.expected()
                assert expected is not None and same(value, expected), "another result"
            self.assert_freed()
            self.compare("two threads")

        @precondition(lambda self: self.handle is not None)
        @rule(whole=st.booleans())
        def compile_in_place(self, whole: bool) -> None:
            denoiser = denoiser_of(self.pipe)
            module = denoiser if whole else next(m for m in denoiser.modules() if isinstance(m, nn.Linear))
            module.compile(backend="eager")
            try:
                self.interrupted_at_once("compile in place", lambda: run(kind, self.pipe))
            finally:
                module._compiled_call_impl = None

        @precondition(lambda self: self.handle is not None)
        @rule()
        def other_number_of_steps(self) -> None:
            self.interrupted_at_once("other number of steps", lambda: run(kind, self.pipe, STEPS + 1))

        # What accelerate loads for a call module by module stays loaded where any call fails within the denoiser.
        @precondition(lambda self: self.handle is not None and self.offload != "module by module")
        @rule()
        def other_pipeline_of_the_denoiser(self) -> None:
            other = copy.copy(self.pipe)
            other.scheduler = copy.deepcopy(self.twin.scheduler)
            self.interrupted_at_once("other pipeline of the denoiser", lambda: run(kind, other))

        def interrupted_at_once(self, name: str, act: Callable[[], Any]) -> None:
            try:
                act()
            except ScheduleError:
                tried[f"{kind}: {name}: refused"] += 1
                self.assert_freed()
                self.compare(name)
                return
            except Exception:
                return  # the mixture does not run at all
            raise AssertionError(name)

        # Saving and copying

        @rule()
        def save(self) -> None:
            written = []
            for pipe in (self.twin, self.pipe):
                with TemporaryDirectory() as folder:
                    try:
                        pipe.save_pretrained(folder)
                    except Exception as error:
                        written.append(type(error).__name__)
                        continue
                    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
                    written.append({str(path.relative_to(folder)): path.read_bytes() for path in files})
            tried[f"{kind}: save: {'done' if isinstance(written[0], dict) else written[0]}"] += 1
            assert written[0] == written[1], [k for k in written[0] if written[0][k] != written[1].get(k)]

        @rule()
        def read_state_dict(self) -> None:
            ours, theirs = (denoiser_of(pipe).state_dict() for pipe in (self.pipe, self.twin))
            assert list(ours) == list(theirs) and all(same(ours[name], theirs[name]) for name in ours)
            tried[f"{kind}: state_dict: done"] += 1

        @rule(how=st.sampled_from(["deepcopy", "pickle", "torch.save"]))
        def copy_denoiser(self, how: str) -> None:
            act = {
                "deepcopy": copy.deepcopy,
                "pickle": pickle.dumps,
                "torch.save": lambda module: torch.save(module, io.BytesIO()),
            }[how]
            copied = self.refused_or(how, lambda: self._copied(act))
            assert self.handle is None or copied is None, how
            self.compare(how)

        def _copied(self, act: Callable[[Any], Any]) -> Any:
            try:
                return act(denoiser_of(self.pipe)) or True
            except ScheduleError:
                raise
            except Exception as error:
                try:
                    act(denoiser_of(self.twin))
                except Exception as other:
                    assert type(other) is type(error), error
                    return True if self.handle is None else None
                raise

        # What changes the denoiser

        @precondition(lambda self: not self.offload)
        @rule(factor=st.sampled_from([0.5, 2.0]), assign=st.booleans())
        def load_state_dict(self, factor: float, assign: bool) -> None:
            state = {name: value * factor for name, value in denoiser_of(self.twin).state_dict().items()}
            self.on_both(
                "load_state_dict",
                lambda pipe: denoiser_of(pipe).load_state_dict(
                    {name: value.clone() for name, value in state.items()}, assign=assign
                ),
            )

        @precondition(lambda self: self.adapter != "loaded")
        @rule(layers=st.sampled_from([["to_q", "to_k"], ["to_v"]]))
        def load_lora(self, layers: list[str]) -> None:
            given = peft.LoraConfig(r=2, lora_alpha=2, target_modules=layers, init_lora_weights=False)
            self.on_both("load LoRA", lambda pipe: peft.inject_adapter_in_model(given, denoiser_of(pipe)))
            self.adapter = "loaded"

        @precondition(lambda self: self.adapter == "loaded" and not self.offload)
        @rule(act=st.sampled_from(["merge", "unmerge"]))
        def fuse_lora(self, act: str) -> None:
            def change(pipe: Any) -> None:
                for module in denoiser_of(pipe).modules():
                    if isinstance(module, BaseTunerLayer):
                        getattr(module, act)()

            self.on_both(f"LoRA: {act}", change)

        @precondition(lambda self: self.adapter == "loaded")
        @rule()
        def unload_lora(self) -> None:
            self.on_both("unload LoRA", lambda pipe: recurse_remove_peft_layers(denoiser_of(pipe)))
            self.adapter = ""

        @precondition(lambda self: kind in ("pixart", "sd", "flux"))
        @rule(act=st.sampled_from(["fuse_qkv_projections", "unfuse_qkv_projections"]))
        def fuse_projections(self, act: str) -> None:
            self.on_both(act, lambda pipe: getattr(denoiser_of(pipe), act)())

        @precondition(lambda self: kind == "sd")
        @rule(on=st.booleans())
        def free_u(self, on: bool) -> None:
            self.on_both("FreeU", lambda pipe: pipe.enable_freeu(0.9, 0.2, 1.2, 1.4) if on else pipe.disable_freeu())

        @rule()
        def set_attention_processor(self) -> None:
            processor = FluxAttnProcessor if kind == "flux" else AttnProcessor

            def change(pipe: Any) -> None:
                for module in denoiser_of(pipe).modules():
                    if hasattr(module, "set_processor"):
                        module.set_processor(processor())

            self.on_both("attention processors", change)

        @precondition(lambda self: not self.offload)
        @rule(dtype=st.sampled_from(sorted(TYPES)))
        def convert(self, dtype: str) -> None:
            self.on_both("to(dtype)", lambda pipe: denoiser_of(pipe).to(TYPES[dtype]))

        @precondition(lambda self: not self.offload)
        @rule(how=st.sampled_from(["model", "module by module"]))
        def offload_on(self, how: str) -> None:
            cpu = torch.device("cpu")
            act = accelerate.cpu_offload if how != "model" else accelerate.cpu_offload_with_hook
            self.on_both(f"offload {how}", lambda pipe: act(denoiser_of(pipe), execution_device=cpu))
            self.offload = how

        @precondition(lambda self: self.offload)
        @rule()
        def offload_off(self) -> None:
            self.on_both("offload off", lambda pipe: remove_hook_from_module(denoiser_of(pipe), recurse=True))
            self.offload = ""

        @rule()
        def collect_garbage(self) -> None:
            gc.collect()
            tried[f"{kind}: gc: done"] += 1

        def teardown(self) -> None:
            if getattr(self, "handle", None) is not None:
                self.handle.remove()
                self.handle = None
                self.compare("the end")

    return LivePipeline
