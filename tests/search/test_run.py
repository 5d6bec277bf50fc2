"""A whole run: the same rows whatever the workers, the kills and the interruptions."""

import html
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from l2o.cli.main import main
from search.commands.search import PRESETS, _workers
from search.evolution.settings import Mutation, Settings
from search.fitness.funnel import Calibration
from search.fitness.settings import Funnel, Verdict
from search.fitness.verdict import Trial, judge, standings
from search.language.program import parse, to_text
from search.language.validity import live
from search.record.archive import open_existing
from search.run import stages as run
from search.run.config import BASELINES, Budget, Config
from search.run.history import META_VALIDATION, POINTS, front, leaders, meta_validation, trimmed
from search.run.loop import Search, fates
from search.run.stages import begin, proceed
from search.run.summary import summary
from search.run.timetable import Timetable
from search.run.view import View
from search.zoo import ZOO
from tasks.display.plain import Console
from tasks.executors.inline import Inline
from tasks.runs.files import RunError, RunExists
from tasks.runs.interrupt import Interrupted
from tests.search.editing import rewritten

HERE = Path(__file__).parent
CONFIG = Config(
    start=(str(ZOO["adam_no_correction"].program),),
    seed=3,
    budget=Budget(candidates=400, minutes=30),
    funnel=Funnel(suite="tiny_suites:proxy"),
    evolution=Settings(population=20, tournament=4, batch=8, ahead=3, islands=2, patience=2),
    verdict=Verdict(
        finalists=2,
        trials=4,
        seeds=3,
        held_out="tiny_suites:held_out",
        meta_validation="tiny_suites:meta_validation",
    ),
)
DRIVER = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from tasks.display.plain import Console
from search.record.archive import open_existing
from search.run.stages import proceed
from search.run.view import View
view = View(Console(file=open("/dev/null", "w")))
with open_existing(Path(sys.argv[1])) as archive, view:
    proceed(archive, int(sys.argv[2]), view)
"""


@pytest.fixture(scope="module", autouse=True)
def importable_suites():
    sys.path.insert(0, str(HERE))
    yield
    sys.path.remove(str(HERE))


def quiet():
    return View(Console(file=open(os.devnull, "w", encoding="utf-8")))


def start(folder: Path) -> Path:
    begin(folder, CONFIG).close()
    return folder


def rows(folder: Path) -> list[tuple]:
    """All rows but the environment, whose commit may change while a developer runs the tests."""
    with open_existing(folder, readonly=True) as archive:
        return [row for row in archive.dump() if row[:2] != ("run", "environment")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run that nothing disturbed, in this process."""
    folder = start(tmp_path_factory.mktemp("runs") / "whole")
    with open_existing(folder) as archive, quiet() as view:
        proceed(archive, 0, view)
    return folder


def test_a_run_ends_with_a_verdict(finished):
    with open_existing(finished, readonly=True) as archive:
        facts, finals = archive.run(), archive.finals()
        counts = fates(archive)
        assert sum(counts.values()) >= CONFIG.budget.candidates
        assert counts["evaluated"] > 10
        assert counts["duplicate"] > 10
        assert "pending" not in counts
        assert len(facts["finalists"]) == CONFIG.verdict.finalists
        assert archive.record(facts["winner"]).score is not None
    for stage in ("proxy", "held_out"):
        table = {standing.rule: standing for standing in standings(finals, stage, BASELINES)}
        assert {*BASELINES, str(facts["winner"])} <= table.keys()
        assert table["adamw"].against["adamw"].mean == 0
        assert not table["adamw"].against["adamw"].high < 0
    assert list((finished / "tensorboard").iterdir())


def test_what_led_the_search_is_measured_on_larger_tasks(finished):
    with open_existing(finished, readonly=True) as archive:
        records = leaders(archive)
        followed = meta_validation(archive)
        best = archive.best(1)[0]
    scores = [record.score or 0.0 for record in records]
    assert scores == sorted(scores, reverse=True)
    assert 2 <= len(scores) == len({*scores}) <= POINTS
    assert len({record.batch for record in records}) == len(records)
    assert (records[0].batch, records[-1].score) == (0, best.score)
    assert [record for record, _ in followed] == records
    assert {gap.n for _, gap in followed} == {CONFIG.verdict.seeds}


