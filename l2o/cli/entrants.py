"""What a RULE on the command line can be: anything that turns gradients into updates.

    adamw                           a known optimizer (``l2o zoo`` lists them)
    my_rule.txt                     a file with a program
    runs/first                      the winner of a search
    runs/learned                    the best of a meta-training
    checkpoints/mulo_small          a learned optimizer, a folder with theta.safetensors
    mulo_small                      one that is shipped, by the name of its folder alone
    my_rule.py                      a file that defines a torch.optim.Optimizer; it is run
    torch.optim.SGD(momentum=0.9)   torch's own
    schedulefree:AdamWScheduleFree  package.module:Class, somebody else's
    my_rules:MINE                   package.module:NAME of a program, such as its text
    torch.optim.Muon+torch.optim.AdamW   the first for matrices, the second for everything else
    lion@constant                   any of these with the schedule that it is meant for
    sgd@perturbed(rho=0.1)          any of these told of the loss by an oracle (tasks/oracles)
    ours=runs/first@constant        any of these by a name of its own

Besides the command line this is the one place where both engines meet.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from l2o import checkpoint
from l2o.architectures.named import name_of
from l2o.meta import run
from search import loading as programs
from search.interpreter.population import Population
from search.language.program import to_text
from search.zoo import NAMED, like
from tasks.cards import digest
from tasks.evaluation.bench import Entrant
from tasks.evaluation.spaces import LEARNED
from tasks.inner.schedules import SCHEDULES
from tasks.mup.scaling import mup, update_multiplier
from tasks.optim.torch_rule import (
    TorchRule,
    described,
    is_import_path,
    optimizer_class,
    optimizer_file,
    torch_optimizer,
)
from tasks.oracles.reading import Reading, named, oracles, reads
from tasks.runs.files import one_thing, or_shipped
from tasks.types import Task, UpdateRule
from tasks.user_code.sources import code_of, sources

META_TRAINED = "constant"
"""The schedule of a checkpoint whose card names none: steps of meta-training all have lr 1."""


def entrants(names: Sequence[str], trusted: bool | None = False) -> list[Entrant]:
    """The rules that ``names`` mean, each once; ``trusted``: see ``checkpoint.load``. Raises
    ValueError for what is none."""
    words = dict.fromkeys(names)
    if twice := [name for name, n in Counter(map(called, words)).items() if n > 1]:
        raise ValueError(f"{twice[0]}: got two rules of that name, expected different names")
    return [entrant(word, trusted) for word in words]


def called(word: str) -> str:
    """What the rule that ``word`` means is called: NAME of NAME=RULE, or all of it."""
    return _labelled(word)[0]


def entrant(name: str, trusted: bool | None = False) -> Entrant:
    """The rule that ``name`` means. Raises ValueError, naming what is accepted, if it is none."""
    label, word = _labelled(name)
    rule, schedule, oracle = _suffixes(word)
    found = _entrant(rule, trusted)
    found = _told(found, oracle) if oracle else found
    return replace(found, name=label, schedule=schedule or found.schedule, asked=bool(schedule))


def _labelled(word: str) -> tuple[str, str]:
    """NAME=RULE apart; arguments of an optimizer have = in them, and a file may in its name."""
    label, equals, rule = word.partition("=")
    if not equals or "(" in label or or_shipped(_suffixes(word)[0]).exists():
        return word, word
    if not label or not rule:
        raise ValueError(f"{word}: expected NAME=RULE, or a RULE")
    if label in NAMED:
        raise ValueError(f"{word}: {label} is a known optimizer; expected a name of its own")
    return label, rule


def _suffixes(name: str) -> tuple[str, str | None, str | None]:
    """``RULE@schedule@oracle`` apart, one or both; a file may have an @ in its name."""
    schedule = oracle = None
    while "@" in name and not or_shipped(name).exists():
        name, _, word = name.rpartition("@")
        if word in SCHEDULES and not schedule:
            schedule = word
        elif not oracle and (":" in word or word.partition("(")[0] in oracles()):
            oracle = word
        else:
            raise ValueError(
                f"{name}@{word}: got the schedule {word!r}, expected one of "
                f"{', '.join(SCHEDULES)}, or an oracle, one of {', '.join(oracles())}; one of each"
            )
    return name, schedule, oracle


def _told(found: Entrant, oracle: str) -> Entrant:
    """The same rule, told of the loss by another than it asks for."""
    tells = named(oracle)

    def make(task: Task, instances: int, device: str) -> UpdateRule:
        rule = Reading(found.make(task, instances, device), tells)
        reads(rule)  # raises Unusable where it cannot do
        return rule

    theirs = ":" in oracle
    code = code_of(type(tells)) if theirs else []
    source = f"{found.source}\n# told of the loss by {oracle}"
    identity = digest("told by", found.identity, oracle, *code)
    foreign = found.foreign or theirs
    return replace(found, make=make, identity=identity, source=source, foreign=foreign)


def _entrant(name: str, trusted: bool | None) -> Entrant:
    path = or_shipped(name)
    if is_import_path(name) and not path.exists():
        if programs.of_module(name):
            return _program(name, {})
        return _torch(name, torch_optimizer(name), *described(name))
    one_thing(path)
    if (path / checkpoint.TENSORS).is_file():
        return _learned(name, checkpoint.load(path, trusted))
    if run.is_run(path):
        if not (path / run.BEST / checkpoint.TENSORS).is_file():
            raise ValueError(f"{path}: a meta-training that has saved nothing yet")
        return _learned(name, checkpoint.load_best(path, trusted))
    if path.suffix == ".py" and path.is_file() and optimizer_class(path):
        return _torch(name, optimizer_file(path), *sources(path).values())
    if name in NAMED or path.exists():
        return _program(name, checkpoint.read_card(path))
    raise ValueError(
        f"no rule {name!r}: expected torch.optim.NAME, a run, a checkpoint, a file with a program "
        f"or an optimizer, package.module:NAME, or a known one{like(name)}"
    )


def _program(name: str, card: Mapping[str, Any]) -> Entrant:
    entry = programs.load(name)
    text = to_text(entry.program)

    def make(task: Task, instances: int, device: str) -> UpdateRule:
        owner = torch.zeros(instances, dtype=torch.int64, device=device)
        return Population.of([entry.program], owner)

    schedule = _meant(name, card)
    return Entrant(name, digest("program", text), text, make, schedule=schedule, lr=entry.lr)


def _learned(name: str, found: checkpoint.Checkpoint) -> Entrant:
    """A checkpoint, in the parametrisation that it was meta-trained in."""
    optimizer, theta, card = found
    in_mup = card.get("mup", False)

    def make(task: Task, instances: int, device: str) -> UpdateRule:
        return optimizer.on(task).rule(theta.to(device), update_multiplier if in_mup else None)

    # Not of the file: two that hold the same may have their headers in another order.
    known = json.dumps(optimizer.arguments(), sort_keys=True)
    kind = type(optimizer)
    foreign = ":" in name_of(kind)
    code = code_of(kind) if foreign else []
    content = kind.__name__, known, theta.numpy().tobytes(), *code
    architecture = card.get("architecture", kind.__name__)
    source = f"{architecture}, {optimizer.size} meta-parameters"
    schedule = _meant(name, card) or META_TRAINED
    own = {"schedule": schedule, "space": LEARNED, "lr": 1.0, "foreign": foreign}
    if not in_mup:
        return Entrant(name, digest("learned", *content), source, make, **own)
    identity = digest("learned in muP", *content)
    return Entrant(name, identity, f"{source}, in muP", make, _in_mup, **own)


def _meant(name: str, card: Mapping[str, Any]) -> str | None:
    """The schedule that a card says its rule is meant for."""
    found = card.get("schedule")
    if found is not None and found not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise ValueError(f"{name}: its card has the schedule {found!r}, expected one of {known}")
    return found


def _in_mup(task: Task) -> Task:
    try:
        return mup(task)
    except ValueError as error:
        raise ValueError(
            f"meta-trained in muP, of which this task has no version: {error}"
        ) from error


def _torch(name: str, rule: TorchRule, source: str, *imported: str) -> Entrant:
    identity = digest("torch", source, *imported)

    def make(task: Task, instances: int, device: str) -> UpdateRule:
        return replace(rule)  # with no runs yet

    return Entrant(name, identity, source, make, foreign=True)
