"""L2O-PA: a learned proximal method that cannot leave the right form.

For problems smooth plus l1 (``tasks/families/composite.py``) the update is fixed to what any
convergent method must look like (Liu et al. 2023, "Towards constituting mathematical structures
for learning to optimize", eq. 18-19), and only its two coefficients are learned, coordinate by
coordinate:

    x+ = prox(y - a P * grad f(y))        a = 0.9999 / L;   P: preconditioner
    y+ = x+ + A * (x+ - x)                                  A: momentum

An LSTM of two layers reads ``(grad f(y), y)`` of a coordinate; heads put out ``P`` and ``A``, and
for ablations ``B`` (mixes the steps from ``y`` and from ``x``) and the biases ``B1`` and ``B2``.
The parameters of the inner loop are ``y``, where gradients and losses are taken; with P = 1, A = 0
this is ISTA.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from l2o.base import THETA, UNSAVED, LearnedOptimizer, LearnedRule
from tasks.checks import one_of, positive
from tasks.families.composite import Composite, soft
from tasks.mup.scaling import Scale
from tasks.types import HOST, Params, State, StepInfo, Task

HEADS = ("P", "A", "B", "B1", "B2")
RANGES = {"sigmoid": torch.sigmoid, "softplus": F.softplus}


@dataclass(frozen=True)
class L2OPA(LearnedOptimizer):
    """``P = p_scale * p_range(head)`` and likewise ``A``; 5,742 meta-parameters, 5,805 with all
    ``heads``. The defaults are the paper's for LASSO; for logistic regression it has softplus,
    ``p_scale=2`` and ``a_scale=0.3``.
    """

    hidden_size: int = 20
    layers: int = 2
    heads: tuple[str, ...] = ("P", "A")
    p_range: str = "sigmoid"
    p_scale: float = 2.0
    a_range: str = "sigmoid"
    a_scale: float = 2.0
    problem: Composite | None = field(default=None, metadata=UNSAVED)

    def __post_init__(self) -> None:
        positive(hidden_size=self.hidden_size, layers=self.layers)
        one_of("p_range", self.p_range, RANGES)
        one_of("a_range", self.a_range, RANGES)
        object.__setattr__(self, "heads", tuple(self.heads))  # a checkpoint holds a list
        for head in self.heads:
            one_of("heads", head, HEADS)

    def on(self, task: Task) -> L2OPA:
        """Raises ValueError unless ``task`` is a ``Composite``."""
        if not isinstance(task, Composite):
            raise ValueError(f"task: got {task.name}, expected a Composite such as Lasso")
        return replace(self, problem=task)

    def init_theta(self, generator: torch.Generator) -> dict[str, Tensor]:
        """All uniform within 1/sqrt(hidden_size), torch's way for an LSTM."""
        units, bound = self.hidden_size, self.hidden_size**-0.5
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(self.layers):
            shapes |= {f"lstm{layer}.wi": (units if layer else 2, 4 * units)}
            shapes |= {f"lstm{layer}.wh": (units, 4 * units)}
            shapes |= {f"lstm{layer}.bi": (4 * units,), f"lstm{layer}.bh": (4 * units,)}
        shapes |= {"linear.w": (units, units), "linear.b": (units,)}
        for head in self.heads:
            shapes |= {f"{head}.w": (units, 1), f"{head}.b": (1,)}
        return {
            name: torch.empty(shape, **THETA).uniform_(-bound, bound, generator=generator)
            for name, shape in shapes.items()
        }

    def rule(self, theta: Tensor, scale: Scale | None = None) -> L2OPARule:
        """Raises ValueError without a problem (see ``on``), and for a ``scale``."""
        if self.problem is None:
            raise ValueError("problem: got None, expected a Composite; use on(task) before rule")
        if scale is not None:
            raise ValueError("scale: L2O-PA takes none, its step size comes from the problem")
        self.named(theta)
        return L2OPARule(self, theta)


@dataclass(frozen=True, eq=False)
class L2OPARule(LearnedRule):
    """State: ``x [N, n]``; ``hidden`` and ``cell`` ``[N, layers, n, hidden_size]``.

    ``info.lr`` is not used: the step size is the problem's 1/L.
    """

    optimizer: L2OPA

    @property
    def problem(self) -> Composite:
        assert self.optimizer.problem is not None
        return self.optimizer.problem

    def init(self, params: Params) -> State:
        """The LSTM starts from standard normal numbers, fixed ones, the same for all instances."""
        shape = (2, self.optimizer.layers, params.layout.n, self.optimizer.hidden_size)
        start = torch.randn(shape, generator=torch.Generator().manual_seed(0), **HOST).to(
            params.flat
        )
        hidden, cell = start.expand(params.flat.shape[0], *shape).unbind(1)
        return {"x": params.flat.clone(), "hidden": hidden.clone(), "cell": cell.clone()}

    def update(
        self, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        y, x, problem = params.flat, state["x"], self.problem
        # The loss is the mean over problems, and its gradient has the l1 part's subgradient.
        slope = problem.problems * grads - problem.penalty * y.sign()
        inputs = torch.stack([slope, y], dim=-1).detach()
        output, memory = self.lstm(inputs, state)
        heads = self.heads((output @ self.named["linear.w"] + self._bias("linear.b")).relu())
        size = 0.9999 / problem.lipschitz.to(y).repeat_interleave(problem.columns) * heads["P"]
        target = y - size * slope
        if "B" in heads:
            back = x - size * self.slope_at(x)
            target = heads["B"] * target + (1 - heads["B"]) * back
        after = soft(target + heads.get("B1", 0.0), size * problem.penalty)
        following = after + heads["A"] * (after - x) + heads.get("B2", 0.0)
        return y - following, {"x": after} | memory

    def slope_at(self, x: Tensor) -> Tensor:
        """The gradient of the smooth part at ``x [N, n]``."""
        shape = (self.problem.problems, self.problem.columns)
        return self.problem.gradient(x.unflatten(1, shape)).flatten(1)

    def heads(self, output: Tensor) -> dict[str, Tensor]:
        """Coefficients ``[N, n]`` of ``[N, n, hidden_size]``; without a head P is 1, A is 0."""
        raw = {
            head: (output @ self.named[f"{head}.w"] + self._bias(f"{head}.b")).squeeze(-1)
            for head in self.optimizer.heads
        }
        arch, one = self.optimizer, torch.ones_like(output[..., 0])
        p = arch.p_scale * RANGES[arch.p_range](raw["P"]) if "P" in raw else one
        a = arch.a_scale * RANGES[arch.a_range](raw["A"]) if "A" in raw else 0 * one
        return raw | {"P": p, "A": a}

    def lstm(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step, coordinates as a batch: ``[N, n, 2]`` to ``[N, n, hidden_size]``."""
        hidden, cell = [], []
        for layer in range(self.optimizer.layers):
            gates = x @ self.named[f"lstm{layer}.wi"] + self._bias(f"lstm{layer}.bi")
            gates = gates + state["hidden"][:, layer] @ self.named[f"lstm{layer}.wh"]
            gates = gates + self._bias(f"lstm{layer}.bh")
            write, forget, candidate, read = gates.chunk(4, dim=-1)
            kept = torch.sigmoid(forget) * state["cell"][:, layer]
            cell.append(kept + torch.sigmoid(write) * torch.tanh(candidate))
            x = torch.sigmoid(read) * torch.tanh(cell[-1])
            hidden.append(x)
        return x, {"hidden": torch.stack(hidden, 1), "cell": torch.stack(cell, 1)}

    def _bias(self, name: str) -> Tensor:
        return self.named[name][:, None]
