"""A real ``torch.optim.Optimizer`` as an update rule, so that baselines are the real thing.

A torch optimizer knows one model; an update rule knows ``N``. So every instance has an optimizer of
its own (``alone.py``), which lives as long as the run: slower than a batched rule, and exactly what
a user of that optimizer would get. What travels with a run, when runs are dropped or joined, is the
number of its optimizer.

An optimizer that is for matrices alone has a second one beside it for everything else, as Muon has
AdamW: ``torch.optim.Muon+torch.optim.AdamW``.
"""

from __future__ import annotations

import ast
import inspect
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tasks.checks import meant
from tasks.optim.alone import Alone, Needs, undisturbed
from tasks.runs.environment import own_defaults
from tasks.types import HOST, Params, State, StepInfo, Unusable
from tasks.user_code import imports
from tasks.user_code.calls import call
from tasks.user_code.imports import imported
from tasks.user_code.sources import code_of

Build = Callable[..., torch.optim.Optimizer]
TUNED = ("lr", "weight_decay")
FORM = "torch.optim.NAME or package.module:Class, with (argument=value, ...) or without"
RUN, STEPS = "optimizer", "steps"
OTHERS = (Exception, SystemExit)
"""What other people's code may raise: anything, and it may end the process."""


@dataclass(frozen=True)
class TorchRule:
    """``optimizer(params, lr=..., weight_decay=..., **arguments)``, one an instance.

    ``lr`` (with its schedule) and ``weight_decay`` come from each step's info; the decay means
    what it means to that optimizer, and is left out if it has none. ``rest``: the rule for all that
    is no matrix; None: ``optimizer`` takes everything. ``closure``: a step needs one.
    """

    optimizer: Build
    arguments: Mapping[str, Any] = field(default_factory=dict)
    rest: TorchRule | None = None
    closure: bool = False
    living: dict[int, Alone] = field(default_factory=dict, init=False, repr=False, compare=False)

    @own_defaults()
    def init(self, params: Params) -> State:
        """A number for each optimizer, made at its first step. Unusable if it cannot be made."""
        self.made([nn.Parameter(view[0].clone()) for view in params.views.values()], 1.0, 0.0)
        return _unborn(params)

    def select(self, index: Tensor) -> TorchRule:
        return self

    @own_defaults()
    def update(
        self, grads: Tensor, state: State, params: Params, info: StepInfo
    ) -> tuple[Tensor, State]:
        """What an optimizer raises is the end of its run, which then has diverged; Unusable where
        that is so of every run, and not because its numbers are beyond all bounds."""
        state = state or _unborn(params)
        layout, lr, decay = params.layout, info.lr.tolist(), info.weight_decay.tolist()
        updates, faults = torch.full_like(params.flat, torch.nan), []
        with undisturbed():
            for i, row in enumerate(params.flat):
                loss = info.loss_at and partial(info.loss_at, i)
                try:
                    run = self._run(state, i, layout.views(row), lr[i], decay[i])
                    after = run.step(layout.views(row), layout.views(grads[i]), lr[i], loss)
                    updates[i] = row - layout.flatten(after)
                except (torch.OutOfMemoryError, MemoryError, _Again):
                    raise
                except OTHERS as error:
                    faults += [error] if row.isfinite().all() & grads[i].isfinite().all() else []
        if len(faults) == len(params.flat):
            raise _unusable(_name(self), faults[0]) from faults[0]
        return updates, {RUN: state[RUN], STEPS: state[STEPS] + 1}

    def evaluated(self, params: Params, state: State) -> Tensor:
        """The weights ``[N, n]`` that are to be measured where training is at ``params``. Unusable
        where the optimizer cannot say."""
        flat = params.flat.clone()
        with undisturbed():
            for i, number in enumerate(state[RUN].tolist() if state else []):
                run = self.living.get(number)
                if run is None or not run.switches:
                    continue
                try:
                    flat[i] = params.layout.flatten(run.evaluated(params.layout.views(flat[i])))
                except OTHERS as error:
                    raise _unusable(_name(self), error) from error
        return flat

    def _run(
        self, state: State, i: int, views: Mapping[str, Tensor], lr: float, decay: float
    ) -> Alone:
        number, steps = int(state[RUN][i]), int(state[STEPS][i])
        if steps == 0:
            self.living[number] = Alone(self.made, views, lr, decay)
        run = self.living[number]
        if run.steps != steps and views:
            raise _Again(f"{_name(self)}: step {steps} of a run cannot be taken a second time")
        return run

    def made(self, weights: Sequence[nn.Parameter], lr: float, decay: float) -> list[Needs]:
        """The optimizers of ``weights``, each with whether its step needs a closure."""
        if self.rest is None:
            return [(self.one(weights, lr, decay), self.closure)]
        matrices = [weight for weight in weights if weight.ndim == 2]
        others = [weight for weight in weights if weight.ndim != 2]
        halves = ((replace(self, rest=None), matrices), (self.rest, others))
        return [made for rule, part in halves if part for made in rule.made(part, lr, decay)]

    def one(
        self, weights: Sequence[nn.Parameter], lr: float, decay: float
    ) -> torch.optim.Optimizer:
        accepted = _accepted(self.optimizer)
        tuned = dict(zip(TUNED, (lr, decay), strict=True))
        given = {name: value for name, value in tuned.items() if name in accepted}
        try:
            made = self.optimizer(weights, **given, **self.arguments)
        except OTHERS as error:
            raise _unusable(_name(self), error) from error
        if not isinstance(made, torch.optim.Optimizer):
            raise _unusable(
                _name(self), f"got a {type(made).__name__}, expected a torch.optim.Optimizer"
            )
        return made


