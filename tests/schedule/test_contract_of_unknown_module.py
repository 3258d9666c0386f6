"""Modules of no known class by a contract of their own: from YAML, from a file, and when it is wrong."""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from search.schedule import Schedule, ScheduleError
from search.schedule.model.contracts import CONTRACTS, Contract
from search.schedule.model.identity import fingerprint, model_part
from search.schedule.model.nodes import Tree
from tests.helpers.unknown_module import CONTRACT, WIDTH, Anybody, Block, Neck, Turn, contract, pipeline, run, schedule

# What works


def test_yaml_is_read_as_it_is_written():
    text = """
    stacks:
      - name: trunk.blocks
        components: [turn, net, net.1]
        outputs: [x, y]
        zeros: {turn: [x], net: [x]}
      - {name: neck, components: [], outputs: [x], single: true}
    sample: x
    """
    assert Contract.from_dict(yaml.safe_load(text)) == contract()
    assert Contract.from_dict(contract().to_dict()) == contract()


def test_nodes_of_a_stack_deep_in_the_module():
    tree = Tree.of(Anybody(2), contract())
    assert tree.stacks == {"trunk.blocks": 2, "neck": 1}
    assert tree.select("trunk.blocks") == ["trunk.blocks"]
    assert tree.select("trunk.blocks.*:*") == [f"trunk.blocks.{i}:{c}" for i in (0, 1) for c in ("turn", "net")]
    assert tree.select("trunk.blocks.[0-1]:net.1") == ["trunk.blocks.0:net.1", "trunk.blocks.1:net.1"]
    assert tree.nodes["trunk.blocks.1:net.1"].parent == "trunk.blocks.1:net"
    assert tree.node_of("trunk.blocks.1.net.0.weight").name == "trunk.blocks.1:net"
    for wrong in ("trunk", "trunk.*", "trunk.blocks.2", "trunk.blocks:net", "trunk.blocksy.*", "neck.1"):
        with pytest.raises(ScheduleError, match=f"selector {re.escape(repr(wrong))} matches no node of Anybody"):
            tree.select(wrong)


def test_off_is_bit_exact_and_leaves_no_trace():
    pipe = pipeline()
    expected, scheduler = run(pipe), pipe.scheduler
    every = [["trunk.blocks.*:*", "C*6"], ["trunk.blocks.*", "C*6"], ["neck", "C*6"]]
    for rules in ([], every):
        with schedule(pipe, rules).apply(pipe):
            assert torch.equal(run(pipe), expected)
    assert pipe.scheduler is scheduler
    assert not [m for m in pipe.denoiser.modules() if "_diffusers_hook" in vars(m) or "forward" in vars(m)]


def test_a_plan_equals_the_loop_written_by_hand():
    pipe = pipeline()
    rules = [
        ["denoiser", "CCCCRC"],
        ["trunk.blocks", "CCRCCC"],
        ["trunk.blocks.0", "CSCCCR"],
        ["trunk.blocks.1:turn", "CCCRCF1"],
        ["trunk.blocks.2:net", "CCCSCR"],
        ["neck.0", "CRCCCC"],
    ]
    kept = {}

    def call(step, x, time):
        """The same without hooks: what runs at each step, and what stands in for the rest."""
        if step == 4:
            return kept["out"]
        net, y = pipe.denoiser, x.flip(0)
        if step == 2:
            x, y = kept["trunk"]
        else:
            for i, block in enumerate(net.trunk.blocks):
                if i == 0 and step == 1:
                    continue
                if i == 0 and step == 5:
                    x, y = kept["block"]
                    continue
                if i == 1 and step == 3:
                    turned = kept["turn"][-1]
                elif i == 1 and step == 5:  # the line through steps 0 and 1, the last two where it was computed
                    turned = 5 * kept["turn"][-1] - 4 * kept["turn"][-2]
                else:
                    turned = block.turn(x, y)
                if i == 1 and step in (0, 1):
                    kept.setdefault("turn", []).append(turned)
                x = x + time * turned
                if i == 2 and step in (3, 5):
                    net_output = torch.zeros_like(x) if step == 3 else kept["net"]
                else:
                    net_output = block.net(x)
                if i == 2:
                    kept["net"] = net_output if step not in (3, 5) else kept["net"]
                x, y = x + net_output, (y + x).tanh()
                if i == 0:
                    kept["block"] = x, y
        kept["trunk"] = x, y
        kept["neck"] = kept["neck"] if step == 1 else net.neck(x)
        kept["out"] = kept["neck"]
        return kept["out"]

    expected = run(pipe, call)
    with schedule(pipe, rules).apply(pipe) as handle:
        found = run(pipe)
        nodes = handle.stats()["nodes"]
    assert torch.allclose(found, expected, atol=1e-6)
    assert (found - run(pipe)).norm() > 1e-2
    assert nodes["trunk.blocks.1:turn"] == {"C": 2, "R": 1, "F1": 1}
    assert nodes["neck.0"] == {"C": 4, "R": 1}


