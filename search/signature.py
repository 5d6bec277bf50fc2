"""Programs that behave alike get the same signature, and are evaluated once.

Canonical text (``analyze``) merges renamed variables and commuted arguments, but not ``m * m``
with ``square(m)``. So a program is also *run*: a few steps on fixed inputs in float64, its updates
rounded to a few significant digits and hashed. Algebraic duplicates differ by 1e-15 and fall
together; anything that a float32 training run could tell apart stays apart, because the inputs
cover many scales: gradients from 1e-6 to 10, where an epsilon shows, several tensors of
different sizes, where per-tensor and global norms differ, and enough steps for every state to
reach the update.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from search.program import Program
from search.vm import assemble, default_step
from tasks.types import Layout, ParamSpec

STEPS = 6
DIGITS = 7
LAYOUT = Layout((ParamSpec("a", (3, 4)), ParamSpec("b", (7,)), ParamSpec("c", (1,))))


def _probe() -> tuple[Tensor, Tensor, Tensor]:
    """Fixed parameters ``[n]``, gradients ``[STEPS, n]`` and learning rates ``[STEPS]``."""
    rng = np.random.default_rng(20230213)
    n = LAYOUT.n
    scale = 10.0 ** rng.uniform(-6, 1, size=n)
    gradients = scale * (0.3 + rng.standard_normal((STEPS, n)))
    # Parameters inside (-1, 1), so that functions such as arcsin are judged where they exist.
    parameters = rng.uniform(-0.9, 0.9, size=n)
    rates = np.linspace(1.0, 0.4, STEPS)
    return torch.tensor(parameters), torch.tensor(gradients), torch.tensor(rates)


PARAMETERS, GRADIENTS, RATES = _probe()


def signatures(programs: Sequence[Program]) -> list[str]:
    """A hex string for each program; equal strings mean the same rule.

    A program whose updates are not finite at any step has the signature ``""``.
    """
    if not programs:
        return []
    count = len(programs)
    table, owner = assemble(programs), torch.arange(count)
    step = default_step(owner.device)
    flat = PARAMETERS.expand(count, -1).contiguous()
    memory = flat.new_zeros(count, table.states, LAYOUT.n)
    decay = flat.new_zeros(count)
    trace = np.empty((count, STEPS, LAYOUT.n))
    for k in range(STEPS):
        grads = GRADIENTS[k].expand(count, -1).contiguous()
        lr, t = RATES[k].expand(count), flat.new_full((count,), k + 1.0)
        updates, memory = step(table, owner, flat, grads, memory, lr, decay, t, LAYOUT)
        trace[:, k] = updates.numpy()
    forms = ["full" if program.form == "full" else "direction" for program in programs]
    return [_digest(form, row) for form, row in zip(forms, _rounded(trace), strict=True)]


def _rounded(trace: np.ndarray) -> np.ndarray:
    """To ``DIGITS`` significant digits; what is rounding noise beside the largest update is 0."""
    with np.errstate(all="ignore"):
        size = np.abs(trace)
        scale = np.nanmax(np.where(np.isfinite(size), size, 0.0), axis=(1, 2), keepdims=True)
        trace = np.where(size <= 1e-13 * scale, 0.0, trace)
        exponent = np.floor(np.log10(np.where(trace == 0, 1.0, np.abs(trace))))
        unit = 10.0 ** np.clip(exponent - (DIGITS - 1), -300, 300)
        return np.where(np.isfinite(trace), np.round(trace / unit) * unit, trace) + 0.0


def _digest(form: str, trace: np.ndarray) -> str:
    finite = np.isfinite(trace)
    if not finite.any(axis=1).all():
        return ""
    # NaN has many bit patterns; one is enough.
    content = np.where(np.isnan(trace), np.nan, trace).tobytes()
    return hashlib.blake2b(form.encode() + content, digest_size=12).hexdigest()
