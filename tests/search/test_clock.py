"""Simplifying has a clock; and what is asked of every candidate needs none, whatever its shape."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from l2o.cli.main import main
from search.behaviour.kind import classify
from search.behaviour.signature import signatures
from search.language.canonical import canonical
from search.language.flow import flow, to_program
from search.language.program import MAX_STATEMENTS, Program, parse
from search.language.validity import check
from search.simplify import ablate
from search.simplify.ablate import Ablation
from search.simplify.agreement import Setting
from search.simplify.chain import simplify, to_json, to_text
from search.simplify.clock import Clock, OutOfTime
from search.simplify.recurrences import sums

N = MAX_STATEMENTS - 2


def text(lines: Iterator[str], update: str, states: str = "") -> Program:
    body = "\n".join(f"    {line}" for line in [*lines, f"update = {update}"])
    comma = f", {states}" if states else ""
    return parse(f"def update(w, g{comma}):\n{body}\n    return update{comma}\n")


def chained(how: str) -> Program:
    lines = (how.format(new=f"x{k}", old=f"x{k - 1}" if k else "g") for k in range(N))
    return text(lines, f"sin(x{N - 1})")


def of_states(next_one: int) -> Program:
    """Half as many states as statements may be: a chain of averages, or a ring."""
    names = [f"s{k}" for k in range(N // 2)]
    lines = (
        f"{name} = interp(g, {names[(k + next_one) % len(names)]}, 0.9)"
        for k, name in enumerate(names)
    )
    return text(lines, f"sin({names[-1]})", ", ".join(names))


def many_atoms() -> Program:
    lines = (
        line
        for k in range(N // 3)
        for line in (
            f"x{k} = g * 0.{k + 1:03}",
            f"y{k} = sin(x{k})",
            f"z{k} = y{k} + {f'z{k - 1}' if k else 'w'}",
        )
    )
    return text(lines, f"z{N // 3 - 1} * 0.5")


SHAPES = {
    "a chain": chained("{new} = sin({old})"),
    "sums doubled": chained("{new} = {old} + {old}"),
    "products doubled": chained("{new} = {old} * {old}"),
    "averages of averages": chained("{new} = interp(g, {old}, 0.9)"),
    "differences": chained("{new} = {old} - w"),
    "a chain of states": of_states(-1),
    "a ring of states": of_states(1),
    "a sum of many": many_atoms(),
}
FUNCTIONS = {
    "check": check,
    "canonical": canonical,
    "flow and back": lambda program: to_program(flow(program)),
    "sums": lambda program: sums(flow(program)),
    "signature": lambda program: signatures([program]),
    "kind": classify,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_functions_for_every_candidate_come_to_an_end(shape: str) -> None:
    """The longest programs there can be; a function whose work doubles with each statement never
    would."""
    for function in FUNCTIONS.values():
        function(SHAPES[shape])


@pytest.mark.parametrize("shape", SHAPES)
def test_exact_simplification_ends_when_time_is_up(shape: str) -> None:
    report = simplify(SHAPES[shape], seconds=1e-3)
    assert report.stopped == 1e-3
    assert "stopped after 0.001 s: the best so far" in to_text(report)
    assert to_json(report)["stopped"] == 1e-3
    assert report.end.size <= Setting(report.start).size


@pytest.mark.parametrize("stage", [ablate.skips, ablate.roundings, ablate.measure])
def test_so_does_that_by_tasks(monkeypatch: pytest.MonkeyPatch, stage) -> None:
    """Wherever the clock strikes."""

    def struck(*given) -> None:
        (clock,) = (one for one in given if isinstance(one, Clock))
        clock.end = 0.0
        stage(*given)
        raise AssertionError("nobody looked at the clock")

    monkeypatch.setattr(ablate, stage.__name__, struck)
    if stage.__name__ == "roundings":
        monkeypatch.setattr(ablate, "skips", lambda program, clock: [])
    program = parse("def update(w, g, m):\n    m = interp(g, m, 0.91)\n    update = sin(m)\n"
                    "    return update, m\n")  # fmt: skip
    report = simplify(program, Ablation(), seconds=1000.0)
    assert report.stopped == 1000.0
    assert report.end.program.length == 2


def test_a_chain_that_came_to_its_end_says_nothing() -> None:
    report = simplify(parse("def update(w, g):\n    x = g * 1.0\n    update = sin(x)\n"
                            "    return update\n"))  # fmt: skip
    assert report.stopped is None
    assert "stopped" not in to_text(report)


def test_a_clock() -> None:
    Clock().check()
    with pytest.raises(ValueError, match="seconds: got 0, expected above 0"):
        Clock(0)
    late = Clock(1e-9)
    with pytest.raises(OutOfTime):
        late.check()
    assert late.struck


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_the_command_refuses_no_time(tmp_path: Path, capsys, seconds: str) -> None:
    rule = tmp_path / "rule.txt"
    rule.write_text("def update(w, g):\n    update = sin(g)\n    return update\n")
    assert main(["simplify", str(rule), "--exact", "--seconds", seconds]) == 2
    assert f"seconds: got {seconds}, expected" in capsys.readouterr().err
