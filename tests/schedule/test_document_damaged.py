"""The schedule file against files from elsewhere: damaged, enormous, hostile. See also test_artifact.py."""

import json
import math
import os
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search import Schedule, ScheduleError
from search.schedule.parts.part import MAX_ENTRIES
from search.schedule.plan.tokens import MAX_STEPS
from search.schedule.reading import MAX_BYTES
from tests.helpers import pipelines

PIPE = pipelines.pixart()
VALID = pipelines.content(
    PIPE,
    [["transformer_blocks.*:attn2", "CRCRF1C"], ["transformer_blocks.[0,2]:ff", "C*4 R*2"], ["denoiser", "C*5 R"]],
    sampler={
        "class": "DPMSolverMultistepScheduler",
        "config": {"solver_order": 2, "flow_shift": 1.5},
        "timesteps": [900, 700, 500.5, 300, 100, 10],
        "sigmas": [9.0, 5.0, 3.0, 1.0, 0.2, 0.1, 0.0],
        "order": "122321",
    },
    scores={"drift": {"value": 0.1, "ci": [0.05, 0.2], "split": "held_out", "unit": "ratio"}},
    made={"seed": 1, "call": {"guidance_scale": 4.5}, "prompts": ["a", "b"]},
    axis="logsnr",
)


def read(content, tmp_path) -> Schedule:
    file = tmp_path / "s.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return Schedule.load(file)


def put(path: str, value: object) -> dict:
    """VALID with one value replaced, `plan.rules.0.1` for instance."""
    data = json.loads(json.dumps(VALID))
    *parents, last = path.split(".")
    at = data
    for key in parents:
        at = at[int(key) if isinstance(at, list) else key]
    at[int(last) if isinstance(at, list) else last] = value
    return data


