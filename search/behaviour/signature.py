"""Programs that behave alike get the same signature, and are evaluated once.

Canonical text (``analyze``) merges renamed variables and commuted arguments, but not ``m * m``
with ``square(m)``. So a program is also *run*: a few steps on fixed inputs in float64, its updates
rounded to 7 significant digits and hashed. Algebraic duplicates differ by 1e-15 and fall
together; what a training run could tell apart stays apart, because the inputs cover many cases:
gradients from 1e-7 to 10, where an epsilon shows, and none at all; weights that move, as they do in
training, and some that are 0; learning rates from 1 to 1e-3 and times to 1,000, either the larger;
tensors of different sizes, where norms of one and of all differ; enough steps for every state to
reach the update; and enough elements that a slightly different decay flips some sign.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from search.behaviour.probe import respond
from search.language.program import Program
from tasks.types import Layout, ParamSpec

STEPS = 6
LAYOUT = Layout((ParamSpec("a", (20, 24)), ParamSpec("b", (31,)), ParamSpec("c", (1,))))
TIMES = (1, 2, 3, 10, 100, 1000)
RATES = (1e-3**0.8, 1.0, 1e-3, 1e-3**0.2, 1e-3**0.4, 1e-3**0.6)
"""Rates and times that training runs have, or ``maximum(lr, 0.3)`` would pass for ``lr``; below 1/t
at some steps and above it at others, or ``maximum(lr, 1 / t)`` would pass for ``1 / t``."""
UNUSED, ZERO = 24, 12
"""Elements without gradients, such as those of inputs that are always 0; and with weights of 0,
such as biases at first. ``ZERO // 2`` are both."""
DROPPED = 29  # of the 52 bits of a float64's fraction


def _probe() -> tuple[Tensor, Tensor]:
    """Fixed parameters ``[STEPS, n]`` and gradients ``[STEPS, 1, n]``."""
    rng = np.random.default_rng(20230213)
    n = LAYOUT.n
    scale = 10.0 ** rng.uniform(-6, 1, size=n)
    # Sizes vary from step to step too: past and present then nearly balance somewhere, whatever
    # the decays are, and the sign of their sum tells close decays apart.
    scale = scale * 10.0 ** rng.uniform(-1, 0, size=(STEPS, 1, n))
    gradients = scale * (0.1 + rng.standard_normal((STEPS, 1, n)))
    # Parameters inside (-1, 1), so that functions such as arcsin are judged where they exist.
    parameters = rng.uniform(-0.9, 0.9, size=(STEPS, n))
    parameters[:, :ZERO] = 0
    gradients[:, :, ZERO // 2 : UNUSED] = 0
    gradients[2:4, :, UNUSED : UNUSED + 12] = 0  # and some now and then
    parameters[1:3, UNUSED + 12 : UNUSED + 18] = 0
    return torch.from_numpy(parameters), torch.from_numpy(gradients)


PARAMETERS, GRADIENTS = _probe()


def signatures(programs: Sequence[Program]) -> list[str]:
    """A hex string for each program; equal strings mean the same rule.

    A program whose updates are not finite anywhere at some step has the signature ``""``.
    """
    if not programs:
        return []
    rates = torch.tensor(RATES, dtype=torch.float64, device="cpu")
    updates = respond(programs, GRADIENTS, PARAMETERS, rates, layout=LAYOUT, times=TIMES)
    rounded = _rounded(updates[:, :, 0].numpy())
    return [_digest(program, row) for program, row in zip(programs, rounded, strict=True)]


def _rounded(updates: np.ndarray) -> np.ndarray:
    """What is rounding noise beside the largest update becomes 0; the rest loses ``DROPPED`` bits.

    NaN and -0.0 have more than one bit pattern; one is kept.
    """
    finite = np.isfinite(updates)
    size = np.abs(updates)
    scale = np.max(size, axis=(1, 2), keepdims=True, initial=0.0, where=finite)
    updates = np.where(np.isnan(updates), np.nan, np.where(size <= 1e-13 * scale, 0.0, updates))
    bits = updates.view(np.int64)
    half = np.where(finite, 1 << (DROPPED - 1), 0)
    return ((bits + half) >> DROPPED << DROPPED).view(np.float64)


def _digest(program: Program, updates: np.ndarray) -> str:
    if not np.isfinite(updates).any(axis=1).all():
        return ""
    form = program.form.encode()
    return hashlib.blake2b(form + updates.tobytes(), digest_size=12).hexdigest()
