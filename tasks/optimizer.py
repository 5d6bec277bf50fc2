"""Any update rule as a ``torch.optim.Optimizer``, for anyone's training script.

A model is one instance (``N = 1``). The parameters of a group that share device and precision are
laid end to end in one flat row, the rule is asked for its updates, and these are taken from the
parameters. What the rule remembers of each element is kept with its parameter, under the same name
and in its shape, so that checkpoints, schedulers and sharding tools find what they expect; what
belongs to no element (an LSTM, averages of the loss) is kept with the first parameter of the row,
under ``shared.NAME``.

A parameter that joins a row later starts with an empty memory; the others keep theirs, and what
belongs to no element is kept where its shape allows: averages of the loss are, while averages over
rows and columns, or an LSTM for each tensor, start again.

So a rule sees one parameter group at a time: norms and networks that mix tensors do not look
across groups. Sharded parameters (DTensor) are gathered for the step, which works for every rule
and needs the memory of the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tasks.fields import positive
from tasks.gradients import hessian_every, hessian_products
from tasks.types import Layout, Params, ParamSpec, State, StepInfo, UpdateRule

SHARED = "shared."
OURS = ("step", "hessian")
"""What is kept with each parameter besides the rule's own memory."""
PROBES = ((3,), (2, 3))
"""Shapes of a row's only tensor, of which a rule is asked for a state to see what in it belongs to
elements: that has as many columns as either has elements. What belongs to tensors, to rows or to
columns may by chance be as long as one of them, but not as both."""


