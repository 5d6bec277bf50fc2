"""``--optimizer``: an architecture by the name of its file or class, or ``my_module:Mine``.

The parser knows classes of ours. Names of files are turned into these before it reads them. A class
of the user's has its fields added to the parser as a group of their own, and is put back by its
import path into what a run keeps for ``--config``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from l2o.architectures.named import Kind, architectures, own
from l2o.base import LearnedOptimizer
from tasks.checks import meant
from tasks.commands.parser import Arguments, Parser, made, read_config

FLAG, CONFIG = "--optimizer", "--config"


class Choice:
    """What ``arguments`` say of the optimizer. ``own``: a class of the user's, else None;
    ``arguments``: what is left for the parser. Raises ValueError for what names none."""

    def __init__(self, arguments: Arguments) -> None:
        said = [(flag, value, _named(flag, value)) for flag, value in _pairs(arguments)]
        self.name = next((name for *_, name in reversed(said) if name), "")
        self.own: Kind | None = own(self.name) if ":" in self.name else None
        self.arguments = [word for each in said for word in _as_parsed(*each)]

    def add_to(self, parser: Parser) -> None:
        if self.own is None:
            parser.add_subclass_arguments(LearnedOptimizer, "optimizer", skip={"nominal"})
        else:
            parser.add_class_arguments(self.own, "optimizer", instantiate=False)

    def made(self, options: Any) -> LearnedOptimizer | None:
        return options.optimizer if self.own is None else made(self.own, "optimizer", options)

    def kept(self, text: str) -> str:
        """All fields as a file has them, this one so that ``--config`` finds the class again."""
        if self.own is None:
            return text
        fields = yaml.safe_load(text)
        fields["optimizer"] = {"class_path": self.name, "init_args": fields["optimizer"]}
        return yaml.safe_dump(fields, sort_keys=False)


def _as_parsed(flag: str, value: str | None, name: str | None) -> list[str]:
    """A flag as the parser takes it; ``name``: of the architecture, if it says one."""
    if value is None:
        return [flag]
    ours = architectures().get(name or "")
    if not name or (":" not in name and ours is None):
        return [flag, value]
    if flag == FLAG:
        return [flag, ours.__name__] if ours else []
    fields = read_config(value)
    given = fields["optimizer"] if isinstance(fields["optimizer"], dict) else {}
    arguments = given.get("init_args", {})
    if ours:
        path = f"{ours.__module__}.{ours.__qualname__}"
        arguments = {"class_path": path, "init_args": arguments}
    return [flag, json.dumps(fields | {"optimizer": arguments})]


def _pairs(arguments: Arguments) -> Iterator[tuple[str, str | None]]:
    """Words, those that say which optimizer with their values."""
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in (FLAG, CONFIG):
            yield flag, value if equals else next(words, "")
        else:
            yield word, None


def _named(flag: str, value: str | None) -> str | None:
    """The architecture that a flag names, if it names one. Raises ValueError for a name that is
    neither ours, nor a class path, file or JSON."""
    if value is None:
        return None
    if flag == CONFIG:
        found = read_config(value).get("optimizer")
        found = found.get("class_path") if isinstance(found, dict) else found
        return found if isinstance(found, str) else None
    ours = [*architectures(), *(kind.__name__ for kind in architectures().values())]
    if value in ours:
        return value
    if not {".", "{", "/", ":"} & set(value):
        known = ", ".join(architectures())
        raise ValueError(
            f"{FLAG}: got {value!r}, expected one of {known}, or package.module:Class"
            f"{meant(value, ours)}"
        )
    is_json = value.startswith("{") or Path(value).is_file()
    return None if is_json else value
