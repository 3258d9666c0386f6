"""What is known of a denoiser class: its stacks of blocks, what a block gives back, and how it is guided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from search.schedule.errors import ScheduleError

MAX_NAMES = 200


@dataclass(frozen=True)
class Stack:
    """Blocks that run one after another: a ModuleList, or one module (`single`), by its attribute path.

    `components` are attribute paths in a block. In a path `*` stands for every index of a list,
    `attentions.*.transformer_blocks.*.ff`; a block may lack some where `uniform` is false. A component's value is
    its output, taken before the gate that the block multiplies it with.

    `outputs` names, in the block's return order, the argument that each of its outputs replaces in the next block;
    it is empty where blocks are no such map, and then neither a block nor the stack can be skipped.
    """

    name: str
    components: tuple[str, ...]
    outputs: tuple[str, ...] = ("hidden_states",)
    single: bool = False
    uniform: bool = True
    # What a skipped component returns: zeros like these arguments (a tuple where there are several) ...
    zeros: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # ... or its first argument as it is. A component in neither cannot be skipped.
    passes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contract:
    """`stacks` in the order of execution. `conditional` is the half of a guided batch that is conditional, 0 or 1,
    None where pipelines guide by two calls or not at all; `text` is the argument with the text states; `sample` the
    denoiser's first argument.
    """

    stacks: tuple[Stack, ...]
    conditional: int | None = None
    text: str | None = None
    sample: str = "hidden_states"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Contract":
        """A contract for any other module, as it is written in YAML or in a schedule file."""
        try:
            contract = TypeAdapter(cls).validate_python(_tuples(data))
        except ValidationError as error:
            mistake = error.errors()[0]
            where = ".".join(str(part) for part in mistake["loc"])
            raise ScheduleError(f"contract.{where} is {str(mistake['input'])[:60]!r}: {mistake['msg']}") from None
        names = [contract.sample, contract.text or "x"]
        for stack in contract.stacks:
            names += [stack.name, *stack.components, *stack.outputs, *stack.zeros, *stack.passes]
        if not contract.stacks or len(names) > MAX_NAMES:
            raise ScheduleError(
                f"contract.stacks has {len(names)} names in {len(contract.stacks)} stacks; give 1 to 200"
            )
        for name in names:
            if len(name) > 200 or not all(
                part == "*" or part.isidentifier() or part.isdigit() for part in name.split(".")
            ):
                raise ScheduleError(f"contract: {name[:60]!r} is no attribute path such as 'attn' or 'resnets.*'")
        return contract

    def to_dict(self) -> dict[str, Any]:
        """As `from_dict` reads it: plain data for a file, without what is at its default."""
        return TypeAdapter(Contract).dump_python(self, mode="json", exclude_defaults=True)


def _tuples(value: Any) -> Any:
    """Lists of a parsed file as the tuples that the dataclasses want."""
    if isinstance(value, Mapping):
        return {key: _tuples(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_tuples(inner) for inner in value)
    return value


def _zeros(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: ("hidden_states",) for name in names}


def _unet(name: str, sampler: str = "", single: bool = False) -> Stack:
    layers = "attentions.*.transformer_blocks.*"
    inner = (f"{layers}.attn1", f"{layers}.attn2", f"{layers}.ff")
    components = ("resnets.*", "attentions.*", *inner) + ((sampler,) if sampler else ())
    # an up block takes its skips from a list, and a down block adds to it: blocks are no maps
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
    ),
}
