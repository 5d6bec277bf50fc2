"""The role of each parameter in a family of networks: how it grows with the width.

    input    its outputs grow with the width, what it sums over does not: the first layer,
             embeddings, filters of a single channel
    hidden   both grow
    output   what it sums over grows, its outputs do not: the readout
    vector   a single axis or none, and nothing is summed over: biases, gains of normalisation

Nothing is annotated. Two members of the family that differ in width show which axes grow, and a
run of the narrower one (``trace.py``) shows which axes are summed over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import median_low
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.mup.trace import Use, trace
from tasks.types import Layout, ParamSpec, Role, Task

Shape = tuple[int, ...]
INIT: dict[Role, float] = {"input": 0.0, "hidden": -0.5, "output": -0.5, "vector": 0.0}
"""Size at initialisation, as a power of the width, unless there is clear evidence for another."""


EMBEDS, READS_OUT = (False, True), (True, False)
"""Whether what is summed over grows, and whether the rest does."""


class WidthError(ValueError):
    """Two networks that are not one family at two widths, or a parameter that fits no role."""


class Part(NamedTuple):
    """What is the same for a parameter at every width."""

    role: Role
    summed: frozenset[int]  # axes whose sizes multiply to the fan-in
    init: float  # initial values are proportional to width ** init
    shared: bool = False  # an output of which copies go on into hidden weights

    def spec(self, name: str, shape: Shape) -> ParamSpec:
        return ParamSpec(name, shape, self.role, math.prod(shape[axis] for axis in self.summed))


Parts = dict[str, Part]


def parts(one: Task, other: Task, tied: bool = False) -> Parts:
    """Compare a task with the same at another width. ``tied``: see ``compare``.

    Raises WidthError unless the two have the same parameters, one of them larger.
    """
    narrow, wide = sorted((one, other), key=lambda task: task.layout.n)
    batch = narrow.data.to("cpu").batch("train", torch.zeros(1, dtype=torch.int64, device="cpu"))
    initial = [task.init(torch.Generator().manual_seed(0)) for task in (narrow, wide)]
    return compare(initial[0], initial[1], lambda params: narrow.loss(params, batch), batch, tied)


def compare(
    narrow: Mapping[str, Tensor],
    wide: Mapping[str, Tensor],
    run: Callable[[Mapping[str, Tensor]], object],
    given: object,
    tied: bool = False,
) -> Parts:
    """As ``parts``, for initial parameters at two widths and a function that uses the narrower and
    ``given``, tensors nested in any way. All of them may be on the meta device.

    ``tied``: a weight that embeds and also reads out is an input. Without, it fits no role.
    """
    shapes = {name: (tuple(p.shape), tuple(wide[name].shape)) for name, p in _same(narrow, wide)}
    rates = [b / a for pair in shapes.values() for a, b in zip(*pair, strict=True) if a != b]
    if not rates:
        raise WidthError("width: got the same width twice, expected two that differ")
    if min(rates) < 1:
        name = next(name for name, (a, b) in shapes.items() if any(map(int.__gt__, a, b)))
        raise WidthError(f"{name}: some axes grow with the width while others shrink")
    for name, (small, large) in shapes.items():
        if any(a == 1 < b for a, b in zip(small, large, strict=True)):
            raise WidthError(
                f"{name}: {list(small)} becomes {list(large)}; expected a narrower network of "
                "width 2 or more, for at a width of 1 it does not show over which axes is summed"
            )
    rate = median_low(rates)
    uses = _traced(run, narrow, given)
    found = {}
    for name, (small, large) in shapes.items():
        role, summed = _role(name, small, large, uses[name], rate, tied)
        found[name] = Part(role, summed, _init_power(narrow[name], wide[name], role, rate))
    hidden = [use for name, part in found.items() if part.role == "hidden" for use in uses[name]]
    copied = frozenset().union(*(use.fed for use in hidden))
    return {
        name: part._replace(shared=part.role == "output" and name in copied)
        for name, part in found.items()
    }


def _traced(
    run: Callable[[Mapping[str, Tensor]], object], params: Mapping[str, Tensor], given: object
) -> dict[str, list[Use]]:
    """Without torch's fused transformer layers, in which products are not seen."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return trace(run, params, given)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def layout(found: Parts, params: Layout) -> Layout:
    """The layout of a member of the family, with roles and fan-ins."""
    return Layout(tuple(found[spec.name].spec(spec.name, spec.shape) for spec in params.specs))


def _same(narrow: Mapping[str, Tensor], wide: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """The narrow parameters, if the wide ones are called alike and have as many axes."""
    lonely = sorted(narrow.keys() ^ wide.keys())
    if lonely:
        raise WidthError(f"only at one of the two widths there is: {', '.join(lonely)}")
    for name, p in narrow.items():
        if p.ndim != wide[name].ndim:
            raise WidthError(
                f"{name}: has {p.ndim} axes at one width, {wide[name].ndim} at another"
            )
    return list(narrow.items())


def _role(
    name: str, small: Shape, large: Shape, uses: list[Use], rate: float, tied: bool
) -> tuple[Role, frozenset[int]]:
    """``rate``: how much wider the wide network is."""
    axes = range(len(small))
    growth = [b / a for a, b in zip(small, large, strict=True)]
    ways = {}
    for summed in {use.summed for use in uses} or {frozenset()}:
        inside = math.prod(growth[axis] for axis in summed)
        outside = math.prod(growth[axis] for axis in axes if axis not in summed)
        ways[inside > 1, outside > 1] = summed
        if max(inside, outside) > rate**1.5:
            grows = f"{list(small)} becomes {list(large)} where the width grows {rate:g} times"
            raise WidthError(f"{name}: fits no role: {grows}, and sums over axes {sorted(summed)}")
    if len(small) > 1 and ways.keys() == {EMBEDS, READS_OUT}:
        if not tied:
            raise WidthError(
                f"{name}: fits no role: it embeds and reads out; expected untied weights, or "
                "tied=True and a network that divides its logits by the ratio of the widths"
            )
        del ways[READS_OUT]
    if len(ways) > 1:
        raise WidthError(f"{name}: fits no role: it is used in several; expected untied weights")
    ((inward, outward), summed), *_ = ways.items()
    if inward:
        return ("hidden" if outward else "output"), summed
    return ("input" if len(small) > 1 or summed else "vector"), summed


def _init_power(narrow: Tensor, wide: Tensor, role: Role, rate: float) -> float:
    """The half-integer ``k`` such that initial values grow like width ** k.

    It is the role's usual one unless the sizes of the two samples contradict it by more than
    four times their sampling error; on the meta device there are none. Vectors are left alone:
    they are small, or constant.
    """
    usual = INIT[role]
    if narrow.is_meta or wide.is_meta:
        return usual
    sizes = [float(p.detach().abs().float().square().mean().sqrt()) for p in (narrow, wide)]
    if role == "vector" or min(sizes) == 0:
        return usual
    surprise = math.log(sizes[1] / sizes[0]) - usual * math.log(rate)
    error = math.sqrt(0.5 / narrow.numel() + 0.5 / wide.numel())
    return usual + (round(2 * surprise / math.log(rate)) / 2 if abs(surprise) > 4 * error else 0.0)
