"""A long job shown to whoever is watching: live on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from tasks.display.plain import Console

LINE_EVERY = 10.0
"""Seconds between log lines where there is no terminal."""


class Screen(Protocol):
    """A live display of rich's."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class LiveView:
    """Use as a context manager, so that the terminal is always given back."""

    def __init__(self, console: Console, screen: Screen) -> None:
        self.console, self.screen = console, screen
        self.said = -LINE_EVERY

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.screen.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.screen.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def draw(self, picture: Callable[[], None], line: Callable[[], str]) -> None:
        """Draw the ``picture`` on a terminal; elsewhere say the ``line``, if it is time."""
        if self.console.is_terminal:
            picture()
        elif time.monotonic() - self.said >= LINE_EVERY:
            self.said = time.monotonic()
            self.say(line())