def test_the_file_carries_the_contract(tmp_path):
    pipe = pipeline()
    made = schedule(pipe, [["trunk.blocks.*:net", "CRCRCR"], ["trunk.blocks", "CCCCCS"]])
    with made.apply(pipe):
        expected = run(pipe)
    loaded = Schedule.load(made.save(tmp_path / "own.json"))
    assert loaded == made and loaded.to_dict()["model"]["contract"] == contract().to_dict()
    with loaded.apply(pipeline()) as handle:
        assert torch.equal(run(handle.run.pipe()), expected)


def test_a_forward_that_a_base_class_has_is_no_patch():
    class Heir(Anybody):
        pass

    Heir.__module__ = "somewhere.else"
    pipe = pipeline(Heir())
    with schedule(pipe, [["neck.0", "CRCRCR"]]).apply(pipe):
        assert run(pipe).isfinite().all()


def test_a_config_that_is_no_mapping_is_no_part_of_the_fingerprint():
    plain, configured = Anybody(), Anybody()
    configured.config = SimpleNamespace(width=WIDTH)
    assert fingerprint(configured) == fingerprint(plain) != fingerprint(Anybody(4))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x, None), lambda x: SampleOutput(x)])
def test_a_denoiser_may_give_a_tensor_a_tuple_or_an_output_with_a_sample(wrap):
    class Wrapped(Anybody):
        def forward(self, x, time):
            return wrap(super().forward(x, time))

    pipe = pipeline(Wrapped())
    kept, seen = [], []
    hand = lambda i, x, time: kept.append(pipe.denoiser(x, time)) or kept[-1] if i % 2 == 0 else kept[-1]  # noqa: E731
    expected = run(pipe, hand)
    with schedule(pipe, [["denoiser", "CRCRCR"]]).apply(pipe):
        found = run(pipe, lambda i, x, time: seen.append(pipe.denoiser(x, time)) or seen[-1])
    assert torch.equal(found, expected)
    assert {type(output) for output in seen} == {type(kept[0])}


class SampleOutput:
    def __init__(self, sample):
        self.sample = sample

    def __getitem__(self, place):
        return (self.sample,)[place]


# What does not fit the module


