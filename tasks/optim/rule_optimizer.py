"""Any update rule as a ``torch.optim.Optimizer``, for anyone's training script.

A model is one instance (``N = 1``). The parameters of a group that share device and precision are
laid end to end in one flat row (``rows.py``), the rule is asked for its updates, and these are
taken from the parameters. What the rule remembers is kept with the parameters it belongs to
(``memory.py``), so that checkpoints, schedulers and sharding tools find what they expect.

A parameter that joins a row later starts with an empty memory, and one that is frozen leaves it:
the others keep theirs. So a checkpoint that drops what belongs to frozen parameters, as distributed
ones do, goes on as if nothing had happened.

A rule sees one parameter group at a time: norms and networks that mix tensors do not look across
groups. Sharded parameters (DTensor) are gathered for the step, which works for every rule and needs
the memory of the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tasks.checks import positive
from tasks.optim.memory import OURS, SHARED, Place, begin, places
from tasks.optim.rows import alike, as_row, dense, join, real, subtract, whole, working_dtype
from tasks.optim.state_dicts import examined, identity, paired, well_formed
from tasks.oracles.hutchinson import hessian_every, hessian_products
from tasks.oracles.reading import read_elsewhere
from tasks.types import Layout, Params, State, StepInfo, UpdateRule


class RuleOptimizer(Optimizer):
    """``rule`` as an optimizer. ``lr`` and ``weight_decay`` are what ``StepInfo`` hands the rule.

    ``horizon``: the planned number of steps, for rules that want to know. ``capturable``: step
    counters stay on the device. ``differentiable``: record steps for autograd, if the rule can.
    Half-precision parameters are moved, and remembered, in float32. Parameters without a gradient
    keep their values and their memory; the rule sees a gradient of zero. Frozen ones (that need no
    gradient and have none) cost nothing: the rule does not see them until they are unfrozen. It
    counts steps by the row: a parameter that is unfrozen late takes its first step with an empty
    memory and a high count, which is too long a step for rules that correct their averages by it. A
    group of its own counts for itself.

    Each group names its rule (``"rule"``), by which a state dict is told from another optimizer's.
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
        if elsewhere := read_elsewhere(rule):
            raise ValueError(
                f"rule: got one that reads the oracle {elsewhere}, expected one that reads "
                "gradients: a training loop of one's own has these, where it takes them"
            )
        self.rule = rule
        self._places: dict[str, Place] = {}  # of the rule's states, once they are known
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "horizon": horizon,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
            "rule": identity(rule),
        }
        super().__init__(params, defaults)

    def step(
        self, closure: Callable[[], Any] | None = None, *, loss: Tensor | float | None = None
    ) -> Any:
        """Take one step. Returns what ``closure`` returns, which computes loss and gradients.

        Rules that read the training loss (their attribute ``reads_loss``) get the closure's, or
        else ``loss``. Raises RuntimeError if there is neither; all other rules see NaN. A first
        step at a learning rate of zero without what the rule reads makes the states and no more:
        so distributed checkpoints, which know of gradients alone, get what they load into.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        loss = loss if result is None else result
        if self._only_begins(loss):
            self._begin_all()
            return result
        if loss is None:
            if getattr(self.rule, "reads_loss", False):
                raise RuntimeError("the rule reads the training loss: call step(loss=loss)")
            loss = math.nan
        with torch.set_grad_enabled(any(group["differentiable"] for group in self.param_groups)):
            for group in self.param_groups:
                for params in self._rows(group):
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
        grads = [real(grad) for grad in found]
        signs = [torch.empty_like(x).random_(2, generator=generator) * 2 - 1 for x in grads]
        products = hessian_products(grads, params, signs, retain_graph=True)
        self._begin_all()
        for p, z, product in zip(params, signs, products, strict=True):
            self.state[p]["hessian"] = (z * real(product)).to(working_dtype(p))

    def _only_begins(self, loss: Tensor | float | None) -> bool:
        """Whether a step is there to make states, and lacks what the rule reads besides."""
        lacks = loss is None and getattr(self.rule, "reads_loss", False)
        if self.state or not (lacks or hessian_every(self.rule)):
            return False
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        stands = all(float(group["lr"]) == 0 for group in self.param_groups)
        return stands and not any(whole(grad).any() for grad in grads)

    def _rows(self, group: dict[str, Any]) -> list[list[Tensor]]:
        """The parameters that the rule sees together. Frozen ones forget what is the row's."""
        seen = []
        for p in group["params"]:
            if p.requires_grad or p.grad is not None:
                seen.append(p)
                continue
            for name in [n for n in self.state.get(p, ()) if n.startswith(SHARED)]:
                del self.state[p][name]
        return alike(seen)

    def _hessian(self, params: list[Tensor]) -> Tensor | None:
        """The row of estimates, if the rule reads them."""
        if not hessian_every(self.rule):
            return None
        if any(p.grad is not None and "hessian" not in self.state[p] for p in params):
            raise RuntimeError("the rule reads a Hessian: call set_hessian(loss) before step()")
        return join([self.state[p].get("hessian", torch.zeros_like(p)) for p in params])

    def _move(self, group: dict[str, Any], params: list[Tensor], loss: Tensor | float) -> None:
        """One step of the parameters of one row."""
        row = as_row(params)
        flat = row.flat
        grads = join([torch.zeros_like(p) if p.grad is None else dense(p.grad) for p in params])
        hessian = self._hessian(params)
        self._begin(group, params)
        state, steps = self._gather(params, row)

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
                    subtract(p, updates[0, span].view(spec.shape))

    # Memory -----------------------------------------------------------------------------------

    def _where(self, p: Tensor) -> dict[str, Place]:
        """Where each of the rule's states belongs."""
        if not self._places:
            like = torch.empty(0, dtype=working_dtype(p), device=p.device)
            self._places = places(self.rule, like)
        return self._places

    def _begin(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """States of the parameters of a row that have none; the others keep theirs."""
        for p in params:
            if "step" not in self.state[p]:
                past = begin(self.rule, p, self._where(p))
                self.state[p].update({n: x for n, x in past.items() if not n.startswith(SHARED)})
                device = p.device if group["capturable"] else "cpu"
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=device)

    def _begin_all(self) -> None:
        """The states of all parameters. Where an estimate belongs that there is not yet: NaN."""
        for group in self.param_groups:
            for params in self._rows(group):
                self._begin(group, params)
                self._gather(params, as_row(params))
                for p in params if hessian_every(self.rule) else ():
                    blank = torch.full_like(p, math.nan, dtype=working_dtype(p))
                    self.state[p].setdefault("hessian", blank)

    def _gather(self, params: list[Tensor], row: Params) -> tuple[State, Tensor]:
        """The rule's state, put together from what is kept with each parameter, and the step."""
        self._check(params)
        for p in params:
            self._follow(p, row.flat)
        steps = torch.stack([self.state[p]["step"] for p in params]).amax()
        state = {}
        for name, place in self._where(params[0]).items():
            if not place.axis:
                state[name] = self._shared(name, place, params, row)[None].clone()
                continue
            kept = zip(params, row.layout.specs, strict=True)
            parts = [place.flat(self.state[p][name], spec) for p, spec in kept]
            state[name] = torch.cat(parts, dim=place.axis - 1)[None]
        return state, steps

    def _shared(self, name: str, place: Place, params: list[Tensor], row: Params) -> Tensor:
        """What belongs to the whole row, and from now on a copy with each of its parameters."""
        key = SHARED + name
        value = next((self.state[p][key] for p in params if key in self.state[p]), None)
        if value is None or place.by_row:
            fresh = self.rule.init(row)[name][0]
            value = fresh if value is None or value.shape != fresh.shape else value
        for p in params:
            if key not in self.state[p] or self.state[p][key].shape != value.shape:
                self.state[p][key] = value.clone()
        return value

    def _check(self, params: list[Tensor]) -> None:
        """Raise RuntimeError where the states are not the rule's: anybody may have put them."""
        names = {name.removeprefix(SHARED) for p in params for name in self.state[p]} - {*OURS}
        known = self._where(params[0])
        if not names <= known.keys():
            got, expected = (", ".join(sorted(x)) or "none" for x in (names, known))
            raise RuntimeError(f"state: got {got}, expected {expected}: it is another optimizer's")

    def _follow(self, p: Tensor, flat: Tensor) -> None:
        """Take its state where a parameter was moved to, and make it as precise."""
        for name, x in list(self.state[p].items()):
            dtype = flat.dtype if x.is_floating_point() else x.dtype
            if name != "step" and (x.dtype != dtype or x.device != flat.device):
                self.state[p][name] = x.to(flat.device, dtype)

    def _keep(self, params: list[Tensor], layout: Layout, state: State, steps: Tensor) -> None:
        """Write the next state where the present one lies."""
        places = self._where(params[0])
        moved = [p.grad is not None for p in params]
        for name, value in state.items():
            if not places[name].axis:
                for p in params:
                    self.state[p][SHARED + name].copy_(value[0])
                continue
            axis = places[name].axis - 1
            kept = [self.state[p][name] for p in params]
            flat = [places[name].flat(x, spec) for x, spec in zip(kept, layout.specs, strict=True)]
            parts = value[0].split([x.shape[axis] for x in flat], axis)
            for x, part, has_moved in zip(kept, parts, moved, strict=True):
                if has_moved:
                    x.copy_(part.reshape(x.shape))
        for p in params:
            if p.grad is not None:
                self.state[p]["step"].copy_(steps)

    # The optimizer contract -------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"rule": self.rule}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._places = {}
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
        """As torch's, but states are copied, and never rounded to a parameter's half precision.

        Raises ValueError, and changes nothing, where they are another rule's or do not fit. Warns
        where that cannot be known, because the rule is not named: of version 0.1 and others.
        """
        well_formed(state_dict)
        saved: dict[str, Any] = {}

        def remember(_: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            saved.update(given, state=examined(given, self.param_groups, self.rule, self._where))
            return saved

        def restore(_: Optimizer) -> None:
            for key, p in paired(saved, self.param_groups).items():
                for name, value in saved["state"].get(key, {}).items():
                    is_state = value.is_floating_point() and name != "step"
                    dtype = working_dtype(p) if is_state else value.dtype
                    device = self.state[p][name].device
                    self.state[p][name] = value.to(device, dtype, copy=True)

        before = self.register_load_state_dict_pre_hook(remember)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        with before, after:
            super().load_state_dict(state_dict)


def _negated(x: Tensor | None) -> Tensor | None:
    return None if x is None else -x


def _is_zero(lr: float | Tensor) -> bool:
    """Whether nothing may move; of a tensor on an accelerator, zero times the update decides."""
    return (not isinstance(lr, Tensor) or lr.device.type == "cpu") and bool(lr == 0)
