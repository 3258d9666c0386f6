"""The policy: vector-valued time, its level grid, and a denoiser that is known by the contract in its YAML alone."""

import subprocess
import sys

import pytest
import torch
import yaml
from diffusers import DPMSolverMultistepScheduler

from search.config.prompts import read_prompts
from search.config.settings import CONF
from search.models.policy import Policy
from search.models.training import policy as training
from search.models.trajectory import (
    DIMS,
    HORIZON,
    TrajectoryDenoiser,
    TrajectoryPipeline,
    clears,
    condition,
    demonstrations,
    expert,
    times,
)
from search.schedule import Schedule, ScheduleError

LINES, SEEDS = ["start -0.4 goal 0.8 above", "start 0.3 goal -0.2"], [3, 4]
CONTRACT = yaml.safe_load((CONF / "model" / "policy.yaml").read_text())["contract"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny policy of random weights."""
    torch.manual_seed(0)
    denoiser = TrajectoryDenoiser(width=8, heads=2, depth=3)
    for parameter in denoiser.parameters():  # lively gates: every action shows in the plan
        torch.nn.init.normal_(parameter, std=0.3)
    path = tmp_path_factory.mktemp("policy")
    TrajectoryPipeline(denoiser.eval(), training.build_scheduler()).save_pretrained(path)
    return path


@pytest.fixture
def make(folder):
    return lambda **arguments: Policy(contract=CONTRACT, path=folder, **{"steps": 6, **arguments})


def own(model, lines=LINES):
    return model.sample(lines, SEEDS[: len(lines)])


def noise(seeds):
    return torch.cat([torch.randn(1, HORIZON, DIMS, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def planned(model, rules):
    return Schedule.from_dict(model.target.schedule({"plan": {"rules": rules}}))


# Time as a vector


def test_a_grid_of_one_chunk_is_the_schedulers_own_timestep():
    for t in training_timesteps():
        assert torch.equal(times(t, 1), t.float().expand(HORIZON))


def training_timesteps():
    scheduler = training.build_scheduler()
    scheduler.set_timesteps(7)
    return scheduler.timesteps


@pytest.mark.parametrize("chunks", [2, 4, 16])
def test_a_tick_takes_every_chunk_to_where_the_one_before_it_began(chunks):
    begin, end = times(1000.0, chunks), times(0.0, chunks)
    size = HORIZON // chunks
    assert torch.equal(end[size:], begin[:-size]) and (end[:size] == 0).all() and (begin[-size:] == 1000).all()
    assert all(len(row.unique()) == 1 for row in begin.split(size))


def test_levels_of_an_action_are_its_own(folder):
    """One timestep for all, one per plan and one per action say the same; another one for an action says another."""
    denoiser, task = TrajectoryPipeline.from_pretrained(folder).denoiser, condition(LINES)
    plan, t = torch.randn(2, HORIZON, DIMS), torch.tensor(300.0)
    with torch.no_grad():
        same = [denoiser(plan, t.expand(shape), task) for shape in ([], [2], [2, HORIZON])]
        rows = torch.tensor([300.0, 700.0])
        apart, other = denoiser(plan, rows, task), denoiser(plan, rows.flip(0), task)
        moved = t.repeat(2, HORIZON)
        moved[0, 5] = 10.0
        changed = denoiser(plan, moved, task)
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])
    assert torch.equal(apart[0], same[0][0]) and not torch.allclose(apart[1], same[0][1])
    assert not torch.allclose(other[0], apart[0])
    assert torch.equal(changed[1], same[0][1]) and not torch.allclose(changed[0], same[0][0])


def test_one_chunk_is_the_ordinary_sampler(make):
    """Bit for bit the loop of any pipeline, with the scheduler's own timestep for all actions."""
    model = make()
    denoiser, scheduler, task = model.denoiser, model.pipe.scheduler, condition(LINES)
    plan = noise(SEEDS)
    scheduler.set_timesteps(6)
    with torch.no_grad():
        for t in scheduler.timesteps:
            plan = scheduler.step(denoiser(plan, t, task), t, plan, return_dict=False)[0]
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    assert torch.equal(model.pipe(LINES, 6, generators), plan)
    assert torch.equal(own(model), plan)


@pytest.mark.parametrize("chunks", [1, 2, 8])
def test_a_tick_is_eulers_method_with_a_level_for_every_action(make, chunks):
    model = make(chunks=chunks)
    model.pipe.scheduler = DPMSolverMultistepScheduler.from_config(model.pipe.scheduler.config, solver_order=1)
    task = condition(LINES)
    found = own(model)
    sigmas = model.pipe.scheduler.sigmas
    chunk = torch.arange(HORIZON) * chunks // HORIZON
    rows = torch.stack([(chunk + sigma) / chunks for sigma in sigmas])
    began = ((chunk + 1) / chunks)[:, None]
    plan = (1 - began) * expert(task) + began * noise(SEEDS)
    with torch.no_grad():
        for i in range(6):
            t = times(model.pipe.scheduler.timesteps[i], chunks).expand(2, HORIZON)
            plan = plan + (rows[i + 1] - rows[i])[:, None] * model.denoiser(plan, t, task)
    assert torch.allclose(found, plan, atol=1e-4)


def test_a_stream_of_one_chunk_is_a_run_after_another(make):
    pipe = make().pipe
    done = pipe.stream(LINES[0], 2, 5, 1, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    torch.randn(1, HORIZON, DIMS, generator=generator)  # of the plan that fills the buffer, which one chunk forgets
    first = pipe([LINES[0]], 5, [generator])
    task = torch.cat([first[:, -1], condition(LINES[:1])[:, 2:]], dim=1)
    with torch.no_grad():
        second = pipe.tick(torch.randn(1, HORIZON, DIMS, generator=generator), task, 5, 1)
    assert torch.equal(done, torch.cat([first[0], second[0]]))


def test_a_stream_gives_a_chunk_a_tick(make):
    pipe, calls = make().pipe, []
    pipe.denoiser.register_forward_pre_hook(lambda module, args: calls.append(len(args[1].unique())))
    done = pipe.stream(LINES[1], ticks=3, steps=2, chunks=4, generator=torch.Generator().manual_seed(0))
    assert done.shape == (12, DIMS)
    assert calls == [1] * 2 + [4] * 6  # the buffer is filled once, then a tick is two calls at four levels


# The model


@pytest.mark.parametrize("chunks", [1, 4])
def test_plans_are_those_of_the_pipelines_call_and_are_drawn(make, chunks):
    model = make(chunks=chunks)
    assert torch.equal(own(model), model.pipe(LINES, 6, [torch.Generator().manual_seed(s) for s in SEEDS], chunks))
    drawn = model.decode(own(model))
    assert torch.equal(model.stock(LINES, SEEDS, output_type="np")[0].movedim(-1, 1), drawn)
    assert drawn.shape == (2, 3, 64, 64) and drawn.min() >= 0 and drawn.max() <= 1
    assert model.once().shape == (1, HORIZON, DIMS)
    assert torch.equal(own(model, [""]), own(model, ["start 0 goal 0"]))


@pytest.mark.parametrize("chunks", [1, 4])
def test_off_is_bit_exact(make, chunks):
    model = make(chunks=chunks)
    bare = own(model)
    every = [["layers.*:*", "C*6"], ["layers.*", "C*6"], ["layers", "C*6"]]
    for off in (Schedule.from_dict(model.target.schedule({})), planned(model, every)):
        with off.apply(model.pipe):
            assert torch.equal(own(model), bare)
    assert not [m for m in model.denoiser.modules() if "_diffusers_hook" in vars(m) or "forward" in vars(m)]


@pytest.mark.parametrize("chunks", [1, 4])
def test_a_plan_equals_the_loop_written_by_hand(make, chunks):
    """Of vector time too: what a component gave at a row of the level grid is what it gives again at the next."""
    model = make(chunks=chunks)
    denoiser, kept, step = model.denoiser, {}, [0]
    tokens = {"layers.0.mix": "CRRCRR", "layers.1.look": "CRSCRS", "layers.2.mlp": "CCRCCR", "layers.1": "CCCCSC"}

    def after(name):
        def replace(module, args, output):
            token = tokens[name][step[0]]
            if token == "C":
                kept[name] = output
            return output if token == "C" else kept[name] if token == "R" else torch.zeros_like(output)

        return replace

    hooks = [denoiser.get_submodule(name).register_forward_hook(after(name)) for name in tokens if "." in name[7:]]
    whole = lambda module, args, output: args[0] if tokens["layers.1"][step[0]] == "S" else output  # noqa: E731
    hooks.append(denoiser.layers[1].register_forward_hook(whole))
    pipe, (expected, _, task) = model.pipe, model.begin(LINES, SEEDS)[0]
    with torch.no_grad():
        for step[0], t in enumerate(pipe.scheduler.timesteps):
            expected = pipe.scheduler.step(pipe.velocity(expected, t, task, chunks), t, expected)[0]
    for hook in hooks:
        hook.remove()
    bare = own(model)
    rules = [[name[:8] + name[8:].replace(".", ":"), text] for name, text in tokens.items()]
    with planned(model, rules).apply(model.pipe) as handle:
        assert torch.equal(own(model), expected)
        assert handle.stats()["nodes"]["layers.0:mix"] == {"C": 2, "R": 4}
    assert (expected - bare).norm() > 1e-3 * bare.norm()


APPLY = """
import sys, torch
from search import Schedule
from search.models.trajectory import TrajectoryPipeline
pipe = TrajectoryPipeline.from_pretrained(sys.argv[1])
with Schedule.load(sys.argv[2]).apply(pipe):
    plans = pipe(["start -0.4 goal 0.8 above"], 6, [torch.Generator().manual_seed(3)], chunks=4)
assert not {"hydra", "search.config.settings", "search.models.policy"} & set(sys.modules)
torch.save(plans, sys.argv[3])
"""


@pytest.mark.slow
def test_a_fresh_process_applies_the_file_without_the_yaml(make, folder, tmp_path, root):
    model = make(chunks=4)
    made = planned(model, [["layers.*:mix", "CRCRCR"], ["layers.[0-1]:mlp", "CCF1CCF1"]])
    with made.apply(model.pipe):
        expected = model.sample(LINES[:1], SEEDS[:1])
    made.save(tmp_path / "policy.json")
    command = [sys.executable, "-c", APPLY, str(folder), str(tmp_path / "policy.json"), str(tmp_path / "plans.pt")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert torch.equal(torch.load(tmp_path / "plans.pt"), expected)
    assert not torch.equal(expected, model.sample(LINES[:1], SEEDS[:1]))


def test_without_its_contract_the_class_is_unknown(make):
    part = {k: v for k, v in make().target.model.items() if k != "contract"}
    with pytest.raises(ScheduleError, match="'TrajectoryDenoiser' has no node contract"):
        Schedule.from_dict({"format": "schedule/1", "model": part})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"chunks": 3}, "model.chunks=3 does not divide 16, the actions of a plan; try model.chunks=4"),
        ({"chunks": 0}, "model.chunks=0 does not divide 16"),
        ({"guidance_scale": 4.0}, "model.guidance_scale=4.0: policy has no guidance; leave it at 1"),
        ({"path": "/nowhere"}, "model.path='/nowhere' has no config.json of a policy"),
        (
            {"contract": {"stacks": [{"name": "blocks", "components": []}]}},
            "TrajectoryDenoiser has no blocks: Trajectory",
        ),
    ],
)
def test_what_cannot_be_is_told_with_what_can(folder, arguments, told):
    with pytest.raises(ValueError, match=told):
        Policy(**{"contract": CONTRACT, "path": folder, **arguments})