def test_a_run_that_stops_after_its_last_larger_task_draws_them_when_it_goes_on(
    tmp_path, monkeypatch
):
    stage = run._stage

    def stopped(of, name, *rest, **kept):
        stage(of, name, *rest, **kept)
        if name == META_VALIDATION:
            monkeypatch.setattr(run, "_stage", stage)
            raise Interrupted

    monkeypatch.setattr(run, "_stage", stopped)
    config = replace(CONFIG, budget=Budget(candidates=40, minutes=30))
    with begin(tmp_path / "run", config) as archive, quiet() as view:
        with pytest.raises(Interrupted):
            proceed(archive, 0, view)
        proceed(archive, 0, view)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert events.Scalars("search/meta-validation score")


def test_seeds_that_are_skipped_change_nothing_but_which_are_left():
    rules = (("adamw", str(ZOO["adamw"].program)),)
    first = Trial("held_out", "tiny_suites:held_out", 0, 1.0, "cosine", rules, trials=4, seeds=3)
    rows = judge(first)
    assert judge(first._replace(seeds=2, skip=1)) == rows[1:]
    assert [row.seed for row in rows] == [1001, 1002, 1003]


def test_meta_validation_can_be_left_out(tmp_path):
    config = replace(
        CONFIG,
        budget=Budget(candidates=40, minutes=30),
        verdict=replace(CONFIG.verdict, meta_validation=None),
    )
    with begin(tmp_path / "run", config) as archive, quiet() as view:
        proceed(archive, 0, view)
        assert {row.stage for row in archive.finals()} == {"proxy", "held_out"}
        assert meta_validation(archive) == []


def test_a_suite_may_hold_a_task_again(tmp_path):
    config = replace(
        CONFIG,
        budget=Budget(candidates=20, minutes=30),
        funnel=Funnel(suite="tiny_suites:repeated"),
        verdict=replace(CONFIG.verdict, meta_validation=None),
    )
    with begin(tmp_path / "run", config) as archive, quiet() as view:
        proceed(archive, 0, view)
        tasks = {row[2] for row in archive.dump() if row[0] == "evaluation"}
        assert tasks == {row.task for row in archive.finals() if row.stage == "proxy"}
        assert len(tasks) == 3


def test_proxies_may_have_several_seeds(tmp_path, monkeypatch):
    """Also where a search breaks off and goes on; its report says how many they are."""
    config = replace(
        CONFIG,
        budget=Budget(candidates=60, minutes=30),
        funnel=replace(CONFIG.funnel, seeds=2),
        verdict=replace(CONFIG.verdict, meta_validation=None),
    )

    def breaks(view, progress):
        raise OSError("the terminal is gone")

    with begin(tmp_path / "whole", config) as archive, quiet() as view:
        proceed(archive, 0, view)
    with begin(tmp_path / "broken", config) as archive, quiet() as view:
        with monkeypatch.context() as broken:
            broken.setattr("search.run.view.View.show", breaks)
            with pytest.raises(OSError, match="terminal"):
                proceed(archive, 0, view)
        proceed(archive, 0, view)
    assert rows(tmp_path / "whole") == rows(tmp_path / "broken")
    with open_existing(tmp_path / "whole", readonly=True) as archive:
        seeds = {e.seed for e in archive.evaluations(archive.best(1)[0].id)}
    assert seeds == {config.funnel.seed, config.funnel.seed + 1}
    assert main(["report", str(tmp_path / "whole")]) == 0
    page = (tmp_path / "whole" / "report.html").read_text(encoding="utf-8")
    assert "the search's own seeds (n = 2)" in html.unescape(page)
    assert "the search's own seed (n = 1)" not in html.unescape(page)
    assert "n = 1 seed" not in page


