"""Reports of a search, watching it, and running it again."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from l2o.cli.main import main
from search.evolution.settings import Settings
from search.fitness.settings import Funnel, Verdict
from search.record.archive import open_existing
from search.run import stages
from search.run.config import Budget, Config
from search.run.history import DECIDED, front, history
from search.run.loop import fates
from search.run.report import page
from search.run.reproduce import _said, compare
from search.run.stages import DRAWN
from search.run.view import View
from search.run.watch import progress
from search.zoo import ZOO
from tasks.display.plots import Figure
from tests.search.editing import damaged, rewritten

HERE = Path(__file__).parent
CONFIG = Config(
    start=(str(ZOO["adam_no_correction"].program),),
    seed=1,
    budget=Budget(candidates=200, minutes=30),
    funnel=Funnel(suite="tiny_suites:proxy"),
    evolution=Settings(population=16, tournament=4, batch=8, ahead=2),
    verdict=Verdict(
        finalists=2,
        trials=3,
        seeds=2,
        held_out="tiny_suites:held_out",
        meta_validation="tiny_suites:meta_validation",
    ),
)


@pytest.fixture(scope="module", autouse=True)
def importable_suites():
    sys.path.insert(0, str(HERE))
    yield
    sys.path.remove(str(HERE))


def make(folder: Path, config: Config) -> Path:
    with stages.begin(folder, config) as archive, View() as view:
        stages.proceed(archive, 0, view)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("runs") / "whole", CONFIG)


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def cut(folder: Path, after: int) -> Path:
    """The run as it was when batch ``after`` had come back and the next was out."""
    with rewritten(folder) as db:
        db.execute("DELETE FROM run WHERE key IN ('winner', 'finalists')")
        db.execute("DELETE FROM final")
        for table in ("timing", "snapshot"):
            db.execute(f"DELETE FROM {table} WHERE batch > ?", (after,))
        later = "(SELECT id FROM candidate WHERE batch > ?)"
        db.execute(f"DELETE FROM evaluation WHERE candidate IN {later}", (after,))
        db.execute("DELETE FROM candidate WHERE batch > ?", (after + 1,))
        db.execute("DELETE FROM batch WHERE batch > ?", (after + 1,))
        db.execute(
            "UPDATE candidate SET fate = 'pending', score = NULL, original = NULL "
            "WHERE batch > ? AND fate != 'invalid'",
            (after,),
        )
    return folder


def empty(folder: Path) -> Path:
    """The run before its baselines were tuned."""
    with rewritten(cut(folder, -1)) as db:
        for table in ("candidate", "batch", "program"):
            db.execute(f"DELETE FROM {table}")
        db.execute("DELETE FROM run WHERE key = 'calibration'")
    return folder


STATES = {
    "finished": (
        lambda folder: folder,
        "On the held-out tasks of tiny_suites:held_out its loss is",
    ),
    "going on": (lambda folder: cut(folder, 3), "Not judged yet: candidate"),
    "empty": (empty, "Nothing has been evaluated yet."),
}


@pytest.mark.parametrize("state", STATES)
def test_a_run_can_be_reported_and_watched_at_any_time(copied, capsys, state):
    prepare, lead = STATES[state]
    folder = prepare(copied)
    before = (folder / "archive.sqlite").read_bytes()
    assert main(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text()
    assert lead in text
    assert text.count("<figure>") == len(list((folder / "report-figures").glob("*.png")))
    assert text.count("<figure>") == {"finished": 6, "going on": 5, "empty": 0}[state]
    capsys.readouterr()
    assert main(["watch", str(folder), "--once"]) == 0
    assert {"finished": "finished", "going on": "search", "empty": "tuning the baselines"}[
        state
    ] in capsys.readouterr().out
    assert (folder / "archive.sqlite").read_bytes() == before


def test_one_seed_has_no_interval(copied):
    with rewritten(copied) as db:
        db.execute("DELETE FROM final WHERE seed > 1001")
    with open_existing(copied, readonly=True) as archive:
        shown = page(archive, "")
    assert "tuned AdamW's (n = 1 fresh seed)." in shown.lead
    parts = [part for section in shown.sections for part in section.parts]
    figures = [part for part in parts if isinstance(part, Figure)]
    (figure,) = (figure for figure in figures if figure.name == "meta-validation")
    spans = [line.get_xdata() for line in figure.drawing.axes[0].lines]
    assert not any(len(x) == 2 and x[0] == x[1] for x in spans), "a whisker"


def test_watch_ends_with_the_run(finished, capsys):
    assert main(["watch", str(finished)]) == 0
    assert capsys.readouterr().out.startswith("finished 100 %")
    assert main(["watch", str(finished), "--every", "0"]) == 2


def test_progress_is_what_the_archive_says(finished):
    with open_existing(finished, readonly=True) as archive:
        seen, best = progress(archive), archive.best(1)[0]
        assert seen.best_score == best.score
        assert seen.tried == sum(fates(archive).values())
        assert seen.done == 1
        assert set(seen.baselines) == {"adamw", "lion", "momentum"}


def test_history_adds_up(finished):
    with open_existing(finished, readonly=True) as archive:
        past, counts = history(archive), fates(archive)
        assert dict(zip(DECIDED, past.fates.sum(0).tolist(), strict=True)) == {
            fate: counts.get(fate, 0) for fate in DECIDED
        }
        assert past.tried[-1] == sum(counts.values())
        assert past.seconds[-1] == pytest.approx(archive.timings()[0])
        assert past.best_so_far[-1] == archive.best(1)[0].score
        assert (np.diff(past.best_so_far) <= 0).all()


def test_nothing_short_beats_the_front(finished):
    with open_existing(finished, readonly=True) as archive:
        evaluated = list(archive.records("WHERE c.fate = 'evaluated'"))
    best = front(evaluated)
    assert 1 <= len(best) <= len(evaluated)
    for record in evaluated:
        shorter = [r.score or 0.0 for r in best if (r.length or 0) <= (record.length or 0)]
        assert min(shorter) <= (record.score or 0.0)


def test_a_run_is_reproduced(finished, capsys):
    assert main(["reproduce", str(finished), "--workers", "0", "--trust"]) == 0
    assert "identical: " in capsys.readouterr().out


def test_a_run_of_an_older_version_is_reproduced(copied, capsys):
    """It says nothing of settings that there were not, nor since when an island has lived, nor
    whether something is in TensorBoard."""
    with rewritten(copied) as db:
        assert db.execute("DELETE FROM run WHERE key = ?", (DRAWN,)).rowcount == 1
        (text,) = db.execute("SELECT value FROM run WHERE key = 'config'").fetchone()
        config = json.loads(text)
        del config["funnel"]["seeds"], config["evolution"]["gain"]
        db.execute("UPDATE run SET value = ? WHERE key = 'config'", (json.dumps(config),))
        for batch, text in db.execute("SELECT batch, counters FROM snapshot").fetchall():
            counters = json.loads(text)
            for island in counters["islands"]:
                del island["since"]
            values = json.dumps(counters), batch
            db.execute("UPDATE snapshot SET counters = ? WHERE batch = ?", values)
    assert main(["reproduce", str(copied), "--workers", "0", "--trust"]) == 0
    assert "identical: " in capsys.readouterr().out


def test_of_a_long_row_the_difference_is_shown():
    long = [("run", "calibration", "x" * 1000 + end + "y" * 1000) for end in "ab"]
    then, now = _said(*long), _said(*long[::-1])
    assert then != now
    assert "a" in then.removeprefix("run")
    assert len(then) < 320
    assert _said(None, long[0]) == "no more rows"


def test_a_winner_that_diverges_is_no_discovery(copied):
    with rewritten(copied) as db:
        db.execute(
            "UPDATE final SET status = 'diverged', loss = NULL WHERE stage = 'held_out' AND rule ="
            "(SELECT value FROM run WHERE key = 'winner') AND seed = 1001"
        )
    assert main(["report", str(copied)]) == 0
    text = (copied / "report.html").read_text()
    assert "on the held-out tasks of tiny_suites:held_out a run of it or of AdamW diverged" in text


def test_a_difference_is_found_where_it_is(copied, finished):
    with rewritten(copied) as db:
        ((key,),) = db.execute("SELECT max(id) FROM program").fetchall()
        db.execute("UPDATE program SET length = length + 1 WHERE id = ?", (key,))
    with (
        open_existing(finished, readonly=True) as old,
        open_existing(copied, readonly=True) as new,
    ):
        count, difference = compare(old, new)
        assert difference is not None
        assert difference.number == count + 1
        assert difference.before is not None
        assert difference.before[:2] == ("program", key)
        assert compare(old, old)[1] is None


def test_a_budget_in_minutes_can_be_reproduced(tmp_path, capsys):
    """The clock stops the first run; the second gets as many candidates."""
    config = replace(CONFIG, budget=Budget(candidates=100_000, minutes=0.01))
    folder = make(tmp_path / "run", config)
    assert main(["reproduce", str(folder), "--workers", "0", "--trust"]) == 0
    said = capsys.readouterr().out
    assert "identical: " in said


@pytest.mark.parametrize("prepare", [lambda folder: cut(folder, 3), empty])
def test_what_is_not_finished_cannot_be_reproduced(copied, capsys, prepare):
    assert main(["reproduce", str(prepare(copied))]) == 2
    assert "not finished; go on with: l2o resume" in capsys.readouterr().err


def test_the_environment_is_kept_and_compared(copied, capsys):
    with rewritten(copied) as db:
        (text,) = db.execute("SELECT value FROM run WHERE key = 'environment'").fetchone()
        then = json.dumps(json.loads(text) | {"torch": "0.4"})
        db.execute("UPDATE run SET value = ? WHERE key = 'environment'", (then,))
    assert main(["reproduce", str(copied), "--workers", "0", "--trust"]) == 0
    assert "torch was 0.4 then" in capsys.readouterr().out


def test_what_is_sound_of_a_damaged_run_can_be_looked_at(copied, tmp_path, capsys):
    with damaged(copied) as db:
        db.execute("UPDATE candidate SET score = -9 WHERE id = 2")
    for command in ("show", "report", "watch", "resume"):
        assert main([command, str(copied)]) == 2
        error = capsys.readouterr().err
        assert "damaged (not what was written: candidate" in error, error[-300:]
    saved = tmp_path / "saved"
    assert main(["show", str(copied), "--salvage", str(saved)]) == 0
    out, error = capsys.readouterr()
    assert "all but " in error, error
    assert "best" in out.lower()
    assert main(["report", str(saved)]) == 0
    assert main(["watch", str(saved), "--once"]) == 0
    assert main(["resume", str(saved), "--trust"]) == 2
    assert "can be looked at, not gone on with" in capsys.readouterr().err
