"""What is shown of a run: on a small archive written by hand, at every stage of its life."""

import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from search.fitness.verdict import as_data, standings
from search.language.program import parse
from search.record.archive import Archive, create, open_existing
from search.record.schema import Final
from search.run.judged import one_rule
from search.run.report import page
from search.run.summary import _percent, lineage, render, summary
from tasks.display.page import Table
from tasks.display.plain import Console
from tasks.runs.database import ArchiveError

SIGN = """def update(w, g, m, v):
    m = interp(g, m, 0.9)
    update = sign(m)
    return update, m, v
"""
DEAD = SIGN.replace("    update =", "    x = cosh(w)\n    update =")
SCALED = SIGN.replace("sign(m)", "mul(m, 2.0)")

# id, parent, mutation, fate, score, text, original
CANDIDATES = (
    (0, None, "start", "evaluated", 0.0, SCALED, None),
    (1, 0, "insert cosh", "evaluated", 0.0, DEAD, None),
    (2, 1, "modify interp", "duplicate", 0.0, SCALED + "\n", 0),
    (3, 2, "modify sign", "evaluated", -0.25, SIGN, None),
    (4, 3, "modify 0.9", "diverged", None, SIGN.replace("0.9", "9.0"), None),
    (5, 3, "modify 0.5", "stopped", None, SIGN.replace("0.9", "0.5"), None),
    (6, 3, "modify nothing", "invalid", None, None, None),
    (7, 3, "modify 0.8", "evaluated", -0.125, SIGN.replace("0.9", "0.8"), None),
    (8, 3, "delete", "pending", None, SIGN.replace("0.9", "0.7"), None),
)
GAINS = {"adamw": 1.0, "0": 1.1, "lion": 0.9, "momentum": 1.2, "3": 0.8, "7": 0.85}
SEEDS = (1001, 1002, 1003, 1004, 1005)
TASKS = (("digits", 1.0), ("text", 3.0), ("wine", 2.0))
CONFIG = {
    "start": [SCALED],
    "seed": 0,
    "budget": {"candidates": 100, "minutes": 60.0},
    "funnel": {"suite": "proxy"},
    "verdict": {"trials": 8, "held_out": "held_out", "meta_validation": "meta_validation"},
}


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with create(tmp_path / "run", {"seed": 0, "config": CONFIG}) as archive:
        yield archive


def searched(archive: Archive) -> None:
    """Both batches: seven candidates decided, one pending, two invalid children unnumbered."""
    with archive.transaction():
        archive.add_batch(0, {"hurdles": [], "rejected": 2})
        for id, parent, mutation, fate, score, text, original in CANDIDATES:
            program = None if text is None else archive.add_program(text, text, text, length=1)
            born = fate if fate in ("invalid", "duplicate") else "pending"
            archive.add_candidate(id, 0, parent, program, mutation, born, 0.01, original)
            if fate not in ("pending", "invalid"):
                archive.decide(id, fate, 0.01, score, [])
        archive.add_timing(0, wall=83.0, busy=1.0)


def judged(
    archive: Archive,
    stage: str,
    rules: tuple[str, ...],
    seeds: Sequence[int],
    tasks: Sequence[tuple[str, float]] = TASKS,
) -> None:
    """Losses on three tasks; how the rules compare is the same on all of them."""
    with archive.transaction():
        archive.add_finals(
            Final(stage, rule, task, seed, 100, 0.01, "ok", GAINS[rule] * hard * (1 + seed / 10))
            for rule in rules
            for task, hard in tasks
            for seed in seeds
        )


def finished(archive: Archive, seeds: Sequence[int] = SEEDS) -> None:
    searched(archive)
    baselines = ("adamw", "lion", "momentum")
    judged(archive, "proxy", (*baselines, "3", "7"), seeds)
    judged(archive, "meta_validation", ("adamw", "0", "3"), seeds)
    judged(archive, "held_out", (*baselines, "3"), seeds)
    with archive.transaction():
        archive.set_run("winner", 3)