def test_a_contract_is_needed():
    with pytest.raises(
        ScheduleError, match="'Anybody' has no node contract; .* describe any other module by a contract"
    ):
        model_part(Anybody())
    with pytest.raises(ScheduleError, match="'Anybody' has no node contract"):
        Schedule.from_dict({"format": "schedule/1", "model": {"class": "Anybody", "stacks": {"neck": 1}}})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "trunk.blokcs"}, "Anybody has no trunk.blokcs: Module has blocks"),
        ({"name": "stem.blocks"}, "Anybody has no stem.blocks: Anybody has trunk, neck"),
        (
            {"name": "trunk"},
            "trunk is a Module instead of a list of blocks; if it is one block, write 'single: true'",
        ),
        ({"components": ["turn", "net", "ent"]}, "no trunk.blocks.0:ent: Block lacks 'ent'; it has turn, net"),
        ({"components": ["turn", "net", "net.7"]}, "Block lacks 'net.7'"),
        ({"components": ["net.1", "turn", "net"]}, "net.1 lies in net; name net before it"),
        (
            {"outputs": ["x", "z"]},
            r"trunk.blocks.0: the contract's outputs name 'z', which is not an argument of Block.forward; ",
        ),
    ],
)
def test_what_the_module_lacks_is_told_with_what_it_has(changes, told):
    with pytest.raises(ScheduleError, match=told):
        model_part(Anybody(), contract(**changes))


def test_one_module_in_two_places_is_refused():
    denoiser = Anybody()
    denoiser.trunk.blocks[2] = denoiser.trunk.blocks[0]
    with pytest.raises(
        ScheduleError, match="trunk.blocks.2 and trunk.blocks.0 are one module, which cannot be planned"
    ):
        model_part(denoiser, contract())


def test_another_class_or_another_depth_is_refused():
    made = schedule(pipeline(), [["neck.0", "CRCRCR"]])
    Other = type("Other", (Anybody,), {})
    with pytest.raises(ScheduleError, match="model.class is 'Anybody', but the pipeline's denoiser is a Other"):
        made.apply(pipeline(Other()))
    with pytest.raises(ScheduleError, match="model.stacks is .* but this Anybody has"):
        made.apply(pipeline(Anybody(4)))
    wider = Anybody()
    wider.neck = torch.nn.Sequential(Neck(WIDTH, WIDTH))[0]
    wider.extra = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ScheduleError, match="model.fingerprint"):
        made.apply(pipeline(wider))


# What it says of its outputs, and they are not


def of_blocks(forward):
    """The denoiser whose blocks give back something else; whoever calls them knows."""
    block = type("Block", (Block,), {"forward": forward})
    return type("Anybody", (Anybody,), {"block": block})()


def refused(pipe, made, told):
    with made.apply(pipe), pytest.raises(ScheduleError, match=told):
        run(pipe)


def plain(self, x, y, time):
    return x + time * self.turn(x, y), y


@pytest.mark.parametrize(
    ("forward", "outputs", "told"),
    [
        (
            lambda self, x, y, time: [*plain(self, x, y, time)],
            ["x"],
            r"tuple of 2 \(float32 \[2, 6\].*one tensor, in place of x",
        ),
        (plain, [], None),
        (plain, ["x", "y"], None),
        (plain, ["y", "time"], r"float32 \[2, 6\] is in place of time, which is float32 \[\]; .* 'outputs: \[\]'"),
        (
            lambda self, x, y, time: (x, y[..., None]),
            ["x", "y"],
            r"\[2, 6, 1\] is in place of y, which is float32 \[2, 6\]",
        ),
        (
            lambda self, x, y, time: (x, y.half() if y.dtype == torch.float32 else y.float()),
            ["x", "y"],
            r"float\d\d \[2, 6\] is in place of y, which is float\d\d \[2, 6\]",
        ),
        (lambda self, x, y, time: (x, {"y": y}), ["x", "y"], "a dict; schedules store tensors and tuples of them"),
    ],
)
@pytest.mark.parametrize("level", ["trunk.blocks.1", "trunk.blocks"])
def test_outputs_are_verified_when_a_block_is_first_computed(forward, outputs, told, level):
    if level == "trunk.blocks" and not outputs:
        pytest.skip("no chain, so no stack")

    class Loose(of_blocks(forward).__class__):
        def forward(self, x, time):
            y = x
            for block in self.trunk.blocks:
                x, found = block(x, y, time)
                y = found if isinstance(found, torch.Tensor) and found.shape == y.shape else y
            return self.neck(x)

    pipe = pipeline(Loose())
    made = schedule(pipe, [[level, "CCRCRC"]], contract(outputs=outputs, zeros={}))
    run(pipe)
    with made.apply(pipe):
        if told is None:
            run(pipe)
        else:
            with pytest.raises(ScheduleError, match=rf"trunk.blocks.[01] returns .*{told}"):
                run(pipe)
    run(pipe)


