"""Known optimizers as programs: where a search starts, and what it is compared with.

All but ``adamw_initial`` are directions: the harness multiplies by the learning rate and adds the
decoupled weight decay, so ``adam`` and ``adamw`` are one program at different settings. Formulas
follow torch.optim, with one difference: the epsilon is that of division (1e-8, see ``ops``), also
for Adagrad, where torch adds 1e-10.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from textwrap import dedent
from types import MappingProxyType

from search.program import FIXED_INPUTS, OPTIONAL_INPUTS, RESERVED, Program, parse


@dataclass(frozen=True)
class Entry:
    """A known optimizer. ``lr`` and ``weight_decay`` are where tuning may start, not tuned values;
    a full program holds its own decay, and its ``lr`` is the value of the schedule."""

    name: str
    program: Program
    paper: str
    lr: float = 1e-3
    weight_decay: float = 0.0


def lookup(name: str) -> Entry:
    """The optimizer called ``name``. Raises ValueError listing the names there are."""
    if name not in ZOO:
        raise ValueError(f"no optimizer called {name!r}; there are {', '.join(ZOO)}")
    return ZOO[name]


def load(name: str | Path) -> Program:
    """The program called ``name`` in the zoo, or in the text file at that path.

    Raises ValueError for neither, ProgramSyntaxError (a ValueError) for text that is no program.
    """
    if name in ZOO:
        return ZOO[str(name)].program
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(ZOO)
        raise ValueError(f"{str(name)!r} is neither a text file ({error}) nor in {known}") from None
    return parse(text, filename=str(name))


def with_states(program: Program, count: int) -> Program:
    """The same rule with at least ``count`` state variables, for a search to find a use for."""
    taken = {*program.inputs, *RESERVED, *(s.target for s in program.statements)}
    names = ("m", "v", *(f"s{k}" for k in range(count + program.length)))
    spare = (name for name in names if name not in taken)
    states = (*program.states, *islice(spare, max(count - len(program.states), 0)))
    optional = [name for name in OPTIONAL_INPUTS if name in program.inputs]
    return replace(program, inputs=(*FIXED_INPUTS, *states, *optional))


def _entry(
    name: str, paper: str, text: str, *, lr: float = 1e-3, weight_decay: float = 0.0
) -> Entry:
    return Entry(name, parse(dedent(text), filename=name), paper, lr, weight_decay)


_SGD = """
    def update(w, g):
        update = 1.0 * g
        return update
"""

_MOMENTUM = """
    def update(w, g, m):
        decayed = 0.9 * m
        m = decayed + g
        update = 1.0 * m
        return update, m
"""

_NESTEROV = """
    def update(w, g, m):
        decayed = 0.9 * m
        m = decayed + g
        ahead = 0.9 * m
        update = g + ahead
        return update, m
"""

_ADAGRAD = """
    def update(w, g, v):
        g2 = square(g)
        v = v + g2
        root = sqrt(v)
        update = g / root
        return update, v
"""

_RMSPROP = """
    def update(w, g, v):
        g2 = square(g)
        v = interp(g2, v, 0.99)
        root = sqrt(v)
        update = g / root
        return update, v
"""

_ADAM = """
    def update(w, g, m, v, t):
        m = interp(g, m, 0.9)
        g2 = square(g)
        v = interp(g2, v, 0.999)
        b1 = power(0.9, t)
        c1 = 1.0 - b1
        b2 = power(0.999, t)
        c2 = 1.0 - b2
        m_hat = m / c1
        v_hat = v / c2
        root = sqrt(v_hat)
        update = m_hat / root
        return update, m, v
"""

_ADAM_NO_CORRECTION = """
    def update(w, g, m, v):
        m = interp(g, m, 0.9)
        g2 = square(g)
        v = interp(g2, v, 0.999)
        root = sqrt(v)
        update = m / root
        return update, m, v
"""

_ADABELIEF = """
    def update(w, g, m, v):
        m = interp(g, m, 0.9)
        surprise = g - m
        surprise2 = square(surprise)
        v = interp(surprise2, v, 0.999)
        root = sqrt(v)
        update = m / root
        return update, m, v
"""

_SIGN_SGD = """
    def update(w, g):
        update = sign(g)
        return update
"""

_SIGN_MOMENTUM = """
    def update(w, g, m):
        m = interp(g, m, 0.9)
        update = sign(m)
        return update, m
"""

_LION = """
    def update(w, g, m):
        blend = interp(g, m, 0.9)
        update = sign(blend)
        m = interp(g, m, 0.99)
        return update, m
"""

_ADAMW_INITIAL = """
    def full_update(w, g, m, v, lr):
        g2 = square(g)
        m = interp(g, m, 0.9)
        v = interp(g2, v, 0.999)
        sqrt_v = sqrt(v)
        update = m / sqrt_v
        wd = w * 0.01
        update = update + wd
        lr = lr * 0.001
        update = update * lr
        return update, m, v
"""

_ENTRIES = (
    _entry("sgd", "Robbins and Monro 1951", _SGD, lr=0.1),
    _entry("momentum", "Polyak 1964", _MOMENTUM, lr=0.01),
    _entry("nesterov", "Nesterov 1983; Sutskever et al. 2013", _NESTEROV, lr=0.01),
    _entry("adagrad", "Duchi et al. 2011", _ADAGRAD, lr=0.01),
    _entry("rmsprop", "Tieleman and Hinton 2012", _RMSPROP),
    _entry("adam", "Kingma and Ba 2015", _ADAM),
    _entry("adamw", "Loshchilov and Hutter 2019", _ADAM, weight_decay=0.01),
    _entry("adam_no_correction", "Chen et al. 2023, program 3", _ADAM_NO_CORRECTION),
    _entry("adamw_no_correction", "Chen et al. 2023", _ADAM_NO_CORRECTION, weight_decay=0.01),
    _entry("adabelief_no_correction", "Zhuang et al. 2020", _ADABELIEF),
    _entry("sign_sgd", "Bernstein et al. 2018", _SIGN_SGD, lr=1e-4),
    _entry("sign_momentum", "Bernstein et al. 2018", _SIGN_MOMENTUM, lr=1e-4),
    _entry("lion", "Chen et al. 2023", _LION, lr=1e-4, weight_decay=0.1),
    _entry("adamw_initial", "Chen et al. 2023, program 3", _ADAMW_INITIAL, lr=1.0),
)

ZOO: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
