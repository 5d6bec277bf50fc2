"""What scripts do with what is there already, with divergence, and with what a user got wrong."""

import importlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from search.fitness.verdict import Standing
from search.record.schema import Evaluation, Final
from search.run.stages import begin
from tasks.evaluation.intervals import Interval
from tasks.evaluation.results import Results, Run, Study
from tasks.evaluation.tuning import FRESH_SEEDS
from tasks.executors.inline import Inline
from tasks.suites import names, resolve

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    for room in ("bench", "studies"):
        monkeypatch.syspath_prepend(ROOT / "scripts" / room)
    return importlib.import_module


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("learning_rates", ["adamw", "lionn"], "lionn"),
        ("learning_rates", ["adamw", "--suites", "prox"], "prox"),
        ("mup_transfer", ["lionn"], "lionn"),
        ("meta_generalization", ["--mulo", "nowhere"], "nowhere"),
        ("meta_generalization", ["--groups", "nosuch"], "--groups: got 'nosuch', expected some of"),
        ("bench_optimizers", ["lionn"], "lionn"),
        ("bench_optimizers", ["--processes", "0"], "--processes: got 0, expected at least 1"),
        ("bench_optimizers", ["--peer", "no/python"], "--peer: got no/python, expected a Python"),
        ("bench", ["meta", "--turns", "0"], "--turns: got 0, expected more than 0"),
        ("bench", ["meta", "--peer", "no/python"], "--peer: got no/python, expected a Python"),
        ("rediscover_lion", ["sign", "--seeds", "0"], "--seeds: got 0, expected more than 0"),
        ("rediscover_lion", ["sign", "--minutes", "-1"], "--minutes: got -1.0, expected"),
        ("rediscover_lion", ["sign", "--workers", "0"], "--workers: got 0, expected"),
        ("rediscover_confirm", ["nowhere"], "out: got nowhere, which has no results"),
        ("choose_regime", ["--rules", "lion"], "--rules: got lion, expected one of another form"),
    ],
)
def test_what_a_user_got_wrong_is_said_at_once(
    script, monkeypatch, capsys, tmp_path, name, arguments, message
):
    if name == "meta_generalization":
        pytest.importorskip("mlxtend")
        arguments = [*arguments, "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit):
        script(name).main()
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_seed_is_not_taken_from_a_hunt_of_another_budget(script, tmp_path):
    rediscover = script("rediscover_lion")
    goal = rediscover.GOALS["sign"]
    (tmp_path / "runs").mkdir()
    begin(tmp_path / "runs" / "evolution-0", rediscover.config_of(goal, "evolution", 0, 10)).close()
    with pytest.raises(ValueError, match=r"--minutes: got 3, but evolution-0 in .* has 10"):
        rediscover.run_seed(goal, "evolution", 0, 3, tmp_path, 1)
    record = tmp_path / "evolution-0.json"
    record.write_text(json.dumps({"seed": 0}))  # of before budgets were noted: that of its run
    assert rediscover.run_seed(goal, "evolution", 0, 10, tmp_path, 1) == {"seed": 0}
    record.write_text(json.dumps({"seed": 0, "minutes": 60}))
    with pytest.raises(ValueError, match=r"--minutes: got 10, but .* has 60"):
        rediscover.run_seed(goal, "evolution", 0, 10, tmp_path, 1)


def test_a_seed_is_not_taken_from_a_hunt_for_another_goal(script, tmp_path):
    rediscover = script("rediscover_lion")
    goal, other = (rediscover.GOALS[name] for name in ("lion-swap", "lion"))
    (tmp_path / "runs").mkdir()
    config = rediscover.config_of(other, "evolution", 0, 60)
    begin(tmp_path / "runs" / "evolution-0", config).close()
    for kept in (False, True):
        if kept:
            (tmp_path / "evolution-0.json").write_text(json.dumps({"seed": 0, "minutes": 60}))
        with pytest.raises(ValueError, match=r"--out: .* evolution-0 has other settings"):
            rediscover.run_seed(goal, "evolution", 0, 60, tmp_path, 1)
    assert rediscover.run_seed(other, "evolution", 0, 60, tmp_path, 1)["seed"] == 0


def test_a_run_that_is_looked_at_on_every_rung_is_counted_once(script, tmp_path):
    rediscover = script("rediscover_lion")
    goal = rediscover.GOALS["sign"]
    with begin(tmp_path / "run", rediscover.config_of(goal, "evolution", 0, 10)) as archive:
        with archive.transaction():
            archive.add_batch(0, {})
            for k in range(2):
                archive.add_candidate(k, 0, None, None, "start", "invalid", None, None)
            looks = [(0, 0.1, 10), (0, 0.1, 50), (0, 0.2, 10), (1, 0.1, 10), (1, 0.1, 20)]
            archive.add_evaluations(
                Evaluation(k, "task", 0, steps, lr, "ok", 1.0) for k, lr, steps in looks
            )
        assert rediscover.inner_steps(archive) == 50 + 10 + 20


def test_the_first_that_is_judged_must_beat_adamw_and_others_the_last_one_by_a_margin(
    script, monkeypatch, tmp_path
):
    judging, asked = script("rediscover_judge"), []
    jobs = SimpleNamespace(submit=asked.append, completed=lambda timeout: [])
    monkeypatch.setattr(judging, "executor", lambda *settings: jobs)
    monkeypatch.setattr(judging, "held_out", lambda *rules: [])
    best: list = []
    archive = SimpleNamespace(best=lambda n: best)
    hunter = judging.Hunter(archive, None, "Lion form", None, [], tmp_path / "judged.json")
    for scores, judged, chosen in (
        ([0.001, -0.001, -0.02], None, [-0.02, -0.001]),
        ([-0.025, -0.031], -0.02, [-0.031]),
    ):
        hunter.busy = False
        hunter.tried = hunter.tried if judged is None else judged
        hunter.unseen = [(score, k, "") for k, score in enumerate(scores)]
        hunter._go_on(0.0)
        assert [score for score, *_ in asked[-1][0]] == chosen
    for tried, chosen in ((-0.018, [-0.02]), (-0.02, None), (judging.GAIN, [-0.02, -0.001])):
        asked.clear()
        hunter.busy, hunter.tried, hunter.unseen = False, tried, []
        best[:] = [SimpleNamespace(score=s, id=0, text="") for s in (0.001, -0.02, -0.001)]
        monkeypatch.setattr(hunter, "_to_the_end", lambda: None)
        hunter.finish(archive)  # time is up: a margin is no longer asked for
        assert [[score for score, *_ in job[0]] for job in asked] == [chosen] * bool(chosen)


def test_a_hunt_that_goes_on_knows_what_was_judged(script, monkeypatch, tmp_path):
    judging, submitted = script("rediscover_judge"), []
    jobs = SimpleNamespace(submit=submitted.append, completed=lambda timeout: [])
    monkeypatch.setattr(judging, "executor", lambda *settings: jobs)
    monkeypatch.setattr(judging, "held_out", lambda *rules: [])

    def rows(rule, *losses):
        rows = [Final("held_out", rule, "task", 1001, 10, 0.1, "ok", loss) for loss in losses]
        return [row._replace(seed=1001 + k) for k, row in enumerate(rows)]

    known = [*rows("adamw", 1.0, 1.01, 1.02), *rows("lion", 1.0, 1.0, 1.0)]
    known += rows("momentum", 1.0, 1.0, 1.0)
    archive = SimpleNamespace(best=lambda n: [])
    text = "def update(w, g):\n    update = sign(g)\n    return update\n"

    def hunt():
        file = tmp_path / "judged" / "evolution-0.json"
        return judging.Hunter(archive, None, "Lion form", "lion", known, file)

    hunter = hunt()
    failing = [*rows("candidate", 0.9, 1.1, None)]
    failing[2] = failing[2]._replace(status="diverged")
    hunter._conclude((-0.02, 7, text), failing)
    hunter = hunt()
    assert hunter.found is None
    assert hunter.tried == -0.02
    hunter._conclude((-0.04, 9, text), rows("candidate", 0.9, 0.91, 0.92))
    again = hunt()
    assert json.dumps(again.found) == json.dumps(hunter.found)
    assert [(x["candidate"], x["passed"]) for x in again.judged] == [(7, False), (9, True)]
    assert again.judged[0]["held_out"]["adamw"]["mean"] is None  # it diverged
    assert again([])  # nothing more is to be searched
    assert again.waited == 0  # all was judged while the search went on
    again.finish(archive)
    again._conclude((-0.05, 11, text), rows("candidate", 0.9, 0.91, 0.92))
    assert hunt().waited == again.waited > 0


def test_finds_are_confirmed_on_seeds_that_did_not_choose_them(script, monkeypatch, tmp_path):
    confirm, submitted = script("rediscover_confirm"), []

    def judged(trial):
        losses = {"adamw": 1.0, "lion": 1.1, "evolution 0, found": 0.9}
        name, seeds = trial.rules[0][0], FRESH_SEEDS[trial.skip : trial.skip + trial.seeds]
        row = Final(trial.stage, name, str(trial.entry), 0, 10, 0.1, "ok", losses.get(name, 0.95))
        return [row._replace(task=tasks[trial.entry], seed=seed) for seed in seeds]

    class Working(Inline):
        def __init__(self, *settings):
            super().__init__(lambda context: judged, None)

        def submit(self, job, limit=math.inf):
            submitted.append((job.rules[0][0], job.schedule))
            return super().submit(job)

    monkeypatch.setattr(confirm, "executor", Working)
    tasks = names(resolve("held_out_characters"))
    asked = {"suite": "held_out_characters", "length": 0.1, "trials": 2}
    file = tmp_path / "confirmed.json"
    seed = {"seed": 0, "found": None, "winner": {"program": "w"}}
    records = [seed | {"strategy": "evolution", "found": {"program": "f"}}]
    rules = confirm.rules_of([*records, seed | {"strategy": "constants alone"}])
    rows = confirm.measure(file, asked, rules, 2)
    assert {row.seed for row in rows} == {*range(1011, 1031)}
    assert submitted == [(name, "cosine") for _ in tasks for name in rules]
    best, *_ = confirm.table(rows).split("\n")[2:]
    assert best.startswith("| evolution 0, found | -0.1054 ")
    assert "-0.0541" in best  # against constants alone

    submitted.clear()
    assert confirm.measure(file, asked, rules, 2) == rows
    assert not submitted
    confirm.measure(file, asked, rules | {"evolution 0, winner": "another"}, 2)
    assert submitted == [("evolution 0, winner", "cosine") for _ in tasks]


def test_a_table_keeps_budgets_apart_and_says_where_a_search_starts(script):
    interval = {"mean": -0.05, "low": -0.06, "high": -0.04, "n": 5}
    held_out = {"adamw": interval, "lion": interval}
    common = {"strategy": "evolution", "start": 0.0145, "tried": 1000, "steps": 2_000_000}
    common |= {"winner": {"held_out": held_out}, "seconds": 90.0, "found": None, "best": 0.1}
    seeds = [
        common | {"minutes": 60, "found": {"kind": "sign momentum"}, "best": -0.2},
        common | {"minutes": 60},
        common | {"minutes": 30},
    ]
    *_, first, second, start, end = script("rediscover_table").table(seeds).split("\n")
    assert first.startswith("| evolution, 60 minutes | 2 | 1 (1–99 %) | 1:30 | 1,000")
    assert "-0.050 (-0.200 to +0.100)" in first
    assert second.startswith("| evolution, 30 minutes | 1 | 0 (0–98 %) | – |")
    assert (start, end) == ("| the start program | | | | 1 | | +0.015 | |", "")


def test_a_winner_that_diverges_is_noted_in_strict_json_and_said(script):
    apart = {
        "adamw": Interval(*[math.inf] * 3, n=5),
        "lion": Interval(-0.1, -math.inf, math.inf, 1),
    }
    held_out = script("rediscover_judge").noted(Standing("7", apart))
    assert held_out["adamw"]["mean"] is None
    row = {"strategy": "evolution", "seed": 0, "minutes": 1, "start": 0.0, "tried": 1, "steps": 1}
    row |= {"winner": {"held_out": held_out, "kind": "none"}, "found": None, "best": 0, "front": []}
    row = json.loads(json.dumps(row, allow_nan=False))
    tables = script("rediscover_table")
    assert tables.table([row]).count("| diverged |") == 1
    assert "| diverged | -0.1000 (n = 1) |" in tables.endings([row])


def test_a_rival_that_diverges_is_beaten_and_lion_is_not_spared(script, monkeypatch):
    regime = script("choose_regime")
    kinds = {regime.zoo()["lion"]: SimpleNamespace(name="Lion form")}  # by experiment it takes 10 s
    monkeypatch.setattr(regime, "classify", lambda p: kinds.get(p, SimpleNamespace(name="other")))
    rules = {name: regime.zoo()[name] for name in ("lion", "adam")}
    champions = {n: regime.Trial(p, 0.1, regime.decays(p)) for n, p in rules.items()}
    lion, adam = np.array([1.0, 1.01, 1.0]), np.array([2.0, math.inf, 2.1])
    text, beaten = regime.table(champions, {"lion": lion, "adam": adam})
    assert beaten == {"adam": True}
    assert "it diverged" in text
    for lost in (adam, np.array([math.inf, 1.0, 1.0])):
        assert regime.table(champions, {"lion": lost, "adam": lion})[1] == {"adam": False}


def test_a_rule_has_the_same_trials_whichever_run_beside_it(script, tmp_path, monkeypatch):
    regime = script("choose_regime")

    def asked(*names):
        study, trials = regime.Study(regime.REGIMES[0], tmp_path / "none.json", None), []

        def losses(stage, of, seeds):
            trials.append(of["adam"])
            return {name: np.arange(1, 1 + len(one)) for name, one in of.items()}

        monkeypatch.setattr(study, "losses", losses)
        study.champions({name: regime.zoo()[name] for name in names})
        return trials

    assert asked("lion", "adam") == asked("sgd", "lion", "radam", "adam")


def test_references_are_not_mixed_from_several_commits(script, tmp_path, monkeypatch):
    references = script("tune_references")
    file, clean = tmp_path / "r.sqlite", {"commit": "abc"}
    with Results(file) as results:
        results.made_in({"commit": "older"})
        run = Run(1, 0.1, 0.0, "ok", 0.5, 0.6, ((0, 1.0),), 1e-5)
        results.add(Study("rule", "task", 10, "cosine"), [run])
    monkeypatch.setattr(references, "environment", lambda: clean)
    monkeypatch.setattr(sys, "argv", ["tune_references", "--results", str(file)])
    with pytest.raises(SystemExit, match="another commit or environment"):
        references.main()


def test_only_the_horizon_is_drawn_as_learning_curves(script, tmp_path, monkeypatch):
    drawn = script("generalization_table")
    row = {"train": [1.0, 2.0], "curves": [[3.0, 2.0], [3.0, 2.0]]}
    table = {("width, digits", 64): {"AdamW": row}, ("horizon", 1000): {"AdamW": row}}
    plotted = []
    from matplotlib.axes import Axes

    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, x, *y, **how: plotted.append([*x]) or plot(self, x, *y, **how)
    )
    drawn.draw(table, ["AdamW"], tmp_path / "figure.png")
    assert plotted == [[64], [0, 1000]]


