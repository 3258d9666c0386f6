"""Ctrl-C: one that Python drops in a callback is raised at the next candidate."""

import signal
import sys
import weakref

import pytest

from search.loop.interrupt import remembered_interrupt


class Held:
    """What a callback waits for."""


def test_one_that_is_lost_in_a_callback_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with remembered_interrupt() as check:
            check()
            held = Held()
            reference = weakref.ref(held, lambda _: signal.raise_signal(signal.SIGINT))
            del held
            assert reference() is None and ignored[0].exc_type is KeyboardInterrupt
            with pytest.raises(KeyboardInterrupt):
                check()
        assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