def test_a_tuple_of_one_is_no_tensor():
    class TupleNeck(Neck):
        def forward(self, x):
            return (super().forward(x),)

    class Loose(Anybody):
        def __init__(self):
            super().__init__()
            self.neck = TupleNeck(WIDTH, WIDTH)

        def forward(self, x, time):
            return super().forward(x, time)[0]

    pipe = pipeline(Loose())
    refused(pipe, schedule(pipe, [["neck.0", "CSCSCS"]]), r"neck.0 returns a tuple of 1 .*one tensor, in place of x")


def test_under_autocast_types_are_torchs_own_choice():
    pipe = pipeline()
    with schedule(pipe, [["trunk.blocks.*", "CRCSCR"]]).apply(pipe), torch.autocast("cpu", torch.bfloat16):
        assert run(pipe).isfinite().all()


def test_blocks_of_a_gated_group_are_verified_too():
    pipe = pipeline(of_blocks(lambda self, x, y, time: (x, y.double())))
    gate = {"group": "trunk.blocks.[0-1]", "actions": "CRCRCR"}
    made = schedule(pipe, [], contract(zeros={}), gates=[gate])
    refused(pipe, made, r"a Block returns .* float64 \[2, 6\] is in place of y, which is float32 \[2, 6\]")


def test_verification_runs_once_for_each_block_and_handle(monkeypatch):
    from search.schedule.apply import hooks as actions

    seen = []
    monkeypatch.setattr(actions, "check_block", lambda name, *_: seen.append(name))
    monkeypatch.setattr(actions, "check_component", lambda name, *_: seen.append(name))
    monkeypatch.setattr(actions, "check_value", lambda name, *_: seen.append(name))
    pipe = pipeline()
    rules = [["trunk.blocks.*", "CCRCCC"], ["trunk.blocks.1:net", "SCCCSC"], ["trunk.blocks.2:turn", "CRCRCR"]]
    made = schedule(pipe, rules)
    once = ["trunk.blocks.0", "trunk.blocks.1", "trunk.blocks.1:net", "trunk.blocks.2", "trunk.blocks.2:turn"]
    for times in (1, 2):
        with made.apply(pipe):
            run(pipe)
            run(pipe)
        assert sorted(seen) == sorted(times * once)


@pytest.mark.parametrize(
    ("zeros", "passes", "told"),
    [
        ({"turn": ["x"]}, [], None),
        ({}, ["turn"], None),
        (
            {"turn": ["x", "y"]},
            [],
            r"trunk.blocks.1:turn returns float32 \[2, 6\], but .*zeros like x, y where it is skipped",
        ),
        ({"turn": ["z"]}, [], r"trunk.blocks.1:turn returns .* None where it is skipped, after z"),
    ],
)
def test_a_component_that_will_be_skipped_is_verified_too(zeros, passes, told):
    pipe = pipeline()
    made = schedule(pipe, [["trunk.blocks.1:turn", "CCCSCS"]], contract(zeros=zeros, passes=passes))
    with made.apply(pipe):
        if told is None:
            assert run(pipe).isfinite().all()
        else:
            with pytest.raises(ScheduleError, match=told):
                run(pipe)


def test_a_component_that_passes_its_input_on_must_give_one_like_it():
    class Wide(Turn):
        def forward(self, x, y):
            return super().forward(x, y)[None]

    pipe = pipeline()
    pipe.denoiser.trunk.blocks[0].turn = Wide(WIDTH, WIDTH)
    made = schedule(pipe, [["trunk.blocks.0:turn", "CSCCCC"]], contract(zeros={}, passes=["turn"]))
    refused(pipe, made, r"turn returns float32 \[1, 2, 6\], .* float32 \[2, 6\] where it is")


