"""What one optimizer's ``step()`` costs in this process, as JSON: of ours, torch's or a peer's.

    one_step.py SUBJECT

It needs torch alone, and what SUBJECT is from, so a peer's runs under an interpreter that has the
peer's package and not ours. ``bench_optimizers.py`` asks for it in turns.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

STEPS = 12
TORCH: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "torch AdamW, foreach": partial(torch.optim.AdamW, foreach=True),
    "torch AdamW, fused": partial(torch.optim.AdamW, fused=True),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lion-pytorch Lion": ("lion_pytorch", {}),
    "lion-pytorch Lion, foreach": ("lion_pytorch.foreach", {}),
    "pytorch_optimizer Lion, foreach": ("pytorch_optimizer", {"foreach": True}),
}
"""Their modules, and what makes them fast."""


def parameters(width: int = 384, layers: int = 5, words: int = 2048) -> list[Tensor]:
    """Of a transformer with about 10 M parameters, with gradients."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.TransformerEncoderLayer(width, 6, 4 * width, batch_first=True)
    whole = nn.Sequential(nn.Embedding(words, width), *[layer] * layers, nn.LayerNorm(width))
    shapes = [p.shape for part in whole for p in part.parameters()]  # layers count each time
    params = [torch.randn(shape, generator=generator).mul_(0.02) for shape in shapes]
    for p in params:
        p.requires_grad_().grad = torch.randn(p.shape, generator=generator).mul_(1e-3)
    return params


def make(subject: str, params: list[Tensor]) -> torch.optim.Optimizer:
    """The optimizer that a row of the table names."""
    settings: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.1}
    if subject in TORCH:
        return TORCH[subject](params, **settings)
    if subject in OTHERS:
        module, more = OTHERS[subject]
        return import_module(module).Lion(params, **settings, **more)
    from search.loading import load  # ours, which a peer's interpreter has not

    way, name = subject.split(" ", 1)
    optimizer = load(name).optimizer(params, **settings, fused=way == "fused")
    if way == "whole":
        sys.modules[type(optimizer).__module__].__dict__["_pieces"] = lambda *lists: [lists]
    if way == "compiled":
        optimizer.step = torch.compile(optimizer.step)
    return optimizer


def measure(subject: str) -> dict[str, float]:
    """In this process: seconds of a step, of a copy of one number, and numbers moved at least."""
    torch.set_num_threads(1)
    params = parameters()
    n = sum(p.numel() for p in params)
    source, target = torch.ones(n), torch.empty(n)
    optimizer = make(subject, params)
    before = params[0].detach().clone()
    seconds, copies = [], []
    for _ in range(STEPS):
        start = time.process_time()
        optimizer.step()
        middle = time.process_time()
        target.copy_(source)
        seconds.append(middle - start)
        copies.append(time.process_time() - middle)
    assert not torch.equal(before, params[0]), f"{subject} moved nothing"
    states = sum(
        x.numel()
        for state in optimizer.state.values()
        for x in state.values()
        if isinstance(x, Tensor) and x.ndim
    )
    moved = 3 * n + 2 * states  # read parameter, gradient, states; write parameter and states
    first = STEPS // 4  # after these
    return {
        "step": median(seconds[first:]),
        "floor": moved * median(copies[first:]) / (2 * n),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
