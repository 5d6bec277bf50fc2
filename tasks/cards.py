"""What a task is, in a few numbers: a card for people, a digest for filing results under."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.inner.unroll import initial
from tasks.oracles.lifting import CPU, Losses, seeded, slopes
from tasks.suites import Entry
from tasks.types import HOST, Batch, Split, Task

REFERENCES = "references.json"
ASIDE = 0.1
"""Standard deviation of what is added to initial weights, at which a loss may not show all it is:
zeros hide a penalty, and a readout of zeros the scale of everything before it."""


def fingerprint(task: Task) -> str:
    """A digest of a task's initial weights, its data, and its losses and gradients beside those
    weights, on some of the data, and how much of them it is judged on: another task has another
    one."""
    params = task.init(torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(1)
    aside = {
        name: value + ASIDE * torch.randn(value.shape, generator=noise, **HOST)
        for name, value in params.items()
    }
    splits: tuple[Split, ...] = ("train", "validation", "test")
    parts: list[str | bytes] = [task.name, str(task.batch_size), repr(task.layout.specs)]
    if task.evaluation_size != Task.evaluation_size:
        parts.append(f"{task.evaluation_size} examples")
    if task.metric is not None:
        parts.append(f"metric {task.metric}")
    for split in splits:
        size = task.data.size(split)
        batch = task.data.batch(
            split, torch.arange(min(size, 64), device="cpu") * size // min(size, 64)
        )
        parts += [str(size), *(_bytes(part) for part in batch)]
        parts += [_bytes(part) for part in task.data.contents(split)]
        parts.append(_sizes(task.loss, aside, batch))
        training = _sizes(task.training_loss, aside, batch)
        if training != parts[-1]:  # dropout and the like
            parts.append(training)
    return digest(*parts, *(_bytes(value) for value in params.values()))


def _sizes(loss: Losses, params: Mapping[str, Tensor], batch: Batch) -> str:
    """Of a loss and of its gradient."""
    with seeded(0, CPU):
        value, *grads = slopes(loss, params, batch)
    slope = torch.stack([grad.norm() for grad in grads]).norm()
    return f"{float(value):.4g} {float(slope):.4g}"


def _bytes(tensor: Tensor) -> bytes:
    return np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes()


def card(entry: Entry) -> dict[str, Any]:
    """What a reader wants to know of a task: what it is made from, cost, and how low AdamW gets.

    ``reference``: the final validation loss of tuned AdamW, ``mean``, ``low`` and ``high`` of its
    95 % interval, ``n`` seeds, the chosen ``lr`` and ``weight_decay``; None if not measured.
    """
    task = entry.task
    splits: tuple[Split, ...] = ("train", "validation", "test")
    sizes = {name: getattr(task, name) for name in ("width", "depth") if hasattr(task, name)}
    known = references().get(fingerprint(task), {}).get(str(entry.steps))
    return (
        _made_from(task)
        | sizes
        | {
            "family": type(task).__name__,
            "data": task.data.name,
            "examples": {split: task.data.size(split) for split in splits},
            "parameters": task.layout.n,
            "batch_size": task.batch_size,
            "steps": entry.steps,
            "flops_a_step": flops(task),
            "reference": known,
        }
    )


def _made_from(task: Task) -> dict[str, Any]:
    """The fields of a task that are plain: activation, heads and the like."""
    named = {f.name: getattr(task, f.name) for f in fields(task)} if is_dataclass(task) else {}
    return {
        name: value
        for name, value in named.items()
        if isinstance(value, int | str) or (isinstance(value, float) and math.isfinite(value))
    }


@cache
def references() -> dict[str, dict[str, dict[str, Any]]]:
    """Tuned AdamW by fingerprint and steps, as ``scripts/studies/tune_references.py`` has measured
    it.

    A task that has changed since, or whose data is another here, has another fingerprint and so
    no reference.
    """
    return json.loads(files("tasks").joinpath(REFERENCES).read_text(encoding="utf-8"))["tasks"]


def flops(task: Task) -> int:
    """Floating-point operations of one gradient, matrix products and convolutions only."""
    from torch.utils.flop_counter import FlopCounterMode  # half a second, with triton

    row = initial(task, 1, 0)[0].requires_grad_()
    batch = task.data.batch(
        "train", torch.arange(task.batch_size, device="cpu") % task.data.size("train")
    )
    with FlopCounterMode(display=False) as counter:
        task.loss(task.layout.views(row), batch).backward()
    return counter.get_total_flops()


def digest(*parts: str | bytes) -> str:
    """16 hexadecimal digits that tell different contents apart."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        total.update(len(content).to_bytes(8, "little") + content)
    return total.hexdigest()[:16]