@pytest.mark.parametrize("line", ["", "start 0.1", "start 0.1 goal 1.2", "start 1e3 goal 0", "start 0 goal 0 left"])
def test_other_lines_are_no_tasks(line):
    with pytest.raises(
        ValueError, match=r"is not a task; type one such as 'start -0.4 goal 0.8 above', heights in -1..1"
    ):
        condition([line])


def test_prompts_that_ship_are_tasks_of_which_none_is_in_both_files():
    calibration, held_out = read_prompts("policy_calibration.txt"), read_prompts("policy_held_out.txt")
    assert condition(calibration + held_out).shape == (len(calibration) + len(held_out), 4)
    assert len(calibration) >= 8 and len(held_out) >= 16 and not set(calibration) & set(held_out)


# Its training


def test_demonstrations_go_from_start_to_goal_around_the_obstacle():
    start, goal = (2 * torch.rand(2, 500, generator=torch.Generator().manual_seed(0)) - 1).unbind()
    side = torch.where(torch.arange(500) % 2 == 0, 1.0, -1.0)
    paths = demonstrations(start, goal, side)
    begun = torch.stack([torch.full((500,), -1.0), start], dim=1)
    assert clears(torch.cat([begun[:, None], paths], dim=1)).all()
    assert torch.allclose(paths[:, -1], torch.stack([torch.ones(500), goal], dim=1), atol=1e-6)
    assert (paths[:, HORIZON // 2 - 1, 1].sign() == side).all()
    straight = torch.stack([torch.linspace(-1, 1, 9), torch.zeros(9)], dim=1)
    assert not clears(straight[None]).any()


def test_training_batches_are_plans_with_levels_of_all_three_kinds():
    plans, task = training.draw(200, torch.Generator().manual_seed(0))
    again, _ = training.draw(200, torch.Generator().manual_seed(0))
    assert torch.equal(plans, again) and plans.shape == (200, HORIZON, DIMS) and task.shape == (200, 4)
    assert ((plans[:, 0] - task[:, :2]).norm(dim=1) < 0.8).all()  # a plan goes on from where the point is
    assert torch.allclose(plans[:, -1, 1], task[:, 2], atol=1e-5)
    levels = training.levels(200, torch.Generator().manual_seed(0))
    assert levels.shape == (200, HORIZON) and levels.min() >= 0 and levels.max() <= 1
    kinds = [len(row.unique()) for row in levels]
    rises = [(row.diff() >= 0).all().item() for row in levels]
    assert min(kinds) == 1 and {2, 4, 8} <= set(kinds) and not all(rises)


def test_training_writes_a_pipeline(tmp_path):
    from dataclasses import replace

    loss = training.fit(tmp_path, tmp_path / "out", replace(training.RECIPE, steps=2))
    model = Policy(contract=CONTRACT, path=tmp_path / "out", steps=3)
    assert 0 < loss < 10 and own(model).isfinite().all()


# The one that ships


@pytest.fixture(scope="module")
def shipped():
    return Policy(contract=CONTRACT)


def test_the_bundled_policy_is_small_and_reaches_its_goals(shipped):
    lines = read_prompts("policy_held_out.txt")
    task = condition(lines)
    plans = shipped.sample(lines, range(len(lines)))
    paths = torch.cat([task[:, None, :2], plans], dim=1)
    assert clears(paths).float().mean() >= 0.9
    assert (plans[:, -1] - torch.stack([torch.ones(len(lines)), task[:, 2]], dim=1)).norm(dim=1).max() < 0.15
    asked = task[:, 3] != 0
    middle = plans[:, HORIZON // 2 - 1, 1].sign()
    assert (middle == task[:, 3])[asked].float().mean() >= 0.9
    either = shipped.sample(["start 0.0 goal 0.0"] * 16, range(16))
    sides = (either[:, HORIZON // 2 - 1, 1] > 0).float().mean()
    assert 0.1 < sides < 0.9  # both ways around


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [2, 4])
def test_the_bundled_policy_streams(shipped, chunks):
    found = training.success(shipped.pipe, chunks, 4, episodes=12)
    assert found["clears"] >= 0.75 and found["misses by"] < 0.15


def test_caching_the_bundled_policy_costs_a_little(shipped):
    bare = own(shipped)
    with planned(shipped, [["layers.*:mlp", "C R*2 " * 6 + "CR"]]).apply(shipped.pipe):
        drift = (own(shipped) - bare).norm() / bare.norm()
    assert 0 < drift < 0.2


@pytest.mark.slow
def test_a_search_by_command_line(tmp_path, root):
    """Drift and MACs, held-out tasks, in well under two minutes on one core."""
    command = [
        "-m",
        "tests.helpers.short_report",
        "search",
        "+space=cache",
        "model=policy",
        "model.chunks=4",
        "model.steps=8",
        "budget.evaluations=16",
    ]
    command += [f"runs={tmp_path}", "tracking.enabled=false", "certify=off", "compute.threads=1"]
    done = subprocess.run([sys.executable, *command], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = tmp_path.glob("*/schedules")
    files = sorted(found.glob("*.json"))
    assert files
    model = Policy(contract=CONTRACT, steps=8, chunks=4)
    for file in files[:3]:
        with Schedule.load(file).apply(model.pipe):
            assert own(model).isfinite().all()
