"""What is said to people on a terminal: in plain words, and as plain text.

The library that reads the command line speaks of classes and of the names that fields have in the
program. People know values by kinds, such as a whole number, and fields by their flags.

Names come from files that anybody may have written. What would steer a terminal is written out,
and square brackets mean themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich import console
from rich.text import Text

from tasks.checks import printable


class Console(console.Console):
    """Prints text as it stands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:  # pyright: ignore
        return super().render_str(printable(text), **options)


def in_plain_words(message: object, called: Mapping[str, str] | None = None) -> str:
    """``message`` in one line. ``called``: flags by the name of the field."""
    line = " ".join(str(message).split())
    for said, plain in PLAIN:
        line = re.sub(said, plain, line)
    for field, flag in (called or {}).items():
        line = re.sub(rf"(^|[\s\"'])(--)?{re.escape(field)}(?=:| is not|$)", rf"\1{flag}", line)
    return printable(line)


def _kind(found: re.Match[str]) -> str:
    several = "values in brackets, such as [a,b]"
    kinds = {"int": "a whole number", "float": "a finite number", "bool": "true or false"}
    kinds |= {"tuple": several, "list": several, "str": "text"}
    return f"expected {kinds.get(found[1], found[1])}"


def _alternatives(found: re.Match[str]) -> str:
    """What is said of a value that may also be left out."""
    reasons = [reason for reason in found[1].split(" - ") if "NoneType" not in reason]
    said = "; ".join(reasons)
    return said if ": got " in said else f"{said}, got {found[2]}"


NO_OPTION = r"Option '([\w.]+)' is not accepted"
PLAIN = (
    (r"Group '([\w.]+)' does not accept option '([\w.]+)'", r"no field '\1.\2'"),
    (f"^{NO_OPTION}", r"no field '\1'"),
    (r"Config file loop detected: (.*)", r"--config: got \1, which goes round"),
    (
        r"\"([\w.]+)\": .*?Importing '(\S+)' is not allowed.*",
        r"--\1: got \2, expected a class of l2o's",
    ),
    ("Parser key ", ""),
    (r"Expected a <class '(\w+)'>", _kind),
    (r"Expected a typing\.Literal\[(.*?)\]", r"expected one of \1"),
    (
        "Does not validate against any of the Union subtypes Subtypes: .*? Errors: - (.*) "
        "Given value type: .*? Given value: (.*)",
        _alternatives,
    ),
    (r'"([\w.]+)": (expected .*?)(?:\. Got value:|, got) (.*)', r"--\1: got \3, \2"),
    (
        rf"\"([\w.]+)\": .*{NO_OPTION}(; did you mean \S+\?)?.*",
        r"--\1.\2: no such option\3; --\1.help NAME lists those there are",
    ),
)
"""One after the other."""