class _Again(RuntimeError):
    """A step was asked for again, as after a GPU had no memory left: nobody can take it back."""


def _unborn(params: Params) -> State:
    numbers = [uuid.uuid4().int >> 65 for _ in params.flat]  # no two rules' runs are mixed up
    zeros = torch.zeros(len(numbers), dtype=torch.int64, device="cpu")
    state = {RUN: torch.tensor(numbers, dtype=torch.int64, device="cpu"), STEPS: zeros}
    return {name: value.to(params.flat.device) for name, value in state.items()}


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


def _name(rule: TorchRule) -> str:
    return getattr(rule.optimizer, "__name__", "optimizer")


def _unusable(name: str, why: object) -> Unusable:
    if isinstance(why, Unusable):
        return why
    first, _, rest = str(why).strip().partition("\n")
    more = rest.strip().partition("\n")[0] if first.endswith(":") else ""
    said = f"{first} {more}".strip() or type(why).__name__
    return Unusable(f"{name}: cannot be used here: {said}")


# --------------------------------------------------------------------------- what a name can mean


def torch_optimizer(text: str) -> TorchRule:
    """``torch.optim.AdamW``, ``torch.optim.SGD(momentum=0.9)``, ``package.module:Class(a=1)``, or
    two of them with a ``+`` between them: the first for matrices, the second for the rest.

    The values are literals. Imports the module. Raises ValueError for what cannot be imported,
    another form, or arguments it does not take; ``lr`` and ``weight_decay`` are what tuning chooses
    and are refused.
    """
    parts = _halves(text)
    if len(parts) > 2:
        raise ValueError(f"{text!r}: expected one optimizer, or two with a + between them")
    first, *others = [_tried(_parsed(part)) for part in parts]
    return replace(first, rest=others[0]) if others else first


def is_import_path(text: str) -> bool:
    """Whether ``text`` has the form of an optimizer to be imported."""
    return bool(re.match(r"torch\.optim\.|[A-Za-z_][\w.]*:[A-Za-z_]", text))


