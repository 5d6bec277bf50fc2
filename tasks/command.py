"""What the commands of the command line share: a parser that raises instead of exiting."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from inspect import cleandoc
from typing import TypeVar

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from tasks.fields import inside

Kind = TypeVar("Kind")
Arguments = Sequence[str]
Command = Callable[[Arguments], int]
"""A command: its arguments in, its exit status out. Its docstring is its help; what a user got
wrong is raised as a ValueError, an ArgumentError or an OSError whose message is one line."""


class _Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Descriptions keep their lines, since they hold examples."""


def parser(command: Command) -> ArgumentParser:
    """An empty parser for ``command``, named after the function."""
    name = command.__name__.replace("_", "-")
    return ArgumentParser(
        prog=f"l2o {name}",
        usage="%(prog)s ARGUMENTS",  # listed one by one below; there can be many
        description=cleandoc(command.__doc__ or ""),
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=_Help,
    )


def made(kind: Callable[..., Kind], name: str, given: Namespace) -> Kind:
    """``kind`` of its fields, as ``add_class_arguments(kind, name, instantiate=False)`` has them.

    Raises ValueError with the name before what ``kind`` says: a command may have several fields
    called ``seeds``.
    """
    with inside(f"--{name}"):
        return kind(**vars(given[name]))
