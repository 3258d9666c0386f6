"""The schedule file: what is refused and how, what survives, when two are equal."""

import contextlib
import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search import Schedule, ScheduleError
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.plan.plan import Plan
from search.schedule.plan.tokens import format_actions, parse_actions
from search.testing.models import tiny_model

MODEL = tiny_model()
TREE = MODEL.target.tree


def document(**parts: object) -> dict:
    """A valid file's content, with parts replaced; a part of None is left out."""
    base = {
        "format": "schedule/1",
        "model": dict(MODEL.target.model),
        "steps": 6,
        "sampler": dict(MODEL.target.sampler),
        "plan": {"axis": "logsnr", "rules": [["transformer_blocks.*:ff", "CC F1*2 CR"], ["denoiser", "C*5 R"]]},
        "scores": {"drift": {"value": 0.1, "ci": [0.05, 0.2], "split": "held_out", "unit": "ratio"}},
        "made": {"seed": 1, "call": {"guidance_scale": 4.0}},
    }
    return {k: v for k, v in (base | parts).items() if v is not None}


CERTIFICATE = {
    "criterion": "psnr>=30", "share": 0.9, "confidence": 0.95, "runs": 64, "misses": 1, "prompts": 16, "noises": 4,
    "population": "new noise on these 16 prompts", "device": "cpu", "versions": {"torch": "2"}, "call": {"lora": "x"},
}  # fmt: skip


def sampler(**parts: object) -> dict:
    return {"sampler": {k: v for k, v in (dict(MODEL.target.sampler) | parts).items() if v is not None}}


def plan(*rules: list[str]) -> dict:
    return {"plan": {"rules": [list(r) for r in rules]}}


def test_save_then_load_is_the_same(tmp_path):
    schedule = Schedule.from_dict(document())
    loaded = Schedule.load(schedule.save(tmp_path / "s.json"))
    assert loaded == schedule and loaded.to_dict() == schedule.to_dict()
    assert loaded.scores["drift"]["value"] == 0.1 and loaded.made["call"] == {"guidance_scale": 4.0}
    assert loaded.steps == 6 and loaded.digest.startswith("sha256:")


def test_a_certificate_is_kept_with_what_it_is_for_and_lost_with_any_other_behaviour(tmp_path):
    bare, schedule = Schedule.from_dict(document()), Schedule.from_dict(document(certificate=CERTIFICATE))
    assert schedule.digest == bare.digest and bare.certificate is None and "certificate" not in bare.to_dict()
    assert Schedule.load(schedule.save(tmp_path / "s.json")).to_dict()["certificate"] == CERTIFICATE
    assert bare.with_certificate(CERTIFICATE).to_dict() == schedule.to_dict()
    assert schedule.with_scores({}).with_made({}).certificate == schedule.certificate
    assert schedule.with_certificate(None).to_dict() == bare.to_dict()
    changed = [schedule.with_plan("off"), schedule.with_sampler(document()["sampler"]), schedule.with_ranges({})]
    assert [other.certificate for other in changed] == [None] * 3
    assert str(schedule.certificate) == (
        "new noise on these 16 prompts: psnr>=30 with a probability of at least 0.9, confidence 0.95 "
        "(1 of 64 runs missed it)"
    )