def test_what_is_skipped_before_it_was_ever_computed_needs_its_argument():
    pipe = pipeline()
    made = schedule(pipe, [["trunk.blocks.0:turn", "S*6"]], contract(zeros={"turn": ["z"]}))
    refused(pipe, made, "trunk.blocks.0:turn was called without z, which its contract names; it got x, y")


def test_a_denoiser_that_gives_back_something_else_is_refused():
    class Dictionary(Anybody):
        def forward(self, x, time):
            return {"sample": str(super().forward(x, time))}

    pipe = pipeline(Dictionary())
    made = schedule(pipe, [["neck.0", "CRCRCR"]])
    refused(pipe, made, "the denoiser returns a dict; a schedule takes a tensor, a tuple")


@pytest.mark.parametrize(("key", "name"), [("sample", "nope"), ("sample", "__class__"), ("text", "words")])
def test_an_argument_that_the_denoiser_does_not_have_is_refused(key, name):
    pipe = pipeline()
    made = schedule(pipe, [["neck.0", "CRCRCR"]]).to_dict()
    made["model"]["contract"][key] = name
    del made["digest"]
    with pytest.raises(
        ScheduleError, match=rf"model.contract.{key} is '{name}', which is not an argument of Anybody; "
    ):
        Schedule.from_dict(made).apply(pipe)


# What is no contract


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (None, "contract is None"),
        ([], r"contract is \(\)"),
        ({}, "contract.stacks is missing"),
        ({"stacks": []}, "contract.stacks has 0 names in 0 stacks; give one stack or more"),
        ({"stacks": "layers"}, "contract.stacks is 'layers'"),
        ({"stacks": [{"name": "a"}]}, "contract.stacks.0.components is missing"),
        (
            {"stacks": [{"name": "a", "components": ["b"], "output": ["x"]}]},
            "contract.stacks.0.output does not exist; there are name",
        ),
        (
            {"stacks": [{"name": "a", "components": []}], "steps": 3},
            "contract.steps does not exist; there are stacks, conditional",
        ),
        ({"stacks": [{"name": "a", "components": "b"}]}, "contract.stacks.0.components is 'b'"),
        ({"stacks": [{"name": "a", "components": [3]}]}, "contract.stacks.0.components.0 is 3"),
        ({"stacks": [{"name": "a b", "components": []}]}, "contract.stacks.0: 'a b' is not an attribute path such as"),
        ({"stacks": [{"name": "a", "components": ["é"]}]}, "contract.stacks.0: 'é' is not an attribute path"),
        ({"stacks": [{"name": "a", "components": [""]}]}, "contract.stacks.0: '' is not an attribute path"),
        ({"stacks": [{"name": "a", "components": ["b" * 201]}]}, "is not an attribute path"),
        ({"stacks": [{"name": "a.*", "components": []}]}, r"contract.stacks.0.name is 'a.\*'; a stack is one list"),
        ({"stacks": [{"name": "denoiser", "components": []}]}, "contract.stacks.0.name is 'denoiser'"),
        (
            {"stacks": [{"name": "a", "components": ["b.*"]}]},
            r"has 'b.\*'; where blocks have lists, write 'uniform: false'",
        ),
        ({"stacks": [{"name": "a", "components": ["b", "b"]}]}, "contract.stacks.0.components names 'b' twice"),
        (
            {"stacks": [{"name": "a", "components": [], "outputs": ["x", "x"]}]},
            "contract.stacks.0.outputs names 'x' twice",
        ),
        (
            {"stacks": [{"name": "a", "components": [], "outputs": ["x.y"]}]},
            "contract.stacks.0: 'x.y' is not the name of an arg",
        ),
        (
            {"stacks": [{"name": "a", "components": ["b"], "zeros": {"c": ["x"]}}]},
            "zeros has 'c', which is none of its comp",
        ),
        (
            {"stacks": [{"name": "a", "components": ["b"], "zeros": {"b": []}}]},
            "contract.stacks.0.zeros.b is empty; name the",
        ),
        (
            {"stacks": [{"name": "a", "components": ["b"], "passes": ["c"]}]},
            "passes has 'c', which is none of its components",
        ),
        ({"stacks": [{"name": "a", "components": []}] * 2}, "contract.stacks: of 'a' and 'a' one lies in the other"),
        ({"stacks": [{"name": n, "components": []} for n in ("a.b", "a")]}, "of 'a.b' and 'a' one lies in the other"),
        ({"stacks": [{"name": "a", "components": []}], "conditional": 2}, "contract.conditional is 2; give 0 or 1"),
        ({"stacks": [{"name": "a", "components": []}], "text": ""}, "contract: '' is not the name of an argument"),
        ({"stacks": [{"name": "a", "components": [f"c{i}" for i in range(201)]}]}, "has 203 names in 1 stacks"),
    ],
)
def test_mistakes_are_told_by_key_and_value(data, told):
    with pytest.raises(ScheduleError, match=told):
        Contract.from_dict(data)


