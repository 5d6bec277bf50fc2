"""Gradients recorded once and replayed.

A gradient of small models is some fifty operations of a few microseconds. Getting at them through
``vmap`` and autograd takes about as long again, and keeps every intermediate value to the end. But
they are the same operations every time. So once a gradient has been taken ``WORTH`` times they are
recorded: views that change nothing are dropped, and results overwrite operands that nobody needs
any more. The same operations on the same numbers: no bit differs, so it does not matter when the
recording was made, or whether one was, which is checked on the numbers at hand when it is made.

Losses must be functions of their arguments alone, and what a task holds must stay as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Interpreter, Node

from tasks.oracles import gradient
from tasks.oracles.gradient import Derivatives
from tasks.oracles.lifting import ways
from tasks.types import Batch, Task

WORTH = 200
"""Gradients that take about as long as recording one does."""

ATEN = torch.ops.aten
RESHAPES = (ATEN.view.default, ATEN._unsafe_view.default, ATEN.expand.default)
Form = tuple[torch.Size, tuple[int, ...], torch.dtype]
Play = Callable[..., tuple[Tensor, ...]]
log = logging.getLogger(__name__)
_at_once: ContextVar[bool] = ContextVar("at once", default=False)


@contextmanager
def at_once() -> Iterator[None]:
    """Within it gradients are recorded when they are first taken: before a clock is started."""
    token = _at_once.set(True)
    try:
        yield
    finally:
        _at_once.reset(token)


def derivatives(
    task: Task,
    views: Mapping[str, Tensor],
    batch: Batch,
    shared: bool,
    signs: Mapping[str, Tensor] | None = None,
    noise: Tensor | None = None,
) -> Derivatives:
    """See ``gradients.derivatives``, of which this is a faster one on CPUs, where instances run
    together and no random numbers are drawn."""
    given = [*(views[spec.name] for spec in task.layout.specs), *batch]
    plain = signs is not None or torch.is_grad_enabled() or not all(x.is_cpu for x in given)
    if plain or not ways(task).steady(shared):
        return gradient.derivatives(task, views, batch, shared, signs, noise)
    *grads, loss = recording(task, id(task), shared, tuple(map(_form, given)))(*given)
    names = (spec.name for spec in task.layout.specs)
    return Derivatives(dict(zip(names, grads, strict=True)), loss)


class Recording:
    """Takes the parameters ``[N, *shape]`` in the order of the layout, then the batch; returns as
    many gradients, then the losses ``[N]``. For callers under ``torch.no_grad``."""

    def __init__(self, task: Task, shared: bool) -> None:
        self.task, self.shared = task, shared
        self.taken = 0
        self.tried = False
        self.play: Play | None = None

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        if self.play is not None:
            return self.play(*given)
        self.taken += 1
        if not self.tried and (self.taken >= WORTH or _at_once.get()):
            self.tried = True
            self.record(*given)
        return self.plain(*given)

    def plain(self, *given: Tensor) -> tuple[Tensor, ...]:
        names = [spec.name for spec in self.task.layout.specs]
        views, batch = dict(zip(names, given, strict=False)), given[len(names) :]
        grads, loss, _ = gradient.derivatives(self.task, views, batch, self.shared)
        return *(grads[name] for name in names), loss

    def record(self, *given: Tensor) -> bool:
        """Replay from now on; whether that can be done. A loss may do what cannot be recorded."""
        if not ways(self.task).steady(self.shared):
            return False
        try:
            play = recorded(self.plain, *given)
        except Exception as error:  # of any kind: losses are other people's code
            log.info("the gradient of %s is not recorded: %s", self.task.name, error)
            return False
        pairs = zip(self.plain(*given), play(*given), strict=True)
        if all(torch.allclose(x, y, rtol=0, atol=0, equal_nan=True) for x, y in pairs):
            self.play = play
        return self.play is not None


@lru_cache(maxsize=64)
def recording(task: Task, identity: int, shared: bool, forms: tuple[Form, ...]) -> Recording:
    """The same object for the same task and forms of tensors: it remembers how often it was called.

    ``identity`` is the task's, since equal modules may hold unlike buffers.
    """
    return Recording(task, shared)


def recorded(work: Play, *inputs: Tensor) -> Play:
    """``work`` as the operations that it does on tensors of these shapes."""
    from torch.fx.experimental.proxy_tensor import make_fx  # slow to import, and seldom needed

    module = make_fx(work)(*inputs)
    values = _Values(module, *inputs).found
    _drop_views(module.graph, values)
    _overwrite(module.graph, values)
    for node in module.graph.nodes:
        node.meta.clear()  # what the tracer noted of every value: 10 MB and more a recording
    module.recompile()
    return module.forward


class _Values(Interpreter):
    """``found``: what every operation returned, kept alive, so that no address is used twice."""

    def __init__(self, module: GraphModule, *inputs: Tensor) -> None:
        super().__init__(module)
        self.found: dict[Node, Any] = {}
        self.run(*inputs)

    def run_node(self, n: Node) -> Any:
        self.found[n] = super().run_node(n)
        return self.found[n]


def _drop_views(graph: Graph, values: dict[Node, Any]) -> None:
    """What looks at a tensor as it is already."""
    for node in [*graph.nodes]:
        if node.target is ATEN.detach.default or (
            node.target in RESHAPES and _form(values[node]) == _form(values[node.args[0]])
        ):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _form(tensor: Tensor) -> Form:
    return tensor.shape, tensor.stride(), tensor.dtype


def _overwrite(graph: Graph, values: dict[Node, Any]) -> None:
    """In place, where nothing reads the first operand's memory afterwards and all fits into it."""
    nodes = [node for node in graph.nodes if isinstance(values[node], Tensor)]
    memory = {node: values[node].untyped_storage().data_ptr() for node in nodes}
    place = {node: k for k, node in enumerate(graph.nodes)}
    read: dict[int, int] = {}  # the last time
    for node in nodes:
        never_over = node.op != "call_function" or node in graph.output_node().all_input_nodes
        last = len(place) if never_over else max(place[user] for user in node.users)
        read[memory[node]] = max(last, read.get(memory[node], 0))
    for node in nodes:
        first = node.args[0] if node.args else None
        if not isinstance(first, Node) or first not in memory:
            continue
        old, new, instead = memory[first], memory[node], _in_place(node)
        alone = sum(memory.get(operand) == old for operand in node.all_input_nodes) == 1
        fits = _form(values[node]) == _form(values[first]) and values[first].is_contiguous()
        if instead and old != new and read[old] == place[node] and alone and fits:
            node.target = instead
            read[old] = read[new]
            memory |= {other: old for other in nodes if memory[other] == new}


def _in_place(node: Node) -> Callable[..., Any] | None:
    """The operation that writes its result over its first operand."""
    if not isinstance(node.target, OpOverload):
        return None
    name, _, overload = node.target.name().removeprefix("aten::").partition(".")
    return getattr(getattr(ATEN, f"{name}_", None), overload or "default", None)
