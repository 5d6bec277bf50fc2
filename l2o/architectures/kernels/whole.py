"""A kernel's step for ``torch.compile``: called as it is, and not looked into.

In a file of its own, since torch's compiler takes a second to import: who does not compile shall
not wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.types import Params, State, StepInfo

if TYPE_CHECKING:
    from l2o.architectures.small_fc import SmallFCRule, Step


@torch.compiler.disable(reason="a kernel is compiled already")
def call(
    step: Step, rule: SmallFCRule, grads: Tensor, state: State, params: Params, info: StepInfo
) -> tuple[Tensor, State]:
    return step(rule, grads, state, params, info)
