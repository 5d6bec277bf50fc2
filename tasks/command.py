"""What the commands of the command line share: a parser that raises instead of exiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jsonargparse import ArgumentParser

Arguments = Sequence[str]
Command = Callable[[Arguments], int]
"""A command: its arguments in, its exit status out. Its docstring is its help; what a user got
wrong is raised as a ValueError, an ArgumentError or an OSError whose message is one line."""


def parser(command: Command) -> ArgumentParser:
    """An empty parser for ``command``, named after the function."""
    name = command.__name__.replace("_", "-")
    return ArgumentParser(prog=f"l2o {name}", description=command.__doc__, exit_on_error=False)
