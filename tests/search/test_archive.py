"""The archive under the treatment a run can get: killed, crowded out, damaged, looked at."""

import itertools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from search.record.archive import Archive, create, open_existing
from search.record.salvage import salvage
from search.record.schema import FATES, PARTS, Evaluation, Final, Snapshot
from search.run.history import history
from tasks.runs.database import ArchiveCorrupt, ArchiveError, ArchiveNewer, NotARun
from tasks.runs.files import DiskFull, NotWritable, RunBusy, RunExists, save_text
from tasks.runs.seals import digest as digest_of
from tests.search.editing import damaged, older

CONFIG = {"seed": 7, "preset": {"steps": [100, 400]}, "device": "cpu"}
BATCH = 5  # candidates a batch: one of each interesting fate, see integrate


def integrate(archive: Archive, number: int) -> None:
    """Batch ``number`` comes back and the next one goes out, in one transaction."""
    with archive.transaction(milestone=number % 4 == 0):
        if number == 0:
            hand_out(archive, 0)
        first = BATCH * number
        archive.decide(first, "evaluated", 1e-3, 1.0 / (number + 1), [0.5, 0.25])
        archive.decide(first + 1, "diverged", 1e-2, None, [0.5])
        archive.decide(first + 2, "stopped", 1e-2, None, [0.75])
        archive.add_evaluations(
            Evaluation(first + k, "digits", 0, steps, 1e-3, "ok", 1 / (steps + k))
            for k, steps in itertools.product((0, 2), (100, 400))
        )
        archive.add_evaluations([Evaluation(first + 1, "digits", 0, 100, 1e-2, "diverged", None)])
        hand_out(archive, number + 1)
        archive.set_snapshot(number, [[first, first + 3]], {"told": number + 1})
        archive.add_timing(number, wall=time.perf_counter(), busy=0.5)


def hand_out(archive: Archive, number: int) -> None:
    """Three pending candidates, a duplicate and an invalid one."""
    archive.add_batch(number, {"hurdles": [0.1 * number, 0.0]})
    first = BATCH * number
    parent = first - BATCH if number else None
    for k in range(3):
        text = f"update = g * {number}.{k}"
        program = archive.add_program(text, text, f"{number:04x}{k}", length=1 + k)
        archive.add_candidate(first + k, number, parent, program, "insert", lr=1e-2)
    program = archive.add_program(f"update = g * {number}.0", "", "", 1)  # known by its text
    archive.add_candidate(first + 3, number, parent, program, "delete", "duplicate", original=first)
    archive.add_candidate(first + 4, number, parent, None, "modify", "invalid")


