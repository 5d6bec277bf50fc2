"""A real ``torch.optim.Optimizer`` as an update rule, so that baselines are the real thing.

A torch optimizer knows one model; an update rule knows ``N``. So a step makes one optimizer an
instance, hands it that instance's parameters, gradients and state, and lets it step: slower than
a batched rule, and exactly what a user of that optimizer would get. State travels as tensors, so
that runs can be dropped, joined and resumed as with any other rule.
"""

from __future__ import annotations

import ast
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tasks import imports
from tasks.fields import meant
from tasks.types import Params, State, StepInfo

Build = Callable[..., torch.optim.Optimizer]
NUMBERS: dict[str, type] = {"bool": bool, "int": int, "float": float}  # state kept in Python
TUNED = ("lr", "weight_decay")


@dataclass(frozen=True)
class TorchRule:
    """``optimizer(params, lr=..., weight_decay=..., **arguments)``, one an instance.

    ``lr`` (with its schedule) and ``weight_decay`` come from each step's info; the decay means
    what it means to that optimizer, and is left out if it has none.
    """

    optimizer: Build
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def init(self, params: Params) -> State:
        """Empty: optimizers make their state at the first step. ValueError if it cannot be made."""
        self._build([nn.Parameter(view[0]) for view in params.views.values()], 1.0, 0.0)
        return {}

    def select(self, index: Tensor) -> TorchRule:
        return self

    def update(
        self, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        updates = torch.empty_like(params.flat)
        states = []
        lr, decay = info.lr.tolist(), info.weight_decay.tolist()
        for i in range(len(params.flat)):
            before, grad = params.layout.views(params.flat[i]), params.layout.views(grads[i])
            weights = [nn.Parameter(view.clone()) for view in before.values()]
            for weight, value in zip(weights, grad.values(), strict=True):
                weight.grad = value.clone()
            optimizer = self._build(weights, lr[i], decay[i])
            _load(optimizer, weights, {name: value[i] for name, value in state.items()})
            optimizer.step()
            after = dict(zip(before, (weight.detach() for weight in weights), strict=True))
            updates[i] = params.flat[i] - params.layout.flatten(after)
            states.append(_saved(optimizer, weights))
        return updates, {name: torch.stack([s[name] for s in states]) for name in states[0]}

    def _build(self, weights: list[nn.Parameter], lr: float, decay: float) -> torch.optim.Optimizer:
        accepted = _accepted(self.optimizer)
        tuned = dict(zip(TUNED, (lr, decay), strict=True))
        given = {name: value for name, value in tuned.items() if name in accepted}
        try:
            return self.optimizer(weights, **given, **self.arguments)
        except Exception as error:  # of any kind: optimizers are other people's code
            raise _unusable(getattr(self.optimizer, "__name__", "optimizer"), error) from error


def _accepted(build: Build) -> set[str]:
    """The arguments by name, those included that ``**kwargs`` hand on to a base class."""
    classes = build.__mro__ if inspect.isclass(build) else (build,)
    names: set[str] = set()
    for part in classes:
        if inspect.isclass(part) and "__init__" not in vars(part):
            continue
        parameters = inspect.signature(part).parameters
        names |= parameters.keys()
        if all(x.kind is not x.VAR_KEYWORD for x in parameters.values()):
            return names
    return names | {*TUNED}


def _unusable(name: str, why: object) -> ValueError:
    said = str(why).strip().partition("\n")[0] or type(why).__name__
    return ValueError(f"{name}: cannot be used here: {said}")


def _places(
    optimizer: torch.optim.Optimizer, weights: list[nn.Parameter]
) -> dict[str, dict[str, Any]]:
    """Where an optimizer keeps what it knows: the state of each weight by its number, and its
    groups, of which what is tuned is not its own."""
    states = {str(number): optimizer.state[weight] for number, weight in enumerate(weights)}
    return states | {f"group {k}": group for k, group in enumerate(optimizer.param_groups)}


def _saved(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter]) -> State:
    """``{"0.exp_avg": ..., "0.step:int": ..., "group 0.eps:float": ...}``."""
    found = {}
    for place, kept in _places(optimizer, weights).items():
        of_group = place.startswith("group")
        for key, value in kept.items():
            if isinstance(value, Tensor) and not of_group:
                found[f"{place}.{key}"] = value.detach()
            elif type(value).__name__ in NUMBERS and not (of_group and key in TUNED):
                kind = torch.float64 if isinstance(value, float) else torch.int64
                name = f"{place}.{key}:{type(value).__name__}"
                found[name] = torch.tensor(value, dtype=kind, device=weights[0].device)
    return found


def _load(
    optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], saved: Mapping[str, Tensor]
) -> None:
    places = _places(optimizer, weights)
    for name, value in saved.items():
        place, _, key = name.partition(".")
        key, _, kind = key.partition(":")
        places[place][key] = NUMBERS[kind](value.item()) if kind else value.clone()