def finished_on_one_seed(archive: Archive) -> None:
    finished(archive, SEEDS[:1])


def printed(content: dict) -> str:
    console = Console(file=io.StringIO(), width=110, color_system=None)
    render(content, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def nothing(archive: Archive) -> None:
    """A run that has just begun."""


STAGES = pytest.mark.parametrize("happened", [nothing, searched, finished, finished_on_one_seed])


@STAGES
def test_json_holds_all_of_it(archive: Archive, happened) -> None:
    happened(archive)
    content = summary(archive)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert printed(json.loads(json.dumps(content))) == printed(content)


@STAGES
def test_a_run_can_be_looked_at_while_it_is_written(archive: Archive, happened) -> None:
    happened(archive)
    with open_existing(archive.run_dir, readonly=True) as reader:
        assert summary(reader) == summary(archive)


def test_nothing_yet(archive: Archive) -> None:
    content = summary(archive)
    assert content["best"] is None
    assert not content["finished"]
    assert content["top"] == []
    assert printed(content) == "nothing has been evaluated yet\n"


def test_an_unfinished_run_ranks_by_the_scores_of_the_search(archive: Archive) -> None:
    searched(archive)
    content = summary(archive, top=3)
    assert [entry["id"] for entry in content["top"]] == [3, 7, 0]
    assert [entry["score"] for entry in content["top"]] == [-0.25, -0.125, 0.0]
    kind = "sign of an average of gradients, decay 0.9: sign momentum"
    assert content["best"] == content["top"][0] | {"kind": kind}
    assert f"By experiment: {kind}." in printed(content)
    assert content["discovery"] is None
    assert not content["finished"]
    text = printed(content)
    assert SIGN.strip() in "\n".join(line.rstrip() for line in text.splitlines())
    assert "Not judged yet" in text
    assert "-0.2500" in text


def test_statements_that_do_nothing_are_not_shown(archive: Archive) -> None:
    searched(archive)
    programs = {entry["id"]: entry["program"] for entry in summary(archive)["top"]}
    assert "cosh" not in programs[1]
    assert programs[1] == programs[3]


def test_it_is_said_when_a_program_was_found(archive: Archive) -> None:
    """The whole kind: the best, the top and a lineage; in text and as data; not what is out."""
    searched(archive)
    with archive.transaction():
        archive.add_batch(1, {"hurdles": [], "rejected": 4})
        better = archive.add_program(SCALED + "\n" * 2, "", "", length=1)
        archive.add_candidate(9, 1, 3, better, "modify interp", "pending", 0.01)
        archive.decide(9, "evaluated", 0.01, -0.5, [])
        archive.add_timing(1, wall=17.0, busy=1.0)
        archive.add_batch(2, {"hurdles": [], "rejected": 0})
        archive.add_candidate(10, 2, 9, better, "modify mul", "pending", 0.01)
    first, second = (
        {"batch": 0, "tried": 10, "seconds": 83.0},
        {"batch": 1, "tried": 15, "seconds": 100.0},
    )
    content = summary(archive)
    assert content["best"]["found"] == second
    assert [entry["found"] for entry in content["top"][:2]] == [second, first]
    assert [step["found"] for step in lineage(archive, 10)][-3:] == [first, second, None]
    assert "found in batch 1, after 15 candidates and 1:40:" in printed(content)
    assert "10 candidates, 1:23" in printed(content)


def test_counts_by_fate(archive: Archive) -> None:
    searched(archive)
    content = summary(archive)
    assert content["fates"] == {
        "pending": 1, "invalid": 3, "duplicate": 1, "stopped": 1, "diverged": 1, "evaluated": 4,
    }  # fmt: skip
    line = next(line for line in printed(content).splitlines() if "candidates tried" in line)
    assert line == (
        "11 candidates tried in 1:23: 3 invalid, 1 duplicates of known programs, "
        "1 stopped early, 1 diverged, 4 evaluated in full, 1 pending."
    )


def test_a_finished_run_ranks_by_fresh_seeds(archive: Archive) -> None:
    finished(archive)
    content = summary(archive)
    assert content["finished"]
    assert content["discovery"] is True
    assert [s["rule"] for s in content["stages"]["proxy"]] == [
        "3",
        "7",
        "lion",
        "adamw",
        "momentum",
    ]
    against = content["stages"]["held_out"][0]["against"]
    for name in ("adamw", "lion", "momentum"):
        gap = math.log(GAINS["3"] / GAINS[name])
        assert against[name]["mean"] == pytest.approx(gap)
        assert against[name]["low"] <= against[name]["mean"] + 1e-9
    text = printed(content)
    assert "Change of loss in % on held-out tasks, 5 fresh seeds, 95 % interval" in text
    assert "-20.0 [-20.0, -20.0]" in text
    assert "A discovery" in text
    for command in ("show", "export", "evaluate", "tensorboard"):
        assert command in text[text.index("Next:") :]


LITTLE = {
    "seeds": (SEEDS[:4], 8, TASKS, "at least 5 seeds (here 4)."),
    "trials": (SEEDS, 7, TASKS, "at least 8 trials (here 7)."),
    "tasks": (SEEDS, 8, TASKS[:2], "at least 3 held-out tasks (here 2)."),
    "all": (SEEDS[:3], 4, TASKS[:1], "5 seeds (here 3), 8 trials (here 4), 3 held-out tasks (here"),
}


@pytest.mark.parametrize("what", LITTLE)
def test_the_word_is_not_used_where_the_verdict_is_small(archive: Archive, what: str) -> None:
    seeds, trials, tasks, said = LITTLE[what]
    searched(archive)
    for stage in ("proxy", "held_out"):
        judged(archive, stage, ("adamw", "lion", "momentum", "3"), seeds, tasks)
    with archive.transaction():
        archive.set_run("winner", 3)
        archive.set_run("config", CONFIG | {"verdict": CONFIG["verdict"] | {"trials": trials}})
    content = summary(archive)
    assert content["discovery"] is False
    assert content["verdict"].startswith("Ahead of AdamW on held-out tasks, the whole interval")
    assert said in content["verdict"]
    assert content["verdict"] in printed(content)
    assert page(archive, "").lead.startswith(content["verdict"])


def test_nor_where_the_search_s_own_tasks_say_nothing(archive: Archive) -> None:
    finished(archive)
    with archive.transaction():
        archive.add_finals(
            Final("proxy", "3", task, seed, 100, 0.01, "ok", loss * hard * (1 + seed / 10))
            for task, hard in TASKS
            for seed, loss in zip(SEEDS, (0.5, 1.4, 0.7, 0.9, 1.2), strict=True)
        )
    content = summary(archive)
    assert content["discovery"] is False
    why = "No discovery: on proxy tasks the interval against AdamW does not exclude zero."
    assert content["verdict"] == why
    assert page(archive, "").lead.startswith(why)


def test_a_user_s_suites_are_named_and_come_first(archive: Archive) -> None:
    finished(archive)
    config = CONFIG | {"funnel": {"suite": "mine:suite"}}
    with archive.transaction():
        archive.set_run("config", config)
    content = summary(archive)
    text = printed(content)
    assert "--suite mine:suite" in text[text.index("Next:") :]
    own, other = text.index("on the tasks of mine:suite"), text.index("on the built-in held-out")
    assert own < other
    assert "led the search, on the built-in larger tasks, against AdamW" in text
    assert content["verdict"].startswith(
        "Against AdamW, fresh seeds: on the tasks of mine:suite \N{MINUS SIGN}20.0"
    )
    assert page(archive, "").lead.startswith("On the tasks of mine:suite its loss is 20.0 % below")
    titles = [section.title for section in page(archive, "").sections]
    assert titles.index("On the tasks of mine:suite") < titles.index(
        "On the built-in held-out tasks"
    )
    config["verdict"] = CONFIG["verdict"] | {"held_out": "my:far", "meta_validation": "my:large"}
    with archive.transaction():
        archive.set_run("config", config)
    text = printed(summary(archive))
    assert "on the held-out tasks of my:far" in text
    assert "led the search, on the tasks of my:large, against AdamW" in text


SAME = {
    "a statement without effect": SIGN.replace(
        "update = sign(m)", "x = g * 1e-9\n    y = sign(m)\n    update = x + y"
    ),
    "another scale": SIGN.replace("update = sign(m)", "x = sign(m)\n    update = x * 0.5"),
    "dead statements": DEAD,
}
OTHER = {
    "another decay": SIGN.replace("0.9", "0.901"),
    "another function": SIGN.replace("sign(m)", "tanh(m)"),
    "the other direction": SIGN.replace("update = sign(m)", "x = sign(m)\n    update = x * -1.0"),
}


@pytest.mark.parametrize("what", SAME | OTHER)
def test_finalists_that_are_one_rule_are_one_row(what: str) -> None:
    programs = {"3": parse(SIGN), "5": parse((SAME | OTHER)[what])}
    losses = {"3": np.full((2, 2), 0.5), "5": np.full((2, 2), 0.6)}
    assert one_rule(programs, losses) == {"3": "3", "5": "3" if what in SAME else "5"}


def test_so_are_those_whose_losses_are_equal(archive: Archive, monkeypatch) -> None:
    monkeypatch.setitem(GAINS, "7", GAINS["3"])
    finished(archive)
    content = summary(archive)
    rows = {row["rule"]: row["same"] for row in content["stages"]["proxy"]}
    assert rows == {"3": ["7"], "lion": [], "adamw": [], "momentum": []}
    assert "3 (the same rule: 7)" in printed(content)
    tables = [p for s in page(archive, "").sections for p in s.parts if isinstance(p, Table)]
    assert any("3 (the same rule: 7)" in row for table in tables for row in table.rows)


def test_one_seed_has_no_interval(archive: Archive) -> None:
    finished_on_one_seed(archive)
    content = summary(archive)
    gap = content["stages"]["held_out"][0]["against"]["adamw"]
    assert gap == {"mean": pytest.approx(math.log(0.8)), "low": None, "high": None, "n": 1}
    assert content["discovery"] is False
    text = printed(content)
    assert "-20.0 (n = 1)" in text
    assert "inf" not in text


def test_two_seeds_have_none_either(archive: Archive) -> None:
    finished(archive, SEEDS[:2])
    content = summary(archive)
    assert content["stages"]["held_out"][0]["against"]["adamw"]["high"] is None
    assert "2 seeds cannot have an interval" in content["verdict"]
    assert "(n = 2)" in printed(content)
    assert "n = 2 fresh seeds)." in page(archive, "").lead


def test_intervals_beyond_all_numbers(archive: Archive) -> None:
    """Of losses that are 0 on some seeds."""
    searched(archive)
    judged(archive, "held_out", ("adamw", "lion", "momentum", "3"), SEEDS[:3])
    with archive.transaction():
        archive.set_run("winner", 3)
        archive.add_finals(
            Final("held_out", "3", "hinge", seed, 100, 0.01, "ok", loss)
            for seed, loss in ((1001, 0.0), (1002, 1.0), (1003, 1.0))
        )
        for rule in ("adamw", "lion", "momentum"):
            archive.add_finals(
                Final("held_out", rule, "hinge", seed, 100, 0.01, "ok", 1.0) for seed in SEEDS[:3]
            )
    assert "×10^" in printed(summary(archive))


def test_no_discovery_where_held_out_tasks_disagree(archive: Archive) -> None:
    searched(archive)
    judged(archive, "held_out", ("adamw", "lion", "momentum"), SEEDS)
    with archive.transaction():
        archive.set_run("winner", 3)
        archive.add_finals(
            Final("held_out", "3", task, seed, 100, 0.01, "ok", loss * hard * (1 + seed / 10))
            for task, hard in TASKS
            for seed, loss in zip(SEEDS, (0.5, 1.4, 1.0, 0.9, 1.3), strict=True)
        )
    content = summary(archive)
    assert content["discovery"] is False
    assert "No discovery: on held-out tasks the interval against AdamW does not" in printed(content)


def test_a_winner_that_is_worse_or_diverges_is_called_so(archive: Archive) -> None:
    searched(archive)
    judged(archive, "held_out", ("adamw", "lion", "momentum", "0"), SEEDS)
    with archive.transaction():
        archive.set_run("winner", 0)
    assert "the whole interval against AdamW is above zero" in printed(summary(archive))
    with archive.transaction():
        archive.add_finals([Final("held_out", "0", "text", 1001, 99, 0.01, "diverged", None)])
        archive.add_finals([Final("held_out", "0", "new", 1001, 99, 0.01, "diverged", None)])
    assert "a run of it or of AdamW diverged" in printed(summary(archive))


def test_a_diverged_rule_is_called_so(archive: Archive) -> None:
    finished(archive)
    with archive.transaction():
        archive.add_finals([Final("proxy", "7", "text", 1001, 100, 0.01, "diverged", None)])
    content = summary(archive)
    rows = {row["rule"]: row["against"] for row in content["stages"]["proxy"]}
    assert set(rows["7"].values()) == {None}
    assert content["stages"]["proxy"][-1]["rule"] == "7"
    assert "diverged" in printed(content)


def test_where_the_reference_diverges_the_lowest_losses_lead(archive: Archive) -> None:
    losses = {"adamw": (1.0, None), "10": (3.0, 3.0), "9": (1.0, 1.0), "8": (0.1, None)}
    rows = [
        Final("proxy", rule, "text", seed, 100, 0.01, "diverged" if loss is None else "ok", loss)
        for rule, row in losses.items()
        for seed, loss in zip(SEEDS, row, strict=False)
    ]
    table = standings(rows, "proxy", ("adamw",))
    assert [standing.rule for standing in table] == ["9", "10", "8", "adamw"]
    means = [standing.against["adamw"].mean for standing in table]
    assert means == [-math.inf, -math.inf, math.inf, math.inf]
    shown = [as_data(standing.against["adamw"]) for standing in table]
    assert [_percent(data, itself=False) for data in shown] == [
        *["reference diverged"] * 2,
        *["diverged"] * 2,
    ]


def test_lineage_tells_which_mutation_made_which_gain(archive: Archive) -> None:
    searched(archive)
    steps = lineage(archive, 7)
    assert [step["id"] for step in steps] == [0, 1, 2, 3, 7]
    assert [step["gain"] for step in steps] == [None, 0.0, 0.0, -0.25, 0.125]
    assert [step["mutation"] for step in steps][3:] == ["modify sign", "modify 0.8"]
    assert json.loads(json.dumps(steps, allow_nan=False)) == steps
    text = printed({"lineage": steps})
    assert "(2 without effect)" in text
    assert "insert cosh" not in text
    for shown in ("start", "modify sign", "-0.2500", "modify 0.8", "+0.1250", "0.8)"):
        assert shown in text


@pytest.mark.parametrize(("id", "fate"), [(4, "diverged"), (6, "invalid"), (8, "pending")])
def test_lineage_of_one_without_a_score(archive: Archive, id: int, fate: str) -> None:
    searched(archive)
    steps = lineage(archive, id)
    assert steps[-1]["gain"] is None
    assert steps[-1]["score"] is None
    assert (steps[-1]["program"] is None) == (fate == "invalid")
    assert steps[-1]["mutation"] in printed({"lineage": steps})


@pytest.mark.parametrize("id", [99, -1, 10**22])
def test_an_unknown_candidate(archive: Archive, id: int) -> None:
    searched(archive)
    with pytest.raises(ArchiveError, match=f"no candidate {id}; expected 0 to 8"):
        lineage(archive, id)


def test_more_than_there_are(archive: Archive) -> None:
    searched(archive)
    assert len(summary(archive, top=10**22)["top"]) == 4