class RuleOptimizer(Optimizer):
    """``rule`` as an optimizer. ``lr`` and ``weight_decay`` are what ``StepInfo`` hands the rule.

    ``horizon``: the planned number of steps, for rules that want to know. ``capturable``: step
    counters stay on the device. ``differentiable``: record steps for autograd, if the rule can.
    Half-precision parameters are moved, and remembered, in float32. Parameters without a gradient
    keep their values and what is remembered of their elements; the rule sees a gradient of zero,
    which what belongs to no element takes in: a learned optimizer's averages over rows and columns
    decay. Frozen ones (that need no gradient and never had one) cost nothing: the rule does not see
    them until they are unfrozen. It counts steps by the row: a parameter that is unfrozen late
    takes its first step with an empty memory and a high count, which is too long a step for rules
    that correct their averages by it. A group of its own counts for itself.
    """

    def __init__(
        self,
        params: Iterable[Any],
        rule: UpdateRule,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        *,
        horizon: int = 10_000,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError(f"lr: got a tensor of {lr.numel()} elements, expected one")
        if not isinstance(lr, Tensor) and not lr >= 0:
            raise ValueError(f"lr: got {lr}, expected a number >= 0")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay: got {weight_decay}, expected a number >= 0")
        positive(horizon=horizon)
        self.rule = rule
        self._names: set[str] | None = None  # of the rule's states, once they are known
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "horizon": horizon,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def step(
        self, closure: Callable[[], Any] | None = None, *, loss: Tensor | float | None = None
    ) -> Any:
        """Take one step. Returns what ``closure`` returns, which computes loss and gradients.

        Rules that read the training loss (their attribute ``reads_loss``) get the closure's, or
        else ``loss``. Raises RuntimeError if there is neither; all other rules see NaN.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        loss = loss if result is None else result
        if loss is None:
            if getattr(self.rule, "reads_loss", False):
                raise RuntimeError("the rule reads the training loss: call step(loss=loss)")
            loss = math.nan
        with torch.set_grad_enabled(any(group["differentiable"] for group in self.param_groups)):
            for group in self.param_groups:
                for params in _alike([p for p in group["params"] if not self._is_frozen(p)]):
                    if any(p.grad is not None for p in params):
                        self._move(group, params, loss)
        return result

    def set_hessian(self, loss: Tensor, generator: torch.Generator | None = None) -> None:
        """Estimate the diagonal of the Hessian of ``loss``: before ``loss.backward()``, unscaled.

        Rules that read one need it before their first step, and keep it until the next call, which
        may come every few steps. Hutchinson's estimate: z * (H z) with random signs z. Processes
        that train together should average ``state[p]["hessian"]``, each having seen its own part
        of the batch.
        """
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        found = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
        grads = [_real(grad) for grad in found]
        signs = [torch.empty_like(x).random_(2, generator=generator) * 2 - 1 for x in grads]
        products = hessian_products(grads, params, signs, retain_graph=True)
        for p, z, product in zip(params, signs, products, strict=True):
            self.state[p]["hessian"] = (z * _real(product)).to(_working_dtype(p))

    def _is_frozen(self, p: Tensor) -> bool:
        """Whether nothing is known of it, nor will be: it is in no row."""
        return not p.requires_grad and p.grad is None and "step" not in self.state.get(p, ())

    def _hessian(self, params: list[Tensor]) -> Tensor | None:
        """The row of estimates, if the rule reads them."""
        if not hessian_every(self.rule):
            return None
        if any(p.grad is not None and "hessian" not in self.state[p] for p in params):
            raise RuntimeError("the rule reads a Hessian: call set_hessian(loss) before step()")
        return _join([self.state[p].get("hessian", torch.zeros_like(p)) for p in params])

    def _move(self, group: dict[str, Any], params: list[Tensor], loss: Tensor | float) -> None:
        """One step of the parameters of one row."""
        flat = _join(params)
        grads = _join([torch.zeros_like(p) if p.grad is None else _dense(p.grad) for p in params])
        specs = tuple(ParamSpec(f"p{i}", tuple(_whole(p).shape)) for i, p in enumerate(params))
        row = Params(flat, Layout(specs))
        hessian = self._hessian(params)
        state, steps = self._state(group, params, row)

        def number(x: Any) -> Tensor:
            return torch.as_tensor(x, dtype=flat.dtype, device=flat.device).reshape(1)

        info = StepInfo(
            step=steps.long().reshape(1) if group["capturable"] else int(steps),
            horizon=group["horizon"],
            lr=number(group["lr"]),
            weight_decay=number(group["weight_decay"]),
            loss=number(loss.detach() if isinstance(loss, Tensor) else loss),
            hessian=hessian,
        )
        if group["maximize"]:
            grads, info = -grads, info._replace(loss=-info.loss, hessian=_negated(hessian))
        updates, state = self.rule.update(grads, state, row, info)
        self._keep(params, row.layout, state, steps + 1)
        if not _is_zero(group["lr"]):
            for p, (spec, span) in zip(params, row.layout, strict=True):
                if p.grad is not None:
                    _subtract(p, updates[0, span].view(spec.shape))

    def _state(
        self, group: dict[str, Any], params: list[Tensor], row: Params
    ) -> tuple[State, Tensor]:
        """The rule's state, put together from what is kept with each parameter, and the step."""
        fresh = [p for p in params if "step" not in self.state[p]]
        if fresh:
            self._create(params, row)
            steps = torch.zeros((), device=row.flat.device if group["capturable"] else "cpu")
            for p in fresh:
                self.state[p]["step"] = steps.clone()
        self._check(params, row)
        for p in params:
            self._follow(p, row.flat)
        steps = torch.stack([self.state[p]["step"] for p in params]).amax()
        first = self.state[params[0]]
        state = {}
        for name in first:
            if name.startswith(SHARED):
                state[name.removeprefix(SHARED)] = first[name][None].clone()
            elif name not in OURS:
                kept = zip(params, row.layout, strict=True)
                parts = [_lead(self.state[p][name], spec) for p, (spec, _) in kept]
                state[name] = torch.cat(parts, dim=-1)[None]
        return state, steps

    def _check(self, params: list[Tensor], row: Params) -> None:
        """Raise RuntimeError where the states are not the rule's: a state dict may be any."""
        if self._names is None:
            self._names = set(self.rule.init(row))
        names = {name.removeprefix(SHARED) for p in params for name in self.state[p]} - {*OURS}
        if names != self._names:
            got, expected = (", ".join(sorted(x)) or "none" for x in (names, self._names))
            raise RuntimeError(
                f"state: got {got}, expected {expected}: the state dict is another optimizer's"
            )

    def _follow(self, p: Tensor, flat: Tensor) -> None:
        """Take its state where a parameter was moved to, and make it as precise."""
        for name, x in list(self.state[p].items()):
            dtype = flat.dtype if x.is_floating_point() else x.dtype
            if name != "step" and (x.dtype != dtype or x.device != flat.device):
                self.state[p][name] = x.to(flat.device, dtype)

    def _create(self, params: list[Tensor], row: Params) -> None:
        """States of the parameters of ``row`` that have none; the others keep theirs."""
        shared = self._take_shared(params)
        of_elements = set.intersection(*(self._as_long(row.flat, shape) for shape in PROBES))
        for name, value in self.rule.init(row).items():
            if name in OURS or name.startswith(SHARED):
                raise ValueError(
                    f"the rule has a state called {name!r}, expected none of {', '.join(OURS)} or "
                    f"beginning with {SHARED!r}: these names are taken"
                )
            if name not in of_elements:
                kept = shared.get(name)
                same = kept is not None and kept.shape == value.shape[1:]
                self.state[params[0]][SHARED + name] = kept if same else value[0].clone()
                continue
            for p, (spec, span) in zip(params, row.layout, strict=True):
                if "step" not in self.state[p]:
                    part = value[0, ..., span]
                    self.state[p][name] = part.reshape((*part.shape[:-1], *spec.shape)).clone()

    def _as_long(self, flat: Tensor, shape: tuple[int, ...]) -> set[str]:
        """The states that end in an axis of as many entries as one tensor of ``shape`` has."""
        probe = Layout((ParamSpec("p0", shape),))
        state = self.rule.init(Params(flat.new_zeros(1, probe.n), probe))
        return {name for name, value in state.items() if value.shape[-1:] == (probe.n,)}

    def _take_shared(self, params: list[Tensor]) -> State:
        """What belongs to no element, taken from the parameter that was the row's first so far."""
        found: State = {}
        for p in reversed(params):
            for name in [name for name in self.state[p] if name.startswith(SHARED)]:
                found[name.removeprefix(SHARED)] = self.state[p].pop(name)
        return found

    def _keep(self, params: list[Tensor], layout: Layout, state: State, steps: Tensor) -> None:
        """Write the next state where the present one lies."""
        for name, value in state.items():
            first = self.state[params[0]]
            if SHARED + name in first:
                first[SHARED + name].copy_(value[0])
                continue
            for p, (_, span) in zip(params, layout, strict=True):
                kept = self.state[p][name]
                if p.grad is not None:
                    kept.copy_(value[0, ..., span].reshape(kept.shape))
        for p in params:
            if p.grad is not None:
                self.state[p]["step"].copy_(steps)

    # The optimizer contract -------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"rule": self.rule}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._names = None
        for group in self.param_groups:  # a checkpoint may be older than a hyper-parameter
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's. Schedulers fill a tensor ``lr`` in place, so each group gets its own."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if isinstance(group["lr"], Tensor) and not group["lr"].requires_grad:
            group["lr"] = group["lr"].clone()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but states are copied, and never rounded to a parameter's half precision."""
        saved: dict[str, Any] = {}

        def remember(_: Optimizer, given: dict[str, Any]) -> None:
            saved.update(given)

        def restore(_: Optimizer) -> None:
            keys = [key for group in saved["param_groups"] for key in group["params"]]
            params = [p for group in self.param_groups for p in group["params"]]
            for key, p in zip(keys, params, strict=True):
                for name, value in saved["state"].get(key, {}).items():
                    if not isinstance(value, Tensor):
                        raise RuntimeError(
                            f"state: got {name} = {value!r}, expected a tensor: the state dict is "
                            "another optimizer's"
                        )
                    is_state = value.is_floating_point() and name != "step"
                    dtype = _working_dtype(p) if is_state else value.dtype
                    device = self.state[p][name].device
                    self.state[p][name] = value.to(device, dtype, copy=True)

        before = self.register_load_state_dict_pre_hook(remember)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        with before, after:
            super().load_state_dict(state_dict)


def _alike(params: list[Tensor]) -> list[list[Tensor]]:
    """The parameters by row: those of one device and working precision; empty ones are in none."""
    rows: dict[Any, list[Tensor]] = {}
    for p in params:
        if p.numel():
            rows.setdefault((p.device, _working_dtype(p)), []).append(p)
    return list(rows.values())


def _join(tensors: list[Tensor]) -> Tensor:
    """A fresh row ``[1, n]`` of working precision."""
    whole = [_whole(x) for x in tensors]
    return torch.cat([x.reshape(-1).to(_working_dtype(x)) for x in whole])[None]


def _whole(x: Any) -> Tensor:
    """All shards of ``x``, complex numbers as pairs."""
    return _real(x.full_tensor() if _is_sharded(x) else x)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _is_sharded(x: Any) -> bool:
    return hasattr(x, "full_tensor")


def _dense(grad: Tensor) -> Tensor:
    if grad.layout != torch.strided:
        raise RuntimeError("RuleOptimizer does not support sparse gradients")
    return grad


def _subtract(p: Any, update: Tensor) -> None:
    if _is_sharded(p):
        from torch.distributed.tensor import distribute_tensor  # slow to import, seldom wanted

        # Every process has the whole update, so nothing is sent.
        update = distribute_tensor(update, p.device_mesh, p.placements, src_data_rank=None)
    _real(p).sub_(update)


def _negated(x: Tensor | None) -> Tensor | None:
    return None if x is None else -x


def _lead(x: Tensor, spec: ParamSpec) -> Tensor:
    """A state of one parameter, ``[..., *shape]`` to ``[..., numel]``."""
    return x.reshape(*x.shape[: x.ndim - len(spec.shape)], spec.numel)


def _working_dtype(p: Tensor) -> torch.dtype:
    """What steps are computed and states kept in; a complex number counts as two real ones."""
    dtype = p.dtype.to_real() if p.is_complex() else p.dtype
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _is_zero(lr: float | Tensor) -> bool:
    """Whether nothing may move; of a tensor on an accelerator, zero times the update decides."""
    return (not isinstance(lr, Tensor) or lr.device.type == "cpu") and bool(lr == 0)
