"""A loss that is written for one instance, for many: together where that is right, else in turn.

``vmap`` runs all instances together: it has a rule for each operation that says what the operation
does to a batch. Some rules are missing (recurrent layers, numbers read on the host), some draw
other random numbers than an instance by itself would (dropout), and one is wrong (the gradient of
an embedding with a row of padding, for all instances but the first). So before a task is used its
instances together are compared with each by itself: their losses and, tensor by tensor, their
gradients. Where they differ by more than rounding, or the batch fails, instances run in turn. That
is as slow as a plain loop, and as right.

Random numbers that training draws from torch's generator are a function of (seed, step), like
everything random here: the generator is seeded for each gradient and left as it was.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.rng import draw
from tasks.types import Batch, Task

INSTANCES, DRAWS = 3, 2
"""How many are compared, each from weights and on examples of its own, and how often."""
ASIDE = 0.1
"""Standard deviation of what is added to initial weights in the second draw: zeros hide a lot."""
NEAR, NEAR_ALL = 1e-3, 1e-5
"""Rounding: a difference of such a share of the largest gradient of the tensor, or of all."""
SLOW = "%s: instances%s are trained in turn, as slowly as by a loop: %s"
STREAM = 1 << 60
"""Told from the seed of the minibatches by this, so that random numbers do not depend on them."""

CPU = torch.device("cpu")
Losses = Callable[[Mapping[str, Tensor], Batch], Tensor]
Take = Callable[[], list[Tensor]]
log = logging.getLogger(__name__)


class Ways(NamedTuple):
    """Where the instances of a task may run together, and what training does besides."""

    shared: bool  # in training, on one batch for all
    own: bool  # in training, on a batch each
    measured: bool  # when they are measured
    random: bool  # it draws random numbers
    writes: bool  # it writes to the parameters, as embeddings with a ``max_norm`` do

    def together(self, shared: bool) -> bool:
        return self.shared if shared else self.own

    def steady(self, shared: bool) -> bool:
        """Together, and the same operations at every step: they may be recorded."""
        return self.together(shared) and not self.random


TOGETHER = Ways(shared=True, own=True, measured=True, random=False, writes=False)


def ways(task: Task, backward: bool = True) -> Ways:
    """How the instances of ``task`` are run: found out when it is first asked for.

    Without ``backward`` losses alone are compared: gradients are not needed, nor need there be any.
    Raises whatever the loss of a single instance raises; ValueError where that is no single
    number, or another one when it is asked for again.
    """
    return TOGETHER if task.compared else _ways(task, id(task), backward)


def attempt(task: Task) -> None:
    """Find out how a task that others wrote can be run, which may raise anything (see ``ways``)."""
    hash(task)  # what is known of a task is kept under it
    _ways(task, id(task), True)  # as ``ways`` asks: a cache tells defaults from what is said


def noise(seed: int | Tensor, step: int | Tensor, device: torch.device) -> Tensor:
    """What training seeds torch's generator with: ``[]``, or ``[N]`` where seeds or steps are."""
    return draw(seed ^ STREAM, step, 2**31, 1, device)[..., 0]


@contextmanager
def seeded(number: int | Tensor, device: torch.device) -> Iterator[None]:
    """Within it torch's generators start from ``number``; afterwards they are as they were."""
    gpus = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(int(number))
        yield