def test_depth_and_size_are_bounded():
    deep = []
    for _ in range(3000):
        deep = [deep]
    with pytest.raises(ScheduleError, match="contract is nested more than 8 deep"):
        Contract.from_dict({"stacks": deep})
    many = {"stacks": [{"name": "a", "components": [f"c{i}" for i in range(150)]}]}
    with pytest.raises(ScheduleError, match="model.stacks.a has more than 200000 components in all"):
        Tree("Anybody", {"a": 10_000}, Contract.from_dict(many))


KEYS = st.sampled_from(
    ["stacks", "conditional", "text", "sample", "copies", "name", "components", "outputs", "zeros", "passes", "single"]
    + ["uniform", "trunk.blocks", "turn", "net", "net.1", "x", "y", "*", "net.*", "neck", "", "0", "denoiser"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | KEYS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_malformed_contracts_raise_schedule_errors_only(data):
    """Anything at all, or a good contract with one part replaced: read, fitted to a module, applied and run."""
    raw = copy.deepcopy(CONTRACT)
    place = data.draw(st.sampled_from(["all", "top", "stack"]))
    if place == "all":
        raw = data.draw(JSON)
    elif place == "top":
        raw[data.draw(KEYS)] = data.draw(JSON)
    else:
        raw["stacks"][data.draw(st.integers(0, 1))][data.draw(KEYS)] = data.draw(JSON)
    pipe = pipeline(Anybody(2))
    try:
        own = Contract.from_dict(raw)
        assert Contract.from_dict(own.to_dict()) == own
        tree = Tree.of(pipe.denoiser, own)
        nodes = [node for node in tree if node.kind in ("block", "component")]
        rules = [[node.name, "CSCCRC" if tree.skipped(node) is not None else "CRCCRC"] for node in nodes]
        with schedule(pipe, rules, own).apply(pipe):
            run(pipe)
    except ScheduleError as error:
        assert len(str(error)) < 600


def test_files_with_malformed_contracts_raise_schedule_errors_only():
    part = model_part(Anybody(), contract())
    for wrong in ({}, {"stacks": {}}, {"stacks": [{}]}, {"stacks": [[[[[[[[[[[[]]]]]]]]]]]]}, [], "x", 3):
        with pytest.raises(ScheduleError):
            Schedule.from_dict({"format": "schedule/1", "model": part | {"contract": wrong}})


@pytest.mark.parametrize("name", sorted(CONTRACTS))
def test_known_contracts_keep_the_rules_for_others(name):
    assert Contract.from_dict(CONTRACTS[name].to_dict()) == CONTRACTS[name]
