"""Named lists of tasks, each with the number of steps it is usually run for.

* ``proxy``: what a search scores every candidate on; two tasks, tens of microseconds a step.
* ``meta_validation``: what the best so far of a search is followed on; larger than the proxies.
* ``meta_train``: what a learned optimizer is meta-trained on; many sizes and shapes.
* ``held_out``: what neither has seen: other data, other architectures; needs no download.
* ``held_out_extra``: ``held_out`` and more; needs ``pip install 'l2o[data]'``.
* ``far``: nor these, at up to 8 times the proxies' width and 12 times their steps; needs it too.
* ``characters``: a proxy of its own, long runs of the smallest transformer;
* ``held_out_characters``: its held-out tasks, another text and other transformers.
* ``scale``: two families at growing width, depth and number of steps, one of them at a time.

A suite is a function, so that importing this module loads no data. Nothing is registered: a suite
of yours is named by its import path, ``package.module:attribute`` (see ``resolve``). A family is a
suite of one task: ``mlp``, ``mlp(width=64)``, ``my_module:Spirals(arms=3)``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from tasks.checks import meant, positive
from tasks.data.loaders import (
    breast_cancer,
    diabetes,
    digit_halves,
    digits,
    help_text,
    king_james,
    mnist5k,
    python_source,
)
from tasks.families.autoencoder import Autoencoder
from tasks.families.conv import Conv
from tasks.families.linear import Linear, Logistic
from tasks.families.mlp import MLP
from tasks.families.named import families, member
from tasks.families.quadratic import Quadratic
from tasks.families.transformer import Transformer
from tasks.oracles.lifting import attempt
from tasks.types import Task
from tasks.user_code.imports import imported, yours


@dataclass(frozen=True)
class Entry:
    """A task and how many steps a run of it has unless one says otherwise: those of the task."""

    task: Task
    steps: int = cast(int, None)

    def __post_init__(self) -> None:
        if self.steps is None:
            object.__setattr__(self, "steps", self.task.steps)
        positive(steps=self.steps)


Suite = tuple[Entry, ...]


def proxy() -> Suite:
    """An autoencoder and the completion of digits: cheap, different, and smooth.

    Between two seeds the gap of two rules moves by 0.02 to 0.05 in log loss here, by 0.2 where
    digits are classified, whose validation loss hangs on a few confident mistakes.
    """
    return (
        Entry(MLP(width=32, depth=1, data=digit_halves(), batch_size=64), steps=100),
        Entry(Autoencoder(width=32, depth=1, latent=8, batch_size=64), steps=100),
    )


def meta_validation() -> Suite:
    """Is progress on the proxies progress? A larger network on the same data, and text."""
    text = python_source(8)
    return (
        Entry(MLP(64, 3, activation="gelu", data=digit_halves(), batch_size=64), steps=200),
        Entry(Transformer(width=20, depth=1, heads=2, data=text, batch_size=16), steps=120),
    )


def meta_train() -> Suite:
    """Digits in many ways, and quadratics; shares no data with ``held_out``."""
    return (
        Entry(Quadratic(dimension=32, spectrum="log", condition=100.0)),
        Entry(Quadratic(dimension=64, spectrum="linear", condition=10.0, noise=0.5, seed=1)),
        Entry(Logistic(data=digits(), batch_size=32)),
        Entry(MLP(width=16, depth=1, batch_size=64)),
        Entry(MLP(width=32, depth=2, activation="tanh", batch_size=32)),
        Entry(MLP(width=64, depth=1, activation="gelu", batch_size=64)),
        Entry(MLP(width=24, depth=3, activation="silu", batch_size=64)),
        Entry(Autoencoder(width=32, depth=1, latent=8, batch_size=64)),
        Entry(Autoencoder(width=48, depth=2, latent=4, activation="relu", batch_size=32)),
        Entry(Conv(width=8, depth=2, batch_size=32)),
    )


def held_out() -> Suite:
    """Text and tables, where ``proxy`` and ``meta_train`` have images.

    The tables have a few hundred rows, so runs on them are short: later, the validation loss tells
    how well a rule regularises rather than how fast it descends. Classifying them is left out: as
    with digits, a few confident mistakes would drown what separates two rules.
    """
    return (
        Entry(Transformer(width=16, depth=1, heads=2, data=help_text(16), batch_size=16), 300),
        Entry(Transformer(width=12, depth=2, heads=2, data=help_text(8), batch_size=16), 150),
        Entry(MLP(width=10, depth=2, activation="silu", data=diabetes(), batch_size=64), 50),
        Entry(
            Autoencoder(20, 2, latent=6, activation="gelu", data=breast_cancer(), batch_size=32),
            100,
        ),
    )


def held_out_extra() -> Suite:
    """``held_out``, larger images and another text."""
    return (
        *held_out(),
        Entry(Linear(data=diabetes())),
        Entry(Conv(width=12, depth=3, data=mnist5k(), batch_size=32)),
        Entry(MLP(width=96, depth=2, data=mnist5k(), batch_size=48)),
        Entry(Transformer(width=24, depth=2, heads=3, data=king_james(16), batch_size=16), 300),
    )


def far() -> Suite:
    """How far from the proxies does a rule hold?"""
    text = help_text(16)
    return (
        Entry(Autoencoder(256, 2, latent=6, data=breast_cancer(), batch_size=32), 400),
        Entry(MLP(width=256, depth=2, data=mnist5k(), batch_size=64), 400),
        Entry(Conv(width=32, depth=3, data=mnist5k(), batch_size=32), 200),
        Entry(Transformer(width=128, depth=1, heads=2, data=text, batch_size=16), 200),
        Entry(Transformer(width=16, depth=1, heads=2, data=text, batch_size=16), 1200),
    )


def characters() -> Suite:
    """The smallest transformer, 2,000 steps; how rules do there: ``docs/results/regimes.md``."""
    return (Entry(Transformer(16, 1, 2, data=python_source(16), batch_size=8), 2000),)


def held_out_characters() -> Suite:
    """Another text and other transformers than ``characters``, as many steps."""
    return (
        Entry(Transformer(24, 1, 2, data=help_text(16), batch_size=8), 2000),
        Entry(Transformer(16, 2, 2, data=help_text(8), batch_size=16), 2000),
    )


def scale() -> Suite:
    """Each family grows in one way at a time: does the best learning rate carry over?"""
    text = python_source(16)

    def mlp(width: int = 32, depth: int = 2, steps: int = 200) -> Entry:
        return Entry(MLP(width, depth, batch_size=64), steps)

    def transformer(width: int = 16, depth: int = 2, steps: int = 300) -> Entry:
        return Entry(Transformer(width, depth, 2, text, batch_size=16), steps)

    return (
        mlp(),
        *(mlp(width=width) for width in (128, 512)),
        *(mlp(depth=depth) for depth in (4, 8)),
        *(mlp(steps=steps) for steps in (800, 3200)),
        transformer(),
        *(transformer(width=width) for width in (32, 64)),
        *(transformer(depth=depth) for depth in (4, 8)),
        *(transformer(steps=steps) for steps in (600, 1200)),
    )


LONGEST = 100_000
"""Times the steps of a task that anybody may ask for."""

SUITES: dict[str, Callable[[], Suite]] = {
    suite.__name__: suite
    for suite in (
        proxy,
        meta_validation,
        meta_train,
        held_out,
        held_out_extra,
        far,
        characters,
        held_out_characters,
        scale,
    )
}


def is_own(name: str) -> bool:
    """Whether a suite of this ``name`` is somebody's own: its code is imported."""
    return ":" in name.partition("(")[0]