@contextmanager
def batching() -> Iterator[None]:
    """Attention is taken the way that ``vmap`` has rules for, as fused layers have none; where
    there is none at all it loops over instances within the operation, and need not say so."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop because we have not yet")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def lifted(loss: Losses, shared: bool) -> Losses:
    """``loss`` of instances ``{name: [N, *shape]}`` together, ``[N]``; ``shared``: on one batch."""
    randomness = "same" if shared else "error"
    return vmap(loss, in_dims=(0, None if shared else 0), randomness=randomness)


def rows(
    views: Mapping[str, Tensor], batch: Batch, shared: bool
) -> Iterator[tuple[dict[str, Tensor], Batch]]:
    """The parameters and the batch of one instance after another."""
    for k in range(len(next(iter(views.values())))):
        own = batch if shared else tuple(part[k] for part in batch)
        yield {name: view[k] for name, view in views.items()}, own


def each(task: Task, function: Losses, views: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """``function`` of each instance, ``[N]``: the loss of ``task``, or its metric, which few runs
    are measured in, and which nobody has compared: in turn."""
    device = next(iter(views.values())).device
    with seeded(0, device), batching(), torch.no_grad():
        together = function == task.loss and (task.compared or _measured(task, id(task)))
        if together:
            return lifted(function, shared=True)(views, batch)
        return _in_turn(function, views, batch)


def _in_turn(function: Losses, views: Mapping[str, Tensor], batch: Batch) -> Tensor:
    found = []
    for one, own in rows(views, batch, shared=True):
        with seeded(0, next(iter(one.values())).device):
            found.append(function(_copies(one), own))
    return torch.stack(found)


# ----------------------------------------------------------------- together against one by itself


@lru_cache(maxsize=64)
def _ways(task: Task, identity: int, backward: bool = True) -> Ways:
    """``identity`` is the task's, since equal modules may hold unlike buffers."""
    with torch.set_grad_enabled(backward), batching():
        trials = [_Trial(task, k, backward) for k in range(DRAWS)]
        for trial in trials:
            trial.check()
        traits = [trial.traits() for trial in trials]
        random, writes, padded = (any(found) for found in zip(*traits, strict=True))
        shared, own = (all(t.trained_alike(how) for t in trials) for how in (True, False))
    alike = _measured(task, identity)
    found = Ways(shared and not writes, own and not (writes or padded), alike, random, writes)
    if not (found.shared and found.own):
        which = "" if not found.shared else " with seeds of their own"
        traits = {
            "its training writes to parameters": writes,
            "an embedding has a row of padding": padded,
        }
        said = [*(why for trial in trials for why in trial.why), *(w for w in traits if traits[w])]
        log.info(SLOW, task.name, which, said[0])
    return found


@lru_cache(maxsize=64)
def _measured(task: Task, identity: int) -> bool:
    """Whether instances may be measured together, which takes no gradient."""
    with torch.no_grad(), batching():
        return all(_Trial(task, k).measured_alike() for k in range(DRAWS))


