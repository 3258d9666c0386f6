"""Compiled rules are diffusers' schedulers to 1e-10, and converge as their order says."""

import copy

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    RePaintScheduler,
    UniPCMultistepScheduler,
)

from search.schedule.apply.clock import Clock
from search.schedule.apply.linear_solver import LinearSolver
from search.schedule.apply.scheduler import plan_scheduler
from search.schedule.noise import Noise
from search.schedule.schedulers import public_config, scheduler_grid
from search.solvers.multistep import compile_rules
from search.solvers.rules import sampler_rules
from search.solvers.table import SolverRule, SolverTable
from search.solvers.trace import Float64Tensor, trace_scheduler
from tests.helpers.mixture import Mixture

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # diffusers' own

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0}
V = {"prediction_type": "v_prediction"}


def part(scheduler, steps: int) -> dict:
    timesteps, sigmas = scheduler_grid(scheduler, steps)
    found = {"class": type(scheduler).__name__, "config": public_config(scheduler), "timesteps": timesteps}
    return found | ({"sigmas": sigmas} if sigmas else {})


def compiled(given: dict, rules=None) -> SolverTable:
    return compile_rules(rules or sampler_rules(given), Noise.of(given), given)


def away(found: SolverTable, expected: SolverTable) -> float:
    """Largest difference, relative to the largest coefficient where that is above 1."""
    apart = max(np.abs(found.state - expected.state).max(), np.abs(found.outputs - expected.outputs).max())
    return apart / max(1.0, expected.size)


# Own rules against diffusers


def cases():
    for spacing in ("leading", "trailing", "linspace"):
        for prediction in ("epsilon", "v_prediction", "sample"):
            c = {"timestep_spacing": spacing, "prediction_type": prediction}
            yield DDIMScheduler(clip_sample=False, **c)
            if prediction != "sample":
                yield PNDMScheduler(skip_prk_steps=True, **c)
            yield EulerDiscreteScheduler(**c)
            yield DPMSolverMultistepScheduler(solver_order=3, **c)
            yield UniPCMultistepScheduler(solver_order=3, **c)
            yield DEISMultistepScheduler(solver_order=3, **c)
    for common in ({}, FLOW):
        for k in (1, 2, 3):
            for kind in ("midpoint", "heun"):
                yield DPMSolverMultistepScheduler(solver_order=k, solver_type=kind, **common)
            yield DEISMultistepScheduler(solver_order=k, **common)
            yield UniPCMultistepScheduler(solver_order=k, **common)
            # diffusers multiplies bh1's infinite B(h) by 0 on a step to sigma 0
            yield UniPCMultistepScheduler(solver_order=k, solver_type="bh1", final_sigmas_type="sigma_min", **common)
    for k in (1, 2, 3):
        for kind in ("midpoint", "heun"):
            other = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "solver_type": kind}
            yield DPMSolverMultistepScheduler(solver_order=k, **other, **V)
        yield UniPCMultistepScheduler(solver_order=k, predict_x0=False, final_sigmas_type="sigma_min")
    yield DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    yield DDIMScheduler(clip_sample=False, rescale_betas_zero_snr=True, timestep_spacing="trailing", **V)
    yield PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True)
    yield PNDMScheduler(skip_prk_steps=True, steps_offset=1, beta_schedule="scaled_linear")
    yield DPMSolverMultistepScheduler(solver_order=3, lower_order_final=False)
    yield DPMSolverMultistepScheduler(solver_order=3, euler_at_final=True, final_sigmas_type="sigma_min")
    yield DPMSolverMultistepScheduler(solver_order=3, use_karras_sigmas=True)
    yield DPMSolverMultistepScheduler(rescale_betas_zero_snr=True, **V)
    yield DEISMultistepScheduler(solver_order=3, lower_order_final=False, use_karras_sigmas=True)
    yield EulerDiscreteScheduler(use_karras_sigmas=True)
    yield FlowMatchEulerDiscreteScheduler(shift=3.0)
    yield UniPCMultistepScheduler(solver_order=4)
    yield UniPCMultistepScheduler(solver_order=3, disable_corrector=[0, 1, 4])
    yield UniPCMultistepScheduler(solver_order=3, lower_order_final=False, final_sigmas_type="sigma_min")


