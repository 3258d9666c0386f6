"""Out of memory on a candidate: states are dropped, then halves are run, and all of it is recorded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search.evaluate.evaluator import Evaluator
from search.evaluate.execute.jobs import Batch, Job, Outcome
from search.evaluate.execute.runner import Runner
from search.evaluate.execute.shortage import free_memory, is_out_of_memory, join_outcomes, split_batch
from search.evaluate.memo import Memo
from search.models.base import to_schedule
from search.objectives.drift import Drift
from search.objectives.macs import Macs
from search.testing.models import lively, tiny_model

PROMPTS = ("red apple", "blue boat", "3d boat", "flat apple", "red boat")
BATCH = Batch(PROMPTS, (0, 1, 2, 3, 4))
GATE = {"group": "transformer_blocks.[1-2]", "actions": "C G*5", "signal": "first_block_residual", "threshold": 0.3}
TEXTS = ("CRCCRC", "CRCCRR", "CCCRCC")


@pytest.fixture(scope="module")
def parts() -> tuple:
    """The tiny model with weights under which every action shows in the latents, and its costs."""
    model = lively(tiny_model(6))
    return model, model.costs()


@contextmanager
def room(model: Any, pictures: int, error: Callable[[], Exception] = torch.OutOfMemoryError) -> Iterator[list[int]]:
    """A denoiser that has memory for so many pictures; the rows of those calls that had not."""
    refused: list[int] = []

    def check(_, arguments: tuple, named: dict) -> None:
        rows = len(arguments[0] if arguments else named["hidden_states"])
        if rows > 2 * pictures:  # both halves of guidance
            refused.append(rows)
            raise error()

    handle = model.denoiser.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield refused
    finally:
        handle.remove()


def jobs(model: Any) -> list[Job]:
    plain = [to_schedule(model, {"plan": {"rules": [["denoiser", text]]}}) for text in TEXTS]
    return [Job(each) for each in plain] + [Job(to_schedule(model, {"gates": [GATE | {"value": "residual"}]}))]


def run(runner: Runner, given: list[Job], batch: Batch = BATCH) -> list[Outcome]:
    found: dict[int, Outcome] = {}
    runner.run(batch, given, found.__setitem__)
    return [found[i] for i in range(len(given))]


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to what a matrix product of other rows rounds differently, amplified by six lively steps."""
    return float((a - b).norm()) < 1e-5 * float(b.norm())


@pytest.mark.parametrize("pictures", [4, 2, 1])
def test_halves_give_what_the_whole_gives(parts: tuple, pictures: int) -> None:
    model, _ = parts
    given = jobs(model)
    expected = run(Runner(*parts), given)
    with room(model, pictures) as refused:
        found = run(Runner(*parts), given)
    assert refused and max(refused) == 10
    for a, b in zip(expected, found, strict=True):
        assert near(a.latents, b.latents)
        assert a.schedule == b.schedule
    assert [o.batch for o in found] == [{4: 2, 2: 1, 1: 1}[pictures]] * 3 + [0]  # a gate's pictures are run singly
    assert [o.batch for o in expected] == [0] * 4


def test_halves_of_static_gates_share_what_was_decided(parts: tuple) -> None:
    model, _ = parts
    gate = {k: v for k, v in GATE.items() if k not in ("signal", "threshold")} | {"actions": "CRCRCR"}
    given = [Job(to_schedule(model, {"gates": [gate | {"value": "residual"}]}))]
    assert given[0].alone
    (expected,) = run(Runner(*parts), given)
    with room(model, 3):
        (found,) = run(Runner(*parts), given)
    assert found.batch == 2 and dict(found.decided) == dict(expected.decided)
    assert near(expected.latents, found.latents)


def test_a_shortage_that_passes_costs_only_the_states(parts: tuple) -> None:
    """Where memory is there once the states are dropped, results are those of before bit for bit."""
    model, _ = parts
    given = jobs(model)[:3]
    expected = run(Runner(*parts), given)
    runner = Runner(*parts)
    run(runner, given[:1])
    memory = runner.memory
    assert memory.bytes
    calls = []

    def once(*_: Any) -> None:
        calls.append(0)
        if len(calls) == 2:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 9 bytes"
            )

    handle = model.denoiser.register_forward_pre_hook(once)
    found = run(runner, given)
    handle.remove()
    assert runner.memory is not memory and memory.bytes
    assert all(torch.equal(a.latents, b.latents) and b.batch == 0 for a, b in zip(expected, found, strict=True))


def test_a_fit_takes_its_first_half_and_runs_that_table_for_the_second(parts: tuple) -> None:
    model, _ = parts
    schedule = jobs(model)[0].schedule
    with room(model, 3):
        (found,) = run(Runner(*parts), [Job(schedule, fit=True)])
    first, second = split_batch(BATCH)
    (begun,) = run(Runner(*parts), [Job(schedule, fit=True)], first)
    (rest,) = run(Runner(*parts), [Job(begun.schedule)], second)
    assert found.batch == 2 and found.schedule == begun.schedule and "coefficients" in (found.schedule.sampler or {})
    assert torch.equal(found.latents, torch.cat([begun.latents, rest.latents]))
    (again,) = run(Runner(*parts), [Job(found.schedule)])  # one schedule, whose latents are these
    assert near(again.latents, found.latents)


