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
    text = re.sub(
        r"^( *)\$([A-Z]+)\n|\$([A-Z]+)",  # in one pass: what fills a slot may have a $ of its own
        lambda m: _lines(m[1], slots[m[2]]) if m[2] else slots[m[3]],
        text,
        flags=re.M,
    )
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

$START
"""

from __future__ import annotations

import warnings
from collections.abc import $ABC
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Tensors of a parameter's shape, all that Optimizer.state holds, and what a step reads of a group:
STATES = ($STATES)
COLUMNS = ($COLUMNS)
HYPER = ($HYPER)
# The formula's digest ends the name by which a state dict is told from another rule's:
RULE = "$NAME $DIGEST"
$BLOCK
$TOGETHER


class $NAME(Optimizer):
    """The rule at the top of this file, which says where to start with ``lr`` and weight decay.

    Every argument but the first can differ by group. ``lr``: a number, or a tensor of one element.
    ``foreach``: multi-tensor functions (None: unless ``differentiable``). ``capturable``: step
    counters on the device. ``differentiable``: record steps for autograd. ``fused``: large
    parameters in one pass, by torch.compile at the first step.
    States of half-precision parameters are float32.$NOTE
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
        fused: bool = False,
    ) -> None:
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError(f"lr: got a tensor of {lr.numel()} elements, expected one")
        if not isinstance(lr, Tensor) and not lr >= 0:
            raise ValueError(f"lr: got {lr}, expected a number >= 0")
        $CHECKS
        if foreach and differentiable:
            raise ValueError("foreach and differentiable: got True twice, expected it once")
        if fused and (foreach or differentiable):
            other = "foreach" if foreach else "differentiable"
            raise ValueError(f"fused and {other}: got True twice, expected it once")
        defaults = {
            "lr": lr,
            $DEFAULTS
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "rule": RULE,
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
        """As torch's, but states are copied, and never rounded to a parameter's half precision.

        Raises ValueError, and changes nothing, where they are another rule's or do not fit. Warns
        where that cannot be known, because the rule is not named.
        """
        _well_formed(state_dict)
        saved: dict[str, Any] = {}

        def remember(_: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            saved.update(given, state=_examined(given, self.param_groups))
            return saved

        def restore(_: Optimizer) -> None:
            keys = [key for group in saved["param_groups"] for key in group["params"]]
            params = [p for group in self.param_groups for p in group["params"]]
            for key, p in zip(keys, params, strict=True):
                for name, value in saved["state"].get(key, {}).items():
                    device = self.state[p][name].device
                    dtype = value.dtype if name == "step" else _working_dtype(p)
                    self.state[p][name] = value.to(device, dtype, copy=True)

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
        $BEGINS
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


def _well_formed(given: Any) -> None:
    """Raise ValueError, naming the entry, unless this has the form of an optimizer's state dict."""
    _expect(isinstance(given, dict), "state dict", given, "a dictionary")
    if not {"state", "param_groups"} <= set(given):
        raise _foreign(", ".join(map(str, given)) or "nothing", "state and param_groups")
    known: list[Any] = []
    groups = given["param_groups"]
    _expect(isinstance(groups, (list, tuple)), "param_groups", groups, "a list")
    for place, group in enumerate(groups):
        where = f"param_groups[{place}]"
        _expect(isinstance(group, dict), where, group, "a dictionary")
        keys = group.get("params")
        good = isinstance(keys, (list, tuple)) and all(isinstance(key, (int, str)) for key in keys)
        _expect(good, f"{where}.params", keys, "a list of numbers or names")
        known += keys
    _expect(len(set(known)) == len(known), "param_groups", known, "each parameter once")
    states = given["state"]
    good = isinstance(states, dict) and all(isinstance(x, dict) for x in states.values())
    _expect(good, "state", states, "a dictionary for each parameter")


def _expect_alike(value: Any, ours: Any, where: str) -> None:
    """What may stand in place of ``ours``; a tensor of one element is a number, too."""
    if isinstance(ours, (bool, type(None))):
        _expect(isinstance(value, (bool, type(None))), where, value, "True or False")
    elif isinstance(value, Tensor):
        good = value.numel() == 1 and not value.is_complex() and value.layout == torch.strided
        _expect(good, where, value, "a number")
    elif isinstance(ours, (int, float, Tensor)):
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        _expect(good and abs(value) < 2**64, where, value, "a number")


def _expect(good: bool, where: str, got: Any, expected: str) -> None:
    if not good:
        raise ValueError(f"{where}: got {_brief(got)}, expected {expected}")


def _brief(value: Any) -> str:
    """A value in one short line."""
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype}, shape {tuple(value.shape)}"
    plain = isinstance(value, (str, int, float, list, type(None)))
    return " ".join(f"{value!r:.60}".split()) if plain else type(value).__name__


def _examined(given: dict[str, Any], groups: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """The states of a state dict, if it is this rule's; else ValueError."""
    said = given["param_groups"]
    got, expected = ([len(group["params"]) for group in x] for x in (said, groups))
    if got != expected:
        raise ValueError(f"param_groups: got groups of {got} parameters, expected {expected}")
    for group in said:
        missing = [name for name in HYPER if name not in group and "rule" not in group]
        if missing:
            raise _foreign(f"groups without {', '.join(missing)}", f"those of {RULE}")
        rule = group.get("rule", RULE)
        rule = rule if isinstance(rule, str) else _brief(rule)
        if rule.split()[-1:] != RULE.split()[-1:]:
            raise _foreign(f"that of {rule}", f"that of {RULE}")
    for place, (group, ours) in enumerate(zip(said, groups, strict=True)):
        for name in (ours.keys() & group.keys()) - {"params", "rule"}:
            _expect_alike(group[name], ours[name], f"param_groups[{place}].{name}")
    keys = [key for group in said for key in group["params"]]
    params = [p for group in groups for p in group["params"]]
    for key in given["state"]:
        _expect(key in keys, "state", key, "only parameters of param_groups")
    pairs = [pair for pair in zip(keys, params, strict=True) if pair[0] in given["state"]]
    states = {key: _fitting(given["state"][key], p) for key, p in pairs}
    if not all("rule" in group for group in said):
        text = "state: the state dict does not say which rule it is of; names and shapes decide"
        warnings.warn(text, stacklevel=2)
    return {key: state for key, state in states.items() if state}


def _fitting(state: dict[str, Any], p: Tensor) -> dict[str, Tensor]:
    """What is kept of one parameter, if it is what this rule keeps; else ValueError."""
    # Distributed checkpoints make empty dictionaries of what was not there.
    state = {name: x for name, x in state.items() if isinstance(x, Tensor) or x != {}}
    if state and set(state) != set(COLUMNS):
        got, expected = (", ".join(sorted(map(str, x))) or "none" for x in (state, COLUMNS))
        raise _foreign(got, expected)
    for name, x in state.items():
        shape = () if name == "step" else tuple(p.shape)
        if not isinstance(x, Tensor):
            raise _foreign(f"{name} = {_brief(x)}", "a tensor")
        if tuple(x.shape) != shape:
            raise _foreign(f"{name} of shape {tuple(x.shape)}", f"{shape}")
        is_complex = p.is_complex() and name != "step"
        is_real = x.is_floating_point() and not is_complex
        if x.layout != torch.strided or (x.is_meta and not p.is_meta):
            raise _foreign(f"{name} in {x.layout} on {x.device}", "numbers in a dense tensor")
        if not is_real and not (is_complex and x.is_complex()):
            raise _foreign(f"{name} of {x.dtype}", "complex numbers" if is_complex else "real ones")
    return state


def _foreign(got: str, expected: str) -> ValueError:
    text = f"state: got {got}, expected {expected}: the state dict is another optimizer's"
    return ValueError(text)


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
    """Complex numbers as pairs; with an axis, or a float64 number would raise the precision."""
    return [torch.view_as_real(x) if x.is_complex() else x if x.ndim else x[None] for x in tensors]


def _working_dtype(p: Tensor) -> torch.dtype:
    """What steps are computed and states kept in."""
    return torch.float32 if p.dtype in (torch.float16, torch.bfloat16) else p.dtype


def _wants_fused(group: dict[str, Any], params: list[Tensor]) -> bool:
    $SHARDED
    return group["fused"] and not torch.compiler.is_compiling()  # a step that is, is one already


def _wants_foreach(group: dict[str, Any], params: list[Tensor]) -> bool:
    $SHARDED
    if group["foreach"] is not None:
        return group["foreach"]
    # A compiler for CPUs makes one pass of a parameter's statements, not of all parameters'.
    alone = ("meta", "cpu") if torch.compiler.is_compiling() else ("meta",)
    return not group["differentiable"] and all(p.device.type not in alone for p in params)


def _alike(params: list, *columns: list) -> list[list[list]]:
    """The lists cut into parts whose parameters share class, device and dtype."""
    parts: dict[Any, list] = {}
    for p, *row in zip(params, *columns, strict=True):
        parts.setdefault((type(p), p.device, p.dtype), []).append((p, *row))
    return [[list(column) for column in zip(*rows, strict=True)] for rows in parts.values()]


$PIECES


$HELPERS


$LOOP


$FUSED


$FOREACH
'''