class _Trial:
    """Some instances, to be run together and each by itself; ``backward``: their gradients, too."""

    def __init__(self, task: Task, number: int, backward: bool = True) -> None:
        seeds = torch.arange(INSTANCES, device=CPU) + INSTANCES * number
        inits = [task.init(torch.Generator().manual_seed(int(seed))) for seed in seeds]
        self.task, self.number, self.backward = task, number, backward
        self.why: list[str] = []  # instances are not alike together, as people may read it
        self.views = {name: torch.stack([init[name] for init in inits]) for name in inits[0]}
        if number:
            aside = torch.Generator().manual_seed(number)
            for view in self.views.values():
                view += ASIDE * torch.randn(
                    view.shape, generator=aside, dtype=torch.float32, device=CPU
                )
        data = task.data.to(CPU)
        index = draw(seeds, number, data.size("train"), task.batch_size, CPU)
        self.batch, self.first = data.batch("train", index), data.batch("train", index[0])

    def check(self) -> None:
        """Raises what ``ways`` does."""
        first, _, again = (self._alone(k) for k in (0, 1, 0))
        if first[0].shape != ():
            raise ValueError(f"its loss has shape {tuple(first[0].shape)}, expected one number")
        if self._differing(again, first):
            raise ValueError(
                "its loss is another one when it is asked for again, expected a function of "
                "parameters and batch, and of random numbers from torch's generator alone"
            )

    def _alone(self, number: int) -> list[Tensor]:
        one, batch = [*rows(self.views, self.batch, shared=False)][number]
        with seeded(self.number, CPU):
            return self._taken(self.task.training_loss, one, batch)

    def _taken(self, loss: Losses, views: Mapping[str, Tensor], batch: Batch) -> list[Tensor]:
        return slopes(loss, views, batch) if self.backward else [loss(_copies(views), batch)]

    def traits(self) -> tuple[bool, bool, bool]:
        """Whether a loss draws random numbers, writes to its parameters, and embeds with a row of
        padding: these examples may not hold any."""
        one, batch = next(rows(self.views, self.batch, shared=False))
        written = _copies(one)
        with _Padding() as padding, seeded(self.number, CPU):
            before = torch.get_rng_state()
            self.task.training_loss(written, batch)
            random = not torch.equal(before, torch.get_rng_state())
        writes = not all(torch.equal(one[name], x) for name, x in written.items())
        return random, writes, padding.seen

    def trained_alike(self, shared: bool) -> bool:
        """Whether instances that train together get what each gets by itself."""
        loss, batch = self.task.training_loss, self.first if shared else self.batch

        def alone() -> list[Tensor]:
            found = []
            for one, own in rows(self.views, batch, shared):
                with seeded(self.number, CPU):
                    found.append(self._taken(loss, one, own))
            return [torch.stack(parts) for parts in zip(*found, strict=True)]

        return self._alike(lambda: self._taken(lifted(loss, shared), self.views, batch), alone)

    def measured_alike(self) -> bool:
        """Whether instances that are measured together have the losses that each has by itself."""
        loss, views, batch = self.task.loss, self.views, self.first
        return self._alike(
            lambda: [lifted(loss, shared=True)(_copies(views), batch)],
            lambda: [_in_turn(loss, views, batch)],
        )

    def _alike(self, together: Take, alone: Take) -> bool:
        expected = alone()
        try:
            with seeded(self.number, CPU):
                found = together()
        except Exception as error:  # of any kind: losses are other people's code
            first = str(error).strip().partition("\n")[0][:200]
            self.why.append(f"together they fail: {first or type(error).__name__}")
            return False
        differing = self._differing(found, expected)
        if differing:
            self.why.append(f"together they differ in {', '.join(differing)}")
        return not differing

    def _differing(self, some: Sequence[Tensor], others: Sequence[Tensor]) -> list[str]:
        """Names of what is not the same but for rounding: losses, then gradients."""
        losses = unlike({"loss": some[0]}, others[:1], share=0.0)
        return losses + unlike(dict(zip(self.views, some[1:], strict=False)), others[1:])


def unlike(
    some: Mapping[str, Tensor], others: Sequence[Tensor], share: float = NEAR_ALL
) -> list[str]:
    """Names of tensors that differ by more than rounding: a share of the largest of all of them."""
    most = max(map(_largest, others), default=0.0)
    return [
        name
        for (name, x), y in zip(some.items(), others, strict=True)
        if not torch.allclose(x, y, rtol=0, atol=NEAR * _largest(y) + share * most, equal_nan=True)
    ]


def slopes(function: Losses, views: Mapping[str, Tensor], batch: Batch) -> list[Tensor]:
    """The loss, and its gradient by each tensor of ``views``, which are left as they are."""
    at = {name: view.requires_grad_() for name, view in _copies(views).items()}
    loss = function(at, batch)
    ones = torch.ones_like(loss)
    grads = torch.autograd.grad(loss, [*at.values()], ones, materialize_grads=True)
    return [loss.detach(), *map(dense, grads)]


def _copies(views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Some layers write to their parameters."""
    return {name: view.detach().clone() for name, view in views.items()}


def dense(grad: Tensor) -> Tensor:
    return grad.to_dense() if grad.is_sparse else grad


def _largest(x: Tensor) -> float:
    return float(x.nan_to_num(posinf=0.0, neginf=0.0).abs().max()) if x.numel() else 0.0


class _Padding(TorchDispatchMode):
    """Sees embeddings with a row of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.embedding.default and len(args) > 2 and args[2] >= 0:
            self.seen = True
        return func(*args, **(kwargs or {}))
