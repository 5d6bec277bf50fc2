"""Data parallel meta-training: each process holds some of the particles.

Particles share nothing but ``theta``, so processes exchange one vector an outer step: the mean of
their meta-gradients. What a particle does is a function of its number alone, so any number of
processes does what one would, to the rounding of that mean; a run may even be resumed on another
number of processes. Start them with ``torchrun``:

    torchrun --nproc-per-node 2 -m l2o.cli meta-train --run-dir runs/mulo
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from l2o.estimators.episodes import Runs
from tasks.types import HOST, Inner

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """This process among ``size``; the first, of rank 0, is the one that writes and talks."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def own(self, particles: int) -> slice:
        """Which of ``particles`` particles this process holds. Raises ValueError if unequal."""
        if particles % self.size:
            raise ValueError(
                f"particles: got {particles}, expected a multiple of the {self.size} processes"
            )
        share = particles // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes, the same in each of them."""
        if self.size == 1:
            return value
        total = value.detach().cpu().clone()
        dist.all_reduce(total)
        return (total / self.size).to(value.device)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process."""
        return bool(self.mean(torch.tensor(float(flag), **HOST)) > 0)

    def once(self, work: Callable[[], Result]) -> Result | None:
        """What ``work`` returns in the first process, for which the others wait, with None.

        Where it fails they all stop; only the first says why.
        """
        done, failure = None, None
        if self.first:
            try:
                done = work()
            except (ValueError, OSError) as error:
                failure = error
        if self.any(failure is not None):
            raise failure or SystemExit(2)
        return done

    def gather(self, runs: Runs) -> Runs:
        """All particles, in the order of their numbers, in the first process; others get theirs."""
        if self.size == 1:
            return runs
        parts: Any = [None] * self.size if self.first else None
        dist.gather_object(runs, parts)
        return join(parts) if self.first else runs


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that ``torchrun`` started; this one alone if it started none."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    # Its functions keep the group that exists when they are first imported, which torch does where
    # it compiles. Gloo's threads would outlive it then, and now and then abort the ending process.
    import_module("torch.distributed.nn.functional")
    # All wait while the first evaluates; one that dies is noticed at once, however long the limit.
    dist.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        yield Ranks(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def join(parts: Sequence[Runs]) -> Runs:
    """Particles of several processes, one after another."""
    return _each(lambda tensors: torch.cat(tensors, dim=1), parts)


def share(runs: Runs, own: slice) -> Runs:
    """The particles ``own`` of all."""
    return _each(lambda tensors: tensors[0][:, own], [runs])


def _each(change: Callable[[list[Tensor]], Tensor], parts: Sequence[Runs]) -> Runs:
    """Apply ``change`` to every tensor of ``parts``, as ``[copies, P, ...]``."""
    inners = [part.inner for part in parts]

    def changed(tensors: Sequence[Tensor | int], copies: int) -> Tensor:
        rows = [t for t in tensors if isinstance(t, Tensor)]  # all, once a training has begun
        return change([t.unflatten(0, (copies, len(t) // copies)) for t in rows]).flatten(0, 1)

    copies = inners[0].params.shape[0] // len(parts[0].number)
    inner = Inner(
        changed([i.params for i in inners], copies),
        {name: changed([i.state[name] for i in inners], copies) for name in inners[0].state},
        changed([i.step for i in inners], copies),
        changed([i.seed for i in inners], copies),
    )
    others = {n: changed([getattr(p, n) for p in parts], 1) for n in Runs._fields if n != "inner"}
    return Runs(inner, **others)
