"""Node contracts: of a denoiser class its stacks of blocks, what a block returns, and how it is guided.

The contract of any other module is written in YAML or Python, and stored in the schedule file:

    contract = Contract.from_dict({"stacks": [{"name": "layers", "components": ["attn", "mlp"], "outputs": ["x"]}]})
    model = model_part(denoiser, contract)  # of search.schedule.model.identity
    Schedule.from_dict({"format": "schedule/1", "model": model, "steps": 20, "plan": ...}).apply(pipe)

where `pipe` is any object with a `denoiser` (or `transformer`, or `unet`) and a diffusers `scheduler`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from search.schedule.errors import ScheduleError

MAX_NAMES = 200
MAX_DEPTH = 8
PATH = re.compile(r"(?:[A-Za-z_]\w*|\*|\d+)(?:\.(?:[A-Za-z_]\w*|\*|\d+))*", re.ASCII)
WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_CLOSED = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Stack:
    """Blocks that run one after another: a ModuleList, or one module (`single`), by its attribute path.

    A component's value is its output, taken before the gate that the block multiplies it with.

    Attributes:
        name: Attribute path in the denoiser, `transformer_blocks`.
        components: Attribute paths in a block. In a path `*` stands for every index of a list,
            `attentions.*.transformer_blocks.*.ff`.
        outputs: In the block's return order, the argument that each of its outputs replaces in the next block. It is
            empty where blocks replace no arguments; then neither a block nor the stack can be skipped.
        single: Whether it is one module instead of a list of blocks.
        uniform: Whether all blocks have the same components; otherwise a block may lack some.
        zeros: What a skipped component returns: zeros like these arguments, a tuple where there are several.
        passes: Components that return their first argument when skipped. One that is in neither cannot be skipped.

    Example:
        >>> Stack("layers", ("attn", "mlp"), outputs=("x",), zeros={"mlp": ("x",)}).name
        'layers'
    """

    __pydantic_config__ = _CLOSED
    name: str
    components: tuple[str, ...]
    outputs: tuple[str, ...] = ("hidden_states",)
    single: bool = False
    uniform: bool = True
    zeros: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    passes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contract:
    """What a schedule has to know of a denoiser class.

    Attributes:
        stacks: Its stacks of blocks, in the order of execution.
        conditional: Which half of a guided batch is conditional, 0 or 1; None where pipelines guide by two calls or not
            at all, and a schedule cannot plan guidance.
        text: The argument with the text states; None where there is none.
        sample: The denoiser's first argument.
        copies: Whether blocks may write into what they are given (FreeU and adapters do in UNets), so that values are
            stored and returned as copies.
    """

    __pydantic_config__ = _CLOSED
    stacks: tuple[Stack, ...]
    conditional: int | None = None
    text: str | None = None
    sample: str = "hidden_states"
    copies: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Contract":
        """A contract for any other module, as it is written in YAML or in a schedule file.

        Args:
            data: `stacks`, a list of objects with the fields of `Stack`, and any other field of `Contract`.

        Raises:
            ScheduleError: The data is wrong; key, value and what is admissible are named. `Tree.of` checks a contract
                against a module.

        Example:
            >>> stack = {"name": "layers", "components": ["attn", "mlp"], "outputs": ["x"]}
            >>> Contract.from_dict({"stacks": [stack]}).stacks[0].components
            ('attn', 'mlp')
        """
        try:
            contract = _adapter().validate_python(_tuples(data))
        except ValidationError as error:
            raise ScheduleError(_explain(error)) from None
        _check(contract)
        return contract

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a file, as `from_dict` reads it, without default values."""
        data: dict[str, Any] = _adapter().dump_python(self, mode="json", exclude_defaults=True)
        return data


@cache
def _adapter() -> TypeAdapter[Contract]:
    return TypeAdapter(Contract)


