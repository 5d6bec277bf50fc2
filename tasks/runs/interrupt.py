"""Ctrl-C as a request: finish the step at hand, save, then stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(Exception):
    """Ctrl-C: the run was left in good order and can be resumed."""


@contextmanager
def polite() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C was pressed; the second time it really stops."""
    pressed = False

    def handler(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    try:
        before = signal.signal(signal.SIGINT, handler)
    except ValueError:  # not the main thread: whoever owns it deals with Ctrl-C
        yield lambda: False
        return
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
