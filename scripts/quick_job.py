"""Search, report, export, a step, a meta-training and an evaluation, each as small as it can be.

What CI runs under other versions than those of constraints.txt. An empty folder is all it needs.

    python scripts/quick_job.py /tmp/new-folder
"""

import importlib.util
import os
import sys
from pathlib import Path

import torch

import l2o
import search
from tasks import Entry, Logistic, breast_cancer, digits


def suite() -> tuple[Entry, ...]:
    """One task of eight steps."""
    return (Entry(Logistic(data=digits(), batch_size=16), steps=8),)


def held_out() -> tuple[Entry, ...]:
    """Another."""
    return (Entry(Logistic(data=breast_cancer(), batch_size=16), steps=8),)


def main(folder: Path) -> None:
    """All of it, in ``folder``."""
    os.chdir(folder)
    judges = {"held_out": held_out, "meta_validation": None}
    found = search.search(
        "first",
        workers=0,
        funnel={"suite": suite},
        budget={"candidates": 40},
        evolution={"population": 10, "tournament": 3, "batch": 10},
        verdict={**judges, "finalists": 1, "trials": 1, "seeds": 2},
    )
    found.report("first.html")
    step(found.export("my_rule.py"))
    l2o.meta_train(
        "learned",
        mup=False,
        train={"widths": [4]},
        held_out={"widths": [4], "data": ["digits"]},
        estimation={"particles": 1, "horizon": [4, 8], "truncation": 4},
        outer={"steps": 2},
        evaluation={"steps": 4, "every": 2},
    )
    l2o.evaluate(["lion", "learned"], suite, trials=1, seeds=2, out="results.sqlite")
    print("the quick job is done under Python", sys.version.split()[0])


def step(file: Path) -> None:
    """An exported rule moves a parameter. Raises RuntimeError if it does not."""
    spec = importlib.util.spec_from_file_location("my_rule", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    weight = torch.nn.Parameter(torch.ones(3))
    weight.sum().backward()
    module.MyRule([weight], lr=0.01).step()
    if not weight.isfinite().all() or (weight == 1).any():
        raise RuntimeError(f"{file}: expected a step from ones, got {weight.tolist()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