def continue_to(archive: Archive, batches: int) -> Iterator[int]:
    """Integrate what is missing, yielding each number when it is committed."""
    snapshot = archive.snapshot()
    for number in range(snapshot.batch + 1 if snapshot else 0, batches):
        integrate(archive, number)
        yield number


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three batches, closed, with a fourth one pending."""
    with create(tmp_path / "run", CONFIG) as archive:
        list(continue_to(archive, 3))
    return tmp_path / "run"


# -- contents ------------------------------------------------------------------------------------


def test_what_is_written_is_what_is_read(run: Path) -> None:
    with open_existing(run, readonly=True) as archive:
        assert archive.run() == CONFIG
        assert {batch: [r.id for r in rows] for batch, rows in archive.pending().items()} == {
            3: [15, 16, 17]
        }
        assert archive.job(2) == {"hurdles": [0.2, 0.0]}
        assert archive.snapshot() == Snapshot(2, [[10, 13]], {"told": 3})
        best = archive.record(10)
        assert (best.fate, best.lr, best.score, best.ladder) == (
            "evaluated",
            1e-3,
            1 / 3,
            (0.5, 0.25),
        )
        assert (best.text, best.signature, best.length) == ("update = g * 2.0", "00020", 1)
        assert archive.record(13).text == best.text
        assert (archive.record(13).original, archive.record(14).text) == (10, None)
        assert [e.status for e in archive.evaluations(11)] == ["diverged"]
        assert archive.timings()[1] == 1.5


def test_what_show_and_report_ask(run: Path) -> None:
    with open_existing(run, readonly=True) as archive:
        assert [r.id for r in archive.best(2)] == [10, 5]
        assert [r.id for r in archive.lineage(14)] == [0, 5, 14]
        expected = {"pending": 3, "invalid": 4, "duplicate": 4, "evaluated": 3}
        assert archive.counts() == dict.fromkeys(FATES, 0) | expected | {
            "stopped": 3,
            "diverged": 3,
        }
        with pytest.raises(ArchiveError, match="no candidate 99; expected 0 to 19"):
            archive.record(99)


def test_a_final_measured_again_replaces_the_first(run: Path) -> None:
    row = Final("held_out", "adamw", "kjv", 3, 400, 1e-3, "failed", None)
    with open_existing(run) as archive:
        for version in (row, row._replace(status="ok", loss=0.5)):
            with archive.transaction():
                archive.add_finals([version])
        assert archive.finals() == [row._replace(status="ok", loss=0.5)]


def test_old_snapshots_go(tmp_path: Path) -> None:
    with create(tmp_path / "run", CONFIG) as archive:
        list(continue_to(archive, 20))
        assert [row[1] for row in archive.dump() if row[0] == "snapshot"] == list(range(12, 20))


def test_dump_ignores_time_and_nothing_else(run: Path, tmp_path: Path) -> None:
    with create(tmp_path / "again", CONFIG) as again, open_existing(run) as archive:
        list(continue_to(again, 3))
        assert list(archive.dump()) == list(again.dump())
        for change in (
            lambda: archive.set_run("seed", 8),
            lambda: archive.decide(15, "failed", None, None, []),
            lambda: archive.add_program("update = m", "update = m", "ff", 1),
            lambda: archive.add_finals([Final("fresh", "10", "t", 0, 1, 0.1, "ok", 1.0)]),
        ):
            before = list(archive.dump())
            with archive.transaction():
                change()
            assert list(archive.dump()) != before


NAN, INF = float("nan"), float("inf")
REFUSED: dict[str, Callable[[Archive], Any]] = {
    "nan loss": lambda a: a.add_evaluations([Evaluation(0, "t", 0, 1, 0.1, "ok", NAN)]),
    "infinite loss": lambda a: a.add_evaluations([Evaluation(0, "t", 0, 1, 0.1, "ok", INF)]),
    "loss of a failure": lambda a: a.add_evaluations([Evaluation(0, "t", 0, 1, 0.1, "failed", 1)]),
    "unknown status": lambda a: a.add_evaluations([Evaluation(0, "t", 0, 1, 0.1, "slow", None)]),
    "no such candidate": lambda a: a.add_evaluations([Evaluation(99, "t", 0, 1, 0.1, "ok", 1.0)]),
    "nan score": lambda a: a.decide(15, "evaluated", 0.1, NAN, []),
    "infinite score": lambda a: a.decide(15, "evaluated", 0.1, -INF, []),
    "evaluated, no score": lambda a: a.decide(15, "evaluated", 0.1, None, []),
    "unknown fate": lambda a: a.decide(15, "lost", 0.1, None, []),
    "duplicate of nothing": lambda a: a.decide(15, "duplicate", 0.1, None, []),
    "nan on the ladder": lambda a: a.decide(15, "stopped", 0.1, None, [NAN]),
    "undecidable": lambda a: a.decide(99, "stopped", 0.1, None, []),
    "same id twice": lambda a: a.add_candidate(0, 0, None, None, "", "invalid"),
}


def spoil(archive: Archive, deed: Callable[[Archive], Any]) -> None:
    with archive.transaction():
        archive.set_run("seed", 8)
        deed(archive)


def interrupt(_: Archive) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("mistake", REFUSED)
def test_mistakes_are_refused_and_undo_their_transaction(run: Path, mistake: str) -> None:
    with open_existing(run) as archive:
        before = list(archive.dump())
        with pytest.raises((sqlite3.IntegrityError, ValueError, KeyError)):
            spoil(archive, REFUSED[mistake])
        assert list(archive.dump()) == before
        list(continue_to(archive, 4))  # and it still works


def test_writing_needs_a_transaction(run: Path) -> None:
    with open_existing(run) as archive, pytest.raises(RuntimeError, match="outside"):
        archive.set_run("seed", 8)


def test_an_interrupt_undoes_the_transaction(run: Path) -> None:
    with open_existing(run) as archive:
        with pytest.raises(KeyboardInterrupt):
            spoil(archive, interrupt)
        assert archive.run() == CONFIG


# -- directories and locks -----------------------------------------------------------------------


def test_a_run_is_never_overwritten(run: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(RunExists, match=f"another --run-dir, .* `l2o resume {run}`"):
        create(run, {"seed": 8})
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_nor_is_anything_else(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "run")
    with pytest.raises(RunExists):
        create(tmp_path / "run", CONFIG)


def test_of_many_creators_one_wins(tmp_path: Path) -> None:
    def attempt(seed: int) -> int | None:
        try:
            create(tmp_path / "run", {"seed": seed})
        except (RunExists, RunBusy):
            return None
        return seed

    with ThreadPoolExecutor(8) as threads:
        winners = [seed for seed in threads.map(attempt, range(8)) if seed is not None]
    assert len(winners) == 1
    with open_existing(tmp_path / "run", readonly=True) as archive:
        assert archive.run() == {"seed": winners[0]}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_config_that_cannot_be_stored_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        create(tmp_path / "run", {"lr": NAN})
    assert list(tmp_path.iterdir()) == []


def test_one_writer_at_a_time(run: Path) -> None:
    with open_existing(run):
        for _ in range(2):
            with pytest.raises(RunBusy, match=f"process {os.getpid()} is writing"):
                open_existing(run)
    open_existing(run).close()


def test_readers_see_whole_transactions_while_a_writer_writes(run: Path) -> None:
    with open_existing(run) as writer, open_existing(run, readonly=True) as reader:
        with writer.transaction():
            writer.set_run("seed", 8)
            writer.set_run("device", "cuda")
            assert reader.run() == CONFIG
        assert reader.run() == CONFIG | {"seed": 8, "device": "cuda"}
        with pytest.raises(NotWritable), reader.transaction():
            reader.set_run("seed", 9)


def not_a_run(path: Path) -> None:
    path.mkdir()


def empty_file(path: Path) -> None:
    path.mkdir()
    (path / "archive.sqlite").touch()


def other_database(path: Path) -> None:
    path.mkdir()
    with sqlite3.connect(path / "archive.sqlite") as db:
        db.execute("CREATE TABLE run (key, value)")
    db.close()


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("make", [lambda path: None, not_a_run, empty_file, other_database])
def test_what_is_not_a_run(make: Callable[[Path], None], readonly: bool, tmp_path: Path) -> None:
    make(tmp_path / "run")
    with pytest.raises(NotARun, match=str(tmp_path / "run")):
        open_existing(tmp_path / "run", readonly)


def test_a_newer_schema(run: Path) -> None:
    with sqlite3.connect(run / "archive.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ArchiveNewer, match="version 99, this program knows 2"):
        open_existing(run)


# -- damage --------------------------------------------------------------------------------------


def overwrite(start: int, length: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:start] + b"\xa5" * length + data[start + length :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "header": overwrite(0, 16),
    "schema page": overwrite(100, 200),
    "a page of a table": overwrite(2 * 4096, 512),
    "cut short": lambda data: data[: 5 * 4096 + 100],
    "something else": lambda data: b"not a database\n" * 1000,
}


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_archive_is_named_and_left_alone(run: Path, damage: str, readonly: bool) -> None:
    file = run / "archive.sqlite"
    damaged = DAMAGE[damage](file.read_bytes())
    file.write_bytes(damaged)
    with pytest.raises(ArchiveCorrupt) as caught:
        open_existing(run, readonly)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == damaged


def test_damage_met_later_is_named_too(run: Path) -> None:
    with open_existing(run, readonly=True) as archive:
        file = run / "archive.sqlite"
        file.write_bytes(DAMAGE["something else"](b""))
        with pytest.raises(ArchiveCorrupt, match=str(file)):
            list(archive.dump())


@pytest.mark.parametrize(
    ("statement", "read", "message"),
    [
        ("DROP TABLE timing", Archive.timings, "no such table: timing"),
        ("INSERT INTO run VALUES ('x', '{\"half\": ')", Archive.run, "table run: Expecting value"),
        (
            "UPDATE program SET text = CAST(x'c3' AS TEXT) WHERE id = 1",
            lambda archive: list(archive.records()),
            "Could not decode to UTF-8",
        ),
    ],
)
def test_rows_and_tables_that_are_lost_are_damage(
    run: Path, statement: str, read: Callable[[Archive], object], message: str
) -> None:
    with damaged(run) as db:
        db.execute(statement)
    with pytest.raises(ArchiveCorrupt, match=f"{message}|not what was written: run x"):
        open_existing(run, readonly=True)
    with (
        open_existing(older(run), readonly=True) as archive,
        pytest.raises(ArchiveCorrupt, match=message),
    ):
        read(archive)


# -- disks ---------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_loses_nothing_that_was_committed(small_disk: Path, tmp_path: Path) -> None:
    said: list[int] = []
    with create(small_disk / "run", CONFIG) as archive, pytest.raises(DiskFull, match="room"):
        said.extend(continue_to(archive, 2000))
    committed = said[-1]
    assert committed > 10
    shutil.copytree(small_disk / "run", tmp_path / "moved")
    with create(tmp_path / "expected", CONFIG) as expected:
        list(continue_to(expected, committed + 1))
        with open_existing(tmp_path / "moved", readonly=True) as moved:
            assert list(moved.dump()) == list(expected.dump())
        list(continue_to(expected, committed + 5))
        with open_existing(tmp_path / "moved") as moved:
            list(continue_to(moved, committed + 5))
            assert list(moved.dump()) == list(expected.dump())


def test_no_room_for_a_run_or_a_file_at_all(small_disk: Path) -> None:
    save_text(small_disk / "rule.py", "old")
    (small_disk / "ballast").write_bytes(bytes(1_000_000))
    with pytest.raises(DiskFull, match="run"):
        create(small_disk / "run", CONFIG)
    with pytest.raises(DiskFull, match=r"rule\.py"):
        save_text(small_disk / "rule.py", "new" * 100_000)
    assert (small_disk / "rule.py").read_text() == "old"
    assert sorted(path.name for path in small_disk.iterdir()) == ["ballast", "rule.py"]


@pytest.mark.parametrize("ending", ["closed", "killed"])
def test_a_read_only_disk_can_be_read(small_disk: Path, ending: str) -> None:
    archive = create(small_disk / "run", CONFIG)
    list(continue_to(archive, 3))
    rows = list(archive.dump())
    as_killed = {path: path.read_bytes() for path in (small_disk / "run").iterdir()}
    archive.close()
    if ending == "killed":
        for path, data in as_killed.items():
            path.write_bytes(data)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with open_existing(small_disk / "run", readonly=True) as archive:
        assert list(archive.dump()) == rows
    with pytest.raises(NotWritable, match="Read-only"):
        open_existing(small_disk / "run")
    with pytest.raises(NotWritable, match="Read-only"):
        create(small_disk / "another", CONFIG)


def test_save_text_replaces(tmp_path: Path) -> None:
    for text in ("old", "newer"):
        save_text(tmp_path / "rule.py", text)
        assert (tmp_path / "rule.py").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["rule.py"]


# -- kill -9 -------------------------------------------------------------------------------------


ROOT = {"PYTHONPATH": str(Path(__file__).parents[2])}
"""For a script among the tests, which imports others."""


def test_killed_at_random_moments_it_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Each writer says which batches it has committed; those are there, whole, and no others
    but the one it may have been committing. Every other one is killed at any time from its first
    instruction on, the rest in the middle of writing."""
    rng, run = random.Random(0), tmp_path / "run"
    with create(run, CONFIG) as archive:
        said = list(continue_to(archive, 1))
    for kill in range(12):
        command = [sys.executable, __file__, str(run)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | ROOT)
        assert writer.stdout is not None
        lines = [writer.stdout.readline()] if kill % 2 == 0 else []
        time.sleep(rng.uniform(0, 0.02) if lines else rng.uniform(0, 0.3))
        writer.kill()
        said += [int(line) for line in [*lines, *writer.stdout] if line.endswith("\n")]
        assert writer.wait() == -signal.SIGKILL
        with open_existing(run, readonly=True) as archive:
            snapshot = archive.snapshot()
            assert snapshot is not None
            assert snapshot.batch in (said[-1], said[-1] + 1)
            assert sum(archive.counts().values()) == BATCH * (snapshot.batch + 2)
            assert list(archive.pending()) == [snapshot.batch + 1]
            said.append(snapshot.batch)  # the next may be killed before it says anything, too
    with create(tmp_path / "unkilled", CONFIG) as expected, open_existing(run) as archive:
        list(continue_to(archive, said[-1] + 10))
        list(continue_to(expected, said[-1] + 10))
        assert list(archive.dump()) == list(expected.dump())