def test_a_free_plan_of_a_full_size_model_is_small(tmp_path):
    rng = np.random.default_rng(0)
    rules = [
        [f"transformer_blocks.{b}:{c}", "C" + "".join(rng.choice(["C", "R"], 19))]
        for b in range(28)
        for c in ("attn1", "attn2", "ff")
    ]
    model = {"class": "PixArtTransformer2DModel", "stacks": {"transformer_blocks": 28}}
    data = {"format": "schedule/1", "model": model, "steps": 20, "plan": {"rules": rules}}
    text = json.dumps(Schedule.from_dict(data).to_dict(), separators=(",", ":"))
    assert len(text) < 6_000


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"format": "schedule/2"}, "format is 'schedule/2', this version reads 'schedule/1': upgrade"),
        ({"format": "picture"}, "format is 'picture'; the format of a schedule file is 'schedule/1'"),
        ({"format": 3}, "format is '3'; the format of a schedule file is"),
        ({"model": None}, "model is .*Field required"),
        (
            {"model": {"class": "Nobody", "stacks": {}}},
            "model.class 'Nobody' has no node contract; classes with one: DiT",
        ),
        (
            {"model": {"class": "PixArtTransformer2DModel", "stacks": {"layers": 3}}},
            r"model.stacks \['layers'\] does not fit PixArtTransformer2DModel, which has: transformer_blocks",
        ),
        (
            {"model": {"class": "PixArtTransformer2DModel", "stacks": {"transformer_blocks": 0}}},
            "model.stacks.transformer_blocks is 0; a stack has between 1 and 10000 blocks",
        ),
        ({"steps": "6"}, "steps is '6': Input should be a valid integer"),
        ({"steps": 10**9}, "steps is '1000000000'"),
        (
            {"steps": None},
            "steps is missing; plan, gates, guidance, models, sampler.timesteps and sampler.order need it",
        ),
        ({"steps": 7}, "sampler.timesteps has 6 entries; 7 steps need 7"),
        ({"masks": {}}, "masks is not a field of schedule/1 in this version; the fields at the top are format"),
        ({"scores": {"drift": {"value": math.nan}}}, r"file.scores.drift.value is nan; numbers must be finite"),
        ({"certificate": CERTIFICATE | {"misses": 65}}, "certificate.misses is 65, of 64 runs; give at most as many"),
        ({"certificate": CERTIFICATE | {"share": 1.0}}, "certificate.share is '1.0': Input should be less than 1"),
        ({"made": {"x": 2**70}}, "file.made.x has 71 bits; whole numbers must fit in 64"),
        ({"made": {"x": "\ud800"}}, "file.made.x: .* is not valid Unicode text"),
        ({"made": {"x": {1: 2}}}, "a key is a int; keys are text"),
        ({"made": {"x": object()}}, "file.made.x is a object, which is not a JSON value"),
        (plan(["transformer_blocks.7:ff", "C*6"]), "selector 'transformer_blocks.7:ff' matches no node"),
        (plan(["transformer_blocks.[2-9]:ff", "C*6"]), "matches no node of PixArtTransformer2DModel; nodes are"),
        (plan(["transformer_blocks.[0-x]", "C*6"]), "matches no node"),
        (plan(["transformer_blocks.*:fff", "C*6"]), "for example 'transformer_blocks.*:ff'"),
        (plan(["blocks.*", "C*6"]), "selector 'blocks.*' matches no node"),
        (plan(["denoiser", "CRX"]), "'X' is not an action; use C, R, S, F1..F9"),
        (plan(["denoiser", "CR"]), "2 actions for 6 steps in 'CR'"),
        (plan(["denoiser", "C*1000000000"]), "cannot repeat '1000000000' times; at most 6 steps are planned"),
        (plan(["denoiser", "((C*99999)*99999)*99999"]), "more than the schedule's 6 steps are planned"),
        (plan(["denoiser", "(" * 50 + "C"]), "parentheses are nested more than 8 deep"),
        (plan(["denoiser", "C)R"]), r"'\)' without '\('"),
        (plan(["denoiser", "(CR"]), r"'\(' without '\)'"),
        (plan(["denoiser", "R*6"]), "denoiser at step 0 is R, which reads 1 computed value.*put 1 more C before it"),
        (plan(["denoiser", "CF1 C*4"]), "denoiser at step 1 is F1, which reads 2 computed value.*but 1 came"),
        (plan(["denoiser", "CS C*4"]), "denoiser cannot be skipped at step 1; use R or F1"),
        (sampler(timesteps=[5, 4, 3, 2, 1]), "sampler.timesteps has 5 entries; 6 steps need 6"),
        (sampler(timesteps=[9, 8, 8, 7, 6, 5]), "sampler.timesteps must fall strictly, but 8.0 is followed by 8.0"),
        (sampler(timesteps=[9, 8, 7, 6, 5, -1]), "sampler.timesteps runs from 9.0 to -1.0; admissible is 0 to 1e6"),
        (sampler(timesteps=None), "sampler.sigmas is given without sampler.timesteps; give both"),
        (sampler(order="12"), "sampler.order has 2 entries; 6 steps need 6"),
        (sampler(order="120121"), "sampler.order is '120121'"),
        ({"digest": "sha256:0"}, "the file was edited; remove the digest field to accept it as it is"),
    ],
)
def test_broken_content_is_named(parts, text):
    with pytest.raises(ScheduleError, match=text):
        Schedule.from_dict(document(**parts))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "this is not a complete JSON file"),
        (json.dumps(document()).encode()[:200], "this is not a complete JSON file"),
        (b"\xff\xfe\x00", "this is not a complete JSON file"),
        (b"[" * 100_000, "its JSON is nested too deep"),
        (b"[1]", "a schedule is a JSON object, not list"),
        (json.dumps(document(made={"x": 0})).replace('"x": 0', '"x": NaN').encode(), "file.made.x is nan"),
        (
            json.dumps(document(made={"x": 0})).replace('"x": 0', '"x": ' + "9" * 5000).encode(),
            "not a complete JSON file",
        ),
        (
            json.dumps(document(made={"x": 0})).replace('"x": 0', '"x": ' + "[" * 30 + "]" * 30).encode(),
            "nested more than 20",
        ),
        (b" " * (5 * 2**20), "the file has more than the 4194304 bytes"),
    ],
)
def test_broken_files_are_named(tmp_path, content, text):
    file = tmp_path / "broken.json"
    file.write_bytes(content)
    with pytest.raises(ScheduleError, match=f"broken.json: .*{text}"):
        Schedule.load(file)


