"""A program with what a person wants to know of it, ready for a training script.

An entry is a text: what is said of the rule in comments above, and the program.

    # origin: Chen et al. 2023
    # lr: 0.0001
    # weight_decay: 0.1
    # Any other comment is for readers.
    def update(w, g, m):
        ...
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from search.language.functions import ProgramError
from search.language.program import FUNCTION_NAMES, Program, parse
from search.language.validity import check

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass(frozen=True)
class Entry:
    """A rule, its name, and the paper or the run that it is from.

    ``lr`` and ``weight_decay`` are where tuning may start, not tuned values; a full program holds
    its own decay, and its ``lr`` is the value of the schedule.
    """

    name: str
    program: Program
    origin: str
    lr: float = 1e-3
    weight_decay: float = 0.0

    def optimizer(self, params: Iterable[Any], **settings: Any) -> Optimizer:
        """The rule as a ``torch.optim.Optimizer``: ``lr``, ``weight_decay``, its constants,
        ``foreach`` and so on are those of the file that ``l2o export`` writes. The default ``lr``
        is safe rather than good, whatever a search or a paper had: tune it, as the docstring says.

        One that reads a Hessian estimates it where it is told to, by ``set_hessian(loss)``.
        """
        from search.export.build import to_class  # reads and writes Python: only where wanted

        made = to_class(self.program, self.name, self.origin, self.default_lr, self.weight_decay)
        return made(params, **settings)

    @property
    def default_lr(self) -> float | None:
        """Of exported files: the paper's where a Hessian is read, else that of the kind of rule."""
        return self.lr if "h" in self.program.inputs else None


WORDS = ("origin", "lr", "weight_decay")
"""What a comment can say of the rule; other comments are for readers."""
_COMMENT = re.compile(r"#\s*(\w+(?:[ -]\w+)?)\s*[:=]\s*(.*?)\s*$")


def holds_program(text: str) -> bool:
    """Whether ``text`` may be a program, and is nothing else."""
    return any(f"def {function}" in text for function in FUNCTION_NAMES.values())


def from_text(text: str, name: str, origin: str, filename: str) -> Entry:
    """The entry that ``text`` is; ``origin``: where the text says none.

    Raises ProgramError, a ValueError, naming ``filename``, for what is said of the rule wrongly,
    for text that is no program, and for one that is no rule.
    """
    program = parse(text, filename=filename)
    try:
        check(program)
        said = _said(text)
        rate = _number("lr", said.get("lr", 1e-3 if program.form == "direction" else 1.0))
        decay = _number("weight_decay", said.get("weight_decay", 0.0))
        if not rate:
            raise ProgramError(f"lr: got {rate:g}, expected a number above 0")
    except ProgramError as error:
        raise type(error)(f"{filename}: {error}") from None
    return Entry(name, program, said.get("origin", origin), rate, decay)


def _said(text: str) -> dict[str, str]:
    """What the comments above the program say. Raises ProgramError for what is said twice, and
    for a word that is nearly one of ``WORDS``."""
    said: dict[str, str] = {}
    lines = (line.strip() for line in text.removeprefix("\ufeff").splitlines())
    for line in takewhile(lambda line: not line or line.startswith("#"), lines):
        if not (comment := _COMMENT.match(line)):
            continue
        word = re.sub("[ -]", "_", comment[1].lower())
        near = get_close_matches(word, WORDS, 1, 0.9)
        if word in said:
            raise ProgramError(f"{word}: got {said[word]!r} and {comment[2]!r}, expected one")
        if word in WORDS:
            said[word] = comment[2]
        elif near:
            raise ProgramError(f"got the comment {comment[1]!r}; did you mean {near[0]}?")
    return said


def _number(word: str, value: str | float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ProgramError(f"{word}: got {value!r}, expected a number of at least 0")
    return number