if __name__ == "__main__":
    with open_existing(sys.argv[1]) as archive:
        for number in continue_to(archive, 10**9):
            print(number, flush=True)


# -- digests -------------------------------------------------------------------------------------

CHANGES = {  # statement, the part that is named
    "a score": ("UPDATE candidate SET score = score / 2 WHERE id = 5", "candidate 1"),
    "a fate": ("UPDATE candidate SET fate = 'failed' WHERE id = 6", "candidate 1"),
    "a parent": ("UPDATE candidate SET parent = 0 WHERE id = 10", "candidate 2"),
    "a mutation": ("UPDATE candidate SET mutation = 'swap' WHERE id = 10", "candidate 2"),
    "a ladder": ("UPDATE candidate SET ladder = '[1.0]' WHERE id = 5", "candidate 1"),
    "a rate": ("UPDATE candidate SET lr = 1 WHERE id = 5", "candidate 1"),
    "a program": ("UPDATE program SET text = text || ' ' WHERE id = 4", "candidate 1"),
    "a length": ("UPDATE program SET length = 9 WHERE id = 1", "candidate 0"),
    "another program": ("UPDATE candidate SET program = 2 WHERE id = 5", "candidate 1"),
    "a loss": ("UPDATE evaluation SET loss = loss + 1e-9 WHERE candidate = 5", "evaluation 1"),
    "a kind": ("UPDATE evaluation SET task = x'00' WHERE candidate = 6", "evaluation 1"),
    "no candidate": ("DELETE FROM candidate WHERE id = 9", "candidate 1"),
    "no batch": ("DELETE FROM batch WHERE batch = 2", "batch 2"),
    "a job": ("UPDATE batch SET job = '{}' WHERE batch = 2", "batch 2"),
    "a population": ("UPDATE snapshot SET population = '[[0]]'", "snapshot 0"),
    "a counter": ("UPDATE snapshot SET counters = '{}'", "snapshot 0"),
    "no snapshot": ("DELETE FROM snapshot", "snapshot 0"),
    "a time": ("UPDATE timing SET wall = 1e9 WHERE batch = 1", "timing 1"),
    "a fact": ("UPDATE run SET value = '8' WHERE key = 'seed'", "run seed"),
    "a final": ("UPDATE final SET loss = 0", "final proxy"),
    "a digest": ("UPDATE seal SET digest = 'x' WHERE part = 'timing'", "timing 0"),
    "no digest": ("DELETE FROM seal WHERE part = 'batch'", "batch 0"),
    "no digests": ("DROP TABLE seal", "no such table: seal"),
    "another version": (
        "UPDATE candidate SET score = 0 WHERE id = 5; PRAGMA user_version = 1",
        "candidate 1",
    ),
    "the last batches": (
        "DELETE FROM candidate WHERE batch = 1; "
        "DELETE FROM seal WHERE part IN ('candidate', 'evaluation') AND name = '[1]'",
        "no candidates of batch 1",
    ),
}


