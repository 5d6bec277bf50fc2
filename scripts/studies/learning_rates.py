"""What learning rate and weight decay suit a rule, coming from AdamW: the table of docs/guide.md.

Every rule is tuned on every task of the suites on one grid, learning rates at a factor of 2 times
a few decays per step (lr * weight_decay). Reported is the geometric mean over tasks of the ratio
of its best learning rate to the first rule's, the smallest and the largest one, and the decay per
step that was best most often. A few minutes on one core:

    python scripts/studies/learning_rates.py adamw lion sign_momentum runs/first
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from itertools import product

import torch
from torch import Tensor

from search.interpreter.population import Population
from search.loading import rule
from tasks.evaluation.tuning import Setting, choose, tune
from tasks.inner.schedules import linear, warmup
from tasks.suites import resolve

POWERS = range(-14, 1)
DECAYS = (0.0, 1e-4, 1e-3)
"""Of the weights, by this fraction a step, whatever the learning rate."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rules", nargs="+", help="the first is what the others are compared with")
    parser.add_argument("--suites", nargs="+", default=["proxy", "held_out"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        programs = [rule(name) for name in options.rules]
        entries = [entry for suite in options.suites for entry in resolve(suite)]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    settings = [Setting(2.0**k, decay / 2.0**k) for k, decay in product(POWERS, DECAYS)]

    def make(owner: Tensor) -> Population:
        return Population.of(programs, owner)

    best: list[list[Setting]] = []  # by task, then by rule
    for task, steps in ((entry.task, entry.steps) for entry in entries):
        schedule = warmup(steps // 10, linear)
        losses = tune(task, make, len(programs), steps, settings, schedule=schedule)
        best.append(choose(losses, settings))
        found = (f"{x.lr:.2g}/{x.weight_decay:.2g}" for x in best[-1])
        lowest = " ".join(f"{x:.4f}" for x in losses.amin(1).tolist())
        print(f"{task.name}: {'  '.join(found)}  losses {lowest}", flush=True)
    first = f"{options.rules[0]}'s"
    print(f"\n{'rule':20} lr / {first} (smallest, largest)   decay a step")
    for k, name in enumerate(options.rules):
        print(f"{name[-20:]:20} {_summary([row[k] for row in best], [row[0] for row in best])}")


def _summary(found: list[Setting], reference: list[Setting]) -> str:
    ratios = [one.lr / other.lr for one, other in zip(found, reference, strict=True)]
    mean = math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))
    decays = Counter(f"{setting.lr * setting.weight_decay:.0e}" for setting in found)
    return f"{mean:6.2f} ({min(ratios):.3g}, {max(ratios):.3g})   {dict(decays.most_common())}"


if __name__ == "__main__":
    main()