def test_the_valid_file_is_valid(tmp_path):
    schedule = Schedule.from_dict(VALID)
    again = read(schedule.to_dict(), tmp_path)
    assert again == schedule and again.to_dict() == schedule.to_dict()
    with pipelines.schedule(PIPE, [["denoiser", "CR*5"]]).apply(PIPE):
        pass
    with schedule.apply(PIPE):
        assert pipelines.run(PIPE).isfinite().all()


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("format", "schedule/9", "format is 'schedule/9', this version reads 'schedule/1': upgrade"),
        ("format", "schedule/1.1", "the format of a schedule file is 'schedule/1'"),
        ("format", "schedule/٣", "the format of a schedule file is 'schedule/1'"),
        ("format", "schedule/" + "9" * 5000, "the format of a schedule file is 'schedule/1'"),
        ("format", None, "format is 'None'"),
        ("format", ["schedule/1"], "the format of a schedule file is"),
        ("digest", "sha256:00", "digest is 'sha256:00', but the content gives 'sha256:.*: the file was edited"),
        ("digest", 5, "digest is '5': Input should be a valid string"),
        ("model", [], r"model is '\[\]'"),
        ("model.class", "UNet1DModel", "model.class 'UNet1DModel' has no node contract"),
        ("model.class", None, "model.class is 'None'"),
        ("model.weights", 1, "model.weights is not a field of schedule/1"),
        ("model.stacks", {"transformer_blocks": "3"}, "model.stacks.transformer_blocks is '3': .*valid integer"),
        ("model.stacks", {"transformer_blocks": True}, "model.stacks.transformer_blocks is 'True'"),
        ("model.stacks", {"transformer_blocks": 2}, r"selector 'transformer_blocks.\[0,2\]:ff' matches no node"),
        ("steps", 6.5, "steps is '6.5'"),
        ("steps", True, "steps is 'True'"),
        ("steps", 0, "steps is '0': .*greater than or equal to 1"),
        ("steps", 10**9, "steps is '1000000000': .*less than or equal to 10000"),
        ("steps", 2**80, "file.steps has 81 bits; whole numbers must fit in 64"),
        ("steps", 8, "sampler.timesteps has 6 entries; 8 steps need 8"),
        ("sampler.class", 5, "sampler.class is '5'"),
        ("sampler.speed", 5, "sampler.speed is not a field"),
        ("sampler.config", [1], "sampler.config is"),
        ("sampler.config.num_train_timesteps", 10**9, "sampler.config.num_train_timesteps is 1000000000; admissible"),
        ("sampler.config.num_train_timesteps", "many", "sampler.config.num_train_timesteps is 'many'; admissible is 1"),
        ("sampler.timesteps", "900", "sampler.timesteps is '900'"),
        ("sampler.timesteps.1", "700", "sampler.timesteps.1 is '700'"),
        ("sampler.timesteps.1", True, "sampler.timesteps.1 is 'True'"),
        ("sampler.timesteps.1", 950, "sampler.timesteps must fall strictly, but 900.0 is followed by 950.0 at 0"),
        ("sampler.timesteps.0", 2e6, "sampler.timesteps runs from 2000000.0 to 10.0; admissible is 0 to 1e6"),
        ("sampler.timesteps.0", math.inf, r"file.sampler.timesteps\[0\] is inf; numbers must be finite"),
        ("sampler.sigmas.6", math.nan, r"file.sampler.sigmas\[6\] is nan; numbers must be finite"),
        ("sampler.sigmas.6", -0.5, "sampler.sigmas runs from 9.0 to -0.5"),
        ("sampler.sigmas.2", 5.0, "sampler.sigmas must fall strictly, but 5.0 is followed by 5.0 at 1"),
        ("sampler.sigmas", [3.0], "sampler.sigmas has 1 entries; 6 steps need 7"),
        ("sampler.timesteps", None, "sampler.sigmas is given without sampler.timesteps"),
        ("sampler.order", "1223", "sampler.order has 4 entries; 6 steps need 6"),
        ("sampler.order", "12232x", "sampler.order is '12232x'"),
        ("sampler.order", 122321, "sampler.order is '122321'"),
        ("sampler.order", "322321", "sampler.order is 3 at step 0; DPMSolverMultistepScheduler takes 1 to 1 there"),
        ("sampler.order", "122322", "sampler.order ends with 2; the step to sigma 0 is of order 1"),
        ("plan", "CRCR", "plan is 'CRCR'"),
        ("plan.axis", "time", "plan.axis is 'time': Input should be 'index', 'timestep', 'sigma' or 'logsnr'"),
        ("plan.value", "delta", "plan.value is 'delta': Input should be 'out' or 'residual'"),
        ("plan.rules", {}, "plan.rules is"),
        ("plan.rules.0", ["denoiser"], "plan.rules.0"),
        ("plan.rules.0.0", 3, "plan.rules.0.0 is '3'"),
        ("plan.rules.0.0", "transformer_blocks.3:ff", "selector 'transformer_blocks.3:ff' matches no node"),
        ("plan.rules.0.1", "C*1000000000", r"plan.rules\[0\] 'trans.*': cannot repeat '1000000000' times; at most 6"),
        ("plan.rules.0.1", "((C*99999)*99999)*99999", r"plan.rules\[0\] .*: more than the schedule's 6 steps"),
        ("plan.rules.0.1", "CRCR", r"plan.rules\[0\] .*: 4 actions for 6 steps in 'CRCR'"),
        ("plan.rules.0.1", "RRCCCC", "plan: transformer_blocks.0:attn2 at step 0 is R, which reads 1"),
        ("scores", {"drift": 0.1}, "scores.drift is '0.1'"),
        ("scores.drift.value", "0.1", "scores.drift.value is '0.1'"),
        ("scores.drift.ci", [1], "scores.drift.ci"),
        ("scores.drift.split", "train", "scores.drift.split is 'train'"),
        ("scores.drift.value", -math.inf, "file.scores.drift.value is -inf"),
        ("made", 3, "made is '3'"),
        ("made.big", [[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]], "is nested more than 20 deep"),
        ("made.text", "\udc80", r"file.made.text: '\\udc80' is not valid Unicode text"),
        ("made", {"\udc80": 1}, r"file.made: '\\udc80' is not valid Unicode text"),
        ("made", {str(i): i for i in range(20_001)}, "file.made has 20001 entries; admissible are 20000"),
        ("made.list", [0] * 20_001, "file.made.list has 20001 entries; admissible are 20000"),
        ("k" * 100_000, 1, "k{200} is not a field"),
        ("made." + "k" * 100_000, math.nan, "file.made.k{80} is nan"),
        ("plan.rules.0.0", "x" * 19_000, "selector 'x{80}' matches no node"),
        ("model.stacks", {"x" * 9999: 1}, "model.stacks.x+"),
        (
            "masks",
            {},
            "masks is not a field of schedule/1 in this version; the fields at the top are format, digest, model",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_value_is_named(path, value, text, tmp_path):
    for make in (Schedule.from_dict, lambda data: read(data, tmp_path)):
        with pytest.raises(ScheduleError, match=text) as caught:
            make(put(path, value))
        assert len(str(caught.value)) < 1500
        str(caught.value).encode()  # can be printed anywhere


@pytest.mark.parametrize(
    "data",
    [
        None,
        5,
        "schedule",
        [1],
        [["format", "schedule/1"]],
        object(),
        10**6000,
        {1: 2},
        {10**6000: 2},
        {"format": 10**6000},
    ],
    ids=lambda data: type(data).__name__,
)
def test_from_dict_takes_nothing_but_schedules(data):
    with pytest.raises(ScheduleError):
        Schedule.from_dict(data)


def test_from_dict_survives_a_circle():
    data = json.loads(json.dumps(VALID))
    data["made"]["self"] = data
    with pytest.raises(ScheduleError, match="nested more than 20 deep"):
        Schedule.from_dict(data)


TEXT = json.dumps(VALID).encode()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "this is not a complete JSON file: Expecting value"),
        (TEXT[:-1], "this is not a complete JSON file"),
        (TEXT[: len(TEXT) // 2], "this is not a complete JSON file"),
        (TEXT + b"}", "this is not a complete JSON file: Extra data"),
        (b"\x80\x04K\x01.", "this is not a complete JSON file"),  # a pickle
        (TEXT.decode().encode("utf-16")[:-3], "this is not a complete JSON file"),
        (b"null", "a schedule is a JSON object, not NoneType"),
        (b'"schedule/1"', "a schedule is a JSON object, not str"),
        (b"{}", "format is 'None'"),
        (b"[" * 200_000, "its JSON is nested too deep"),
        (b'{"a":' * 100_000, "its JSON is nested too deep"),
        (TEXT.replace(b"0.05", b"1e999"), r"file.scores.drift.ci\[0\] is inf"),
        (TEXT.replace(b"0.05", b"-Infinity"), r"file.scores.drift.ci\[0\] is -inf"),
        (TEXT.replace(b"0.05", b"9" * 1_000_000), "this is not a complete JSON file"),
        (TEXT.replace(b'"a"', b'"\\ud800"'), "is not valid Unicode text"),
        (b"[" + b"0," * (MAX_BYTES // 2), "the file has more than the 4194304 bytes that it may have"),
        (b'{"format":"schedule/1","made":[' + b"0," * 2_000_000 + b"0]}", "file.made has 2000001 entries"),
        (
            b'{"format":"schedule/1",' + b",".join(b'"%x":0' % i for i in range(300_000)) + b"}",
            "file has 300001 entries",
        ),
        (
            b'{"format":"schedule/1","sampler":{"timesteps":[' + b"[]," * 100_000 + b"0]}}",
            "file.sampler.timesteps has 100001 entries",
        ),
    ],
    ids=range(19),
)
def test_broken_files_are_refused_without_much_memory(content, text, tmp_path):
    file = tmp_path / "s.json"
    file.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ScheduleError, match=f"s.json: .*({text})") as caught:
        Schedule.load(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 * 2**20
    assert len(str(caught.value)) < 1500


def test_paths_that_are_no_files(tmp_path):
    for path, text in (
        (tmp_path, "is a folder, and not a regular file"),
        (tmp_path / "none.json", "cannot read .*none.json': No such file"),
        ("a\0b", "cannot read .*: embedded null byte"),
        ("/dev/zero", "/dev/zero is a device, and not a regular file"),
        (None, "None is a NoneType, and not the path of a file"),
        (0.5, "0.5 is a float, and not the path of a file"),
        (3, "3 is a int, and not the path of a file"),  # `open` would take it for a file that is open
    ):
        with pytest.raises(ScheduleError, match=text):
            Schedule.load(path)


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "s.json")
    with pytest.raises(ScheduleError, match=r"s.json is a named pipe, and not a regular file"):
        Schedule.load(tmp_path / "s.json")


def test_saving_is_whole_and_readable(tmp_path):
    schedule = Schedule.from_dict(VALID).with_made({"by": "Ärzte · 図"})
    path = schedule.save(tmp_path / "s.json")
    assert [p.name for p in tmp_path.iterdir()] == ["s.json"]
    assert "図" in path.read_text(encoding="utf-8") and path.read_text(encoding="utf-8").endswith("}\n")
    assert Schedule.load(str(path)).made == {"by": "Ärzte · 図"}
    assert json.loads(path.read_text(encoding="utf-8"))["digest"] == schedule.digest


def test_scores_and_history_are_checked_too():
    schedule = Schedule.from_dict(VALID)
    with pytest.raises(ScheduleError, match="file.scores.drift.value is nan"):
        schedule.with_scores({"drift": {"value": math.nan}})
    with pytest.raises(ScheduleError, match="file.made.where is a PosixPath, which is not a JSON value"):
        from pathlib import PurePosixPath

        schedule.with_made({"where": type("PosixPath", (PurePosixPath,), {})("/")})
    assert schedule.with_scores({}).digest == schedule.with_made({}).digest == schedule.digest
    assert schedule.with_scores({}).scores == {} and schedule.scores["drift"]["ci"] == [0.05, 0.2]


def test_the_number_of_steps_is_part_of_the_behaviour():
    bare = {k: VALID[k] for k in ("format", "model")}
    off, bound = Schedule.from_dict(bare), Schedule.from_dict(bare | {"steps": 6})
    assert off == Schedule.off(PIPE) and off.digest != bound.digest and off != bound
    assert bound == Schedule.from_dict(bare | {"steps": 6, "plan": {"rules": [["denoiser", "C*6"]]}})
    assert "plan" not in bound.to_dict() and off.table()[1][0] == [] and bound.table()[1][0] == ["C"] * 6
    assert len({off, Schedule.off(PIPE), bound}) == 2 and off != 3
    assert repr(bound).startswith("Schedule(PixArtTransformer2DModel, steps=6, sha256:")


def test_the_sampler_is_part_of_the_behaviour():
    schedule = Schedule.from_dict(VALID)
    for path, value in (
        ("sampler.timesteps.1", 701.0),
        ("sampler.sigmas.1", 5.5),
        ("sampler.order", "122221"),
        ("sampler.config.flow_shift", 2.0),
        ("plan.axis", "index"),
        ("plan.rules.1.1", "CCCRCC"),
    ):
        assert Schedule.from_dict(put(path, value)).digest != schedule.digest, path


def test_a_repeated_last_sigma_is_deis_own_grid():
    assert Schedule.from_dict(put("sampler.sigmas.6", 0.1)).digest


# Whatever is done to a file: it loads and is what it says, or it is a ScheduleError

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 6, 10**9, 2**63, 10**400, 1e308])
    | st.floats()
    | st.text(st.characters(), max_size=6)
    | st.sampled_from(
        ["denoiser", "C*6", "CRCRCR", "C*1000000000", "transformer_blocks.*", "schedule/1", "122111", "\ud800"]
    ),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def containers(node: object) -> list:
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    own = [node] if isinstance(node, dict | list) else []
    return own + [c for value in inner for c in containers(value)]


