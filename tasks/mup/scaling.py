"""muP: one learning rate for every width.

In the standard parametrisation the best learning rate falls as networks get wider, because the
steps of many weights add up in each unit. The maximal update parametrisation (Yang and Hu 2021;
Yang et al. 2022, table 8) makes the change of every activation independent of the width, by three
numbers a tensor. With ``r`` for how many times its fan-in is that of the base width:

    role      initial std      forward multiplier    update multiplier
                                                     degree 0 (Adam)    degree 1 (SGD)
    input     as the family    1                     1                  r
    vector    as the family    1                     1                  r
    hidden    ~ 1/sqrt(r)      1                     1/r                1
    output    constant or 0    1/r                   1                  r

(``r`` of an input or a vector counts its outputs; what does not grow has r = 1.) All gradients
shrink like 1/r, so a rule whose updates have degree ``k`` in the gradients needs r ** k times the
multiplier of Adam. At the base width everything is 1 and nothing changes. Without a base width
``r`` is the fan-in itself, as in the muLO paper (arXiv 2406.00153) for learned optimizers.

Scaling is data. ``mup`` wraps a task so that its initial values and its forward pass are scaled,
``scaled`` wraps any rule so that its updates are; muAdam is ``scaled`` Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tasks.mup.roles import INIT, Parts, WidthError, layout, parts
from tasks.oracles.hutchinson import hessian_every
from tasks.types import (
    Batch,
    Dataset,
    Layout,
    Metric,
    Params,
    ParamSpec,
    State,
    StepInfo,
    Task,
    UpdateRule,
)

Scale = Mapping[str, float] | Callable[[ParamSpec], float]
"""A factor for each tensor: by name, or computed from its role and fan-in."""


def width_ratio(spec: ParamSpec, base: ParamSpec | None = None) -> float:
    """How many times as wide as at the base width (``base``) a tensor is; the fan-in if None."""
    if spec.role in ("hidden", "output"):
        return spec.fan_in / (base.fan_in if base else 1)
    return spec.numel / base.numel if base else 1.0


def update_multiplier(spec: ParamSpec, base: ParamSpec | None = None, degree: float = 0.0) -> float:
    """What muP multiplies the updates of a tensor by. Called with a spec alone it is a ``Scale``.

    Raises ValueError for another degree than 0 without a base.
    """
    if degree and base is None:
        raise ValueError(f"degree: got {degree:g} without a base width, expected 0")
    ratio = width_ratio(spec, base)
    return ratio ** (degree - (spec.role == "hidden"))


SHARED_INIT = 0.25
"""Power of the width that an output starts with whose result is copied to the width, such as the
one key and value that all heads of an attention share. With the forward multiplier it is seen at
n ** -a, a = 3/4. What made its input moves along it, by as much as its gradient, 1/n in all, comes
this way: n ** (1/2 - a). So its result changes by n * n ** -a * n ** (1/2 - a), which is the same
at every width for this ``a``: as a readout (a = 1) it falls behind, as a hidden weight (1/2) it
grows. A readout is the only way of its gradient, and so is an autoencoder's code."""


