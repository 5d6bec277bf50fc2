"""The other side of ``bench.py meta --peer PYTHON``: google/learned_optimization's own PES.

It runs under an interpreter that can import ``learned_optimization``, jax and scikit-learn, and
imports nothing of ours. It answers each line on standard input, a number of tasks, with the seconds
that one meta-gradient of as many took: after compiling and two more that nobody sees.

It is their fastest path: ``AdafacMLPLOpt(concat_weights=False)``, the whole truncation in one
compiled call, minibatches on the device beforehand. The workload is that of ``bench_meta.py``.
TensorFlow is imported by their packages and not needed here: where it is missing, a name stands in.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from unittest.mock import MagicMock

TRUNCATION, BATCH, HIDDEN = 20, 128, 32


def stand_in() -> None:
    """For what is imported on the way and never called; flax looks for the real one."""
    import flax.training.checkpoints  # noqa: F401

    for name in ("tensorflow", "tensorflow_datasets"):
        try:
            __import__(name)
        except ImportError:
            module = MagicMock()
            parts = {name: module, f"{name}.compat": module.compat}
            sys.modules |= parts | {f"{name}.compat.v2": module.compat.v2}


def estimator(tasks: int) -> Callable[[], float]:
    """What takes one meta-gradient of ``tasks`` tasks and says how many seconds that took."""
    import jax
    import numpy as np
    from learned_optimization.learned_optimizers import adafac_mlp_lopt
    from learned_optimization.outer_trainers import (
        gradient_learner,
        lopt_truncated_step,
        truncated_pes,
        truncation_schedule,
    )
    from learned_optimization.tasks import base
    from learned_optimization.tasks.datasets.base import Datasets
    from learned_optimization.tasks.fixed.image_mlp import _MLPImageTask
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (np.asarray(images) / 16).astype(np.float32).reshape(-1, 8, 8)
    labels = np.asarray(labels).astype(np.int32)

    def batches(seed: int) -> Iterator[dict[str, np.ndarray]]:
        rng = np.random.default_rng(seed)
        while True:
            index = rng.integers(0, len(images), BATCH)
            yield {"image": images[index], "label": labels[index]}

    data = Datasets(*map(batches, range(4)), {"num_classes": 10}, next(batches(0)))
    step = lopt_truncated_step.VectorizedLOptTruncatedStep(
        base.single_task_to_family(_MLPImageTask(data, [HIDDEN])),
        adafac_mlp_lopt.AdafacMLPLOpt(hidden_size=4, concat_weights=False),
        truncation_schedule.LogUniformLengthSchedule(100, 1000),
        num_tasks=tasks,
        random_initial_iteration_offset=100,
    )
    pes = truncated_pes.TruncatedPES(step, TRUNCATION, steps_per_jit=TRUNCATION)
    key = jax.random.PRNGKey(0)
    weights = gradient_learner.WorkerWeights(
        step.outer_init(key), None, gradient_learner.OuterState(np.asarray(0, np.int32))
    )
    state = pes.init_worker_state(weights, key)
    ready = jax.device_put(pes.get_datas())

    def turn() -> float:
        nonlocal state, key
        key, own = jax.random.split(key)
        begun = time.perf_counter()
        out, _ = pes.compute_gradient_estimate(weights, own, state, datas_list=ready)
        jax.block_until_ready(out)
        seconds = time.perf_counter() - begun
        state = out.unroll_state
        if not all(np.isfinite(x).all() for x in jax.tree_util.tree_leaves(out.grad)):
            raise RuntimeError("a meta-gradient that is not finite")
        return seconds

    for _ in range(3):
        turn()
    return turn


def main() -> None:
    """``peer_pes.py CORES``: of as many processors, before jax counts them."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    stand_in()
    known: dict[int, Callable[[], float]] = {}
    for line in sys.stdin:
        tasks = int(line)
        if tasks not in known:
            known[tasks] = estimator(tasks)
        print(known[tasks](), file=answers)


if __name__ == "__main__":
    main()
