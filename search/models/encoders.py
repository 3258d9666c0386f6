"""What encoders of prompts returned: a search calls a pipeline hundreds of times with the same prompts."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from search.models.watch import replaced_method
from search.schedule.values import copy_tensors

KEPT = 256  # results; each is of one batch of prompts
PLAIN = (Tensor, bool, int, float, str, type(None), torch.dtype, torch.device)


class EncoderMemo:
    """Answers calls that were made before with what was returned then, until the denoiser is called.

    The modules of a pipeline that have no `decode` are remembered, by their inputs and weights. Calls are made where
    their arguments hold anything else, such as caches of a text generator, and where hooks read what is inside.
    """

    def __init__(self, pipe: Any) -> None:
        components = getattr(pipe, "components", {})
        self.modules = {n: m for n, m in components.items() if isinstance(m, nn.Module) and not hasattr(m, "decode")}
        self.results: OrderedDict[Any, Any] = OrderedDict()

    @contextmanager
    def remembered(self, denoisers: Sequence[nn.Module]) -> Iterator[None]:
        """Answer calls of the modules, from here to the first call of a denoiser."""
        with ExitStack() as stack:

            def begin(*_: Any) -> None:
                stack.close()

            for name, module in self.modules.items():
                if not module.training and all(module is not denoiser for denoiser in denoisers):
                    self._replace(stack, name, module)
            for denoiser in denoisers:
                stack.callback(denoiser.register_forward_pre_hook(begin).remove)
            yield

    def _replace(self, stack: ExitStack, name: str, module: nn.Module) -> None:
        original = module.forward

        @wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            key = _key(name, module, args, kwargs)
            if key is None or any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):
                return original(*args, **kwargs)
            if key not in self.results:
                self.results[key] = copy_tensors(original(*args, **kwargs))
                if len(self.results) > KEPT:
                    self.results.popitem(last=False)
            self.results.move_to_end(key)
            return copy_tensors(self.results[key])

        stack.enter_context(replaced_method(module, "forward", forward))


def _key(name: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
    """What identifies a call: the inputs, and the weights as they are; None where an input is of another kind."""
    leaves, structure = tree_flatten((args, kwargs))
    if not all(isinstance(leaf, PLAIN) for leaf in leaves):
        return None
    weights = tuple(_few_values(each) for each in (*module.parameters(), *module.buffers()))
    return name, weights, str(structure), *(_identity(leaf) for leaf in leaves)


def _few_values(weight: Tensor) -> Any:
    """What shows that a weight was changed: its version, and some values, as writing into `.data` leaves none."""
    version = None if weight.is_inference() else weight._version
    if weight.is_meta or type(weight) not in (Tensor, nn.Parameter):  # offloaded, quantised
        return id(weight), version
    return version, _identity(weight.detach().flatten()[:: max(1, weight.numel() // 8)])


def _identity(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    data = leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return tuple(leaf.shape), leaf.dtype, leaf.device, hashlib.sha256(data).digest()
