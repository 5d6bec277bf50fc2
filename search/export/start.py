"""Where to start with a rule that nobody has tuned on your model: a learning rate that is safe.

A search tunes on networks of a few thousand parameters, where far higher rates are best than
elsewhere. So a file's default is AdamW's usual rate times a ratio that the kind of rule tells:

    signs            what was measured beside AdamW (docs/guide.md): 0.28 of a momentum, 0.5 of Lion
    others           0.5 over the mean size of their steps at a rate of 1, on pure noise; at most 1,
                     or 10 where the size of gradients matters (0.01 and 0.1 are tried)
    gradient descent 0.1 over what a constant gradient adds up to

and for rules that hold their own learning rate the one at which steps are as large as Adam's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from search.behaviour.kind import kind_of
from search.behaviour.probe import respond
from search.language.program import Program, to_text
from search.language.validity import live

ADAMW = 1e-3
"""AdamW's default rate, in torch and in most scripts."""
SIGNS = {"Lion form": 0.5, "sign of a filter": 0.5}
OTHER_SIGN = 0.28
LARGEST, SMALL = 0.5, 0.01  # of a step at the default, in AdamW's rates; of gradients
ADAMS = 0.25  # the mean size of Adam's steps on noise, in learning rates
STEPS, PARAMETERS = 300, 64


class Start(NamedTuple):
    """A learning rate, and a paragraph for people."""

    lr: float
    advice: str


def start(program: Program, lr: float | None = None) -> Start:
    """For a program that passes ``analyze.check``. ``lr``: one that is given, so not to be found
    out; for rules that read a Hessian, which no experiment here has, the default is AdamW's."""
    found = _ratio(program) if "h" not in program.inputs else None
    if found is None:
        said = "No ratio to AdamW's learning rate is known for a rule of this kind: tune its own."
    elif isinstance(found, str):
        said = found
    else:
        said = (
            f"Coming from AdamW, multiply its learning rate by {found:g} and divide its weight "
            f"decay by that, so that lr * weight_decay stays what it was ({_reason(found)}); then "
            "try two more values."
        )
    default = _default(program, found) if lr is None else lr
    return Start(default, f"{said} {_warning(default, lr is None)}")


def _reason(ratio: float) -> str:
    is_measured = ratio in (OTHER_SIGN, *SIGNS.values())
    return "measured on small tasks" if is_measured else "by the size of its steps, not measured"


def _warning(default: float, is_safe: bool) -> str:
    if not is_safe:
        return f"The default, lr = {default:g}, was given when this file was written."
    return (
        f"The default, lr = {default:g}, is what is safe without tuning, for no model in "
        "particular, and may be several times too low: then a training is as much slower."
    )


def _default(program: Program, found: float | str | None) -> float:
    if isinstance(found, float):
        return _rounded(ADAMW * found)
    if found is None:
        return ADAMW
    if program.form == "full":
        return _rounded(ADAMW * ADAMS / max(_size(program, SMALL), 1e-12))
    constant = torch.full((STEPS, 1, 1), SMALL, dtype=torch.float64, device="cpu")
    gain = float(respond([program], constant)[0, -1].abs().max()) / SMALL
    return _rounded(0.1 / max(gain, 1e-12))


def _ratio(program: Program) -> float | str | None:
    """The ratio, a sentence where there cannot be one, or None where nothing is known."""
    if program.form == "full":
        return "It holds its own learning rate: lr multiplies that, as a schedule does."
    small, large = (_size(program, size) for size in (SMALL, 100 * SMALL))
    if not 0 < small < float("inf"):
        return None
    growth = large / small
    if abs(growth - 100) < 1:
        return (
            "Its steps are as large as gradients are, so AdamW's learning rate says nothing of "
            "its own: tune it, by factors of ten at first."
        )
    is_normalised = abs(growth - 1) < 0.1
    if is_normalised and abs(small - 1) < 1e-6:
        return SIGNS.get(kind_of(to_text(live(program))).name, OTHER_SIGN)
    if is_normalised:
        return _rounded(min(LARGEST / small, 1.0))
    return _rounded(min(LARGEST / max(small, _size(program, 10 * SMALL)), 10.0))


def _size(program: Program, scale: float) -> float:
    """The mean size of an update at a rate of 1, on noise."""
    generator = torch.Generator().manual_seed(0)
    shape = (STEPS, 1, PARAMETERS)
    noise: Tensor = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    weights = torch.full((PARAMETERS,), 0.1, dtype=torch.float64, device="cpu")
    return float(respond([program], scale * noise, weights)[0, -STEPS // 3 :].abs().mean())


def _rounded(x: float) -> float:
    return float(f"{x:.2g}")