def _tuples(value: Any, depth: int = 0) -> Any:
    """Lists of a parsed file as the tuples that the dataclasses want."""
    if depth > MAX_DEPTH:
        raise ScheduleError(f"contract is nested more than {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        return {key: _tuples(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(_tuples(inner, depth + 1) for inner in value)
    return value


def _explain(error: ValidationError) -> str:
    """The first mistake: the field, its value, and what is admissible."""
    mistake = error.errors()[0]
    where = ".".join(["contract", *(str(part)[:60] for part in mistake["loc"])])
    if mistake["type"] == "unexpected_keyword_argument":
        names = ", ".join(key.name for key in fields(Stack if len(mistake["loc"]) > 1 else Contract))
        return f"{where} does not exist; there are {names}"
    if mistake["type"] == "missing":
        return f"{where} is missing"
    return f"{where} is {repr(mistake['input'])[:60]}: {mistake['msg']}"


def _check(contract: Contract) -> None:
    """Raise ScheduleError for mistakes that show without a module."""
    names = [name for stack in contract.stacks for name in (stack.name, *stack.components, *stack.outputs)]
    if not contract.stacks or len(names) > MAX_NAMES:
        raise ScheduleError(
            f"contract.stacks has {len(names)} names in {len(contract.stacks)} stacks; give one stack or more, of "
            f"{MAX_NAMES} names in all"
        )
    if contract.conditional not in (None, 0, 1):
        raise ScheduleError(
            f"contract.conditional is {contract.conditional}; give 0 or 1, a half of the batch, or null"
        )
    _words("contract", contract.sample, *([contract.text] if contract.text is not None else []))
    for i, stack in enumerate(contract.stacks):
        _check_stack(f"contract.stacks.{i}", stack)
        for other in contract.stacks[:i]:
            if f"{stack.name}.".startswith(f"{other.name}.") or f"{other.name}.".startswith(f"{stack.name}."):
                raise ScheduleError(f"contract.stacks: of {other.name!r} and {stack.name!r} one lies in the other")


def _check_stack(where: str, stack: Stack) -> None:
    for name in (stack.name, *stack.components):
        if len(name) > 200 or not PATH.fullmatch(name):
            raise ScheduleError(f"{where}: {name[:60]!r} is not an attribute path such as 'attn' or 'resnets.*'")
    if "*" in stack.name or stack.name == "denoiser":
        raise ScheduleError(f"{where}.name is {stack.name!r}; a stack is one list of blocks, by its path without *")
    if stack.uniform and (open_ := [name for name in stack.components if "*" in name]):
        raise ScheduleError(f"{where}.components has {open_[0]!r}; where blocks have lists, write 'uniform: false'")
    _words(where, *stack.outputs, *(name for zeros in stack.zeros.values() for name in zeros))
    for key, listed in (("components", stack.components), ("outputs", stack.outputs)):
        if len(set(listed)) < len(listed):
            raise ScheduleError(f"{where}.{key} names {max(listed, key=listed.count)!r} twice")
    for key, listed in (("zeros", tuple(stack.zeros)), ("passes", stack.passes)):
        if unknown := sorted(set(listed) - set(stack.components)):
            raise ScheduleError(f"{where}.{key} has {unknown[0][:60]!r}, which is none of its components")
    if empty := [name for name, arguments in stack.zeros.items() if not arguments]:
        raise ScheduleError(f"{where}.zeros.{empty[0]} is empty; name the argument whose shape the zeros take")


def _words(where: str, *names: str) -> None:
    for name in names:
        if len(name) > 200 or not WORD.fullmatch(name):
            raise ScheduleError(f"{where}: {name[:60]!r} is not the name of an argument such as 'hidden_states'")


def _zeros(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: ("hidden_states",) for name in names}


def _unet(name: str, sampler: str = "", single: bool = False) -> Stack:
    layers = "attentions.*.transformer_blocks.*"
    inner = (f"{layers}.attn1", f"{layers}.attn2", f"{layers}.ff")
    components = ("resnets.*", "attentions.*", *inner) + ((sampler,) if sampler else ())
    # an up block takes its skips from a list, and a down block adds to it: blocks replace no arguments
    return Stack(name, components, (), single, False, _zeros(*inner), ("attentions.*",))


_BOTH = ("hidden_states", "encoder_hidden_states")
_RETURNED = ("encoder_hidden_states", "hidden_states")
_DIFFUSERS_BLOCK = Stack("transformer_blocks", ("attn1", "attn2", "ff"), zeros=_zeros("attn1", "attn2", "ff"))
# To add a model class: its stacks in the order of execution.
CONTRACTS: Mapping[str, Contract] = {
    "PixArtTransformer2DModel": Contract((_DIFFUSERS_BLOCK,), conditional=1, text="encoder_hidden_states"),
    "DiTTransformer2DModel": Contract(
        (Stack("transformer_blocks", ("attn1", "ff"), zeros=_zeros("attn1", "ff")),), conditional=0
    ),
    "FluxTransformer2DModel": Contract(
        (
            Stack(
                "transformer_blocks",
                ("attn", "ff", "ff_context"),
                _RETURNED,
                zeros={"attn": _BOTH, **_zeros("ff", "ff_context")},
            ),
            # in a single block the projection mixes attention and feed-forward: only attention alone can be left out
            Stack("single_transformer_blocks", ("attn", "proj_mlp", "proj_out"), _RETURNED, zeros=_zeros("attn")),
        ),
    ),
    "SD3Transformer2DModel": Contract(
        (
            Stack(
                "transformer_blocks",
                ("attn", "attn2", "ff", "ff_context"),
                _RETURNED,
                uniform=False,
                zeros=_zeros("attn2", "ff", "ff_context"),
            ),
        ),
        conditional=1,
        text="encoder_hidden_states",
    ),
    "WanTransformer3DModel": Contract(
        (Stack("blocks", ("attn1", "attn2", "ffn"), zeros=_zeros("attn1", "attn2", "ffn")),)
    ),
    "UNet2DConditionModel": Contract(
        (
            Stack("conv_in", (), (), single=True, uniform=False),  # the skip of the last up block: part of the encoder
            _unet("down_blocks", "downsamplers.*"),
            _unet("mid_block", single=True),
            _unet("up_blocks", "upsamplers.*"),
        ),
        conditional=1,
        text="encoder_hidden_states",
        sample="sample",
        copies=True,
    ),
}
