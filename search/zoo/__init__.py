"""Known optimizers as programs: where a search starts, and what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from search.language.functions import ProgramError
from search.language.program import (
    FIXED_INPUTS,
    FUNCTION_NAMES,
    OPTIONAL_INPUTS,
    RESERVED,
    Program,
    parse,
)
from search.language.validity import check
from search.zoo.classics import CLASSICS
from search.zoo.curvature import CURVATURE
from search.zoo.entry import Entry
from search.zoo.lions import LIONS
from search.zoo.literature import LITERATURE
from search.zoo.matrices import MATRICES
from tasks.checks import meant
from tasks.runs.files import SHIPPED

ZOO: Mapping[str, Entry] = MappingProxyType(
    {entry.name: entry for entry in (*CLASSICS, *LITERATURE, *LIONS, *MATRICES)}
)
"""Programs by name that read gradients alone: what a search may start from."""
NAMED: Mapping[str, Entry] = MappingProxyType(
    dict(ZOO) | {entry.name: entry for entry in CURVATURE}
)
"""What a person may call a rule: besides those, the ones that read a Hessian, at the end."""
NEITHER = "holds no program and no optimizer"


def lookup(name: str) -> Entry:
    """The optimizer called ``name``. Raises ValueError with the names that are like it."""
    if name not in NAMED:
        raise ValueError(f"no optimizer called {name!r}{like(name)}")
    return NAMED[name]


def like(name: str) -> str:
    """``; did you mean lion? l2o zoo lists all``: too many names for a line."""
    shipped = [path.parent.name for path in SHIPPED.glob("*/card.json")]
    return f"{meant(name, [*NAMED, *shipped], most=3) or ';'} l2o zoo lists those there are"


def load(name: str | Path) -> Program:
    """The program called ``name`` in the zoo, or in the text file at that path.

    Raises ValueError for neither, ProgramError (a ValueError) for text that is no program, or one
    that is no rule.
    """
    if name in NAMED:
        return NAMED[str(name)].program
    try:
        text = Path(name).read_text(encoding="utf-8-sig")  # as some editors write it
    except UnicodeDecodeError:
        raise ProgramError(f"{name}: {NEITHER}: it is no text") from None
    except OSError as error:
        raise ValueError(
            f"{str(name)!r} is neither a run, nor a shipped rule, nor a text file ({error}), nor a "
            f"known optimizer{like(str(name))}"
        ) from None
    if not any(f"def {function}" in text for function in FUNCTION_NAMES.values()):
        raise ProgramError(f"{name}: {_instead(Path(name))}")
    program = parse(text, filename=str(name))
    try:
        check(program)
    except ProgramError as error:
        raise type(error)(f"{name}: {error}") from None
    return program


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


def with_states(program: Program, count: int) -> Program:
    """The same rule with at least ``count`` state variables, for a search to find a use for."""
    taken = {*program.inputs, *RESERVED, *(s.target for s in program.statements)}
    names = ("m", "v", *(f"s{k}" for k in range(count + program.length)))
    spare = (name for name in names if name not in taken)
    states = (*program.states, *islice(spare, max(count - len(program.states), 0)))
    optional = [name for name in OPTIONAL_INPUTS if name in program.inputs]
    return replace(program, inputs=(*FIXED_INPUTS, *states, *optional))