def test_a_missing_file_is_a_schedule_error(tmp_path):
    with pytest.raises(ScheduleError, match="cannot read .*nothing.json.*: No such file"):
        Schedule.load(tmp_path / "nothing.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def places(node: object, path: tuple = ()) -> list[tuple]:
    found = [path]
    for key, inner in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        found += places(inner, (*path, key))
    return found


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_nothing_but_a_schedule_error_ever_escapes(data):
    content = json.loads(json.dumps(document(digest=None)))
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(places(content)[1:]))
        parent = content
        for key in path:
            parent = parent[key]
        if data.draw(st.booleans()):
            parent[last] = data.draw(json_values)
        elif isinstance(parent, list):
            parent.insert(last, data.draw(json_values))
        else:
            del parent[last]
    try:
        schedule = Schedule.from_dict(content)
    except ScheduleError:
        return
    assert Schedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule
    names, tokens = schedule.table()
    assert len(names) == len(tokens)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_damaged_byte_escapes_either(data, tmp_path_factory):
    text = bytearray(json.dumps(document()).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    file = tmp_path_factory.mktemp("damaged") / "s.json"
    file.write_bytes(bytes(text))
    with contextlib.suppress(ScheduleError):
        Schedule.load(file).to_dict()


actions = st.lists(st.sampled_from(["C", "C", "R", "S", "F1", "F2"]), min_size=6, max_size=6)


@given(actions)
def test_actions_survive_their_text(tokens):
    assert parse_actions(format_actions(tokens), 6) == tuple(tokens)


def feasible(tokens: list[str]) -> list[str]:
    """Lower an action to C where it would read more than was computed."""
    out: list[str] = []
    for token in tokens:
        needs = {"R": 1, "F1": 2, "F2": 3}.get(token, 0)
        out.append(token if out.count("C") >= needs else "C")
    return out


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([n.name for n in TREE if n.kind == "component"]), actions, max_size=9))
def test_canonical_rules_say_the_same(chosen):
    rules = [(name, format_actions(feasible(tokens))) for name, tokens in chosen.items()]
    resolved = Plan.resolve(rules, TREE, 6)
    again = Plan.resolve(resolved.rules(), TREE, 6)
    assert again.tokens == resolved.tokens and again.rules() == resolved.rules()


def test_equal_behaviour_gives_equal_digests():
    def digest(*rules):
        return Schedule.from_dict(document(**plan(*rules))).digest

    assert digest(["transformer_blocks.*:ff", "CRCRCR"]) == digest(
        ["transformer_blocks.0:ff", "(CR)*3"], ["transformer_blocks.[1-2]:ff", "C R (CR)*2"]
    )
    # below a reused denoiser nothing runs, so nothing below it matters
    assert digest(["denoiser", "CCRCCC"]) == digest(["denoiser", "CCRCCC"], ["transformer_blocks.*:ff", "CCRCCC"])
    assert digest(["denoiser", "CCRCCC"]) != digest(["denoiser", "CCRCCR"])
    assert digest(["denoiser", "C*6"]) == Schedule.from_dict(document(plan=None)).digest
    # the forecast axis matters only where something is forecast
    axis = {"axis": "sigma", "rules": [["denoiser", "CRCRCR"]]}
    assert digest(["denoiser", "CRCRCR"]) == Schedule.from_dict(document(plan=axis)).digest


def test_scores_and_history_do_not_change_the_digest():
    schedule = Schedule.from_dict(document())
    other = schedule.with_scores({"psnr": {"value": 30.0}}).with_made({"by": "hand"})
    assert other.digest == schedule.digest and other == schedule and hash(other) == hash(schedule)
    assert other.scores == {"psnr": {"value": 30.0, "split": "held_out", "unit": ""}}


def test_the_table_shows_what_does_not_run():
    names, tokens = Schedule.from_dict(document(**plan(["transformer_blocks.1", "CRSCCC"]))).table()
    assert tokens[names.index("transformer_blocks.1")] == list("CRSCCC")
    assert tokens[names.index("transformer_blocks.1:ff")] == list("C--CCC")
    assert tokens[names.index(ROOT)] == list("CCCCCC")


def test_liveness_by_hand():
    plan = Plan.resolve([(ROOT, "CCF1RCC")], TREE, 6)
    # step 0 is read by the forecast at 2, step 1 by it and by the reuse at 3, the others by nobody
    assert plan.last_use(ROOT) == {0: 2, 1: 3}


def test_the_published_json_schema_is_current():
    from pathlib import Path

    import search.schedule.document as module

    file = Path(module.__file__).with_name("schedule-1.schema.json")
    assert json.loads(file.read_text()) == module.json_schema(), "run: python -m search.schedule.document"


def test_a_tree_needs_every_component():
    from diffusers import PixArtTransformer2DModel

    denoiser = tiny_model().denoiser
    assert isinstance(denoiser, PixArtTransformer2DModel)
    del denoiser.transformer_blocks[1].attn2
    with pytest.raises(ScheduleError, match="has no transformer_blocks.1:attn2: BasicTransformerBlock lacks 'attn2'"):
        Tree.of(denoiser)