def torch_optimizer(text: str) -> TorchRule:
    """``torch.optim.AdamW`` or ``torch.optim.SGD(momentum=0.9)``; the values are literals.

    Raises ValueError for another class, another form, or arguments it does not take; ``lr`` and
    ``weight_decay`` are what tuning chooses and are refused.
    """
    form = "expected torch.optim.NAME or torch.optim.NAME(argument=value, ...)"
    try:
        tree = ast.parse(text, mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        arguments = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(f"{text!r}: {form}") from None
    name = ast.unparse(call.func).removeprefix("torch.optim.")
    found = getattr(torch.optim, name, None)
    if call.args or not (inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)):
        likely = meant(name, [n for n in vars(torch.optim) if n[:1].isupper()])
        raise ValueError(f"{text!r}: {form}, where torch.optim has NAME{likely}")
    if tuned := set(TUNED) & arguments.keys():
        raise ValueError(f"{text!r}: {', '.join(sorted(tuned))} is tuned, leave it out")
    return _tried(TorchRule(found, arguments))


def optimizer_class(file: Path) -> str | None:
    """The name of the optimizer class that a Python file defines, found without running it."""
    try:
        body = ast.parse(file.read_text(encoding="utf-8")).body
    except (SyntaxError, ValueError):
        return None
    found: list[str] = []
    for node in body:
        if isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
            if any(b in found or isinstance(getattr(torch.optim, b, None), type) for b in bases):
                found.append(node.name)
    return found[-1] if found else None


def sources(file: Path) -> dict[Path, str]:
    """The text of a Python file and of those that it imports, directly or not, from beside it or
    from the working directory."""
    found: dict[Path, str] = {}
    roots, waiting = {file.parent.absolute(), Path.cwd()}, [file.absolute()]
    while waiting:
        if (file := waiting.pop()) in found or not file.is_file():
            continue
        found[file] = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(found[file])):
            for root in roots:
                waiting += _imported(node, root, file.parent)
    return found


def _imported(node: ast.AST, root: Path, here: Path) -> list[Path]:
    """The files that an import may read, whether they are there or not; ``here``: that of ``node``
    is in this folder."""
    if isinstance(node, ast.Import):
        base, names = root, [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        above = [".."] * (node.level - 1)
        base = Path(os.path.normpath(here.joinpath(*above))) if node.level else root
        names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
    else:
        return []
    paths = [base / "__init__.py"] if base != root else []
    for name in names:
        place = base
        for part in filter(None, name.split(".")):  # the last may be what a module holds
            place = place / part
            paths += [place / "__init__.py", Path(f"{place}.py")]
    return paths


def optimizer_file(file: Path) -> TorchRule:
    """The optimizer that ``file`` defines, such as one that ``l2o export`` wrote. Runs the file.

    Raises ValueError when it defines none or cannot be run.
    """
    name = optimizer_class(file)
    if name is None:
        raise ValueError(f"{file}: expected a Python file that defines a torch.optim.Optimizer")
    try:
        module = imports.file(file)
    except Exception as error:
        raise ValueError(f"{file}: {type(error).__name__}: {error}") from error
    return _tried(TorchRule(getattr(module, name)))


def _tried(rule: TorchRule) -> TorchRule:
    """``rule``, after it could take a step on a matrix at the learning rate that it was given, of
    which nothing remained that an optimizer would not have which is made anew at the next."""
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    optimizer = rule._build([weight], 1.0, 0.0)
    name = type(optimizer).__name__
    for group in optimizer.param_groups:
        if group.get("lr", 1.0) != 1.0:
            why = f"it takes no lr, which is tuned; its own is {group['lr']:g}"
            raise _unusable(name, why)
    before = _lost(optimizer, weight)
    try:
        optimizer.step()
    except Exception as error:
        raise _unusable(name, error) from error
    after = _lost(optimizer, weight)
    anew = rule._build([weight], 1.0, 0.0)
    _load(anew, [weight], _saved(optimizer, [weight]))
    next_one = _lost(anew, weight)
    if changed := [key for key in after if after[key] not in (before.get(key), next_one.get(key))]:
        raise _unusable(name, f"between steps it keeps {changed[0]}, expected tensors and numbers")
    return rule


def _lost(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> dict[str, str]:
    """What is not saved between steps."""
    saved = {key.partition(":")[0] for key in _saved(optimizer, [weight])}
    own = vars(optimizer).keys() - {"state", "param_groups"}
    found = {f"attribute {key!r}": repr(vars(optimizer)[key]) for key in sorted(own)}
    found |= {
        f"state {key!r}": repr(optimizer.state[key]) for key in optimizer.state.keys() - {weight}
    }
    for place, kept in _places(optimizer, [weight]).items():
        where = place if place.startswith("group") else "its state"
        for key, value in kept.items():
            if f"{place}.{key}" not in saved and key != "params" and value is not None:
                found[f"{key!r} of {where}"] = repr(value)
    return found
