"""The parameters of a model as rows of numbers, which is how an update rule sees them.

A row holds the parameters that share device and working precision, end to end. Shards (DTensor) are
gathered for it, complex numbers are pairs, and half precision becomes float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tasks.types import Layout, Params, ParamSpec


def alike(params: Sequence[Tensor]) -> list[list[Tensor]]:
    """The parameters by row: those of one device and working precision; empty ones are in none."""
    rows: dict[Any, list[Tensor]] = {}
    for p in params:
        if p.numel():
            rows.setdefault((p.device, working_dtype(p)), []).append(p)
    return list(rows.values())


def as_row(params: Sequence[Tensor]) -> Params:
    """A fresh row ``[1, n]`` and where each parameter lies in it."""
    specs = (ParamSpec(f"p{i}", tuple(whole(p).shape)) for i, p in enumerate(params))
    return Params(join(params), Layout(tuple(specs)))


def join(tensors: Sequence[Tensor]) -> Tensor:
    """A fresh row ``[1, n]`` of working precision."""
    return torch.cat([whole(x).reshape(-1).to(working_dtype(x)) for x in tensors])[None]


def whole(x: Any) -> Tensor:
    """All shards of ``x``, complex numbers as pairs."""
    return real(x.full_tensor() if _is_sharded(x) else x)


def real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def dense(grad: Tensor) -> Tensor:
    if grad.layout != torch.strided:
        raise RuntimeError("RuleOptimizer does not support sparse gradients")
    return grad


def subtract(p: Any, update: Tensor) -> None:
    """Take ``update``, of the whole parameter's shape, from ``p`` or from the shard that it is."""
    if _is_sharded(p):
        from torch.distributed.tensor import distribute_tensor  # slow to import, seldom wanted

        # Every process has the whole update, so nothing is sent.
        update = distribute_tensor(update, p.device_mesh, p.placements, src_data_rank=None)
    real(p).sub_(update)


def working_dtype(p: Tensor) -> torch.dtype:
    """What steps are computed and states kept in; a complex number counts as two real ones."""
    dtype = p.dtype.to_real() if p.is_complex() else p.dtype
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _is_sharded(x: Any) -> bool:
    return hasattr(x, "full_tensor")
