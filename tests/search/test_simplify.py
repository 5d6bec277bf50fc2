import json
import math
from pathlib import Path

import pytest

from l2o.cli.main import main
from search.behaviour.kind import classify
from search.language.functions import ProgramError
from search.language.program import from_rows, parse, to_text
from search.simplify import ablate
from search.simplify.ablate import Ablation, Edit, Effect
from search.simplify.chain import Report, simplify, to_json
from search.simplify.chain import to_text as report_text
from search.zoo import ZOO
from tasks.evaluation.intervals import Interval

PAPER = json.loads(
    Path(__file__).with_name("data").joinpath("lion_paper_programs.json").read_text()
)["programs"]
LION_RAW = from_rows(PAPER["lion_raw"]["statements"], ("w", "g", "m", "v", "lr"), "full")
FAST = Ablation(tolerance=0.02, trials=6, seeds=8, tuning_seeds=1)
SAME = Interval(0.0, -0.001, 0.001, 5)
WORSE = Interval(0.5, 0.4, 0.6, 5)


def body(program):
    return [str(statement) for statement in program.statements]


def test_the_raw_program_of_the_paper_becomes_lion():
    report = simplify(LION_RAW, FAST)
    end = report.end.program
    *first, last = body(end)
    assert first == ["x1 = interp(g, m, 0.9)", "update = sign(x1)"]
    assert last.startswith("m = interp(g, m, 0.998")
    assert (end.form, end.inputs) == ("direction", ("w", "g", "m"))
    assert report.end.lr == pytest.approx(0.0002171761734643951)
    assert report.end.weight_decay == pytest.approx(0.4601978361606598)
    assert classify(end).name == "Lion form"
    lengths = [step.after.program.length for step in report.steps]
    assert lengths == sorted(lengths, reverse=True)
    reasons = [step.reason for step in report.steps]
    assert reasons == sorted(reasons, reverse=True)  # exact, then empirical
    for step in report.steps:
        assert step.evidence
        assert (step.cost is not None) == (step.reason == "empirical")
        assert step.cost is None or max(-step.cost.low, step.cost.high) <= FAST.tolerance
    assert any("without update = sign" in effect.edit.what for effect in report.kept)
    assert not any(effect.harmless for effect in report.kept)


# The chain, with made-up measurements ---------------------------------------------------------


def measured(monkeypatch, harmless):
    """Let the edits whose resulting program ``harmless`` accepts be without effect."""

    def compare(rules, start, settings, clock):
        return [SAME if harmless(body(rule.program)) else WORSE for rule in rules]

    monkeypatch.setattr(ablate, "compare", compare)


def test_edits_go_on_until_none_is_harmless(monkeypatch):
    measured(monkeypatch, lambda lines: any("sign" in line for line in lines))
    text = to_text(ZOO["lion"].program).replace("sign(blend)", "sign(x)")
    report = simplify(parse(text.replace("    update", "    x = tan(blend)\n    update")), FAST)
    assert body(report.end.program) == ["update = sign(g)"]
    assert [step.reason for step in report.steps] == ["empirical", "empirical"]


def test_what_an_ablation_leaves_is_simplified_exactly(monkeypatch):
    text = """
def update(w, g, m):
    m = interp(g, m, 0.9)
    x = m * m
    y = arctan(x)
    z = sqrt(y)
    update = m / z
    return update, m
"""
    words = lambda lines: " ".join(lines)  # noqa: E731
    measured(monkeypatch, lambda lines: "sqrt" in words(lines) and "arctan" not in words(lines))
    report = simplify(parse(text), FAST)
    assert [(step.what, step.reason) for step in report.steps][-3:] == [
        ("without x2 = arctan(x1)", "empirical"),
        ("sqrt(square(a)) -> abs(a)", "exact"),
        ("a / abs(a) -> sign(a)", "exact"),
    ]


