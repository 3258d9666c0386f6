"""Plans: text, selectors, precedence, liveness and the normal form."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search import Schedule, ScheduleError
from search.schedule.model.nodes import MAX_BLOCKS, ROOT, Tree
from search.schedule.plan.plan import Plan
from search.schedule.plan.tokens import ABSENT, MAX_STEPS, OFF, format_actions, parse_actions, values_read

STEPS = 7
TREE = Tree("PixArtTransformer2DModel", {"transformer_blocks": 4})
NODES = [n.name for n in TREE]

tokens = st.lists(st.sampled_from(["C", "C", "C", "R", "S", "F1", "F2", "F9"]), min_size=STEPS, max_size=STEPS)


def lowered(name: str, wanted: list[str], above: tuple[str, ...]) -> list[str]:
    """The wanted actions with C wherever the node could not read enough, given its parent's actions."""
    out, computed = [], 0
    for token, parent in zip(wanted, above, strict=True):
        if values_read(token) > computed or (token == "S" and name == ROOT):
            token = OFF
        out.append(token)
        computed += token == OFF and parent == OFF
    return out


@st.composite
def plans(draw) -> list[tuple[str, str]]:
    """Rules of a valid plan, one a node."""
    chosen = draw(st.dictionaries(st.sampled_from(NODES), tokens, max_size=8))
    rules: list[tuple[str, str]] = []
    effective: dict[str, tuple[str, ...]] = {}
    for node in TREE:
        above = effective[node.parent] if node.parent else (OFF,) * STEPS
        own = lowered(node.name, chosen.get(node.name, [OFF] * STEPS), above)
        effective[node.name] = tuple(t if a == OFF else ABSENT for t, a in zip(own, above, strict=True))
        if node.name in chosen:
            rules.append((node.name, format_actions(own)))
    return rules


def content(rules, **parts) -> dict:
    model = {"class": "PixArtTransformer2DModel", "stacks": {"transformer_blocks": 4}}
    return {"format": "schedule/1", "model": model, "steps": STEPS, "plan": {"rules": [list(r) for r in rules]} | parts}


def digest(rules, **parts) -> str:
    return Schedule.from_dict(content(rules, **parts)).digest


@settings(max_examples=100, deadline=None)
@given(plans())
def test_the_canonical_rules_resolve_to_the_same_actions(rules):
    plan = Plan.resolve(rules, TREE, STEPS)
    again = Plan.resolve(plan.rules(), TREE, STEPS)
    assert again.tokens == plan.tokens and again.rules() == plan.rules()
    assert plan.is_off == (plan.rules() == []) == (plan.planned() == [])


@settings(max_examples=60, deadline=None)
@given(plans(), st.randoms(use_true_random=False), st.data())
def test_what_changes_nothing_does_not_change_the_digest(rules, random, data):
    expected, plan = digest(rules), Plan.resolve(rules, TREE, STEPS)
    shuffled = list(rules)
    random.shuffle(shuffled)  # each node is named once, so the order does not matter
    assert digest(shuffled) == expected
    spelt = [(name, " ".join(parse_actions(text, STEPS))) for name, text in rules]
    assert digest(spelt) == expected
    overridden = [(name, "C*7") for name, _ in rules] + list(rules)
    assert digest(overridden) == expected
    # any action at a step where an ancestor is not computed is no action
    free = []
    for name, actions in plan.tokens.items():
        if ABSENT in actions:
            free.append((name, "".join(data.draw(st.sampled_from("CS")) if t == ABSENT else t for t in actions)))
    kept = [(n, "".join(OFF if t == ABSENT else t for t in plan.tokens[n])) for n in plan.tokens]
    assert digest(kept + free) == expected
    if not any("F" in text for _, text in plan.rules()):
        assert digest(rules, axis="sigma") == expected