def test_what_diverges_everywhere_is_no_start(tmp_path):
    explodes = "x = exp10(g)\n    x = exp(x)\n    update = x * 1e9"
    start = f"def update(w, g):\n    {explodes}\n    return update"
    config = replace(CONFIG, start=(*CONFIG.start, start))
    with (
        begin(tmp_path / "run", config) as archive,
        quiet() as view,
        pytest.raises(ValueError, match=r"start: program 2 diverges .* at every learning rate"),
    ):
        proceed(archive, 0, view)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_archive_does_not_depend_on_the_number_of_workers(finished, tmp_path, workers):
    folder = start(tmp_path / "run")
    with open_existing(folder) as archive, quiet() as view:
        proceed(archive, workers, view)
    assert rows(folder) == rows(finished)


def drive(folder: Path, workers: int = 0) -> subprocess.Popen:
    path = os.pathsep.join([str(HERE), *sys.path])
    command = [sys.executable, "-c", DRIVER, str(folder), str(workers)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path})


def batches(folder: Path) -> int:
    """How far a run has come, read while it is written."""
    with sqlite3.connect(f"file:{folder / 'archive.sqlite'}?mode=ro", uri=True) as db:
        return db.execute("SELECT coalesce(max(batch), -1) FROM snapshot").fetchone()[0]


def test_kill_9_and_resume_end_with_the_same_rows(finished, tmp_path):
    folder = start(tmp_path / "run")
    rng, kills = random.Random(0), 0
    for _ in range(6):
        if kills == 3:
            break
        process, before = drive(folder), batches(folder)
        while process.poll() is None and batches(folder) <= before:
            time.sleep(0.005)
        # Anywhere: in an evaluation, in a transaction, between. A batch takes some 0.03 s and the
        # run has 15, so that a longer sleep would see the end of it before the third kill.
        time.sleep(rng.random() * 0.05)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 3
    assert drive(folder).wait() == 0
    assert rows(folder) == rows(finished)