def test_what_ails_a_subject_of_a_benchmark_is_said(script):
    bench = script("bench_optimizers")
    with pytest.raises(RuntimeError, match=r"exported nosuch: .*nosuch"):
        bench.run("exported nosuch")


def test_rules_of_a_benchmark_are_measured_once(script, monkeypatch, capsys):
    bench = script("bench_optimizers")
    asked = []
    monkeypatch.setattr(bench, "installed", lambda module, python: module == "lion_pytorch")
    monkeypatch.setattr(
        bench, "run", lambda *given: asked.append(given) or {"step": 0.01, "floor": 0.005}
    )
    monkeypatch.setattr(
        sys, "argv", ["bench_optimizers", "lion", "lion", "sgd", "--processes", "1"]
    )
    bench.main()
    names = [name for name, _ in asked]
    assert len({*names}) == len(names)
    assert {"exported lion", "exported sgd", "lion-pytorch Lion"} <= {*names}
    assert "sgd" in capsys.readouterr().out


ANSWERS = """#!{python}
import sys
for tasks in map(int, sys.stdin):
    if tasks > 16: sys.exit(3)
    print(1.0, flush=True)
"""


def test_a_peer_answers_in_turns_or_is_said_to_have_ended(script, tmp_path, monkeypatch):
    pes = script("bench_pes")
    peer = tmp_path / "peer"
    peer.write_text(ANSWERS.format(python=sys.executable))
    peer.chmod(0o755)
    with pes.asked([str(peer)], [str(peer)]) as ask:
        assert ask(8) == 1.0
        with pytest.raises(RuntimeError, match="it ended, see above"):
            ask(32)
    found = {pes.ONE: {n: [0.5, 0.5] for n in pes.TASKS}}
    found[pes.THREADS] = found[pes.PROCESSES] = found[pes.ONE]
    assert len(pes.table(found).rows) == 3
    found |= {name: {n: [1.0, 2.0] for n in pes.TASKS} for name in pes.THEIRS.values()}
    console = Console(record=True, width=150)
    console.print(pes.table(found))
    assert "3.00 (2.00–4.00)" in console.export_text()
