"""Results files that are damaged, old, or gone while they are written to."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tasks.evaluation.results import PARTS, Results, ResultsError, Run, Study

STUDY = Study("rule", "task", 10, "cosine")
RUN = Run(1, 0.1, 0.0, "ok", 0.5, 0.6, ((0, 1.0), (10, 0.5)), 1e-5)
CHANGES = {  # statement, what is named
    "a loss": ("UPDATE run SET loss = loss / 2 WHERE seed = 1", "run rule task 10 cosine"),
    "seconds": ("UPDATE run SET seconds = 1 WHERE seed = 2", "run rule task 10 cosine"),
    "a curve": ("UPDATE run SET curve = '[' WHERE seed = 2", "run rule task 10 cosine"),
    "a rule's name": ("UPDATE run SET rule = 'other' WHERE seed = 2", "run other task 10 cosine"),
    "no run": ("DELETE FROM run WHERE seed = 2", "run rule task 10 cosine"),
    "no runs": ("DELETE FROM run", "run rule task 10 cosine"),
    "a fact": ("UPDATE fact SET value = '{}'", "fact plan"),
    "a card": ("UPDATE task SET card = 'null'", "task digits"),
    "a source": ("UPDATE rule SET source = x'00'", "rule lion"),
    "an identity": ("UPDATE rule SET identity = ''", "rule lion"),
    "a digest": ("UPDATE seal SET digest = 1 WHERE part = 'rule'", "rule lion"),
    "no digests": ("DROP TABLE seal", "no such table: seal"),
    "no table": ("DROP TABLE task", "no such table: task"),
    "another version": ("UPDATE run SET loss = 0; PRAGMA user_version = 1", "run rule task"),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with Results(tmp_path / "r.sqlite") as results:
        results.set_fact("plan", {"seeds": 2})
        results.set_rule("lion", "rule", "def update ...")
        results.set_task("digits", "task", {"steps": 10})
        results.add(STUDY, [RUN, RUN._replace(seed=2)])
    return tmp_path / "r.sqlite"


def changed(file: Path, statement: str) -> None:
    with closing(sqlite3.connect(file)) as db:
        db.executescript(statement)


def older(file: Path) -> None:
    """As version 1 would have kept it, without digests."""
    changed(file, "DROP TABLE seal; PRAGMA user_version = 1")


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_what_was_written_is_named(file: Path, change: str) -> None:
    statement, named = CHANGES[change]
    changed(file, statement)
    for readonly in (True, False):
        with pytest.raises(ResultsError, match=f"damaged .*{named}") as caught:
            Results(file, readonly)
        assert "\n" not in str(caught.value)


def test_every_table_has_digests(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db:
        names = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    assert {name for name in names if not name.startswith("sqlite_")} == {*PARTS, "seal"}


def test_an_older_file_is_read_and_gets_digests_when_it_is_written_to(file: Path) -> None:
    older(file)
    before = file.read_bytes()
    with Results(file, readonly=True) as results:
        assert results.count() == 2
    assert file.read_bytes() == before
    with Results(file) as results:
        results.add(STUDY, [RUN._replace(seed=3)])
    with Results(file, readonly=True) as results:
        assert [run.seed for run in results.runs(STUDY).values()] == [1, 2, 3]
    changed(file, "UPDATE run SET loss = 0")
    with pytest.raises(ResultsError, match="not what was written"):
        Results(file)


def test_what_an_older_file_leads_to_is_said_of_it(file: Path) -> None:
    older(file)
    changed(file, "UPDATE fact SET value = '[]'")
    with pytest.raises(ResultsError, match=r"damaged \(TypeError"), Results(file, True) as results:
        results.facts()["plan"]["seeds"]
    with pytest.raises(KeyError), Results(file.with_name("new.sqlite")) as results:  # ours
        results.facts()["plan"]


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_file_that_vanishes_is_not_written_to(file: Path, how: str) -> None:
    with Results(file) as results:
        file.unlink() if how == "deleted" else file.rename(file.with_name("elsewhere"))
        with pytest.raises(ResultsError, match=r"gone .*: deleted or moved while"):
            results.set_fact("plan", {})
