"""State dicts of other optimizers: refused by name before anything changes, or loaded with a word.

One table, what is loaded x what it is loaded into, and what version 0.1 wrote, which names no rule.
"""

import copy
import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import l2o
from l2o.architectures.tuned_adam import TunedAdam
from l2o.base import LearnedOptimizer
from l2o.loading import Learned
from search.export.build import to_class
from search.interpreter.population import Population
from search.language.program import parse
from search.zoo import NAMED
from tasks.optim.memory import SHARED
from tasks.optim.rule_optimizer import RuleOptimizer

SIGN = "def update(w, g):\n    update = sign(g)\n    return update"
PROGRAMS = {name: NAMED[name].program for name in ("lion", "adam", "adabelief", "sgd")}
PROGRAMS["sign"] = parse(SIGN)
Make = Callable[..., Any]


def exported(name: str) -> Make:
    made: Any = to_class(PROGRAMS[name], name, "")
    return lambda params: made(params, lr=0.01)


def ruled(name: str) -> Make:
    rule = Population.of([PROGRAMS[name]], torch.tensor([0]))
    return lambda params: RuleOptimizer(params, rule, 0.01)


def learned(architecture: LearnedOptimizer, seed: int) -> Make:
    theta = torch.full((architecture.size,), 0.1 * seed)
    return Learned("x", architecture, theta, {}).optimizer


OURS: dict[str, Make] = {f"exported {name}": exported(name) for name in PROGRAMS}
OURS |= {f"ruled {name}": ruled(name) for name in ("lion", "adam", "adabelief")}
OURS |= {
    "lo_small": l2o.load("lo_small").optimizer,
    "tuned adam": learned(TunedAdam(), 1),
    "tuned adam, other theta": learned(TunedAdam(), 2),
}
THEIRS: dict[str, Make] = {
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.1),
    "SGD with momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=0.1),
}


def stepped(make: Make, steps: int = 2) -> tuple[nn.Linear, Any]:
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optimizer = make(net.parameters())
    move(net, optimizer, range(steps))
    return net, optimizer


def move(net: nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        net(x).square().mean().backward()
        optimizer.step()


def kept(optimizer: Any) -> str:
    return str(optimizer.state_dict())


@pytest.mark.parametrize("source", [*OURS, *THEIRS])
@pytest.mark.parametrize("target", OURS)
def test_another_optimizers_state_is_refused_by_name(source: str, target: str) -> None:
    """And nothing has changed; itself is taken, through a file."""
    net, optimizer = stepped(OURS[target])
    file = io.BytesIO()
    torch.save(stepped((OURS | THEIRS)[source])[1].state_dict(), file)
    file.seek(0)
    state, before = torch.load(file, weights_only=True), kept(optimizer)
    if source == target:
        optimizer.load_state_dict(state)
        return
    with pytest.raises(ValueError, match=r"state: got .*, expected .*: the state dict is another"):
        optimizer.load_state_dict(state)
    assert kept(optimizer) == before
    move(net, optimizer, range(2, 3))


def without_names(state: dict[str, Any]) -> dict[str, Any]:
    state = copy.deepcopy(state)
    for group in state["param_groups"]:
        del group["rule"]
    return state


@pytest.mark.parametrize("name", OURS)
def test_states_that_name_no_rule_are_taken_where_they_fit(name: str) -> None:
    net, optimizer = stepped(OURS[name])
    state = without_names(optimizer.state_dict())
    expected = copy.deepcopy(net)
    twin = OURS[name](expected.parameters())
    with pytest.warns(UserWarning, match="does not say which rule it is of"):
        twin.load_state_dict(state)
    for x, of in ((net, optimizer), (expected, twin)):
        move(x, of, range(2, 4))
    assert torch.equal(net.weight, expected.weight)
    assert "rule" in twin.param_groups[0]


def test_rows_of_version_01_are_cut() -> None:
    """It kept what belongs to tensors with a row's first parameter, end to end."""
    net, optimizer = stepped(OURS["lo_small"])
    state = without_names(optimizer.state_dict())
    first, second = state["state"].values()
    for name in ("row", "col"):
        parts = first.pop(name), second.pop(name)
        first[SHARED + name] = torch.cat(parts, dim=-1)
    twin = OURS["lo_small"](net.parameters())
    with pytest.warns(UserWarning, match="does not say"):
        twin.load_state_dict(state)
    for p in net.parameters():
        for name, value in optimizer.state[p].items():
            assert torch.equal(value, twin.state[p][name]), name


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "nothing": (lambda s: s.clear(), "got nothing|got entries none"),
    "no groups": (lambda s: s.pop("param_groups"), "expected state and param_groups"),
    "more groups": (lambda s: s["param_groups"].append(s["param_groups"][0]), "param_groups: got"),
    "a parameter less": (lambda s: s["param_groups"][0]["params"].pop(), "param_groups: got"),
    "a shape": (lambda s: first_of(s, torch.zeros(7)), r"of shape \(7,\)"),
    "a number": (lambda s: first_of(s, 3.0), "= 3.0"),
    "a parameter twice": (lambda s: s["param_groups"][0].update(params=[0, 0]), "parameter once"),
    "a parameter unknown": (lambda s: s["state"].update({7: s["state"][0]}), "state: got 7"),
    "a state more": (lambda s: s["state"][0].update(more=torch.zeros(1)), "more"),
}


