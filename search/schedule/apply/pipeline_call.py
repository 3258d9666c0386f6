"""The call of a pipeline that a run belongs to.

Nothing on a pipeline of diffusers says when its call has ended: an error in a callback, Ctrl-C or a run that was
interrupted leave it as it is in the middle of a step. So the call is looked for on the stack of its thread.
"""

import inspect
import sys
import threading
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any


@dataclass(frozen=True)
class PipelineCall:
    """`depth`: how many calls of this pipeline are on the stack of the thread, this one included."""

    pipe: Any  # gives the pipeline, or None once nothing else holds it
    thread: int
    depth: int

    @classmethod
    def find(cls, pipe: Any) -> "PipelineCall | None":
        """The innermost call of the pipeline that this thread executes; None in a loop of the caller's own."""
        thread = threading.get_ident()
        depth = _count_calls(pipe(), sys._getframe())
        return cls(pipe, thread, depth) if depth else None

    def is_active(self, beneath: "PipelineCall | None" = None) -> bool:
        """Whether it is still executed; `beneath` is a call that has begun since and is not meant."""
        if beneath is not None and beneath.thread == self.thread:
            return beneath.depth > self.depth
        # No variable may hold a frame of the own thread: it would live, with all values, until garbage is collected.
        if self.thread == threading.get_ident():
            return _count_calls(self.pipe(), sys._getframe()) >= self.depth
        return _count_calls(self.pipe(), sys._current_frames().get(self.thread)) >= self.depth


def _count_calls(pipe: Any, frame: FrameType | None) -> int:
    """How many calls of a pipeline a stack has, from this frame outwards."""
    code, count = _code(type(pipe)), 0
    while code is not None and frame is not None:
        if frame.f_code is code and frame.f_locals.get(code.co_varnames[0]) is pipe:
            count += 1
        frame = frame.f_back
    return count


def _code(cls: Any) -> CodeType | None:
    """The code of a class's `__call__`, beneath decorators such as `torch.no_grad`."""
    code = getattr(inspect.unwrap(cls.__call__), "__code__", None)
    return code if code is not None and code.co_argcount else None