@dataclass(frozen=True)
class Mup(Task):
    """``task`` in muP; made by ``mup``. An ordinary task: initial values and loss of one instance.

    Its ``layout`` knows roles and fan-ins; ``multipliers`` is for the rule that trains it.
    """

    task: Task
    specs: Layout
    base: Layout | None  # at the base width
    init_scales: tuple[float, ...]  # of each tensor

    @property
    def data(self) -> Dataset:  # type: ignore[override]
        return self.task.data

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        return self.task.batch_size

    @property
    def steps(self) -> int:  # type: ignore[override]
        return self.task.steps

    @property
    def metric(self) -> Metric | None:  # type: ignore[override]
        return self.task.metric

    def figure(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return self.task.figure({**params, **self.forward(params)}, batch)

    @property
    def compared(self) -> bool:  # type: ignore[override]
        return self.task.compared

    @property
    def evaluation_size(self) -> int:  # type: ignore[override]
        return self.task.evaluation_size

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.task.name}-mup"

    @cached_property
    def layout(self) -> Layout:
        return self.specs

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        params = self.task.init(generator)
        scales = zip(self.specs.specs, self.init_scales, strict=True)
        return {spec.name: params[spec.name] * scale for spec, scale in scales}

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return self.task.loss({**params, **self.forward(params)}, batch)

    def training_loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return self.task.training_loss({**params, **self.forward(params)}, batch)

    def forward(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The readouts as the network sees them: times their forward multiplier."""
        return {name: params[name] * scale for name, scale in self._forward_scales.items()}

    @cached_property
    def _forward_scales(self) -> dict[str, float]:
        pairs = self._pairs()
        return {spec.name: 1 / width_ratio(spec, b) for spec, b in pairs if spec.role == "output"}

    def multipliers(self, degree: float = 0.0) -> dict[str, float]:
        """Update multipliers by name, for ``scaled`` or a learned optimizer's ``scale``."""
        return {spec.name: update_multiplier(spec, b, degree) for spec, b in self._pairs()}

    def _pairs(self) -> list[tuple[ParamSpec, ParamSpec | None]]:
        base = self.base.specs if self.base else (None,) * len(self.specs.specs)
        return list(zip(self.specs.specs, base, strict=True))


def has_width(task: Task) -> bool:
    """Whether ``task`` is a dataclass with a field ``width``, and so of a family that grows."""
    return is_dataclass(task) and "width" in (field.name for field in fields(task))


def mup(task: Task, base_width: int | None = None, zero_readout: bool | None = None) -> Mup:
    """A member of a family (a dataclass with a field ``width``) in muP.

    ``zero_readout`` starts the output weights at zero, as the paper advises; None: where there is
    one output. Raises WidthError (a ValueError) for a task without a width and where a parameter
    fits no role, and ValueError for several outputs to set to zero (an autoencoder's).
    """
    if not has_width(task):
        raise WidthError(f"task: got {task.name}, whose family has no field width")

    def make(width: int) -> Task:
        return replace(task, width=width)  # type: ignore[type-var]

    return mup_at(make, task.width, base_width, zero_readout)  # type: ignore[attr-defined]


def mup_at(
    make: Callable[[int], Task],
    width: int,
    base_width: int | None = None,
    zero_readout: bool | None = None,
    tied: bool = False,
) -> Mup:
    """As ``mup``, for any function from a width to a task, such as one of your module's. ``tied``:
    as for ``param_groups``."""
    task, base = make(width), None if base_width is None else make(base_width)
    # At a width of 1 an axis that is summed over looks like one that is not.
    narrow = max(2, width if base_width is None else min(width, base_width))
    found = parts(make(narrow), make(2 * narrow), tied)
    outputs = [name for name, p in found.items() if p.role == "output" and not p.shared]
    if zero_readout is None:
        zero_readout = len(outputs) == 1
    if zero_readout and len(outputs) > 1:
        raise ValueError(
            f"zero_readout: got True for several outputs ({', '.join(outputs)}), which would stop "
            "all gradients; expected False or None"
        )
    specs = layout(found, task.layout)
    base_specs = None if base is None else layout(found, base.layout)
    scales = tuple(_init_scales(found, specs, base_specs, zero_readout))
    return Mup(_with_attention(task, base), specs, base_specs, scales)


def _init_scales(
    found: Parts, specs: Layout, base: Layout | None, zero_readout: bool
) -> list[float]:
    """Correct how the family's own initial values depend on the width, if they do it otherwise."""
    scales = []
    for k, spec in enumerate(specs.specs):
        power, usual = found[spec.name].init, INIT[spec.role]
        if base is None and power != usual:
            raise WidthError(
                f"{spec.name}: starts at width^{power:g} where this role ({spec.role}) starts at "
                f"width^{usual:g}; expected a base width to correct it from"
            )
        wanted = 0.0 if spec.role == "output" else usual
        if found[spec.name].shared:
            wanted = SHARED_INIT
        ratio = width_ratio(spec, base.specs[k] if base else None)
        zero = zero_readout and spec.role == "output" and not found[spec.name].shared
        scales.append(0.0 if zero else ratio ** (wanted - power))
    return scales


def _with_attention(task: Task, base: Task | None) -> Task:
    """Attention logits ``q.k / d`` in place of ``q.k / sqrt(d)``, equal at the base width."""
    if not hasattr(task, "logit_scale"):
        return task
    size = base.head_size if base else 1  # type: ignore[attr-defined]
    scale = (size / task.head_size) ** 0.5  # type: ignore[attr-defined]
    return replace(task, logit_scale=task.logit_scale * scale)  # type: ignore


@dataclass(frozen=True)
class Scaled:
    """``rule`` with the updates of each tensor multiplied; weight decay is left as it is."""

    rule: UpdateRule
    scale: Scale

    def init(self, params: Params) -> State:
        return self.rule.init(params)

    def update(
        self, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        decay = info.lr * info.weight_decay
        info = info._replace(weight_decay=torch.zeros_like(info.weight_decay))
        updates, state = self.rule.update(grads, state, params, info)
        updates = updates * factors(self.scale, params.layout, updates)
        return updates + decay[:, None] * params.flat, state

    @property
    def oracle(self) -> Any:
        return getattr(self.rule, "oracle", None)

    @property
    def hessian_every(self) -> int:
        return hessian_every(self.rule)

    @property
    def reads_loss(self) -> bool:
        return getattr(self.rule, "reads_loss", False)

    def select(self, index: Tensor) -> Scaled:
        return replace(self, rule=self.rule.select(index))


def scaled(rule: UpdateRule, scale: Scale) -> Scaled:
    """Any rule in muP: ``scaled(adam, task.multipliers())`` is muAdam.

    ``update_multiplier`` as the scale serves tasks of all widths at once, without a base width.
    The rule is expected to decay weights as ``lr * weight_decay * params``, as all of ours do: a
    decay by a given fraction a step must not depend on the width.
    """
    return Scaled(rule, scale)


def factors(scale: Scale, params: Layout, like: Tensor) -> Tensor:
    """``[n]``: the factor of each element. Raises ValueError for a tensor without one."""
    return like.new_tensor(by_tensor(scale, params))[params.segments(like.device)]


def by_tensor(scale: Scale, params: Layout) -> list[float]:
    """The factor of each tensor. Raises ValueError for one without."""
    if callable(scale):
        return [scale(spec) for spec in params.specs]
    missing = [spec.name for spec in params.specs if spec.name not in scale]
    if missing:
        raise ValueError(f"scale: got none for {', '.join(missing)}, expected one a tensor")
    return [scale[spec.name] for spec in params.specs]
