"""Tuned AdamW on the tasks that need no download and are not dear: tasks/references.json.

    python scripts/studies/tune_references.py

Those of ``SUITES``; of the long runs of ``characters`` and its held-out tasks there are none.

Each task: 16 trials of learning rate and weight decay on the tuning seed, the best of them on 5
fresh seeds, exactly as ``l2o evaluate adamw`` does it. Trials are kept in references.sqlite, so
that an interrupted run goes on. The whole file is made by one commit in one environment, which it
names; a tree with uncommitted changes is refused, and so are trials made elsewhere.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from l2o.cli.entrants import entrants
from tasks.cards import fingerprint
from tasks.evaluation.evaluate import evaluate, measured
from tasks.evaluation.intervals import within
from tasks.evaluation.plan import TUNING_SEED, Plan
from tasks.evaluation.results import Results
from tasks.runs.environment import environment

SUITES = ("proxy", "meta_validation", "meta_train", "held_out", "scale")
FILE = Path(__file__).resolve().parents[2] / "tasks" / "references.json"


def main() -> None:
    """Measure and write."""
    options_of = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options_of.add_argument("--trials", type=int, default=16)
    options_of.add_argument("--seeds", type=int, default=5)
    options_of.add_argument("--results", type=Path, default=Path("references.sqlite"))
    options = options_of.parse_args()
    torch.set_num_threads(1)
    made_in = environment()
    if (made_in["commit"] or "+").endswith("+"):
        raise SystemExit("commit your changes first: the file names the commit that made it")
    tasks: dict[str, dict[str, Any]] = {}
    with Results(options.results) as results:
        if results.count() and results.facts().get("environments") != [made_in]:
            raise SystemExit(
                f"{options.results}: holds runs of another commit or environment; expected a new "
                "--results"
            )
        for suite in SUITES:
            for identity, steps, reference in _suite(suite, options, results, made_in):
                tasks.setdefault(identity, {})[str(steps)] = reference
    document = {
        "rule": "adamw",
        "made by": "python scripts/studies/tune_references.py",
        "environment": made_in,
        "tasks": tasks,
    }
    FILE.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def _suite(
    suite: str, options: Any, results: Results, made_in: Mapping[str, str | None]
) -> list[tuple[str, int, dict[str, Any]]]:
    """(fingerprint, steps, reference) of each task of ``suite``."""
    plan = Plan(suite=suite, trials=options.trials, seeds=options.seeds)
    evaluate(plan, entrants(["adamw"]), results, say=print, made_in=made_in)
    found = measured(results)
    references = []
    for t, (name, task, steps) in enumerate(plan.entries):
        assert found.tasks[t] == name
        mean, low, high, n = within(found.final[0, t], 0)
        lr, decay = found.best(0, t)
        reference = {"mean": mean, "low": low, "high": high, "n": n, "lr": lr}
        reference |= {"weight_decay": decay, "trials": options.trials, "name": name}
        reference |= {"seeds": [*plan.fresh], "tuning_seed": TUNING_SEED}
        assert np.isfinite(mean), name
        references.append((fingerprint(task), steps, reference))
    return references


if __name__ == "__main__":
    main()