def test_curves_are_closed_however_a_search_ends(finished, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr("search.run.view.Curves.close", lambda curves: closed.append(curves))
    with open_existing(finished, readonly=True) as archive:
        calibration = Calibration(**archive.run()["calibration"])
    with open_existing(start(tmp_path / "run")) as archive, quiet() as view:
        jobs = Inline(lambda context: lambda job: None, None)
        search = Search(archive, CONFIG, calibration, jobs, view, 0, lambda: True)
        with pytest.raises(TypeError):
            search.to_the_end()
        assert closed == [search.curves]


def test_the_search_shows_what_the_archive_has(tmp_path, monkeypatch):
    """Programs without dead statements, and the front over all that were evaluated."""
    shown, fronts = [], []
    monkeypatch.setattr("search.run.view.View.show", lambda view, progress: shown.append(progress))
    monkeypatch.setattr("search.run.view.Curves.front", lambda curves, *given: fronts.append(given))
    config = replace(CONFIG, budget=Budget(candidates=150, minutes=30))
    with begin(tmp_path / "run", config) as archive, quiet() as view:
        proceed(archive, 0, view)
        evaluated = [*archive.records("WHERE c.fate = 'evaluated'")]
        assert shown[-1].fates == fates(archive)
    for progress in shown:
        assert progress.best_text == to_text(live(parse(progress.best_text)))
    ((points, short, _),) = fronts
    assert len(points) == len(evaluated)
    assert short == [(r.length, r.score) for r in front(trimmed(evaluated))]
    assert trimmed(evaluated) != evaluated  # some have statements without effect


def test_trials_run_where_the_search_does(finished, monkeypatch):
    jobs: Any = Inline(lambda context: lambda job: None, None)
    monkeypatch.setattr("tasks.runs.environment.check_device", lambda device: None)
    monkeypatch.setattr(jobs, "completed", lambda timeout: iter(()))
    monkeypatch.setattr("search.run.timetable._pace", lambda config: 1e-9)
    config = replace(CONFIG, funnel=replace(CONFIG.funnel, device="cuda"))
    with open_existing(finished, readonly=True) as archive:
        table = Timetable(archive, config, 1)
        of = run.Stages(archive, config, jobs, View(), lambda: True, table)
        with pytest.raises(Interrupted):
            run._stage(of, "again", "tiny_suites:held_out", {})
    trials = [*jobs._jobs.values()]
    assert trials
    assert {trial.device for trial in trials} == {"cuda"}


def test_a_trial_that_fails_is_an_error_of_the_run(finished):
    """And no limit of time makes it fail: how long it takes, only its user knows."""

    def out_of_order(_):
        def run(job):
            raise RuntimeError("no luck")

        return run

    jobs = Inline(out_of_order, None)
    with open_existing(finished, readonly=True) as archive:
        table = Timetable(archive, CONFIG, 1)
        of = run.Stages(archive, CONFIG, jobs, View(), lambda: False, table)
        message = "again: a trial failed, because: RuntimeError: no luck; .* l2o resume"
        with pytest.raises(RunError, match=message):
            run._stage(of, "again", "tiny_suites:held_out", {})


def test_where_nothing_was_evaluated_there_is_no_winner(finished, tmp_path, capsys):
    """And the run is over: it can be watched, shown, reported and repeated."""
    folder = start(tmp_path / "run")
    with open_existing(finished, readonly=True) as archive:
        calibration = archive.run()["calibration"]
    with open_existing(folder) as archive, quiet() as view:
        with archive.transaction():
            archive.set_run("calibration", calibration)
            archive.set_run("finalists", [])
        proceed(archive, 0, view)
        assert archive.run()["winner"] is None
        assert archive.finals() == []
        content = summary(archive)
        assert content["finished"]
    assert main(["watch", str(folder)]) == main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("finished 100 %")
    assert main(["show", str(folder)]) == 0
    assert capsys.readouterr().out == "nothing was evaluated in full\n"
    assert main(["export", str(folder), "--out", str(tmp_path / "rule.py")]) == 2


def test_a_finished_run_is_left_alone(finished, monkeypatch):
    before = rows(finished)
    monkeypatch.delattr("search.run.stages.executor")  # no worker is started
    with open_existing(finished) as archive, quiet() as view:
        proceed(archive, 2, view)
    assert rows(finished) == before
    with pytest.raises(RunExists, match="never overwritten"):
        begin(finished, CONFIG)


def test_ctrl_c_finishes_the_batch_and_says_so(finished, tmp_path):
    folder = start(tmp_path / "run")
    process = drive(folder)
    while batches(folder) < 2:
        time.sleep(0.005)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(30) != 0
    assert "finalists" not in dict(row[1:] for row in rows(folder) if row[0] == "run")
    assert drive(folder).wait() == 0
    assert rows(folder) == rows(finished)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: Budget(candidates=-1), "candidates: got -1"),
        (lambda: Budget(minutes=0), "minutes: got 0"),
        (lambda: Budget(minutes=math.inf), "minutes: got inf"),
        (lambda: Config(start=()), "start: got none"),
        (lambda: replace(CONFIG, seed=-1), "seed: got -1"),
        (lambda: Funnel(rungs=(0.5,)), "rungs"),
        (lambda: Funnel(factors=()), "factors"),
        (lambda: Funnel(factors=(1.0, 3.0, 1.0)), "factors"),
        (lambda: Funnel(factors=(1.0, math.inf)), "factors"),
        (lambda: Funnel(length=math.inf), "length: got inf"),
        (lambda: Funnel(schedule="steep"), "schedule: got 'steep'"),
        (lambda: Funnel(seeds=0), "seeds: got 0"),
        (lambda: Funnel(seed=-1), "seed: got -1 and 1 seeds, expected at least 0"),
        (lambda: Funnel(seed=1000, seeds=2), "seed: got 1000 and 2 seeds, .* below 1001"),
        (lambda: Funnel(seed=10**20), "seed: got 100000000000000000000"),
        (
            lambda: Settings(mutation=Mutation(delete=0, modify=0)),
            "mutation: got insert 1, delete 0, .* max_length = 40 statements, .* no children",
        ),
        (
            lambda: Settings(mutation=Mutation(insert=0, modify=0)),
            "mutation: got insert 0, delete 1, .* or the shortest have no children",
        ),
        (lambda: Settings(population=10**20), "population: got 1000.*, expected 1 to 10,000,000"),
        (lambda: Funnel(rungs=(math.nan, 1.0)), "rungs: got .*, expected"),
        (lambda: Settings(batch=0), "batch: got 0"),
        (lambda: Settings(slack=math.inf), "slack: got inf"),
        (lambda: Verdict(seeds=0), "seeds: got 0"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        change()


@pytest.mark.parametrize("field", ["held_out", "meta_validation"])
def test_tasks_of_a_verdict_are_tried_before_the_search(tmp_path, field):
    """A loss below 0 would be noticed when the search is over."""
    verdict = replace(CONFIG.verdict, **{field: "tiny_suites:below_zero"})
    with pytest.raises(ValueError, match=rf"verdict\.{field}.*: got a loss of -9.*none below 0"):
        begin(tmp_path / "run", replace(CONFIG, verdict=verdict))
    assert not (tmp_path / "run").exists()


def test_a_search_whose_every_batch_fails_is_stopped(finished, tmp_path):
    """And what failed last is still to be done."""

    def out_of_order(_):
        def run(job):
            raise RuntimeError("no luck")

        return run

    with open_existing(finished, readonly=True) as archive:
        calibration = Calibration(**archive.run()["calibration"])
    with open_existing(start(tmp_path / "run")) as archive, quiet() as view:
        jobs = Inline(out_of_order, None)
        search = Search(archive, CONFIG, calibration, jobs, view, 0, lambda: False)
        with pytest.raises(RunError, match=r"3 batches in a row failed, .* RuntimeError: no luck;"):
            search.to_the_end()
        assert min(archive.pending()) == 2


def test_a_run_of_other_signatures_is_not_resumed(finished, tmp_path):
    """What it knows would not be recognised; it can be looked at."""
    shutil.copytree(finished, tmp_path / "run")
    with rewritten(tmp_path / "run") as db:
        db.execute("UPDATE program SET signature = 'of another version' WHERE id = 1")
        db.execute("DELETE FROM run WHERE key IN ('winner', 'finalists')")
    with open_existing(tmp_path / "run") as archive, quiet() as view:
        assert archive.record(0).signature == "of another version"
        with pytest.raises(RunError, match="begun by a version that tells programs apart in an"):
            proceed(archive, 0, view)


def test_batches_of_long_runs_may_take_longer(finished, tmp_path):
    with open_existing(finished, readonly=True) as archive:
        calibration = Calibration(**archive.run()["calibration"])
    found = []
    for length in (1.0, 1e5):
        config = replace(CONFIG, funnel=replace(CONFIG.funnel, length=length))
        with begin(tmp_path / f"{length:g}", config) as archive, quiet() as view:
            jobs = Inline(lambda _: lambda _: None, None)
            found.append(Search(archive, config, calibration, jobs, view, 0, lambda: False).limit)
    assert found[0] == 600 < found[1]


def test_what_is_said_is_no_markup(capsys):
    with View(Console(width=20)) as view:
        view.say("batch 3 failed: OSError: [/dev/shm/x] is [full]")
    assert capsys.readouterr().out == "batch 3 failed: OSError: [/dev/shm/x] is [full]\n"


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_runs(preset, tmp_path):
    small = {
        "run-dir": tmp_path / "run",
        "workers": 0,
        "device": "cpu",
        "budget.candidates": 40,
        "evolution.batch": 8,
        "funnel.length": 1.0,
        "funnel.suite": "tiny_suites:proxy",
        "verdict.held_out": "tiny_suites:held_out",
        "verdict.meta_validation": "null",
        "verdict.finalists": 1,
        "verdict.trials": 2,
        "verdict.seeds": 2,
    }
    options = [f"--{name}={value}" for name, value in small.items()]
    assert main(["search", "--preset", preset, *options]) == 0
    with open_existing(tmp_path / "run", readonly=True) as archive:
        facts = archive.run()
    chosen, found = PRESETS[preset], facts["config"]
    assert found["evolution"]["population"] == chosen["evolution.population"]
    assert found["budget"]["minutes"] == chosen["budget.minutes"]
    assert "winner" in facts


@pytest.mark.parametrize(
    ("given", "device", "ahead", "count"),
    [
        (None, "cuda:1", 4, 2),
        (5, "cuda", 4, 5),
        (0, "cpu", 4, 0),
        (None, "cpu", 4, 4),
        (None, "cpu", 64, 16),
        (None, "cuda", 1, 1),
        (8, "cpu", 4, 8),
    ],
)
def test_workers_that_can_be_busy(monkeypatch, given, device, ahead, count):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert _workers(given, device, ahead) == count


DEAF = "def update(w, g):\n    update = 2.0 * w\n    return update"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": ("no program",)}, "start: .* not Python"),
        ({"start": (DEAF,)}, "start: update does not depend on the gradient"),
        ({"funnel": Funnel(suite="nowhere")}, "suite: got 'nowhere'"),
        (
            {
                "start": (to_text(ZOO["sign_sgd"].program),),
                "evolution": Settings(mutation=Mutation(constants_only=True)),
            },
            "start: got a program that cannot change: .* with changes of constants alone",
        ),
        (
            {"verdict": Verdict(held_out="tiny_suites:proxy", meta_validation=None)},
            "held_out: got 'tiny_suites:proxy', which holds logistic-digits, a task of",
        ),
        ({"verdict": Verdict(meta_validation="tiny_suites:proxy")}, "meta_validation: got 'tiny_s"),
        (
            {
                "evolution": Settings(
                    strategy="random_search", mutation=Mutation(functions=("get_pi",))
                )
            },
            "no valid program in 1000 attempts",
        ),
        (
            {"funnel": Funnel(suite="tiny_suites:proxy", length=0.05)},
            r"rungs: .* 0\.05, at which .* has 1 steps, measured at 1, 1; expected different",
        ),
    ],
)
def test_a_bad_run_makes_no_directory(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        begin(tmp_path / "run", replace(CONFIG, **change))
    assert not (tmp_path / "run").exists()


def test_what_is_refused_before_anything_was_tried_leaves_no_run(tmp_path, monkeypatch, capsys):
    """The same command is given again once the suite is mended."""
    monkeypatch.chdir(HERE)
    monkeypatch.syspath_prepend(str(HERE))
    asked = ["search", "--run-dir", str(tmp_path / "run"), "--workers", "0"]
    for suite, status in (("tiny_suites:never_finite", 2), ("tiny_suites:proxy", 0)):
        small = ["--budget.candidates", "20", "--verdict.trials", "2", "--verdict.seeds", "1"]
        small += ["--verdict.held_out", "tiny_suites:held_out", "--verdict.meta_validation", "null"]
        assert main([*asked, "--funnel.suite", suite, *small]) == status
    assert "diverges" in capsys.readouterr().err


def test_folders_of_the_user_may_have_the_names_of_ours(tmp_path):
    for name in ("search", "tasks"):
        (tmp_path / name).mkdir()
        for file in ("__init__", "commands", "serve", "suites"):
            (tmp_path / name / f"{file}.py").write_text("raise RuntimeError('not ours')")
    asked = ["search", "--run-dir", "run", "--workers", "1", "--funnel.length", "0.02"]
    asked += ["--budget.candidates", "20", "--verdict.trials", "2", "--verdict.seeds", "1"]
    asked += ["--verdict.held_out", "characters", "--verdict.meta_validation", "null"]
    asked += ["--evolution.batch", "4", "--verdict.finalists", "1"]
    code = (
        f"import sys; sys.path.insert(0, {str(HERE.parents[1])!r}); from l2o.cli.main import main; "
    )
    code += f"sys.path.pop(0); sys.exit(main({[*asked]!r}))"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
