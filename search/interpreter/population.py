"""A population of programs as one update rule.

A ``Step`` runs all instances, each with its own program (``assemble``), for one optimizer step.
``reference`` is what the words mean, in torch, on any device. The modules in ``kernels/`` have
the same signature and are tested against it as trajectories; ``Population`` picks one. A
program with a function that kernels have not runs in the reference, the others in the kernel.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

import torch
from torch import Tensor

from search.interpreter.bytecode import Table, assemble
from search.interpreter.reference import Step, reference
from search.language.program import Program
from tasks.types import Layout, Params, State, StepInfo

log = logging.getLogger(__name__)


# Sums run in float64, so that the order in which a kernel adds up does not show in float32.


@dataclass(frozen=True)
class Population:
    """Programs as an ``UpdateRule``: instance ``i`` runs ``programs[owner[i]]``.

    ``step`` is ``reference`` or a kernel of the same signature. Programs that read ``h`` get a
    new estimate at the steps that ``hessian_every`` divides, and keep it in between; 0: none does.
    """

    programs: tuple[Program, ...]
    owner: Tensor  # [N] int64
    step: Step
    table: Table = field(repr=False)
    hessian_every: int = 0

    @classmethod
    def of(
        cls,
        programs: Sequence[Program],
        owner: Tensor,
        step: Step | None = None,
        hessian_every: int = 1,
    ) -> Population:
        """``step`` defaults to the kernel for the device that ``owner`` is on."""
        if step is None:
            step = default_step(owner.device)
        if hessian_every < 1:
            raise ValueError(f"hessian_every: got {hessian_every}, expected at least 1")
        table = assemble(programs)
        return cls(tuple(programs), owner, step, table, hessian_every if table.hessian else 0)

    @property
    def identity(self) -> str:
        """What tells its memory from that of other programs."""
        text = "".join(map(str, self.programs))
        return f"program {hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"

    def init(self, params: Params) -> State:
        instances, n = params.flat.shape
        return {"memory": params.flat.new_zeros(instances, self.table.states, n)}

    def update(
        self, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        if params.flat.is_meta:  # shapes alone
            return torch.empty_like(params.flat), {"memory": torch.empty_like(state["memory"])}
        if isinstance(info.step, Tensor):
            t = (info.step + 1).to(params.flat.dtype)
        else:  # filled, because a number that is copied to a GPU has to be waited for
            t = params.flat.new_full((1,), info.step + 1)
        updates, memory = run(
            self.step,
            self.table,
            self.owner,
            params.flat,
            grads,
            self._memory(state["memory"], info),
            info.lr,
            info.weight_decay,
            t.expand(len(self.owner)),
            params.layout,
        )
        return updates, {"memory": memory}

    def _memory(self, memory: Tensor, info: StepInfo) -> Tensor:
        """With the Hessian where programs that read one expect it, if it is time for a new one."""
        if not self.hessian_every:
            return memory
        due = (
            torch.as_tensor(info.step, dtype=torch.int64, device=memory.device) % self.hessian_every
            == 0
        )
        if info.hessian is None:
            if due.any():
                raise ValueError("hessian: got none at this step, expected one: a program reads h")
            return memory
        hessian = torch.where(due.reshape(-1, 1), info.hessian, memory[:, -1])
        return torch.cat([memory[:, :-1], hessian[:, None]], dim=1)

    def select(self, index: Tensor) -> Population:
        return replace(self, owner=self.owner[index])


def run(
    step: Step,
    table: Table,
    owner: Tensor,
    flat: Tensor,
    grads: Tensor,
    memory: Tensor,
    lr: Tensor,
    weight_decay: Tensor,
    t: Tensor,
    layout: Layout,
) -> tuple[Tensor, Tensor]:
    """``step``, a kernel, where it has all functions of a program, and the reference elsewhere."""
    every = (flat, grads, memory, lr, weight_decay, t)
    if table.kernel is None:
        return step(table, owner, *every, layout)
    if not table.compiled.any():
        return reference(table, owner, *every, layout)
    compiled = torch.from_numpy(table.compiled).to(owner.device)[owner]
    place = torch.from_numpy(table.compiled.cumsum() - 1).to(owner.device)[owner]
    updates, after = torch.empty_like(flat), torch.empty_like(memory)
    parts = ((compiled, step, table.kernel, place), (~compiled, reference, table, owner))
    for rows, way, programs, owners in parts:
        if rows.any():
            w, g, m, rate, decay, now = (x[rows] for x in every)
            found = way(programs, owners[rows], w, g, m, rate, decay, now, layout)
            updates[rows], after[rows] = found
    return updates, after


def default_step(device: torch.device) -> Step:
    """The fastest step there is for a device."""
    if device.type == "cpu":
        from search.interpreter import cpu  # compiled on first use, so only where it is used

        return cpu.step
    if device.type == "meta":
        return reference
    if find_spec("numba_cuda") is None:
        log.warning(
            "numba-cuda is not installed: programs run in plain torch (pip install l2o[gpu])"
        )
        return reference
    from search.interpreter import gpu

    return gpu.step
