"""Known optimizers as programs: where a search starts, and what it is compared with.

Each is a text in ``rules/``, found by its name: a file there is an optimizer here. All but
``adamw_initial`` are directions: the harness multiplies by the learning rate and adds the decoupled
weight decay, so ``adam`` and ``adamw`` are one program at different settings. Formulas follow
torch.optim and the papers; the epsilon is that of division, 1e-8, whatever the authors' is. Bias
corrections of the literature are powers, ``power(c, -1.0)``, so no epsilon meets them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from search.language.functions import Kind, ProgramError
from search.language.program import FIXED_INPUTS, OPTIONAL_INPUTS, RESERVED, Program
from search.zoo.entry import Entry, from_text, holds_program
from tasks.checks import meant
from tasks.runs.files import SHIPPED
from tasks.runs.nesting import check_digest, from_json

TEXT = "rule.txt"
"""The program in the folder of a shipped rule."""
CARD, SEAL = "card.json", "program_digest"
"""What is known of it, and the field that says of which program."""
NEITHER = "holds no program and no optimizer"


def from_file(path: Path) -> Entry:
    """The entry in a text file, called as the file is, or its folder where that is ``rule.txt``.

    Raises ProgramError (a ValueError) for text that is no program, or one that is no rule, OSError
    where there is no file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # as some editors write it
    except UnicodeDecodeError:
        raise ProgramError(f"{path}: {NEITHER}: it is no text") from None
    if not holds_program(text):
        raise ProgramError(f"{path}: {_instead(path)}")
    stem = path.parent.name if path.name == TEXT else path.stem
    name = stem if stem[:1].isalpha() else f"rule_{stem}"
    found = from_text(text, name, f"the file {path}", str(path))
    if path.name == TEXT:
        _is_that_of_its_card(path, found.program)
    return found


def _is_that_of_its_card(path: Path, program: Program) -> None:
    """Raise ProgramError where the card beside a rule is damaged, or says that it is of another."""
    file = path.with_name(CARD)
    if not file.is_file():
        return
    try:
        card = from_json(file.read_bytes())
        check_digest(card)
    except (ValueError, TypeError) as error:
        raise ProgramError(f"{file}: damaged: {error}") from None
    said = card.get(SEAL)
    if said is not None and said != seal(program):
        raise ProgramError(f"{path}: not the program that {file} is about; it says {said!r}")


def seal(program: Program) -> str:
    """16 hexadecimal digits, by which a card says which program it is about."""
    return hashlib.sha256(str(program).encode()).hexdigest()[:16]


def _instead(file: Path) -> str:
    """What a file without a program holds."""
    from tasks.optim.torch_rule import (
        optimizer_class,  # here: it is slow to import, and seldom asked
    )

    found = optimizer_class(file)
    if found is not None:
        return f"holds an optimizer, {found}, and no program; l2o evaluate takes both"
    hint = "; a class whose base is imported goes by package.module:Class in l2o evaluate"
    return f"{NEITHER}; expected def update(w, g, ...){hint if file.suffix == '.py' else ''}"


def _reads_gradients_alone(program: Program) -> bool:
    return all(OPTIONAL_INPUTS.get(name) != Kind.TENSOR for name in program.inputs)


_LISTED = [from_file(path) for path in sorted(Path(__file__).with_name("rules").glob("*.txt"))]
ZOO: Mapping[str, Entry] = MappingProxyType(
    {entry.name: entry for entry in _LISTED if _reads_gradients_alone(entry.program)}
)
"""Programs by name that read gradients alone: what a search may start from."""
NAMED: Mapping[str, Entry] = MappingProxyType(
    dict(ZOO) | {entry.name: entry for entry in _LISTED if entry.name not in ZOO}
)
"""What a person may call a rule: besides those, the ones that read a Hessian, at the end. A search
compares programs by what they make of gradients alone, so it starts from none of these."""


def lookup(name: str) -> Entry:
    """The optimizer called ``name``. Raises ValueError with the names that are like it."""
    if name not in NAMED:
        raise ValueError(f"no optimizer called {name!r}{like(name)}")
    return NAMED[name]


def like(name: str) -> str:
    """``; did you mean lion? l2o zoo lists all``: too many names for a line."""
    shipped = [path.parent.name for path in SHIPPED.glob("*/card.json")]
    return f"{meant(name, [*NAMED, *shipped], most=3) or ';'} l2o zoo lists those there are"


def load(name: str | Path) -> Entry:
    """The optimizer called ``name``, or the one in the text file at that path.

    Raises ValueError for neither, ProgramError (a ValueError) for text that is no program, or one
    that is no rule.
    """
    if name in NAMED:
        return NAMED[str(name)]
    try:
        return from_file(Path(name))
    except OSError as error:
        raise ValueError(
            f"{str(name)!r} is neither a run, nor a shipped rule, nor a text file ({error}), nor a "
            f"known optimizer{like(str(name))}"
        ) from None


def with_states(program: Program, count: int) -> Program:
    """The same rule with at least ``count`` state variables, for a search to find a use for."""
    taken = {*program.inputs, *RESERVED, *(s.target for s in program.statements)}
    names = ("m", "v", *(f"s{k}" for k in range(count + program.length)))
    spare = (name for name in names if name not in taken)
    states = (*program.states, *islice(spare, max(count - len(program.states), 0)))
    optional = [name for name in OPTIONAL_INPUTS if name in program.inputs]
    return replace(program, inputs=(*FIXED_INPUTS, *states, *optional))