def first_of(state: dict[str, Any], value: Any) -> None:
    name = next(name for name in state["state"][0] if name in ("exp_avg", "m"))
    state["state"][0][name] = value


@pytest.mark.parametrize("damage", BROKEN)
@pytest.mark.parametrize("name", ["exported adam", "tuned adam"])
def test_what_does_not_fit_is_refused(name: str, damage: str) -> None:
    _, optimizer = stepped(OURS[name])
    state, before = copy.deepcopy(optimizer.state_dict()), kept(optimizer)
    breaks, said = BROKEN[damage]
    breaks(state)
    with pytest.raises(ValueError, match=said):
        optimizer.load_state_dict(state)
    assert kept(optimizer) == before


MISFITS: dict[str, Any] = {
    "None": None, "a number": 3.5, "a large one": 10**400, "text": "x", "a list": [1, [2]],
    "a set": {1}, "an object": object(), "NaN": math.nan, "a vector": torch.zeros(7),
    "whole numbers": torch.zeros(2, 3, dtype=torch.int64), "meta": torch.empty(2, 3, device="meta"),
    "complex": torch.zeros(2, 3, dtype=torch.complex64), "sparse": torch.zeros(2, 3).to_sparse(),
}  # fmt: skip


def places(x: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to everything inside of a state dict."""
    parts = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
    for key, part in parts:
        yield (*above, key)
        yield from places(part, (*above, key))


def complaint(optimizer: Any, state: Any) -> str | None:
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("name", ["exported adam", "lo_small"])
def test_what_is_malformed_is_one_line_that_names_the_entry(name: str, misfit: str) -> None:
    """Anything in the place of anything: it is refused and nothing changes, or a step works."""
    net, optimizer = stepped(OURS[name])
    good, before, refused = copy.deepcopy(optimizer.state_dict()), kept(optimizer), 0
    for way in places(good):
        state = copy.deepcopy(good)
        inner: Any = state
        for key in way[:-1]:
            inner = inner[key]
        inner[way[-1]] = MISFITS[misfit]
        said = complaint(optimizer, state)
        if said is None:
            move(net, optimizer, range(2, 3))
            net, optimizer = stepped(OURS[name])
            continue
        named = [str(key) for key in way if isinstance(key, str)][-1]
        assert named in said or "state" in said
        assert "\n" not in said
        assert len(said) < 400
        assert kept(optimizer) == before, way
        refused += 1
    assert refused >= 7
    for whole in MISFITS.values():
        with pytest.raises(ValueError, match="state dict: got"):
            optimizer.load_state_dict(whole)


@pytest.mark.parametrize("option", ["foreach", "fused", "capturable", "maximize"])
def test_options_are_no_reason_to_refuse(option: str) -> None:
    net, optimizer = stepped(exported("adam"))
    made: Any = to_class(PROGRAMS["adam"], "renamed", "elsewhere")
    other = made(net.parameters(), lr=0.5, beta1=0.8, **{option: True})
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.01
    move(net, other, range(2, 3))


def test_constants_are_no_reason_to_refuse() -> None:
    """They are hyper-parameters, which a state dict holds."""
    text = str(PROGRAMS["lion"]).replace("0.99", "0.95")
    other: Any = to_class(parse(text), "slower", "")
    net, optimizer = stepped(exported("lion"))
    loaded = other(net.parameters())
    loaded.load_state_dict(optimizer.state_dict())
    assert loaded.param_groups[0]["beta2"] == 0.99