def test_what_decays_weights_is_measured_with_its_decay(monkeypatch):
    """Exact algebra takes the decay out of the program; it stays with the rule."""
    asked = []

    def compare(rules, start, settings, clock):
        asked.extend(rule.weight_decay for rule in (start, *rules))
        return [WORSE] * len(rules)

    monkeypatch.setattr(ablate, "compare", compare)
    text = """
def update(w, g, m):
    m = interp(g, m, 0.9)
    x = sign(m)
    y = w * 0.5
    update = x + y
    return update, m
"""
    report = simplify(parse(text), FAST)
    assert body(report.end.program)[-1] == "update = sign(m)"
    assert report.end.weight_decay == 0.5
    assert set(asked) == {0.5}


def test_constants_come_after_statements(monkeypatch):
    text = to_text(ZOO["lion"].program).replace("0.99)", "0.98765432)")
    measured(monkeypatch, lambda lines: len(lines) == 3)
    report = simplify(parse(text), FAST)
    assert body(report.end.program)[-1] == "m = interp(g, m, 0.99)"
    assert [step.what for step in report.steps if step.reason == "empirical"] == [
        "0.98765432 rounded to 0.99 in m = interp(g, m, 0.98765432)"
    ]


# Reports -----------------------------------------------------------------------------------------


def test_without_tasks_only_exact_steps_are_taken():
    report = simplify(LION_RAW)
    assert {step.reason for step in report.steps} == {"exact"}
    assert report.kept == []
    assert report.end.program.length == 6


def test_each_step_is_told_when_it_is_taken():
    told = []
    report = simplify(LION_RAW, tell=told.append)
    assert told == report.steps


def test_nothing_to_do_is_an_empty_report():
    report = simplify(ZOO["sign_sgd"].program)
    assert report.steps == []
    assert report.end.program == ZOO["sign_sgd"].program
    assert "1 statement, 0 states: sign of the gradient" in report_text(report)


def test_programs_that_are_no_rules_are_refused():
    with pytest.raises(ProgramError, match="does not depend on the gradient"):
        simplify(parse("def update(w, g):\n    update = w * 2\n    return update\n"))


def test_text_and_json_say_the_same():
    report = simplify(LION_RAW)
    report.kept.append(Effect(Edit("without all", LION_RAW), WORSE, False))
    text, data = report_text(report), json.loads(json.dumps(to_json(report)))
    assert parse(data["end"]["program"]) == report.end.program
    assert data["end"]["lr"] == report.end.lr
    assert "at 0.000217176 times the learning rate" in text
    assert "with weight decay 0.460198" in text
    assert data["end"]["kind"] in text
    assert len(data["steps"]) == len(report.steps) == text.count("exact:")
    for step in data["steps"]:
        assert step["what"] in text
        parse(step["program"])
    assert data["kept"] == [{"what": "without all", "cost": WORSE._asdict()}]
    assert "+0.5000 [+0.4000, +0.6000]  without all" in text


@pytest.mark.parametrize(
    ("cost", "data"),
    [
        (Interval(math.inf, math.inf, math.inf, 5), None),
        (Interval(0.5, -math.inf, math.inf, 1), {"mean": 0.5, "low": None, "high": None, "n": 1}),
    ],
)
def test_json_has_no_infinity(cost, data):
    report = Report(LION_RAW, kept=[Effect(Edit("without all", LION_RAW), cost, False)])
    written = json.dumps(to_json(report), allow_nan=False)
    assert json.loads(written)["kept"] == [{"what": "without all", "cost": data}]


def test_the_command(tmp_path, capsys):
    path = tmp_path / "raw.py"
    path.write_text(to_text(LION_RAW))
    assert main(["simplify", str(path), "--exact", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert parse(data["end"]["program"]).length == 6
    assert main(["simplify", str(path), "--exact"]) == 0
    assert "a / abs(a) -> sign(a)" in capsys.readouterr().out


WRONG = {
    "no such rule": (["loin"], "'loin' is neither"),
    "no such suite": (["lion", "--suite", "none"], "suite: got 'none'"),
    "no seeds": (["lion", "--seeds", "0"], "seeds: got 0, expected at least 1"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_answered_in_one_line(capsys, arguments, message):
    assert main(["simplify", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
