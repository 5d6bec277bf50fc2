"""What kind of rule a program is, found out by experiment, whatever its text looks like.

Everything is read off the updates that a program makes on chosen gradients (``probe``), at zero
weights, where a weight decay that is written in the program vanishes:

* *degree*: gradients scaled by s scale its updates by s^degree. 0: Adam and sign rules, whose
  learning rate has the size of a step; 1: gradient descent.
* *constant size*: every component of an update is +c or -c, a sign.
* *response*: how the past counts. If the rule is a linear filter of gradients, or the sign of
  one, ``a[k]`` is the weight of the gradient k steps ago, scaled so that a[0] is 1, or -1 for a
  rule that climbs. For a sign the weights are found where it flips: with a gradient of 1 k steps
  ago and of -y now, all others zero, the filter's output is ``a[k] - y * a[0]``, which is zero
  at ``y = a[k] / a[0]``.

From the response, where it does not end: one ratio a[k+1] / a[k] for all k is the sign of a
momentum; one from k = 1 on, and another before, is the sign of a blend of the gradient and a
momentum, as in Lion (Chen et al. 2023), where ``a[1] / a[0] = b1 * (1 - b2) / (1 - b1)`` and the
ratio is b2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from search.behaviour.degree import nearest
from search.behaviour.probe import respond
from search.language.program import Program, parse
from search.language.validity import live
from tasks.types import HOST

Name = Literal[
    "sign of the gradient",
    "sign momentum",
    "Lion form",
    "sign of a filter",
    "sign",
    "linear filter",
    "normalised",
    "homogeneous",
    "mixed",
]

LAGS = 24
SMALL = 0.01
"""Gradient size for signs: there, functions such as arcsin are linear, and clipping is off."""
NEGLIGIBLE, LARGEST = 1e-9, 1e6  # weights of the past, relative to that of the present
NOISE = 1e-12  # of the largest weight: what is left by rounding
MOST = 0.95  # share of components that must agree; some lie where a tanh has not saturated


@dataclass(frozen=True)
class RuleKind:
    """The answer; ``str`` gives one line for people."""

    name: Name
    degree: float | None = None  # None: not homogeneous
    response: tuple[float, ...] = ()  # a[0], a[1], ...; () unless (the sign of) a linear filter
    decays: tuple[float, ...] = ()  # of sign momentum (b,), of the Lion form (b1, b2)

    @property
    def is_sign(self) -> bool:
        """Every component of an update has the same size."""
        return self.name in _SIGNS

    @property
    def climbs(self) -> bool:
        """The update points against the gradient that counts first: the loss goes up."""
        return next((a < 0 for a in self.response if a), False)

    def __str__(self) -> str:
        sentence = self._sentence()
        return f"minus the {sentence}, which climbs" if self.climbs else sentence

    def _sentence(self) -> str:
        decays = " and ".join(f"{decay:.4g}" for decay in self.decays)
        start = ", ".join(f"{a:.3g}" for a in self.response[:4])
        if self.name == "sign momentum":
            return f"sign of an average of gradients, decay {decays}: sign momentum"
        if self.name == "Lion form":
            return f"sign of a two-decay average, {decays}: the Lion form"
        if self.name == "homogeneous":
            return f"nonlinear, gradients times s make updates times s^{self.degree:g}"
        return _SENTENCES[self.name].format(start=start)


_SIGNS = ("sign of the gradient", "sign momentum", "Lion form", "sign of a filter", "sign")
_SENTENCES: dict[Name, str] = {
    "sign of the gradient": "sign of the gradient, without memory",
    "sign of a filter": "sign of a linear filter of gradients, {start}, ...",
    "sign": "a sign, of no linear filter of gradients",
    "linear filter": "linear filter of gradients, {start}, ...: gradient descent",
    "normalised": "independent of the scale of gradients, but no sign: as Adam",
    "mixed": "depends on the scale of gradients in no simple way, or on the weights",
}


def classify(program: Program) -> RuleKind:
    """The kind of a program that passes ``analyze.check``.

    Raises ValueError for a program that reads ``h``.
    """
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(LAGS, 16, 8, dtype=torch.float64, generator=generator, device="cpu")
    if not _ignores_weights(program, gradients, generator):
        return RuleKind("mixed")
    degree = _degree(program, gradients)
    if _has_constant_size(program, gradients):
        return _sign(program, degree, generator)
    if degree == 1:
        response = _impulses(program)
        if _is_linear(program, response, generator):
            first = response[response != 0][0].abs()
            return RuleKind("linear filter", degree, tuple((response / first).tolist()))
    if degree is None:
        return RuleKind("mixed")
    return RuleKind("normalised" if degree == 0 else "homogeneous", degree)


@cache
def kind_of(text: str) -> RuleKind:
    """The kind of a program as a run keeps it; asked for again and again, and found out once."""
    return classify(live(parse(text)))


# The experiments ------------------------------------------------------------------------------


def _agree(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Most components of ``a`` and ``b`` differ by less than ``tolerance``, relatively."""
    close = (a - b).abs() <= tolerance * torch.maximum(a.abs(), b.abs())
    return close.double().mean().item() >= MOST


