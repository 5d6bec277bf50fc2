"""Where the time of a process goes, by names given to some of its functions from outside.

    watch = Stopwatch("rest")
    with watch.on((evolve, "mutate", "mutation"), (evolve, "signatures", "signature")):
        ...
    watch.spent["mutation"].wall, watch.spent["rest"].processor

Every moment belongs to one name, that of the innermost timed call, so the parts add up to the
whole. While ``on`` lasts the functions are replaced by timed ones; nothing is left behind.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch


class Seconds(NamedTuple):
    """Of wall clock, and of this process on a processor."""

    wall: float = 0.0
    processor: float = 0.0

    def plus(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.processor + other.processor)

    def minus(self, other: Seconds) -> Seconds:
        return Seconds(self.wall - other.wall, self.processor - other.processor)


def now() -> Seconds:
    """Wall time is that of a clock which all processes of a machine share."""
    return Seconds(time.monotonic(), time.process_time())


class Stopwatch:
    """``rest``: the name of what is in no timed function."""

    def __init__(self, rest: str) -> None:
        self.spent: dict[str, Seconds] = {}
        self._running = [rest]
        self._since = now()

    def lap(self) -> None:
        """Charge the time since the last change to whatever is running."""
        moment, name = now(), self._running[-1]
        self.spent[name] = self.spent.get(name, Seconds()).plus(moment.minus(self._since))
        self._since = moment

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        self.lap()
        self._running.append(name)
        try:
            yield
        finally:
            self.lap()
            self._running.pop()

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.running(name):
                return function(*args, **kwargs)

        return call

    def timed_block(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Of a context manager: its beginning and its end, not what is between them."""

        @contextmanager
        def block(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with ExitStack() as stack:
                with self.running(name):
                    value = stack.enter_context(function(*args, **kwargs))
                yield value
                with self.running(name):
                    stack.close()

        return block

    @contextmanager
    def on(
        self, *places: tuple[Any, str, str], blocks: tuple[tuple[Any, str, str], ...] = ()
    ) -> Iterator[None]:
        """Time (module or class, attribute, name); ``blocks`` are context managers."""
        with ExitStack() as stack:
            for kind, group in ((self.timed, places), (self.timed_block, blocks)):
                for owner, attribute, name in group:
                    function = kind(getattr(owner, attribute), name)
                    stack.enter_context(patch.object(owner, attribute, function))
            self._since = now()
            try:
                yield
            finally:
                self.lap()