def described(text: str) -> list[str]:
    """By what ``text`` is told from another optimizer: itself and the versions of its packages, for
    a reader, and the code of what does not come with torch."""
    versions, code = [], []
    for part in _halves(text):
        versions += _version(re.split(r"[.:]", part.strip())[0])
        code += _code(_parsed(part).optimizer)
    return [", ".join(dict.fromkeys([text, *versions])), *code]


def _version(package: str) -> list[str]:
    if package == "torch":
        return [f"torch {torch.__version__}"]
    found = packages_distributions().get(package)
    return [f"{found[0]} {version(found[0])}"] if found else []


def _code(build: Build) -> list[str]:
    return [] if str(build.__module__).startswith("torch.") else code_of(build)


def _halves(text: str) -> list[str]:
    """``text`` at each ``+`` between optimizers; one within brackets or strings stays."""
    return re.split(r"\+(?=torch\.optim\.|[A-Za-z_][\w.]*:[A-Za-z_])", text)


def _parsed(text: str) -> TorchRule:
    place, arguments = call(text, FORM)
    if tuned := set(TUNED) & arguments.keys():
        raise ValueError(f"{text!r}: {', '.join(sorted(tuned))} is tuned, leave it out")
    return TorchRule(_found(text, place), arguments)


def _found(text: str, place: str) -> Build:
    if place.startswith("torch.optim."):
        name = place.removeprefix("torch.optim.")
        found = getattr(torch.optim, name, None)
        if not (inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)):
            likely = meant(name, [n for n in vars(torch.optim) if n[:1].isupper()])
            raise ValueError(
                f"{text!r}: expected torch.optim.NAME, where torch.optim has NAME{likely}"
            )
        return found
    found = imported("rule", place, FORM)
    if not callable(found):
        kind = type(found).__name__
        raise ValueError(f"{text!r}: got a {kind}, expected a class of torch.optim.Optimizer")
    return cast(Build, found)


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


def optimizer_file(file: Path) -> TorchRule:
    """The optimizer that ``file`` defines, such as one that ``l2o export`` wrote. Runs the file.

    Raises ValueError when it defines none or cannot be run.
    """
    name = optimizer_class(file)
    if name is None:
        raise ValueError(f"{file}: expected a Python file that defines a torch.optim.Optimizer")
    try:
        module = imports.file(file)
    except OTHERS as error:
        raise ValueError(f"{file}: {type(error).__name__}: {error}") from error
    return _tried(TorchRule(getattr(module, name)))


@own_defaults()
def _tried(rule: TorchRule) -> TorchRule:
    """``rule``, after it could take a step on a matrix at the learning rate that it was given; with
    a closure if there is no other way."""
    with undisturbed():
        _follows(rule)
        try:
            _step(rule)
        except OTHERS as error:
            try:
                _step(with_closure := replace(rule, closure=True))
            except OTHERS:
                raise _unusable(_name(rule), error) from error
            return with_closure
    return rule


def _follows(rule: TorchRule) -> None:
    """Unusable where no group has the learning rate that was given: it could not be tuned."""
    made = [rule.one([nn.Parameter(torch.zeros(2, 2, **HOST))], lr, 0.0) for lr in (1.0, 2.0)]
    rates = [[group.get("lr") for group in optimizer.param_groups] for optimizer in made]
    name = type(made[0]).__name__
    if None in rates[0]:
        raise _unusable(name, "its groups have no 'lr', which schedules change")
    if rates[0] == rates[1]:
        raise _unusable(name, f"it takes no lr, which is tuned; its own is {rates[0][0]}")


def _step(rule: TorchRule) -> None:
    weight = nn.Parameter(torch.zeros(2, 2, **HOST))
    run = Alone(rule.made, {"weight": weight.detach()}, 1.0, 0.0)
    ones = {"weight": torch.ones(2, 2, **HOST)}
    run.step({"weight": weight.detach()}, ones, 1.0, lambda w: w["weight"].sub(1).square().sum())
