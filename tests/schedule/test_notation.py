"""The plan notation: what a text means, the shortest text of a plan, equal and unequal texts, and every error."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from search import Schedule, ScheduleError
from search.schedule.model.contracts import Contract
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.plan import notation
from search.schedule.plan.notation import format_places, parse_notation
from search.schedule.plan.plan import Plan
from search.schedule.plan.tokens import ABSENT, OFF, parse_actions, shortest_actions, values_read

PIXART = Tree("PixArtTransformer2DModel", {"transformer_blocks": 28})
FLUX = Tree("FluxTransformer2DModel", {"transformer_blocks": 3, "single_transformer_blocks": 4})
DOWN, MID, UP = {"resnets": 2, "attentions": 2}, {"resnets": 2, "attentions": 1}, {"resnets": 3, "attentions": 3}
UNET = Tree(
    "UNet2DConditionModel",
    {
        "conv_in": [{}],
        "down_blocks": [
            {**DOWN, "attentions.0.transformer_blocks": 1, "attentions.1.transformer_blocks": 2, "downsamplers": 1},
            {"resnets": 2},
        ],
        "mid_block": [{**MID, "attentions.0.transformer_blocks": 1}],
        "up_blocks": [{"resnets": 3, "upsamplers": 1}, {**UP, "attentions.0.transformer_blocks": 1}],
    },
)
# names that mean a stack or the denoiser when they stand alone
CLASHES = Tree(
    "Mixer",
    {"mix": 2, "decoder.mix": 3},
    Contract.from_dict(
        {
            "stacks": [
                {"name": "mix", "components": ["mix", "denoiser", "off"], "outputs": ["x"]},
                {"name": "decoder.mix", "components": ["mix", "off"], "outputs": ["x"]},
            ]
        }
    ),
)
TREES = {"pixart": PIXART, "flux": FLUX, "unet": UNET, "clashes": CLASHES}
STEPS = 6


def plan_of(text: str, tree: Tree = PIXART, steps: int = STEPS) -> Plan:
    return Plan.parse(text, tree, steps)


# What texts mean: by hand, in the file's rules


@pytest.mark.parametrize(
    ("tree", "text", "rules"),
    [
        (PIXART, "off", []),
        (PIXART, "attn1: C R*5", [("transformer_blocks.*:attn1", "C R*5")]),
        (PIXART, "ff@0-3: C R*5", [("transformer_blocks.[0-3]:ff", "C R*5")]),
        (PIXART, "ff@0,2,5-7: C R*5", [("transformer_blocks.[0,2,5-7]:ff", "C R*5")]),
        (PIXART, "denoiser: (C R)*3", [("denoiser", "(C R)*3")]),
        (PIXART, "transformer_blocks: (C R)*3", [("transformer_blocks", "(C R)*3")]),
        (PIXART, "transformer_blocks@*: (C R)*3", [("transformer_blocks.*", "(C R)*3")]),
        (PIXART, "transformer_blocks@4: (C R)*3", [("transformer_blocks.[4]", "(C R)*3")]),
        (PIXART, "transformer_blocks/ff@4: (C R)*3", [("transformer_blocks.[4]:ff", "(C R)*3")]),
        (PIXART, "*: C R*5", [("transformer_blocks.*:*", "C R*5")]),
        (
            PIXART,
            "attn1: C (R R F1 C)*1 R | ff@0-3: C*6",
            [("transformer_blocks.*:attn1", "C (R R F1 C)*1 R"), ("transformer_blocks.[0-3]:ff", "C*6")],
        ),
        (
            FLUX,
            "attn + transformer_blocks/ff@0: C R*5",
            [
                ("transformer_blocks.*:attn", "C R*5"),
                ("single_transformer_blocks.*:attn", "C R*5"),
                ("transformer_blocks.[0]:ff", "C R*5"),
            ],
        ),
        (UNET, "mid_block/resnets.1: C R*5", [("mid_block.*:resnets.1", "C R*5")]),
        (UNET, "downsamplers.0: C R*5", [("down_blocks.*:downsamplers.0", "C R*5")]),
        (
            CLASHES,
            "mix: C R*5 | mix/mix: C S C*4 | mix/denoiser + decoder.mix/mix@2: C*4 R R | denoiser: C*5 R",
            [
                ("mix", "C R*5"),
                ("mix.*:mix", "C S C*4"),
                ("mix.*:denoiser", "C*4 R R"),
                ("decoder.mix.[2]:mix", "C*4 R R"),
                ("denoiser", "C*5 R"),
            ],
        ),
    ],
)
def test_a_text_means_these_rules_of_the_file(tree, text, rules):
    assert parse_notation(text, tree, STEPS) == rules


def test_whitespace_is_free():
    tight = "attn1+ff@0-3,5:C(CRF1C)*1R|transformer_blocks/attn2@*:CR*5"
    wide = "\n attn1 +  ff @ 0 - 3 , 5 :\tC ( C R F1 C ) * 1 R \n|\n transformer_blocks / attn2 @ * : C R * 5  "
    spaced = "attn1 + ff@0-3,5: C (C R F1 C)*1 R | transformer_blocks/attn2: C R*5"
    assert plan_of(tight) == plan_of(wide) == plan_of(spaced)


EQUAL = [
    (PIXART, ["off", " off ", "attn1: C*6", "*: C*6 | denoiser: (C C)*3", "transformer_blocks@*: C C C C C C"]),
    (PIXART, ["attn1: (C R)*3", "attn1: CRCRCR", "attn1@*: C (R C)*2 R", "transformer_blocks/attn1@0-27: (CR)*3"]),
    (PIXART, ["attn1 + ff: C R*5", "ff+attn1:CRRRRR", "attn1: C R*5 | ff: C R*5", "*: C R*5 | attn2: C*6"]),
    (PIXART, ["ff@0-3: C R*5", "ff@0,1,2,3: C R*5", "ff@3,0-2: C R*5", "ff: C R*5 | ff@4-27: C*6"]),
    # the later rule of a node replaces the earlier one
    (PIXART, ["attn1: C S*5 | attn1: C R*5", "attn1: C R*5"]),
    # nothing inside runs where the denoiser is reused, whatever stands there
    (PIXART, ["denoiser: C C R R C C", "denoiser: C*2 R*2 C*2 | ff: C*3 S C*2"]),
    (FLUX, ["attn: C R*5", "transformer_blocks/attn + single_transformer_blocks/attn: C R*5"]),
    (FLUX, ["ff: C R*5", "transformer_blocks/ff: C R*5", "ff@0-2: C R*5"]),
    (FLUX, ["*: C R*5", "attn + ff + ff_context + proj_mlp + proj_out: C R*5"]),
    (UNET, ["resnets.*: C R*5", "resnets.0 + resnets.1 + resnets.2: C R*5"]),
    (UNET, ["downsamplers.*: C R*5", "downsamplers.0@0: C R*5", "down_blocks/downsamplers.0@0-1: C R*5"]),
]  # fmt: skip

UNEQUAL = [
    (PIXART, ["off", "attn1: C R C*4", "attn1: C S C*4", "attn1: C C R C C C", "attn2: C R C*4"]),
    (PIXART, ["attn1: C R C*4", "attn1@1-27: C R C*4", "attn1@0-26: C R C*4"]),
    (PIXART, ["denoiser: C R C*4", "transformer_blocks: C R C*4", "transformer_blocks@*: C R C*4", "*: C R C*4"]),
    (PIXART, ["ff: C C F1 C C C", "ff: C C R C C C", "ff: C C C F1 C C", "ff: C C C F2 C C"]),
    (PIXART, ["attn1: C R*5 | attn1: C S*5", "attn1: C S*5 | attn1: C R*5"]),
    (FLUX, ["attn: C R*5", "transformer_blocks/attn: C R*5", "single_transformer_blocks/attn: C R*5"]),
    (UNET, ["resnets.*: C R*5", "resnets.0: C R*5", "down_blocks/resnets.*: C R*5", "mid_block@*: C R*5"]),
]  # fmt: skip


@pytest.mark.parametrize(("tree", "texts"), EQUAL)
def test_equal_schedules_written_differently(tree, texts):
    plans = [plan_of(text, tree) for text in texts]
    assert all(plan == plans[0] for plan in plans)
    assert len({str(plan) for plan in plans}) == 1


@pytest.mark.parametrize(("tree", "texts"), UNEQUAL)
def test_unequal_schedules(tree, texts):
    plans = [plan_of(text, tree) for text in texts]
    assert all(one != other for i, one in enumerate(plans) for other in plans[:i])
    assert len({str(plan) for plan in plans}) == len(texts)


# The text that is written


@pytest.mark.parametrize(
    ("tree", "text", "canonical"),
    [
        (PIXART, "attn1: C*6", "off"),
        (PIXART, "ff@3,1,2 : C R R R R R", "ff@1-3: C R*5"),
        (PIXART, "*: CRCRCR", "attn1 + attn2 + ff: (C R)*3"),
        (PIXART, "ff: C R*5 | attn1@1: C R*5 | attn2: (C R)*3", "attn2: (C R)*3 | ff + attn1@1: C R*5"),
        (PIXART, "transformer_blocks@0-2: C*3 S C C | denoiser: C C R C*3",
         "denoiser: C C R C*3 | transformer_blocks@0-2: C*3 S C C"),
        (PIXART, "transformer_blocks@0-27: C R*5", "transformer_blocks@*: C R*5"),
        (FLUX, "single_transformer_blocks/attn@0-3: C R*5", "single_transformer_blocks/attn: C R*5"),
        (FLUX, "attn@*: C R*5 | transformer_blocks/attn@1: C*6",
         "transformer_blocks/attn@0,2 + single_transformer_blocks/attn: C R*5"),
        (UNET, "resnets.0: C R*5 | up_blocks/resnets.*: C R*5", "resnets.0 + up_blocks/resnets.*: C R*5"),
        (UNET, "down_blocks/attentions.*.transformer_blocks.*.ff: C R*5",
         "down_blocks/attentions.*.transformer_blocks.*.ff: C R*5"),
        (UNET, "conv_in@0: C R*5", "conv_in@*: C R*5"),
        (CLASHES, "mix/mix + mix/denoiser + mix/off + decoder.mix/off: C R*5", "mix/mix + mix/denoiser + off: C R*5"),
    ],
)  # fmt: skip
def test_the_canonical_text(tree, text, canonical):
    assert str(plan_of(text, tree)) == canonical


@pytest.mark.parametrize(
    ("actions", "text"),
    [
        ("", ""),
        ("C", "C"),
        ("CC", "C C"),
        ("CCC", "C*3"),
        ("CRCR", "C R C R"),  # as long as (C R)*2, and simpler
        ("CRCRCR", "(C R)*3"),
        ("CRRF1CRRF1CRRF1CRRF1C", "(C R R F1)*4 C"),
        ("CRRCRRCRRCR", "(C R R)*3 C R"),
        ("C" * 7 + "RC" * 6 + "C", "C*7 (R C)*6 C"),
        ("C" + "R" * 4 + "C" + "R" * 4, "(C R*4)*2"),
        ("CCF1F1", "C C F1*2"),
        ("SSSSRRCF9", "S*4 R R C F9"),
    ],
)
def test_the_shortest_actions(actions, text):
    assert shortest_actions(parse_actions(actions, len(actions.replace("1", "").replace("9", "")))) == text


def every_text(tokens: tuple[str, ...]) -> list[str]:
    """Oracle: all texts of these actions with repetitions of any length, none within another pair of parentheses."""
    if not tokens:
        return [""]
    texts = [f"{tokens[0]} {rest}".strip() for rest in every_text(tokens[1:])]
    for period in range(1, len(tokens) // 2 + 1):
        times = 2
        while tokens[:period] * times == tokens[: period * times]:
            inner = [tokens[0]] if period == 1 else [f"({t})" for t in every_text(tokens[:period]) if "(" not in t]
            for rest in every_text(tokens[period * times :]):
                texts += [f"{text}*{times} {rest}".strip() for text in inner]
            times += 1
    return texts


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["C", "R", "F1"]), max_size=9).map(tuple))
@example(("C", "C", "C", "C", "F1", "C", "C", "F1", "C"))
def test_no_text_of_these_actions_is_shorter(tokens):
    assert len(shortest_actions(tokens)) == min(map(len, every_text(tokens)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["C", "R", "S", "F1", "F9"]), max_size=60).map(tuple))
@example(("C", "R") * 500)
def test_actions_come_back(tokens):
    assert parse_actions(shortest_actions(tokens), len(tokens)) == tokens


@st.composite
def plans(draw, tree: Tree) -> Plan:
    """A valid plan: wanted actions of some nodes, with C wherever a node could not read enough or be skipped."""
    nodes = [node.name for node in tree]
    texts = draw(st.lists(st.lists(st.sampled_from("CCCRSF"), min_size=STEPS, max_size=STEPS), min_size=1, max_size=3))
    several = st.sets(st.sampled_from(nodes), max_size=12) | st.sampled_from(
        [frozenset(n.name for n in tree if n.component == c) for c in {n.component for n in tree}]
    )
    wanted: dict[str, list[str]] = {}
    for actions in texts:
        wanted |= dict.fromkeys(draw(several), actions)
    tokens: dict[str, tuple[str, ...]] = {}
    for node in tree:
        above = tokens[node.parent] if node.parent else (OFF,) * STEPS
        own, computed = [], 0
        for letter, parent in zip(wanted.get(node.name, OFF * STEPS), above, strict=True):
            token = "F1" if letter == "F" else letter
            if values_read(token) > computed or (token == "S" and tree.skipped(node) is None):
                token = OFF
            if node.kind == "stack" and not tree.stack(node.stack).outputs:
                token = OFF
            own.append(token if parent == OFF else ABSENT)
            computed += token == OFF and parent == OFF
        tokens[node.name] = tuple(own)
    return Plan(tree, STEPS, tokens)


@pytest.mark.parametrize("name", TREES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read_back(name, data):
    tree = TREES[name]
    plan = data.draw(plans(tree))
    text = str(plan)
    assert plan_of(text, tree) == plan
    assert str(plan_of(text, tree)) == text
    assert plan_of("".join(text.split()), tree) == plan
    assert (text == "off") == plan.is_off
    assert plan_of(text.replace(" | ", " |\n"), tree) == plan
    if (other := data.draw(plans(tree))) != plan:
        assert str(other) != text


def test_the_presets_are_read_back():
    read = 0
    for path in sorted(Path("docs/presets").glob("*/*.json")):
        data = json.loads(path.read_text())
        if not isinstance(data, dict) or "plan" not in data:
            continue
        schedule = Schedule.from_dict(data)
        rules = parse_notation(str(schedule.plan), schedule.tree, schedule.plan.steps)
        again = Schedule.from_dict(data | {"digest": None, "plan": data["plan"] | {"rules": [list(r) for r in rules]}})
        assert again.digest == schedule.digest
        read += 1
    assert read > 50


@pytest.mark.parametrize(
    ("tree", "names", "text"),
    [
        (PIXART, [ROOT], "denoiser"),
        (PIXART, ["transformer_blocks"], "transformer_blocks"),
        (PIXART, [f"transformer_blocks.{i}" for i in range(1, 28)], "transformer_blocks@1-27"),
        (PIXART, ["transformer_blocks.3:ff"], "ff@3"),
        (FLUX, ["single_transformer_blocks.3:attn", "single_transformer_blocks.1:attn"],
         "single_transformer_blocks/attn@1,3"),
        (FLUX, ["transformer_blocks.1", *(f"single_transformer_blocks.{i}" for i in range(4))],
         "transformer_blocks@1 + single_transformer_blocks@*"),
    ],
)  # fmt: skip
def test_places(tree, names, text):
    assert format_places(names, tree) == text


SCHEDULE = {
    "format": "schedule/1",
    "model": {"class": "PixArtTransformer2DModel", "stacks": {"transformer_blocks": 4}},
    "steps": STEPS,
}


def test_a_schedule_takes_a_plan_and_writes_it():
    scores = {"drift": {"value": 0.1}}
    plan = {"axis": "timestep", "rules": [["denoiser", "CCF1C*3"]]}
    schedule = Schedule.from_dict(SCHEDULE | {"plan": plan, "scores": scores, "made": {"name": "x"}})
    other = schedule.with_plan("ff@0-2: C C F1 C*3")
    assert other.to_dict()["plan"] == {
        "value": "out",
        "axis": "timestep",
        "rules": [["transformer_blocks.[0-2]:ff", "CCF1CCC"]],
    }
    assert other.plan_text == "ff@0-2: C C F1 C*3" and other.made == {"name": "x"} and other.scores == {}
    assert other.with_plan(schedule.plan_text) == schedule
    assert other.with_plan("off") == Schedule.from_dict(SCHEDULE) and other.with_plan("off").plan_text == "off"
    with pytest.raises(ScheduleError, match="plan notation, character 1, 'fff'"):
        schedule.with_plan("fff: C R*5")
    with pytest.raises(ScheduleError, match="any number of steps.*write steps into the schedule first"):
        Schedule.from_dict({k: SCHEDULE[k] for k in ("format", "model")}).with_plan("off")


def test_gates_are_written_after_the_plan():
    gate = {
        "group": "transformer_blocks.[1-2]",
        "actions": "C G*4 C",
        "signal": "first_block_residual",
        "threshold": 0.1,
    }
    schedule = Schedule.from_dict(SCHEDULE | {"gates": [gate]})
    assert schedule.plan_text == "transformer_blocks@1-2: C G*4 C"
    assert schedule.with_plan("ff@0,3: C*5 R").plan_text == "ff@0,3: C*5 R | transformer_blocks@1-2: C G*4 C"


# The page


PAGE = Path("docs/plan-notation.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(.+?)` \| (.+?) \|$", PAGE, re.MULTILINE)
REAL = {
    "pixart": PIXART,
    "flux": Tree("FluxTransformer2DModel", {"transformer_blocks": 19, "single_transformer_blocks": 38}),
    "unet": UNET,
}


def test_the_examples_of_the_page_are_canonical():
    examples = [text.replace("\\|", "|") for text, _ in ROWS if text == "off" or ": " in text][:10]
    for text, tree in zip(examples, [REAL["pixart"]] * 7 + [REAL["flux"]] * 2 + [REAL["unet"]], strict=True):
        assert str(plan_of(text, tree, 20)) == text


def test_the_page_shows_what_is_typed_and_what_is_str():
    pairs = [(a.replace("\\|", "|"), b.strip("`")) for a, b in ROWS if b.startswith("`")]
    assert len(pairs) == 4
    for typed, canonical in pairs:
        assert str(plan_of(typed, PIXART, 20)) == canonical


def test_the_page_has_the_grammar_and_errors_as_they_are():
    grammar = re.search(r"    plan      =.*?(?=\n\n)", notation.__doc__, re.DOTALL)[0]
    assert "\n".join(line[4:] for line in grammar.splitlines()) in PAGE
    unknown, unread = (" ".join(block.split()) for block in re.findall(r"```text\n(plan.*?)```", PAGE, re.DOTALL)[-2:])
    with pytest.raises(ScheduleError, match=f"^{re.escape(unknown)}$"):
        plan_of("attn1: C*20     | atn2: C R*19", PIXART, 20)
    with pytest.raises(ScheduleError, match=f"^{re.escape(unread)}$"):
        plan_of("ff@1: C F2 C*18", PIXART, 20)


# Errors


@pytest.mark.parametrize(
    ("tree", "text", "message"),
    [
        (PIXART, "", r"character 1, '': a rule is a place, ':' and its actions.*type 'attn1: C R\*5', or 'off'"),
        (PIXART, "C R*5", r"character 1, 'C R\*5': a rule is a place"),
        (PIXART, "attn1: C R*5 |", "character 15, '': a rule is a place"),
        (PIXART, "attn1: C R*5 | | ff: C*6", "character 16, '': a rule is a place"),
        (PIXART, "attn1: C*6 |  atn2: C R*5",
         r"character 15, 'atn2': PixArt.* has no place of this name; there are denoiser, transformer_blocks, attn1, "
         r"attn2, ff; the nearest name is 'attn2'; type a stack or a component, with blocks after '@', for example "
         r"'attn1: C R\*5'"),
        (PIXART, ": C R*5", "character 1, '': PixArt.* has no place of this name"),
        (PIXART, "attn1 + : C R*5", "character 9, '': PixArt.* has no place of this name"),
        (PIXART, "attn1 + ff@28: C R*5",
         "character 9, 'ff@28': '28' is not a block or a range of blocks of transformer_blocks, which are numbered 0 "
         r"to 27; type '@0', '@0-27', '@\*'"),
        (PIXART, "ff@3-1: C R*5", "'ff@3-1': '3-1' is not a block or a range"),
        (PIXART, "ff@0-28: C R*5", "'0-28' is not a block"),
        (PIXART, "ff@: C R*5", "'ff@': '' is not a block"),
        (PIXART, "ff@0,: C R*5", "'ff@0,': '' is not a block"),
        (PIXART, "ff@-1: C R*5", "'-1' is not a block"),
        (PIXART, "ff@0--1: C R*5", "'0--1' is not a block"),
        (PIXART, "ff@" + "9" * 5000 + ": C R*5", "'99999999999999999999' is not a block"),
        (PIXART, "ff@٣: C R*5", "'٣' is not a block"),
        (PIXART, "transformer_blocks@0-3@1: C R*5", "'0-3@1' is not a block"),
        (PIXART, "denoiser@0: C R*5", "'denoiser@0': PixArt.* has no place of this name"),
        (PIXART, "blocks/ff: C R*5", "'blocks/ff': PixArt.* has no place of this name; .*the nearest name is 'ff'"),
        (PIXART, "transformer_blocks/: C R*5", "'transformer_blocks/': PixArt.* has no place of this name"),
        (PIXART, "transformer_blocks.3:ff: C R*5", "'transformer_blocks.3': .*nearest name is 'transformer_blocks'"),
        (PIXART, "attn1: C R", "character 1, 'attn1': 2 actions for 6 steps"),
        (PIXART, "ff: C*6 | attn1: C*7", "character 11, 'attn1': more than the schedule's 6 steps"),
        (PIXART, "attn1: C X*5", r"character 1, 'attn1': .*X\*5'.* use C, R, S, F1..F9"),
        (PIXART, "attn1: (C R*5", r"character 1, 'attn1': '\(' without '\)'"),
        (FLUX, "attn@0-2: C R*5",
         "'attn@0-2': attn is in the stacks transformer_blocks and single_transformer_blocks, which number their "
         "blocks separately; type 'transformer_blocks/attn@0-2'"),
        (FLUX, "transformer_blocks/proj_out: C R*5", "'transformer_blocks/proj_out': Flux.* has no place of this name"),
        (UNET, "up_blocks: C R*5",
         r"'up_blocks': the blocks of up_blocks do not form a chain that can be planned as a whole; type "
         r"'up_blocks@\*'"),
        (UNET, "upsamplers.0@1: C R*5",
         "'upsamplers.0@1': none of these blocks of up_blocks has upsamplers.0; the blocks 0 have it"),
        (UNET, "nothing: C R*5", r"there are denoiser, conv_in, down_blocks, .*, upsamplers\.\*; type a stack"),
    ],
)  # fmt: skip
def test_errors_name_the_place_and_what_to_type(tree, text, message):
    with pytest.raises(ScheduleError, match=f"^plan notation, .*({message})"):
        parse_notation(text, tree, STEPS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ff@1: C F2 C*4", r"put 2 more C before it; its actions are 'ff@1: C F2 C\*4'$"),
        (
            "transformer_blocks@1: C R C*4 | ff@1: S C R S C C",
            "transformer_blocks.1:ff at step 2 is R, .*; its actions are 'ff@1: S - R S C C'; at the steps - a node "
            "around it is not computed$",
        ),
        ("denoiser: C S C*4", r"denoiser cannot be skipped .*; its actions are 'denoiser: C S C\*4'$"),
    ],
)
def test_errors_of_a_plan_show_the_actions_of_the_node(text, message):
    with pytest.raises(ScheduleError, match=f"^plan: .*{message}"):
        plan_of(text)


def test_hostile_texts_are_refused():
    for text in ("(" * 100_000, "|" * 100_000, "+" * 100_000 + ":C*6", "ff@" + "0," * 50_000 + "x: C*6", " " * 10**6):
        with pytest.raises(ScheduleError):
            parse_notation(text, PIXART, STEPS)