def names(suite: Sequence[Entry]) -> list[str]:
    """What each entry is called: its task, with its steps where the suite has that name twice, and
    a number from the second on of those that have the same steps, too."""
    times, used, found = Counter(entry.task.name for entry in suite), Counter[str](), []
    for entry in suite:
        name = entry.task.name
        if times[name] > 1:
            name += f"-s{entry.steps}"
        used[name] += 1
        found.append(name if used[name] == 1 else f"{name}-{used[name]}")
    return found


def resolve(name: str) -> Suite:
    """The suite called ``name``, a member of a family (``families/named.py``), or what the import
    path ``package.module:attribute`` leads to.

    The attribute is a ``Task`` or an ``Entry``, several of them, or a function of no arguments
    that returns any of these; a bare task gets the steps that it asks for. Raises ValueError
    when there is no such thing, or the gradient of one of them cannot be taken.
    """
    if name in SUITES:
        return SUITES[name]()
    if "(" in name or name in families():
        return _entries(name, member("suite", name))
    form = f"one of {', '.join(SUITES)}, a family, or an import path package.module:attribute"
    form += meant(name, (*SUITES, *families()))
    found = imported("suite", name, form)
    if callable(found):
        with yours("suite", name):
            found = found()
    return _entries(name, found)


def _entries(name: str, found: object) -> Suite:
    entries = []
    for item in found if isinstance(found, Iterable) else (found,):
        entry = Entry(item) if isinstance(item, Task) else item
        if not isinstance(entry, Entry):
            raise ValueError(
                f"suite: got {name!r}, which holds a {type(item).__name__}, expected tasks"
            )
        called = getattr(entry.task, "name", type(entry.task).__name__)
        with yours("suite", name, f"holds {called}, which cannot be trained"):
            attempt(entry.task)
        entries.append(entry)
    if not entries:
        raise ValueError(f"suite: got {name!r}, which is empty, expected at least one task")
    return tuple(entries)