@settings(max_examples=60, deadline=None)
@given(plans(), plans())
def test_different_behaviour_has_different_digests(one, other):
    same = Plan.resolve(one, TREE, STEPS).tokens == Plan.resolve(other, TREE, STEPS).tokens
    assert (digest(one) == digest(other)) == same


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["C", "R", "S", "F1", "F9"]), max_size=40))
def test_text_and_actions_are_one(actions):
    assert parse_actions(format_actions(actions), len(actions)) == tuple(actions)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C*3 R", "CCCR"),
        ("(C R)*2 C*0", "CRCR"),
        ("((CR)*2 S)*1", "CRCRS"),
        ("  C\tF1 * 2\n", "C F1 F1"),
        ("", ""),
        ("()*9", ""),
    ],
)
def test_action_text(text, expected):
    found = parse_actions(text, len(expected.replace(" ", "").replace("1", "")))
    assert "".join(found) == expected.replace(" ", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("C*1000000000", "cannot repeat '1000000000' times; at most 7 steps"),
        ("((C*99999)*99999)*99999", "more than the schedule's 7 steps are planned"),
        ("C*8", "more than the schedule's 7 steps are planned"),
        ("(C*7", r"'\(' without '\)' in"),
        ("C)*7", r"'\)' without '\('"),
        ("(*3C)", "cannot repeat '3' times"),
        ("(" * 9 + "C", "parentheses are nested more than 8 deep"),
        ("CCCF0CCC", "'F0CCC' is not an action; use C, R, S, F1..F9"),
        ("CCCFCCC", "is not an action"),
        ("C٣", "is not an action"),
        ("c*7", "is not an action"),
        ("C*-1", "is not an action"),
        ("CRC", "3 actions for 7 steps in 'CRC'"),
        ("C" * 90_000, "more than the schedule's 7 steps"),
        ("C" + " " * 90_000 + "X", "'X' is not an action|is not an action"),
    ],
)
def test_broken_action_text(text, message):
    with pytest.raises(ScheduleError, match=f"^here: .*({message})"):
        parse_actions(text, STEPS, "here")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [["denoiser", "R*7"]],
            "denoiser at step 0 is R, which reads 1 computed value.*, but 0 came before; put 1 more C",
        ),
        (
            [["denoiser", "CF2C*5"]],
            "denoiser at step 1 is F2, which reads 3 computed value.*but 1 came before; put 2 more",
        ),
        ([["denoiser", "CS C*5"]], "denoiser cannot be skipped at step 1; use R or F1"),
        # its only compute falls away, because its block is reused there
        (
            [["transformer_blocks.1", "CR C*5"], ["transformer_blocks.1:ff", "S C R S C C C"]],
            "transformer_blocks.1:ff at step 2 is R, which reads 1",
        ),
    ],
)
def test_reading_what_was_not_computed_is_refused(rules, message):
    with pytest.raises(ScheduleError, match=f"plan: {message}"):
        Plan.resolve(rules, TREE, STEPS)


def test_a_later_rule_wins_and_an_ancestor_before_all():
    plan = Plan.resolve(
        [
            ("transformer_blocks.*:*", "CRRRRRR"),
            ("transformer_blocks.[0,2-3]:ff", "C*7"),
            ("transformer_blocks.0", "CCSCCCC"),
            (ROOT, "CCCR*2CC"),
        ],
        TREE,
        STEPS,
    )
    assert "".join(plan.tokens["transformer_blocks.0:ff"]) == "CC---CC"
    assert "".join(plan.tokens["transformer_blocks.0:attn1"]) == "CR---RR"
    assert "".join(plan.tokens["transformer_blocks.1:ff"]) == "CRR--RR"
    assert "".join(plan.tokens["transformer_blocks.0"]) == "CCS--CC"
    assert plan.rules()[0] == (ROOT, "CCCRRCC")
    assert ("transformer_blocks.[1-3]:attn1", "CRRCCRR") in plan.rules()
    assert ("transformer_blocks.1:ff", "CRRCCRR") in plan.rules()