def mutate(draw, data: dict) -> None:
    """Replace, delete, duplicate or insert at any place."""
    at = draw(st.sampled_from(containers(data)))
    keys = list(at) if isinstance(at, dict) else list(range(len(at)))
    kind = draw(st.sampled_from(["replace", "delete", "duplicate", "insert", "swap"]))
    if kind == "insert" or not keys:
        if isinstance(at, dict):
            at[draw(st.text(max_size=5) | st.sampled_from(["steps", "axis", "value", "order", "ci", "digest"]))] = draw(
                ANYTHING
            )
        else:
            at.insert(draw(st.integers(0, len(at))), draw(ANYTHING))
        return
    key = draw(st.sampled_from(keys))
    if kind == "replace":
        at[key] = draw(ANYTHING)
    elif kind == "delete":
        del at[key]
    elif kind == "duplicate" and isinstance(at, list):
        at.insert(key, at[key])
    else:
        other = draw(st.sampled_from(keys))
        at[key], at[other] = at[other], at[key]


def holds(make) -> None:
    try:
        schedule = make()
    except ScheduleError as error:
        str(error).encode()
        return
    names, tokens = schedule.table()
    assert len(names) == len(tokens) and all(len(row) == (schedule.steps or 0) for row in tokens)
    content = schedule.to_dict()
    again = Schedule.from_dict(json.loads(json.dumps(content, allow_nan=False)))
    assert again.digest == schedule.digest and again.to_dict() == content


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_mutated_content_never_escapes(data):
    content = json.loads(json.dumps(VALID))
    if data.draw(st.booleans()):
        content = Schedule.from_dict(VALID).to_dict()
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(data.draw, content)
    holds(lambda: Schedule.from_dict(content))


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_bytes_never_escape(tmp_path_factory, data):
    content = bytearray(TEXT)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        length = data.draw(st.sampled_from([0, 1, 1, 2, 10]))
        kind = data.draw(st.sampled_from(["replace", "delete", "duplicate"]))
        piece = {"delete": b"", "duplicate": bytes(content[at : at + length]) * 2}.get(kind)
        content[at : at + length] = data.draw(st.binary(max_size=3)) if piece is None else piece
    file = tmp_path_factory.getbasetemp() / "mutated.json"
    file.write_bytes(bytes(content))
    holds(lambda: Schedule.load(file))


@settings(max_examples=50, deadline=None)
@given(ANYTHING)
def test_any_json_is_answered(data):
    holds(lambda: Schedule.from_dict(data))
    holds(lambda: Schedule.from_dict(put("made.x", data)))


def test_no_entry_limit_is_met_by_the_format_itself():
    assert MAX_ENTRIES > MAX_STEPS + 1  # sigmas
