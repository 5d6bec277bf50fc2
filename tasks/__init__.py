"""What optimizers are measured on: problems, the inner loop, and fair comparison.

    from tasks import MLP, ModuleTask, Arrays, unroll

All that documents use is here by name, and imported when it is asked for.

Intel's matrix products choose among algorithms by how operands lie in memory, on some processors of
other makers even by where in a batch a matrix is: a run's bits would depend on its neighbours.
``MKL_CBWR`` forbids that, at no cost that could be measured. The library reads it once, at the
first product, so import this package before that.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.data.arrays import Arrays as Arrays
    from tasks.data.arrays import Text as Text
    from tasks.data.loaders import breast_cancer as breast_cancer
    from tasks.data.loaders import diabetes as diabetes
    from tasks.data.loaders import digits as digits
    from tasks.data.loaders import fashion_mnist as fashion_mnist
    from tasks.data.loaders import mnist as mnist
    from tasks.data.loaders import mnist5k as mnist5k
    from tasks.executors.base import Executor as Executor
    from tasks.executors.processes import Process as Process
    from tasks.executors.processes import Processes as Processes
    from tasks.executors.processes import Worker as Worker
    from tasks.families.autoencoder import Autoencoder as Autoencoder
    from tasks.families.composite import Lasso as Lasso
    from tasks.families.composite import SparseLogistic as SparseLogistic
    from tasks.families.conv import Conv as Conv
    from tasks.families.linear import Linear as Linear
    from tasks.families.linear import Logistic as Logistic
    from tasks.families.mlp import MLP as MLP
    from tasks.families.module import ModuleTask as ModuleTask
    from tasks.families.quadratic import Bowls as Bowls
    from tasks.families.quadratic import Quadratic as Quadratic
    from tasks.families.transformer import Transformer as Transformer
    from tasks.inner.unroll import Trajectory as Trajectory
    from tasks.inner.unroll import unroll as unroll
    from tasks.mup.groups import param_groups as param_groups
    from tasks.mup.scaling import mup as mup
    from tasks.optim.rule_optimizer import RuleOptimizer as RuleOptimizer
    from tasks.oracles.base import Oracle as Oracle
    from tasks.oracles.base import Point as Point
    from tasks.oracles.base import Told as Told
    from tasks.oracles.reading import Reading as Reading
    from tasks.suites import Entry as Entry
    from tasks.types import Metric as Metric
    from tasks.types import Params as Params
    from tasks.types import StepInfo as StepInfo
    from tasks.types import Task as Task
    from tasks.types import UpdateRule as UpdateRule
    from tasks.types import accuracy as accuracy

HOMES = {
    "Arrays": "tasks.data.arrays",
    "Text": "tasks.data.arrays",
    "breast_cancer": "tasks.data.loaders",
    "diabetes": "tasks.data.loaders",
    "digits": "tasks.data.loaders",
    "fashion_mnist": "tasks.data.loaders",
    "mnist": "tasks.data.loaders",
    "mnist5k": "tasks.data.loaders",
    "Executor": "tasks.executors.base",
    "Process": "tasks.executors.processes",
    "Processes": "tasks.executors.processes",
    "Worker": "tasks.executors.processes",
    "Autoencoder": "tasks.families.autoencoder",
    "Lasso": "tasks.families.composite",
    "SparseLogistic": "tasks.families.composite",
    "Conv": "tasks.families.conv",
    "Linear": "tasks.families.linear",
    "Logistic": "tasks.families.linear",
    "MLP": "tasks.families.mlp",
    "ModuleTask": "tasks.families.module",
    "Bowls": "tasks.families.quadratic",
    "Quadratic": "tasks.families.quadratic",
    "Transformer": "tasks.families.transformer",
    "Trajectory": "tasks.inner.unroll",
    "unroll": "tasks.inner.unroll",
    "param_groups": "tasks.mup.groups",
    "mup": "tasks.mup.scaling",
    "RuleOptimizer": "tasks.optim.rule_optimizer",
    "Oracle": "tasks.oracles.base",
    "Point": "tasks.oracles.base",
    "Told": "tasks.oracles.base",
    "Reading": "tasks.oracles.reading",
    "Entry": "tasks.suites",
    "Metric": "tasks.types",
    "Params": "tasks.types",
    "StepInfo": "tasks.types",
    "Task": "tasks.types",
    "UpdateRule": "tasks.types",
    "accuracy": "tasks.types",
}
"""Where a public name is defined."""
__all__ = sorted(HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *HOMES]


def _by_intel() -> bool:
    """Intel's own keep neighbours apart by themselves; nothing is changed there."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


if not _by_intel():
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