def _ignores_weights(program: Program, gradients: Tensor, generator: torch.Generator) -> bool:
    """The weights, which move, add a constant multiple of themselves to each update, or nothing."""
    steps, _, n = gradients.shape
    weights = torch.randn(steps, n, dtype=torch.float64, generator=generator, device="cpu")
    without = respond([program], gradients)[0]
    added = respond([program], gradients, weights)[0] - without
    decay = (added / weights[:, None]).nanmedian()
    scale = without.abs().nanmedian() + decay.abs()
    close = (added - decay * weights[:, None]).abs() <= 1e-6 * scale
    return bool(close.double().mean(dim=(1, 2)).min() >= MOST)


def _degree(program: Program, gradients: Tensor) -> float | None:
    """From gradients of three sizes; None if they disagree."""
    small, middle, large = (respond([program], s * gradients)[0] for s in (1e-2, 1.0, 1e2))
    size = [u.abs().nanmedian() for u in (small, middle, large)]
    degree = nearest((torch.log(size[2] / size[0]) / math.log(1e4)).item())
    power = torch.tensor(1e2, dtype=torch.float64, device="cpu") ** degree
    if _agree(middle, small * power, 0.01) and _agree(large, middle * power, 0.01):
        return degree
    return None


def _has_constant_size(program: Program, gradients: Tensor) -> bool:
    """At each step; from step to step it may change, as a learning rate does."""
    size = respond([program], gradients)[0, LAGS // 2 :].abs().flatten(1)
    typical = size.nanmedian(dim=1, keepdim=True).values
    return bool((typical > 0).all()) and _agree(size, typical.expand_as(size), 1e-3)


def _impulses(program: Program) -> Tensor:
    """``[LAGS]`` last updates, for a gradient of 1 so many steps ago and no others."""
    response = respond([program], _at(torch.arange(LAGS, device="cpu"), torch.ones(LAGS, **HOST)))[
        0, -1, :, 0
    ]
    return torch.where(response.abs() > NOISE * response.abs().nan_to_num().max(), response, 0.0)


def _at(lags: Tensor, sizes: Tensor) -> Tensor:
    """Gradients ``[LAGS, N, 1]``: run ``i`` has one of size ``sizes[i]``, ``lags[i]`` steps ago."""
    gradients = torch.zeros(LAGS, len(lags), 1, dtype=torch.float64, device="cpu")
    gradients[LAGS - 1 - lags, torch.arange(len(lags), device="cpu"), 0] = sizes.double()
    return gradients


def _is_linear(program: Program, response: Tensor, generator: torch.Generator) -> bool:
    """In tensors of several elements, too, where a norm or a cosine is not the element itself."""
    gradients = torch.randn(LAGS, 32, 8, dtype=torch.float64, generator=generator, device="cpu")
    expected = torch.einsum("k,kri->ri", response.flip(0), gradients)
    return _agree(respond([program], gradients)[0, -1], expected, 1e-6)


# Signs ----------------------------------------------------------------------------------------


def _sign(program: Program, degree: float | None, generator: torch.Generator) -> RuleKind:
    response = _switching_points(program)
    gradients = SMALL * torch.randn(
        LAGS, 64, 8, dtype=torch.float64, generator=generator, device="cpu"
    )
    expected = torch.einsum("k,kri->ri", response.flip(0), gradients).sign()
    actual = respond([program], gradients)[0, -1].sign()
    if (actual == expected).double().mean() < 0.99:
        return RuleKind("sign", degree)
    name, decays = _form(response)
    return RuleKind(name, degree, tuple(response.tolist()), decays)


def _switching_points(program: Program) -> Tensor:
    """``[LAGS]`` weights of the past, that of the latest gradient that counts being 1 or -1.

    What cannot outweigh any other is left by rounding and does not count. Weights that are not
    found are NaN.
    """
    lags = torch.arange(LAGS, device="cpu")
    alone = respond([program], SMALL * _at(lags, torch.ones(LAGS, **HOST)))[0, -1, :, 0].sign()
    weights = torch.full((LAGS,), torch.nan, dtype=torch.float64, device="cpu")
    while alone.any():
        latest, *others = alone.nonzero().flatten().tolist()
        weights = _against(program, alone, latest)
        if not others or not weights[others].isnan().all():
            break
        alone[latest] = 0
    return weights


def _against(program: Program, alone: Tensor, latest: int) -> Tensor:
    """``[LAGS]`` weights beside that of ``latest``; ``alone``: what each does by itself.

    All bisections run at once.
    """
    lags, against = torch.arange(LAGS, device="cpu"), -alone * alone[latest]

    def sign(y: Tensor) -> Tensor:
        """Of the update, for 1 at each lag and ``y``, of opposite effect, at ``latest``."""
        both = _at(lags, 1 / y.clamp(min=1)) + _at(
            torch.full((LAGS,), latest, dtype=torch.int64, device="cpu"), against * y.clamp(max=1)
        )
        return respond([program], SMALL * both)[0, -1, :, 0].sign()

    low = torch.full((LAGS,), NEGLIGIBLE, dtype=torch.float64, device="cpu")
    high = torch.full((LAGS,), LARGEST, dtype=torch.float64, device="cpu")
    negligible, found = sign(low) != alone, sign(high) == -alone
    for _ in range(60):
        middle = (low * high).sqrt()
        flipped = sign(middle) != alone
        low, high = torch.where(flipped, low, middle), torch.where(flipped, middle, high)
    weights = torch.where(found, alone * (low * high).sqrt(), torch.nan)
    weights[negligible | (alone == 0)] = 0.0
    weights[latest] = alone[latest]
    return weights


def _form(response: Tensor) -> tuple[Name, tuple[float, ...]]:
    """The name of the sign of a filter, and its decays."""
    if not response[1:].any():
        return "sign of the gradient", ()
    known = response[response.abs() > 100 * NEGLIGIBLE]
    gaps = bool((response[: len(known)] != known).any())
    ratios = known[1:] / known[:-1]
    if gaps or len(ratios) < 2:
        return "sign of a filter", ()
    first, decay = float(ratios[0]), float(ratios[1:].median())
    steady = bool(((ratios[1:] - decay).abs() <= 1e-3 * abs(decay)).all())
    # An average forgets by and by: its weights end where they are too small to be found.
    endless = len(known) == LAGS or abs(known[-1]) * decay < 1000 * NEGLIGIBLE
    if not (steady and endless and 0 < decay <= 1 + 1e-9):
        return "sign of a filter", ()
    if abs(first - decay) <= 1e-3 * abs(decay):
        return "sign momentum", (decay,)
    if decay > 1 - 1e-9:
        return "sign of a filter", ()
    blend = first / (1 - decay)  # b1 / (1 - b1)
    return "Lion form", (blend / (1 + blend) if abs(1 + blend) > 1e-6 else math.inf, decay)