def test_one_picture_that_does_not_fit_is_told(parts: tuple) -> None:
    model, _ = parts
    with room(model, 0), pytest.raises(ValueError, match="there is no memory for one picture under schedule sha256:"):
        run(Runner(*parts), jobs(model)[:1])
    assert torch.equal(*(run(Runner(*parts), jobs(model)[:1])[0].latents for _ in range(2)))  # nothing is left applied


def test_other_errors_are_not_tried_again(parts: tuple) -> None:
    model, _ = parts
    with (
        room(model, 2, lambda: RuntimeError("mat1 and mat2 must have the same dtype")) as refused,
        pytest.raises(RuntimeError, match="mat1 and mat2"),
    ):
        run(Runner(*parts), jobs(model)[:1])
    assert len(refused) == 1


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
    ],
)
def test_what_counts_as_short(error: Exception, short: bool) -> None:
    assert is_out_of_memory(error) == short


def test_torch_says_it_like_that() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46)
    assert is_out_of_memory(caught.value)


def test_parts_are_weighted_by_their_size() -> None:
    parts = [Outcome(torch.zeros(n, 2), None, {"g": [a]}) for n, a in ((1, 1.0), (3, 0.0))]  # type: ignore[arg-type]
    found = join_outcomes([1, 3], parts)
    assert found.latents.shape == (4, 2) and found.decided == {"g": [0.25]} and found.batch == 1
    free_memory(torch.device("cpu"))


def test_it_is_recorded_and_scores_stay_paired(parts: tuple, tmp_path: Path) -> None:
    model, costs = parts

    def evaluator(name: str) -> Evaluator:
        objectives = {"drift": Drift(), "macs": Macs()}
        return Evaluator(model, PROMPTS, range(5), objectives, costs, Memo(tmp_path / name), batch=3)

    schedules = [job.schedule for job in jobs(model)[:3]]
    whole, short = evaluator("whole.sqlite"), evaluator("short.sqlite")
    expected = [whole.values(schedule) for schedule in schedules]
    with room(model, 2):
        found = [short.values(schedule) for schedule in schedules]
    for a, b in zip(expected, found, strict=True):
        assert b["drift"] == pytest.approx(a["drift"], rel=1e-3) and b["macs"] == a["macs"]
    assert short.halved == {schedule.digest: 1 for schedule in schedules} and whole.halved == {}
    assert short.block_executions == whole.block_executions


def test_jobs_that_are_alike_count_once_whether_they_are_run_or_known(parts: tuple, tmp_path: Path) -> None:
    """A search that was killed within a population looks up what it had run of it: it has to count the same."""
    model, costs = parts
    given = {"drift": Drift(), "macs": Macs()}, costs, Memo(tmp_path / "memo.sqlite")
    population = [*jobs(model)[:3], *jobs(model)[:2]]
    counts = []
    for _ in ("run", "known"):
        evaluator = Evaluator(model, PROMPTS[:2], range(2), *given)
        evaluator.evaluate(population)
        counts.append((evaluator.unshared, evaluator.block_executions))
    assert counts[0] == pytest.approx(counts[1], rel=1e-12)


@pytest.mark.parametrize("batch", [1, 2], ids=["batches", "one batch"])
def test_a_fit_that_is_known_without_its_latents_is_not_fitted_again(parts: tuple, tmp_path: Path, batch: int) -> None:
    """What a kill or a full disk between the two leaves: the table is run as it is, and counts as its fit."""
    model, costs = parts
    given = {"drift": Drift(), "macs": Macs()}, costs, Memo(tmp_path / "memo.sqlite"), batch
    population = [Job(job.schedule, fit=True) for job in jobs(model)[:3]]

    def search() -> tuple:
        evaluator = Evaluator(model, PROMPTS[:2], range(2), *given)
        scored = evaluator.evaluate(population)
        return [s.schedule.digest for s in scored], [s.minimised for s in scored], evaluator.block_executions

    digests, told, blocks = search()
    memo = given[2]
    for table in ("memo", "latents"):
        memo._do(lambda base, table=table: base.execute(f"delete from {table} where context not like 'fit %'"))
    again = search()
    assert again[0] == digests
    assert np.array(again[1]) == pytest.approx(np.array(told), rel=1e-9) and again[2] == pytest.approx(
        blocks, rel=1e-12
    )


def test_a_teacher_without_memory_says_what_to_type(parts: tuple, tmp_path: Path) -> None:
    model, costs = parts
    given = {"drift": Drift(), "macs": Macs()}, costs, Memo(tmp_path / "memo.sqlite")
    with room(model, 2), pytest.raises(ValueError, match="no memory for 5 pictures at once; type prompts.batch=2"):
        Evaluator(model, PROMPTS, range(5), *given)
    with room(model, 0), pytest.raises(ValueError, match="no memory for 1 pictures at once; type a smaller model.h"):
        Evaluator(model, PROMPTS[:1], [0], *given)