@pytest.fixture
def judged(run: Path) -> Path:
    with open_existing(run) as archive, archive.transaction():
        archive.add_finals([Final("proxy", "5", "digits", 0, 100, 1e-3, "ok", 0.5)])
    return run


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_what_was_written_is_named(judged: Path, change: str) -> None:
    """All of it by whoever goes on; what is shown, by whoever looks."""
    statement, named = CHANGES[change]
    with damaged(judged) as db:
        db.executescript(statement)
    for readonly in (False, True):
        if readonly and named.startswith("evaluation"):
            with open_existing(judged, readonly) as archive:
                archive.evaluations(0)
                with pytest.raises(ArchiveCorrupt, match=named):
                    archive.evaluations(5)
            continue
        with pytest.raises(ArchiveCorrupt, match=named):
            open_existing(judged, readonly)


def test_every_table_has_digests(judged: Path) -> None:
    """Whoever adds a table, or a column that is read, adds it to PARTS."""
    read = " ".join(part.select for part in PARTS.values())
    with damaged(judged) as db:
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
            for _, column, *_ in db.execute(f"PRAGMA table_info({table})").fetchall():
                whole = table in ("evaluation", "final", "seal")
                assert whole or column in read or (table, column) == ("program", "id"), column


def test_what_is_sound_can_be_saved(judged: Path, tmp_path: Path) -> None:
    with damaged(judged) as db:
        db.execute("UPDATE candidate SET score = 0 WHERE id = 5")
    with pytest.raises(ArchiveCorrupt, match=f"l2o show {judged} --salvage NEW_RUN"):
        open_existing(judged)
    with pytest.raises(ArchiveError, match="its configuration is lost"):
        salvage(judged, tmp_path / "saved")
    with damaged(judged) as db:
        db.execute("INSERT INTO run VALUES ('config', '{}')")
        db.execute("UPDATE seal SET name = '[\"config\"]' WHERE name = '[\"seed\"]'")
        digest = digest_of([("config", "{}")])
        db.execute("UPDATE seal SET digest = ? WHERE name = '[\"config\"]'", (digest,))
    assert salvage(judged, tmp_path / "saved") == ["candidate 1"]
    with open_existing(tmp_path / "saved", readonly=True) as archive:
        assert [record.id for record in archive.records()] == [*range(5), *range(10, 20)]
        assert archive.finals() == []  # of candidate 5
        assert archive.run()["salvaged"] == ["candidate 1"]
        assert [record.id for record in archive.best(2)] == [10, 0]
    with pytest.raises(ArchiveError, match="kept no digests"):
        salvage(older(judged), tmp_path / "again")