@pytest.mark.parametrize("scheduler", list(cases()), ids=lambda s: type(s).__name__)
def test_own_rules_are_the_scheduler(scheduler):
    for steps in (1, 3, 8, 17):
        given = part(scheduler, steps)
        assert away(compiled(given), trace_scheduler(scheduler, steps)) < 1e-10, steps


@pytest.mark.parametrize(
    ("config", "third"),
    [
        ({}, SolverRule(2, "data", "exact", back=2)),
        ({"solver_type": "heun"}, SolverRule(3, "data", "exact", back=2)),
        ({"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, SolverRule(2, "noise", "exact", back=2)),
    ],
)
def test_single_step_solvers_are_rules(config, third):
    """DPM-Solver 2S and 3S of diffusers, whose inner places are the steps between."""
    second = SolverRule(2, third.form, "exact" if "solver_type" in config else "midpoint", back=1)
    for order, wanted in ((2, [None, second]), (3, [None, second, third])):
        base = DPMSolverSinglestepScheduler(solver_order=order, **config)
        rules = [rule or SolverRule(form=third.form) for rule in wanted * 3][: 3 * order] + [SolverRule()]
        assert away(compiled(part(base, len(rules)), rules), trace_scheduler(base, len(rules))) < 1e-10


def test_a_grid_of_the_files_own():
    base = UniPCMultistepScheduler(solver_order=3)
    given = part(base, 9) | {"timesteps": [900, 700, 400, 250, 100, 20], "sigmas": [9, 4, 1.3, 0.7, 0.3, 0.1, 0]}
    found = trace_scheduler(base, timesteps=given["timesteps"], sigmas=given["sigmas"])
    assert away(compiled(given), found) < 1e-6  # diffusers keeps given sigmas in float32
    base = DDIMScheduler(clip_sample=False)
    given = part(base, 9) | {"timesteps": [900, 700, 400, 250, 100, 20]}
    assert away(compiled(given), trace_scheduler(base, timesteps=given["timesteps"])) < 1e-10


@pytest.mark.parametrize(
    "base",
    [DPMSolverMultistepScheduler(), DEISMultistepScheduler(), UniPCMultistepScheduler()],
    ids=lambda s: str(type(s)),
)
def test_orders_of_a_file_are_its_own(base):
    order = "12313221"
    given = part(base, 8) | {"order": order}
    rules = sampler_rules(given)
    assert [rule.order for rule in rules] == [int(k) for k in order]
    found = stepped(base, given, order=[int(k) for k in order])
    assert (applied(compiled(given), given, torch.float64) - found).abs().max() <= 1e-10 * found.abs().max()


# Run


def denoiser(x: torch.Tensor, t: float) -> torch.Tensor:
    return torch.tanh(x * (0.5 + float(t) / 2000)) + 0.1 * x


def start(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def stepped(base, given: dict, dtype: torch.dtype = torch.float64, order=None) -> torch.Tensor:
    scheduler = plan_scheduler(base, Clock(), steps=None, order=order)
    scheduler.set_timesteps(len(given["timesteps"]) - isinstance(base, PNDMScheduler))
    if dtype == torch.float64:
        for key, value in list(vars(scheduler).items()):
            if key != "timesteps" and isinstance(value, torch.Tensor) and value.is_floating_point():
                setattr(scheduler, key, value.double())
    x = start(dtype)
    for t in scheduler.timesteps:
        e = denoiser(scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x, t)
        if dtype == torch.float64:
            e, x = e.as_subclass(Float64Tensor), x.as_subclass(Float64Tensor)
        x = scheduler.step(e, t, x, return_dict=False)[0].as_subclass(torch.Tensor)
    return x


def applied(table: SolverTable, given: dict, dtype: torch.dtype) -> torch.Tensor:
    solver, x = LinearSolver(**table.part()), start(dtype)
    for i, t in enumerate(given["timesteps"]):
        scaled = x / (given["sigmas"][i] ** 2 + 1) ** 0.5 if given["class"] == "EulerDiscreteScheduler" else x
        x = solver.step(i, denoiser(scaled, t), x)
    return x


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
        DPMSolverMultistepScheduler(solver_order=3, **FLOW),
        DPMSolverMultistepScheduler(**V),
        DEISMultistepScheduler(solver_order=3, **V),
        UniPCMultistepScheduler(solver_order=3, **FLOW),
        UniPCMultistepScheduler(solver_order=2, **V),
        PNDMScheduler(skip_prk_steps=True),
        EulerDiscreteScheduler(),
        FlowMatchEulerDiscreteScheduler(),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_table_runs_as_the_scheduler_steps(scheduler):
    given = part(scheduler, 9)
    for table in (compiled(given), trace_scheduler(scheduler, 9)):
        for dtype, near in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
            found, expected = applied(table, given, dtype), stepped(scheduler, given, dtype)
            assert (found - expected).abs().max() <= near * expected.abs().max(), dtype


def test_other_linear_schedulers_are_traced():
    for scheduler in (LMSDiscreteScheduler(), DPMSolverSinglestepScheduler(solver_order=3), PNDMScheduler()):
        table = trace_scheduler(scheduler, 6)
        assert len(table.state) == len(scheduler_grid(scheduler, 6)[0]) and np.isfinite(table.size)
        assert np.array_equal(table.outputs, np.tril(table.outputs))


def test_tracing_leaves_no_trace():
    scheduler, before = DPMSolverMultistepScheduler(), torch.random.get_rng_state()
    state = copy.deepcopy(vars(scheduler))
    trace_scheduler(scheduler, 5)
    assert str(vars(scheduler)) == str(state) and torch.equal(torch.random.get_rng_state(), before)


# Convergence, on a mixture whose denoiser is exact

ORDERS = {  # nominal order, or what is measured where the name says another
    "DDIM": (SolverRule(1), 1),
    "2M": (SolverRule(2, "data", "midpoint"), 2),
    "2M heun": (SolverRule(2, "data", "exact"), 2),
    "3M": (SolverRule(3, "data", "midpoint"), 2),  # diffusers halves the quadratic term
    "3, data": (SolverRule(3, "data", "exact"), 3),
    "4, data": (SolverRule(4, "data", "exact"), 4),
    "DEIS 2": (SolverRule(2, "noise", "exact"), 2),
    "DEIS 3": (SolverRule(3, "noise", "exact"), 3),
    "DEIS 4": (SolverRule(4, "noise", "exact"), 4),
    "UniPC 1": (SolverRule(1, "data", "bh2", corrector=True), 2),
    "UniPC 2": (SolverRule(2, "data", "bh2", corrector=True), 3),
    "UniPC 3": (SolverRule(3, "data", "bh2", corrector=True), 4),
    "UniPC 2, noise": (SolverRule(2, "noise", "bh2", corrector=True), 3),
    "Adams-Bashforth 2": (SolverRule(2, "noise", "even"), 2),
    "Adams-Bashforth 4": (SolverRule(4, "noise", "even"), 2),  # the DDIM transfer weighs the steps unevenly
}
BASE = {"class": "DPMSolverMultistepScheduler", "config": {}}


@pytest.fixture(scope="module")
def solved():
    mixture, noise, ends = Mixture.random(3), Noise.of(BASE), np.exp([6.0, -2.0])
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alpha, sigma = noise.scales(ends)
    return mixture, x, mixture.flow(x, (alpha[0], sigma[0]), (alpha[1], sigma[1]))


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_as_the_order_says(name, solved):
    (rule, order), (mixture, x, expected), noise = ORDERS[name], solved, Noise.of(BASE)
    errors, counts = [], (40, 80, 160)  # 20 even steps over 8 units of log-SNR are too coarse to show an order
    for count in counts:
        sigmas = np.exp(np.linspace(6, -2, count + 1))
        given = BASE | {"timesteps": list(range(count, 0, -1)), "sigmas": sigmas.tolist()}
        solver, y = LinearSolver(**compile_rules([rule] * count, noise, given).part()), x
        for i, (alpha, sigma) in enumerate(zip(*noise.scales(sigmas[:-1]), strict=True)):
            y = solver.step(i, mixture.epsilon(y, alpha, sigma), y)
        errors.append(float((y - expected).norm()))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.3, (slope, errors)


def test_a_relaxed_slope_is_another_solvers():
    """USF (arXiv:2312.07243): DPM-Solver++ 2M is the exact second order with a relaxed slope."""
    given = part(DPMSolverMultistepScheduler(final_sigmas_type="sigma_min"), 2)
    begin, end = Noise.of(given).logsnr(given["sigmas"][1:])
    step = begin - end  # of data prediction: with the sign reversed
    factor = 0.5 * step * np.expm1(step) / (np.expm1(step) - step)
    relaxed = SolverRule(2, relaxation=(factor - 1) / (end - begin))
    found, expected = (compiled(given, [SolverRule(), rule]) for rule in (relaxed, SolverRule(2, stencil="midpoint")))
    assert away(found, expected) < 1e-12
    assert away(expected, compiled(given, [SolverRule(), SolverRule(2)])) > 1e-3


@pytest.mark.parametrize("stencil", ["exact", "midpoint", "even"])
def test_outputs_moved_from_the_first_are_what_the_plain_table_would_be_given(stencil):
    given, weights = part(EulerDiscreteScheduler(), 6), (0.3, 0.1, -0.2, 0.0, 0.4, 0.2)
    plain = compiled(given, [SolverRule(3, "noise", stencil)] * 6)
    found = compiled(given, [SolverRule(3, "noise", stencil, early=c) for c in weights])
    moves = np.diag([1.0, *(1 + c for c in weights[1:])])
    moves[1:, 0] = -np.array(weights[1:])
    assert np.allclose(found.outputs, plain.outputs @ moves, atol=1e-12) and np.allclose(found.state, plain.state)
    data = compiled(given, [SolverRule(1, "data", early=c) for c in weights])
    noise = compiled(given, [SolverRule(1, "noise", early=c) for c in weights])
    assert away(data, noise) < 1e-12


def test_a_weight_on_the_first_output_lowers_an_error_that_falls_with_the_noise_level(solved):
    """The denoiser's outputs lean towards its first one, the less the less noise there is."""
    (mixture, x, expected), noise, steps, errors = solved, Noise.of(BASE), 8, {}
    sigmas = np.exp(np.linspace(6, -2, steps + 1))
    given = BASE | {"timesteps": list(range(steps, 0, -1)), "sigmas": sigmas.tolist()}
    for early in (0.0, 0.05, 0.1, 0.2, 0.4):
        solver, y, outputs = LinearSolver(**compiled(given, [SolverRule(2, early=early)] * steps).part()), x, []
        for i, (alpha, sigma) in enumerate(zip(*noise.scales(sigmas[:-1]), strict=True)):
            outputs.append(mixture.epsilon(y, alpha, sigma))
            y = solver.step(i, outputs[-1].lerp(outputs[0], 0.3 * (1 - i / steps)), y)
        errors[early] = float((y - expected).norm())
    assert min(errors, key=errors.__getitem__) > 0 and min(errors.values()) < 0.8 * errors[0.0], errors


def test_the_mixture_knows_itself():
    one = Mixture(*(torch.tensor(v, dtype=torch.float64) for v in ([1.0], [[0.5, -1.0]], [0.7])))
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spread = (0.8**2 * 0.49 + 0.36) ** 0.5  # the flow of a Gaussian keeps every point's quantile
    expected = (0.9 * one.means + (x - 0.8 * one.means) / spread * (0.81 * 0.49 + 0.04) ** 0.5).expand(5, 2)
    torch.testing.assert_close(one.flow(x, (0.8, 0.6), (0.9, 0.2)), expected, rtol=1e-10, atol=1e-10)
    mixture = Mixture.random(4)
    y = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    spread = (0.8 * mixture.deviations) ** 2 + 0.36
    logs = mixture.weights.log() - 2 * spread.log() - ((y[:, None] - 0.8 * mixture.means) ** 2).sum(-1) / (2 * spread)
    (score,) = torch.autograd.grad(logs.logsumexp(1).sum(), y)
    torch.testing.assert_close(mixture.epsilon(y.detach(), 0.8, 0.6), -0.6 * score, rtol=1e-10, atol=1e-10)


# Rules


def test_orders_are_lowered_to_what_was_computed_and_on_the_way_to_sigma_0():
    given = part(DPMSolverMultistepScheduler(**FLOW), 6)
    full = compiled(given, [SolverRule(3)] * 6)
    by_hand = compiled(given, [SolverRule(k) for k in (1, 2, 3, 3, 3, 1)])
    assert np.array_equal(full.outputs, by_hand.outputs) and np.array_equal(full.state, by_hand.state)


def test_orders_are_lowered_where_coefficients_grow():
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "sample"}
    given = part(DPMSolverMultistepScheduler(**config), 20)
    noise = Noise.of(given)
    first = compile_rules([SolverRule(1)] * 20, noise, given)
    for rule in (SolverRule(4), SolverRule(4, "noise", corrector=True), SolverRule(4, "noise", "even")):
        free, bound = compile_rules([rule] * 20, noise, given), compile_rules([rule] * 20, noise, given, largest=2)
        assert free.size > 2 >= bound.size and away(bound, first) > 0.1
    assert away(compile_rules([SolverRule(4)] * 20, noise, given, largest=0), first) == 0


def test_both_forms_are_one_at_order_1():
    given = part(DPMSolverMultistepScheduler(), 7)
    assert away(compiled(given, [SolverRule(1, "data")] * 7), compiled(given, [SolverRule(1, "noise")] * 7)) < 1e-12


def test_a_start_of_nothing_but_noise():
    given = part(FlowMatchEulerDiscreteScheduler(), 6)
    assert given["sigmas"][0] == 1
    for form in ("data", "noise"):
        table = compiled(given, [SolverRule(3, form, "bh2", corrector=True)] * 6)
        assert np.isfinite(table.size) and table.size < 100


def test_a_table_as_a_part():
    part = SolverTable(np.array([1.0, 2.0]), np.array([[3.0, 0.0], [4.0, 5.0]])).part()
    assert part == {"state": [1.0, 2.0], "outputs": [[3.0], [4.0, 5.0]]}
    assert SolverTable(np.array([np.nan]), np.ones((1, 1))).size == np.inf


# Refusals


class Clipping(EulerDiscreteScheduler):
    def step(self, *args, **kwargs):
        return tuple(x.clamp(-1, 1) for x in super().step(*args, **kwargs))


@pytest.mark.parametrize(
    ("scheduler", "text"),
    [
        (HeunDiscreteScheduler(), "HeunDiscreteScheduler calls the denoiser 2 times a step; a table takes one call"),
        (DPMSolverMultistepScheduler(thresholding=True), "thresholds x0, which is not linear; set its thresholding f"),
        (DDIMScheduler(), "DDIMScheduler clips x0, which is not linear; set its clip_sample false"),
        (DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), "draws noise; set its algorithm_type dpmsol"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "draws noise; set its stochastic_sampling false"),
        (EulerAncestralDiscreteScheduler(), "EulerAncestralDiscreteScheduler draws noise at every step; a table take"),
        (UniPCMultistepScheduler(predict_x0=False), "UniPCMultistepScheduler gives no finite numbers on this grid"),
        (Clipping(), "Clipping is not linear in the state and the outputs .it clips or rescales.; use another"),
        (RePaintScheduler(clip_sample=False), "RePaintScheduler cannot be traced: its step fails on plain tensors"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_schedulers_that_no_table_says_are_refused(scheduler, text):
    with pytest.raises(ValueError, match=text):
        trace_scheduler(scheduler, 4)


def test_tracing_takes_one_grid():
    with pytest.raises(ValueError, match="give either steps or timesteps"):
        trace_scheduler(DDIMScheduler(clip_sample=False))


@pytest.mark.parametrize(
    ("scheduler", "change", "text"),
    [
        (DDIMScheduler(), {}, "DDIMScheduler clips x0, which is not linear; set its clip_sample false"),
        (EulerDiscreteScheduler(), {"coefficients": {}}, "the sampler part is a table already; leave out its coeff"),
        (EulerDiscreteScheduler(), {"timesteps": None}, "the sampler part has no timesteps; rules are one for each"),
        (
            DPMSolverMultistepScheduler(prediction_type="flow_prediction"),
            {},
            "predicts a flow on other than flow sigmas",
        ),
        (
            PNDMScheduler(),
            {},
            "PNDMScheduler begins with Runge-Kutta steps, which rules cannot express; set",
        ),
        (LMSDiscreteScheduler(), {}, "LMSDiscreteScheduler has no rules; trace it, or use DPMSolverMultistepScheduler"),
        (UniPCMultistepScheduler(), {"config": {"solver_p": "DDIM"}}, "takes its predictor from solver_p, which rules"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_schedulers_that_no_rules_say_are_refused(scheduler, change, text):
    with pytest.raises(ValueError, match=text):
        sampler_rules(part(scheduler, 4) | change)


def test_rules_that_are_none_are_refused():
    with pytest.raises(ValueError, match="order 5 is out of range; a rule is of order 1 to 4"):
        SolverRule(5)
    with pytest.raises(ValueError, match="form 'x0' is unknown; choose data or noise"):
        SolverRule(1, "x0")
    with pytest.raises(ValueError, match="stencil 'heun' is unknown; choose from exact, midpoint, bh2, even, bh1"):
        SolverRule(1, "data", "heun")
    with pytest.raises(ValueError, match="back 3 is out of range; a step starts from the state of 0 to 2 steps before"):
        SolverRule(back=3)


def test_grids_that_are_none_are_refused():
    euler, ddim = part(EulerDiscreteScheduler(), 4), part(DDIMScheduler(clip_sample=False), 4)
    with pytest.raises(ValueError, match="there are 3 rules; 4 steps need 4"):
        compiled(euler, [SolverRule()] * 3)
    with pytest.raises(ValueError, match="the sampler part has no timesteps; a table belongs to its grid"):
        compiled(euler | {"timesteps": None}, [SolverRule()])
    with pytest.raises(ValueError, match="the sampler part has no sigmas; EulerDiscreteScheduler needs 5 for 4 steps"):
        compiled(euler | {"sigmas": None}, [SolverRule()] * 4)
    with pytest.raises(ValueError, match="prediction 'flow' on ve scales is unknown; a table takes epsilon, sample"):
        compile_rules([SolverRule()] * 4, Noise(np.arange(9.0), "ve", "flow"), euler)
    zero = part(DDIMScheduler(clip_sample=False, rescale_betas_zero_snr=True, timestep_spacing="trailing"), 4)
    with pytest.raises(ValueError, match="DDIMScheduler starts with pure noise, where a denoiser of prediction"):
        compiled(zero, [SolverRule()] * 4)
    flow = part(DPMSolverMultistepScheduler(prediction_type="flow_prediction"), 4)
    with pytest.raises(ValueError, match="sampler.sigmas reach 157.4.*; those of a flow lie in 0..1: use_flow_sigmas"):
        compiled(flow, [SolverRule()] * 4)
    assert np.isfinite(compiled(ddim, [SolverRule()] * 4).size)
