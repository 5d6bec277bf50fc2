"""What the commands of the command line share: a parser that raises instead of exiting.

Every command takes ``--config run.yaml`` with any of its fields, and ``--print_config`` shows the
fields as such a file. Where one is given several times, the later wins: defaults, then a preset,
then files and flags in their order. A file is data: YAML without tags and aliases, and the classes
that it may name are ours.
"""

from __future__ import annotations

import argparse
import re
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import cleandoc
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import (
    ActionConfigFile,  # pyright: ignore[reportPrivateImportUsage]
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    get_loader,
    set_loader,
    set_parsing_settings,
)

from tasks.checks import inside, meant, plausible
from tasks.display.plain import NO_OPTION, in_plain_words

Kind = TypeVar("Kind")
Arguments = Sequence[str]
Command = Callable[[Arguments], int]
"""A command: its arguments in, its exit status out. Its docstring is its help; what a user got
wrong is raised as a ValueError, an ArgumentError or an OSError whose message is one line."""

KEPT = "config.yaml"
"""Where a run keeps the fields that it was begun with, for ``--config`` of the next one."""
DATA = "yaml without aliases"
DEEPEST, LARGEST = 20, 1 << 20
"""Levels and characters of a file that somebody may have meant as a configuration."""
USUAL = "quick"
"""The preset of a command that has some."""


class _Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Descriptions keep their lines, since they hold examples."""


class Parser(ArgumentParser):
    """Raises ArgumentError, whose one line calls everything as the command line does."""

    def __init__(self, *given: Any, **options: Any) -> None:
        self.left_out: dict[str, Any] = {}
        super().__init__(*given, **options)

    def add_argument(self, *given: Any, **options: Any) -> Any:
        """A name that may be left out is not set then: a file may have it."""
        action: Any = super().add_argument(*given, **options)
        if not action.option_strings and action.nargs in ("?", "*"):
            self.left_out[action.dest], action.default = action.default, argparse.SUPPRESS
        return action

    def parse_args(self, *given: Any, **options: Any) -> Namespace:
        for action in self._actions:
            if hasattr(action, "resolve_subclass_spec"):  # a group's file is no class: my.yaml
                setattr(action, "resolve_subclass_spec", _as_it_is)  # noqa: B010
        try:
            found = super().parse_args(*given, **options).clone(with_meta=False)
        except UnicodeDecodeError:
            words = [word.rpartition("=")[2] for word in given[0]]
            files = ", ".join(word for word in words if not _is_text(word))
            self.error(f"got {files}, which is no text; expected YAML")
        for field in self.left_out.keys() - vars(found).keys():
            found[field] = self.left_out[field]
        return found

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        called = {action.dest: _called(action) for action in self._actions}
        if not self.prog.startswith("l2o "):  # the library's own, of a class named in a value
            found = re.search(NO_OPTION, message)
            return super().error(message + meant(found[1], called) if found else message, ex)
        line = in_plain_words(message, called)
        flags = [flag for action in self._actions for flag in action.option_strings]
        if found := re.match(r"unrecognized arguments: ([^\s=]+)", line):
            line = self._unknown(line, found[1], flags)
        elif found := re.match(r"no field '(.*)'", line):
            line = self._unknown(found[0], found[1], called)
        return super().error(line, ex)

    def _unknown(self, line: str, name: str, names: Iterable[str]) -> str:
        where = f"; {self.prog} --help lists those there are"
        return line if line.endswith(where) else f"{line}{meant(name, names)}{where}"


def _as_it_is(value: Kind) -> Kind:
    return value


def _is_text(file: str) -> bool:
    try:
        _text(file)
    except UnicodeDecodeError:
        return False
    return True


def _text(config: str) -> str:
    """What a file holds, or ``config`` itself, which may be given instead of a file."""
    try:
        return Path(config).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        return config


def _called(action: argparse.Action) -> str:
    """What a user knows an argument as."""
    if action.option_strings:
        return action.option_strings[-1]
    return action.metavar if isinstance(action.metavar, str) else action.dest


class _Config(ActionConfigFile):
    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
        if _text(values).isspace() or not _text(values):
            raise TypeError(f"--config: got {values}, which is empty; expected field: value")
        super().__call__(parser, cfg, values, option_string)


def parser(command: Command) -> Parser:
    """A parser for ``command``, named after the function, that has ``--config`` alone."""
    set_loader(DATA, _data, (yaml.YAMLError,))
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=["l2o"])
    name = command.__name__.replace("_", "-")
    made = Parser(
        prog=f"l2o {name}",
        usage="%(prog)s ARGUMENTS",  # listed one by one below; there can be many
        description=cleandoc(command.__doc__ or ""),
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode=DATA,
        formatter_class=_Help,
    )
    made.add_argument(
        "--config",
        action=_Config,
        help="a YAML file with any of what follows, flags after it win; "
        "--print_config shows one with all",
    )
    return made


def _data(text: str) -> Any:
    """What YAML says, of no more size than it shows. Raises YAMLError."""
    if len(text) > LARGEST:
        raise yaml.YAMLError(f"got {len(text):,} characters, expected at most {LARGEST:,}")
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        kind = type(token).__name__
        depth += kind.endswith("StartToken") - kind.endswith("EndToken")
        if kind in ("AliasToken", "AnchorToken", "TagToken"):
            raise yaml.YAMLError("got an anchor, an alias or a tag, expected plain values")
        if depth > DEEPEST:
            raise yaml.YAMLError(f"got more than {DEEPEST} levels, expected few")
    _once(yaml.compose(text, Loader=yaml.SafeLoader))
    return get_loader("yaml")(text)


def _once(node: yaml.Node | None) -> None:
    """Raise YAMLError where a key is given twice: one of its values would be lost in silence."""
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise yaml.YAMLError(f"got {min(twice)} twice, expected each field once")
    for part in node.value if isinstance(node, yaml.CollectionNode) else ():
        for inner in part if isinstance(part, tuple) else (part,):
            _once(inner)


def named(word: str) -> tuple[str, Path]:
    """``NAME=PATH`` apart, what a thing is to be called and where it lies; else the path twice."""
    name, _, path = word.rpartition("=") if not Path(word).exists() else ("", "", word)
    return name or path, Path(path)


def preset(arguments: Arguments, presets: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The defaults that ``--preset`` asks for, as a flag or in a ``--config``.

    They are found before the parser is complete, and what else is wrong is left to it. Raises
    ValueError for one that does not exist.
    """
    finder = argparse.ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
    finder.add_argument("--preset", action="append", default=[USUAL])
    finder.add_argument("--config", action="append", dest="preset", type=_preset_in)
    name = [name for name in finder.parse_known_args(list(arguments))[0].preset if name][-1]
    if name not in presets:
        known = ", ".join(presets)
        raise ValueError(
            f"--preset: got {name!r}, expected one of {known}{meant(str(name), presets)}"
        )
    return presets[name]


def _preset_in(config: str) -> str | None:
    return read_config(config).get("preset")


def read_config(config: str) -> dict[str, Any]:
    """The fields of a file, or of ``config`` itself; none where it is no such thing, which the
    parser will say."""
    try:
        found = _data(_text(config))
    except (ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def made(kind: Callable[..., Kind], name: str, given: Namespace) -> Kind:
    """``kind`` of its fields, as ``add_class_arguments(kind, name, instantiate=False)`` has them.

    Raises ValueError with the name before what ``kind`` says: a command may have several fields
    called ``seeds``.
    """
    with inside(f"--{name}"):
        plausible(kind, vars(given[name]))
        return kind(**vars(given[name]))
