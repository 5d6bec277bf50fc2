"""The fixed text of an exported optimizer: torch's contract, with slots for a rule.

A slot is ``$NAME``. One that stands alone on a line takes any number of lines, indented as it is;
``fill`` drops the line when the slot is empty. What a reader of the exported file has to know is
said in the text itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from textwrap import indent


def fill(text: str, slots: Mapping[str, str]) -> str:
    """``text`` with its slots replaced, at most two blank lines in a row, within a class one."""
    text = re.sub(r"^( *)\$([A-Z]+)\n", lambda m: _lines(m[1], slots[m[2]]), text, flags=re.M)
    text = re.sub(r"\$([A-Z]+)", lambda m: slots.get(m[1], m[0]), text)
    text = re.sub(r"\n{3,}(?= )", "\n\n", text)
    return re.sub(r"\n{4,}", "\n\n\n", text)


def _lines(margin: str, content: str) -> str:
    return indent(content.strip("\n"), margin) + "\n" if content.strip() else ""


SKELETON = '''"""$NAME: a torch.optim.Optimizer that needs nothing but torch.

$PROVENANCE

The rule, where interp(x, y, a) is (1 - a) * x + a * y, every division adds 1e-8 to what it divides
by, and square roots and logarithms take absolute values (left out where they change nothing):

    $PROGRAM

It moves the parameters by $FORM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Tensors of a parameter's shape, all that Optimizer.state holds, and what a step reads of a group:
STATES = ($STATES)
COLUMNS = ($COLUMNS)
HYPER = ($HYPER)


class $NAME(Optimizer):
    """The rule at the top of this file. Every argument but the first can differ by group.

    ``lr``: a number, or a tensor of one element. ``foreach``: multi-tensor functions (None: on
    accelerators). ``capturable``: step counters on the device. ``differentiable``: record steps
    for autograd. States of half-precision parameters are float32.$NOTE
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = $RATE,
        $ARGUMENTS
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError(f"lr: got a tensor of {lr.numel()} elements, expected one")
        if not isinstance(lr, Tensor) and not lr >= 0:
            raise ValueError(f"lr: got {lr}, expected a number >= 0")
        $CHECKS
        if foreach and differentiable:
            raise ValueError("foreach and differentiable: got True twice, expected it once")
        defaults = {
            "lr": lr,
            $DEFAULTS
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
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
                for name in COLUMNS if key in saved["state"] else ():
                    value, loaded = saved["state"][key][name], self.state[p][name]
                    dtype = value.dtype if name == "step" else _working_dtype(p)
                    self.state[p][name] = value.to(loaded.device, dtype, copy=True)

        before = self.register_load_state_dict_pre_hook(remember)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        with before, after:
            super().load_state_dict(state_dict)

    $CURVATURE

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step. Returns what ``closure`` returns, which computes loss and gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(any(group["differentiable"] for group in self.param_groups)):
            self._update()
        return loss

    def _update(self) -> None:
        $UPDATE

    def _init_group(self, group: dict[str, Any], params: list, grads: list, *columns: list) -> None:
        """Fill the lists with the parameters that have a gradient and what belongs to them."""
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.layout != torch.strided:
                raise RuntimeError("$NAME does not support sparse gradients")
            params.append(p)
            grads.append(p.grad)
            $COLLECT


def _prepare(group: dict[str, Any], params: list, grads: list, *columns: list) -> list[list]:
    """The lists as the rule wants them: real, gradients to descend, in working precision."""
    lr = group["lr"]
    on_host = not isinstance(lr, Tensor) or lr.device.type == "cpu"
    if on_host and not torch.compiler.is_compiling() and lr == 0:
        params = [p.clone() for p in params]  # not even an infinite update moves the real ones
    $TICK
    $LOCAL
    params, grads, *columns = (_real(tensors) for tensors in (params, grads, *columns))
    if group["maximize"]:
        grads = [-g for g in grads]
        $FLIP
    grads = [g.to(_working_dtype(p)) for p, g in zip(params, grads, strict=True)]
    return [params, grads, *columns$STEPS]


def _real(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.view_as_real(x) if x.is_complex() else x for x in tensors]


def _working_dtype(p: Tensor) -> torch.dtype:
    """What steps are computed and states kept in."""
    return torch.float32 if p.dtype in (torch.float16, torch.bfloat16) else p.dtype


def _wants_foreach(group: dict[str, Any], params: list[Tensor]) -> bool:
    $SHARDED
    if group["foreach"] is not None:
        return group["foreach"]
    return not group["differentiable"] and all(p.device.type not in ("cpu", "meta") for p in params)


def _alike(params: list, *columns: list) -> list[list[list]]:
    """The lists cut into parts whose parameters share class, device and dtype."""
    parts: dict[Any, list] = {}
    for p, *row in zip(params, *columns, strict=True):
        parts.setdefault((type(p), p.device, p.dtype), []).append((p, *row))
    return [[list(column) for column in zip(*rows, strict=True)] for rows in parts.values()]


$HELPERS


$LOOP


$FOREACH
'''

CREATE_STATES = """\
    for name in STATES:
        state[name] = torch.zeros_like(p, dtype=_working_dtype(p))
"""
CREATE_STEP = """\
    device = p.device if group["capturable"] else "cpu"
    state["step"] = torch.zeros((), dtype=torch.float32, device=device)