def test_readers_never_checkpoint(run: Path) -> None:
    """SQLite below 3.51.3 may damage a database where two connections do at once; the writer is
    the only one that does."""
    with open_existing(run) as writer:
        with writer.transaction():
            writer.set_run("seed", 8)
        before = (run / "archive.sqlite").read_bytes()
        with open_existing(run, readonly=True) as reader:
            assert reader.run()["seed"] == 8
            history(reader)
            with pytest.raises(sqlite3.OperationalError, match=r"readonly|disk I/O"):
                reader._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        assert (run / "archive.sqlite").read_bytes() == before
        assert (run / "archive.sqlite-wal").stat().st_size > 0


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_run_that_vanishes_is_not_written_to(run: Path, how: str) -> None:
    with open_existing(run) as archive:
        if how == "moved":
            run.rename(run.parent / "elsewhere")
        else:
            shutil.rmtree(run)
        if how == "replaced":
            create(run, CONFIG).close()
        with pytest.raises(NotWritable, match=r"deleted or moved|replaced"), archive.transaction():
            archive.set_run("seed", 8)


def test_an_archive_without_digests_goes_on(run: Path, tmp_path: Path) -> None:
    with create(tmp_path / "expected", CONFIG) as expected:
        list(continue_to(expected, 5))
        with open_existing(older(run)) as archive:
            list(continue_to(archive, 5))
            assert list(archive.dump()) == list(expected.dump())
