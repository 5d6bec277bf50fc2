"""Coordinate check: does every activation change as much in wide networks as in narrow ones?

A network is in muP when, after a few steps of training, the change of each layer's activations
has the same size at every width. It is the test of a parametrisation that needs no tuning: train
for a few steps at several widths and look. Under the standard parametrisation the lines rise with
the width, and what rises will blow up in a wider network at the same learning rate.

A row of the result belongs to a parameter: it is about what comes out of the operation that the
parameter enters (``trace.py``), so about pre-activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tasks.checks import positive
from tasks.inner.unroll import advance, start
from tasks.mup.trace import trace
from tasks.types import Task, UpdateRule

EXAMPLES = 32
"""How many validation examples the activations are measured on."""


@dataclass(frozen=True)
class Coordinates:
    """Root mean square change since initialisation: ``each [seeds, widths, steps, layers]``."""

    widths: tuple[int, ...]
    steps: tuple[int, ...]
    layers: tuple[str, ...]
    each: np.ndarray

    @cached_property
    def change(self) -> np.ndarray:
        """``[widths, steps, layers]``: the mean over seeds."""
        return self.each.mean(axis=0)

    def range(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and the largest change of the seeds after the last step, ``[widths]``."""
        last = self.each[:, :, -1, layer]
        return last.min(axis=0), last.max(axis=0)

    def ratios(self) -> dict[str, float]:
        """Largest over smallest width's change after the last step, for each layer.

        Infinite where a run diverged, or where some widths have changed and others have not.
        """
        return {layer: _ratio(self.change[:, -1, k]) for k, layer in enumerate(self.layers)}

    def rows(self) -> Iterator[tuple[int, int, str, float]]:
        """``(width, step, layer, change)`` of everything that was measured."""
        for i, j, k in np.ndindex(self.change.shape):
            yield self.widths[i], self.steps[j], self.layers[k], float(self.change[i, j, k])

    def __str__(self) -> str:
        """The last step as a table."""
        long = max(len(layer) for layer in self.layers)
        head = [f"{'change of':{long}}", *(f"w {width}".rjust(9) for width in self.widths), "ratio"]
        lines = ["  ".join([*head[:-1], head[-1].rjust(9)])]
        for k, (layer, ratio) in enumerate(self.ratios().items()):
            cells = [f"{value:9.3g}" for value in (*self.change[:, -1, k], ratio)]
            lines.append("  ".join([f"{layer:{long}}", *cells]))
        return "\n".join(lines)


def coordinate_check(
    make_task: Callable[[int], Task],
    make_rule: Callable[[Task], UpdateRule],
    widths: Sequence[int],
    steps: int,
    seeds: Sequence[int] = (0,),
    lr: float = 1.0,
    device: torch.device | str = "cpu",
) -> Coordinates:
    """Train at each width with the same learning rate; measure after 1, 2, 4, ... and all steps.

    ``make_rule`` makes the rule of a single instance for a task, muP's multipliers included where
    it is to be in muP. Changes are means over ``seeds``.
    """
    positive(steps=steps, widths=len(widths), seeds=len(seeds))
    marks = sorted({steps, *(2**k for k in range(steps.bit_length()) if 2**k <= steps)})
    found = []
    for width in widths:
        task = make_task(width)
        rule = make_rule(task)
        runs = [_changes(task, rule, marks, seed, lr, device) for seed in seeds]
        layers = tuple(runs[0][0])
        found.append([[list(at.values()) for at in run] for run in runs])
    return Coordinates(tuple(widths), tuple(marks), layers, np.array(found).swapaxes(0, 1))


@torch.no_grad()
def _changes(
    task: Task,
    rule: UpdateRule,
    marks: Sequence[int],
    seed: int,
    lr: float,
    device: torch.device | str,
) -> list[dict[str, float]]:
    """For each mark, how much each layer has changed by then."""
    examples = torch.arange(min(EXAMPLES, task.data.size("validation")), device=device)
    batch = task.data.to(device).batch("validation", examples)

    def activations(flat: Tensor) -> dict[str, list[Tensor]]:
        views = task.layout.views(flat[0])
        uses = trace(lambda params: task.loss(params, batch), views, batch)
        return {name: [use.output for use in found] for name, found in uses.items() if found}

    inner = start(task, rule, 1, seed, device)
    before = activations(inner.params)
    found, done = [], 0
    for mark in marks:
        inner, _ = advance(task, rule, inner, mark - done, horizon=marks[-1], lr=lr)
        done = mark
        now = activations(inner.params)
        found.append({name: _rms(now[name], outputs) for name, outputs in before.items()})
    return found


def _rms(now: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    change = torch.cat([(a - b).flatten() for a, b in zip(now, before, strict=True)])
    return float(change.double().square().mean().sqrt())


def _ratio(change: np.ndarray) -> float:
    low, high = float(change.min()), float(change.max())
    if not math.isfinite(high) or high > 0 == low:
        return math.inf
    return high / low if high else 1.0