"""
COLLECT = """\
state = self.state[p]
if not state:
{create}
for column, name in zip(columns, COLUMNS, strict=True):
    column.append(state[name])
"""
CURVATURE = '''\
def set_hessian(self, loss: Tensor, generator: torch.Generator | None = None) -> None:
    """Estimate the diagonal of the Hessian of ``loss``: before ``loss.backward()``, unscaled.

    The rule needs it before its first step, and keeps it until the next call, which may come
    every few steps. Hutchinson's estimate: z * (H z) with random signs z. Processes that train
    together should average ``state[p]["hessian"]``, each having seen its own part of the batch.
    """
    groups = {p: group for group in self.param_groups for p in group["params"]}
    params = [p for p in groups if p.requires_grad]
    grads = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
    signs, total = [], 0.0
    for x in _real(grads):
        z = torch.randint(2, x.shape, generator=generator, device=x.device) * 2 - 1
        signs.append(z.to(x.dtype))
        total = total + (x * signs[-1]).sum().to(loss.device)
    products = torch.autograd.grad(total, params, retain_graph=True, materialize_grads=True)
    for p, z, product in zip(params, signs, _real(products), strict=True):
        state, h = self.state[p], z * product
        if not state:
{create}
        h = torch.view_as_complex(h) if p.is_complex() else h
        state["hessian"] = h.to(_working_dtype(p))
'''
MISSING = """\
    raise RuntimeError("the rule reads a Hessian: call set_hessian(loss) before step()")
"""
FLIP = "columns[-1] = [-h for h in columns[-1]]"
TICK = """\
*columns, steps = columns
torch._foreach_add_(steps, 1)
if not (group["capturable"] or torch.compiler.is_compiling()):
    steps = [step.item() for step in steps]
"""

LOCAL = """\
for i, p in enumerate(params):
    if hasattr(p, "to_local"):  # sharded; the rule is elementwise, so the shard here will do
        grads[i] = grads[i].redistribute(p.device_mesh, p.placements)
params, grads, *columns = (
    [x.to_local() if hasattr(x, "to_local") else x for x in tensors]
    for tensors in (params, grads, *columns)
)
"""
SHARDED = """\
if any(hasattr(p, "to_local") for p in params):
    return False  # few multi-tensor functions are known to sharded tensors
"""

UPDATE_GROUPS = """\
for group in self.param_groups:
    params, grads, columns = [], [], [[] for _ in COLUMNS]
    self._init_group(group, params, grads, *columns)
    if not params:
        continue
    lists = _prepare(group, params, grads, *columns)
    hyper = {name: group[name] for name in HYPER}
    if _wants_foreach(group, params):
        for part in _alike(*lists):
            _foreach(*part, **hyper)
    else:
        _loop(*lists, **hyper)
"""
UPDATE_MODEL = """\
lists = [[] for _ in ("params", "grads", *COLUMNS)]
hyper = {name: [] for name in HYPER}
foreach = True
for group in self.param_groups:
    params, grads, columns = [], [], [[] for _ in COLUMNS]
    self._init_group(group, params, grads, *columns)
    if not params:
        continue
    for whole, part in zip(lists, _prepare(group, params, grads, *columns), strict=True):
        whole.extend(part)
    for name in HYPER:
        hyper[name] += [group[name]] * len(params)
    foreach = foreach and _wants_foreach(group, params)
if not lists[0]:
    return
if foreach and len(_alike(*lists)) == 1:
    _foreach(*lists, **hyper)
else:
    _loop(*lists, **hyper)
"""
MODEL_NOTE = """

    Norms and inner products are taken over all parameters of the optimizer that have a gradient,
    as if they were one vector; on parameters sharded by FSDP2 they are those of the whole model,
    under ZeroRedundancyOptimizer only of the process's own share.
"""

SCALAR = '''\
def _scalar(x: float | Tensor) -> Tensor:
    """A number as a tensor, for functions that raise where torch's give infinity or NaN."""
    return x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64)


'''
DOT = '''\
def _dot(xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
    """The inner product of two lists, each as one vector; a copy for every parameter's device."""
    terms = [(x * y).sum() for x, y in zip(xs, ys, strict=True)]
    terms = [x.full_tensor() if hasattr(x, "full_tensor") else x for x in terms]  # sharded
    total = torch.stack([x.to(terms[0].device) for x in terms]).sum()
    return [total.to(x.device) for x in terms]


'''
GLOBAL_NORM = """\
def _global_norm(xs: list[Tensor]) -> list[Tensor]:
    return [x.sqrt() for x in _dot(xs, xs)]


"""
COSINE_SIM = """\
def _cosine_sim(xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
    products = zip(_dot(xs, ys), _dot(xs, xs), _dot(ys, ys), strict=True)
    return [xy / ((xx * yy).sqrt() + 1e-8) for xy, xx, yy in products]


"""
CLIP = """\
def _clip_by_global_norm(xs: list[Tensor], limits: list[Any]) -> list[Tensor]:
    rows = zip(xs, limits, _global_norm(xs), strict=True)
    return [x * (limit / (norm + 1e-8)).clamp(max=1) for x, limit, norm in rows]


"""
HELPERS = {
    "dot": (DOT,),
    "global_norm": (DOT, GLOBAL_NORM),
    "cosine_sim": (DOT, COSINE_SIM),
    "clip_by_global_norm": (DOT, GLOBAL_NORM, CLIP),
}
"""What each function of the whole model calls."""
