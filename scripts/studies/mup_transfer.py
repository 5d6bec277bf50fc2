"""Does the best learning rate carry over from a narrow network to a wide one?

For each rule, under the standard parametrisation and under muP, the final training loss of an MLP
on a grid of learning rates (factor 2) at growing widths; then how many grid steps the best one
moves from the narrowest to the widest, for the mean loss and for every seed alone, and what it
costs to use the narrowest's for the widest. Nine minutes a rule on one core:

    python scripts/studies/mup_transfer.py
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from search.behaviour.degree import degree
from search.interpreter.population import Population
from search.language.program import Program
from search.loading import rule as load
from tasks.data.loaders import digit_halves
from tasks.evaluation.tuning import finite
from tasks.families.mlp import MLP
from tasks.inner.schedules import linear, warmup
from tasks.inner.unroll import unroll
from tasks.mup.scaling import Mup, mup, scaled
from tasks.types import Task

LAST = 10
"""The final loss is the mean training loss of so many last steps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rules", nargs="*", default=["adamw", "lion"], help="as for l2o export")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--low", type=int, default=-11, help="smallest learning rate, power of 2")
    parser.add_argument("--high", type=int, default=-3, help="largest learning rate, power of 2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    powers = range(options.low, options.high + 1)
    try:
        programs = {name: load(name) for name in options.rules}
    except ValueError as error:
        parser.error(str(error))
    for name, program in programs.items():
        for title in ("standard", "muP"):
            rows = []
            for width in options.widths:
                task: Task = MLP(width, options.depth, data=digit_halves(), batch_size=64)
                if title == "muP":
                    task = mup(task, base_width=options.widths[0])
                losses = sweep(task, program, powers, options.steps, range(options.seeds))
                rows.append(losses)
            print(f"\n{name}, {title}\n{table(options.widths, powers, rows)}", flush=True)


def sweep(
    task: Task, program: Program, powers: Sequence[int], steps: int, seeds: Sequence[int]
) -> Tensor:
    """Final losses, seeds x learning rates ``2 ** power``, infinite if diverged."""
    rule = Population.of([program], torch.zeros(len(powers), dtype=torch.int64))
    if isinstance(task, Mup):
        rule = scaled(rule, task.multipliers(degree(program)))
    lr = torch.tensor([2.0**power for power in powers])
    losses = []
    for seed in seeds:
        run = unroll(
            task,
            rule,
            instances=len(lr),
            steps=steps,
            lr=lr,
            schedule=warmup(steps // 10, linear),
            seed=seed,
            eval_at=(),
        )
        losses.append(finite(run.training[-LAST:].mean(0)))
    return torch.stack(losses)


def table(widths: Sequence[int], powers: Sequence[int], losses: Sequence[Tensor]) -> str:
    """Mean losses, the best learning rate of each width, and how far it moves."""
    lines = ["width  best lr" + "".join(f"   2^{power:<4d}" for power in powers)]
    means = [x.mean(0) for x in losses]
    for width, row in zip(widths, means, strict=True):
        cells = (f"{x:8.4f}" if math.isfinite(x) and x < 100 else "       -" for x in row.tolist())
        lines.append(f"{width:5d}     2^{powers[int(row.argmin())]:<3d}" + " ".join(cells))
    moved = int(means[-1].argmin() - means[0].argmin())
    alone = (losses[-1].argmin(1) - losses[0].argmin(1)).tolist()
    cost = float(means[-1][means[0].argmin()] / means[-1].min())
    lines.append(f"the best learning rate moves by {moved:+d} steps of a factor 2;")
    lines.append(f"seed by seed: {', '.join(f'{x:+d}' for x in alone)};")
    lines.append(f"with that of the narrowest, the loss of the widest is {cost:.2f} times its best")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