@settings(max_examples=60, deadline=None)
@given(plans())
def test_liveness_is_what_a_run_reads(rules):
    plan = Plan.resolve(rules, TREE, STEPS)
    for name, actions in plan.tokens.items():
        computed: list[int] = []
        reads: dict[int, int] = {}
        for step, token in enumerate(actions):
            needs = {"R": 1}.get(token, int(token[1:]) + 1 if token[0] == "F" else 0)
            for source in computed[::-1][:needs]:
                reads[source] = step
            if token == OFF:
                computed.append(step)
        assert plan.last_use(name) == reads


# Selectors


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("denoiser", ["denoiser"]),
        ("transformer_blocks", ["transformer_blocks"]),
        ("transformer_blocks.2", ["transformer_blocks.2"]),
        ("transformer_blocks.[2-3,0]", [f"transformer_blocks.{i}" for i in (0, 2, 3)]),
        ("transformer_blocks.[1,1]:ff", ["transformer_blocks.1:ff"]),
        ("transformer_blocks.3:*", [f"transformer_blocks.3:{c}" for c in ("attn1", "attn2", "ff")]),
        ("transformer_blocks.*", [f"transformer_blocks.{i}" for i in range(4)]),
    ],
)
def test_selectors(selector, names):
    assert TREE.select(selector) == names


@pytest.mark.parametrize(
    "selector",
    [
        "",
        "*",
        "denoiser.0",
        "transformer_blocks.4",
        "transformer_blocks.[0-4]",
        "transformer_blocks.[3-2]",
        "transformer_blocks.[]",
        "transformer_blocks.[0,]",
        "transformer_blocks.[-1]",
        "transformer_blocks.[0--1]",
        "transformer_blocks.-1",
        "transformer_blocks.٣",
        "transformer_blocks.00001:attn",
        "transformer_blocks:ff",
        "transformer_blocks.0:ff.net",
        "transformer_blocks.0:__class__",
        "blocks.0",
        "transformer_blocks.[" + "0-99999," * 1000 + "0]",
        "x" * 20_000,
        "transformer_blocks.0\n",
    ],
)
def test_selectors_that_mean_nothing_are_refused(selector):
    with pytest.raises(
        ScheduleError, match="selector .* matches no node of PixArt.*; nodes are denoiser, transformer_"
    ):
        TREE.select(selector)


def test_trees_that_cannot_be_are_refused():
    with pytest.raises(
        ScheduleError, match="model.class 'Nobody' has no node contract; classes with one: DiTTrans.*, PixArt"
    ):
        Tree("Nobody", {})
    with pytest.raises(
        ScheduleError, match=r"model.stacks \['blocks'\] does not fit PixArt.*, which has: transformer_bl"
    ):
        Tree("PixArtTransformer2DModel", {"blocks": 3})
    for size in (0, -1, MAX_BLOCKS + 1):
        with pytest.raises(
            ScheduleError, match=f"model.stacks.transformer_blocks is {size}; a stack has between 1 and"
        ):
            Tree("PixArtTransformer2DModel", {"transformer_blocks": size})


# Bounds


def large(blocks: int, steps: int, rules) -> dict:
    model = {"class": "PixArtTransformer2DModel", "stacks": {"transformer_blocks": blocks}}
    return {"format": "schedule/1", "model": model, "steps": steps, "plan": {"rules": rules}}


def test_plans_of_any_size_are_answered():
    with pytest.raises(ScheduleError, match="steps is 10000: 400020000 actions of 40002 nodes; admissible are 2000000"):
        Schedule.from_dict(large(MAX_BLOCKS, MAX_STEPS, [["denoiser", "C R*9999"]]))
    with pytest.raises(ScheduleError, match=r"plan.rules\[\d+\]: the rules select more than 2000000 nodes in all"):
        Schedule.from_dict(large(MAX_BLOCKS, 2, [["transformer_blocks.*:*", "CR"]] * 1000))
    largest = Schedule.from_dict(large(28, MAX_STEPS, [["denoiser", "(C R*9)*1000"]] * 50))
    assert largest.table()[1][3][:3] == ["C", "-", "-"]
