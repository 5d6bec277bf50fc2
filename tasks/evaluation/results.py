"""Results of evaluations: every training run once, in one SQLite file.

A *run* is one training run: a rule on a task, from one seed, at one learning rate and weight
decay. It is filed under what it is a function of, so a result that is there is never computed
again, whoever asks for it and in whichever evaluation. Rules and tasks are filed under an identity
(a digest of what they compute) and listed under their names; a rule whose text has changed is
another rule.

A run that diverged has a status and no loss. Rows that are written together have a digest
(``seals.py``, since version 2), checked when the file is opened.
"""

from __future__ import annotations

import errno
import fcntl
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from tasks.runs import files, seals, sqlite_errors
from tasks.runs.files import DiskFull, RunError
from tasks.runs.nesting import from_json
from tasks.runs.seals import Part, Seals
from tasks.runs.sqlite_errors import WAIT

APPLICATION = 0x6C326F01
VERSION = 2
SEALED = 2
"""The version since which there are digests."""
FINITE = "CHECK ({0} IS NULL OR abs({0}) < 9e999)"
SCHEMA = f"""
PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
CREATE TABLE fact (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE rule (name TEXT PRIMARY KEY, identity TEXT NOT NULL, source TEXT NOT NULL);
CREATE TABLE task (name TEXT PRIMARY KEY, identity TEXT NOT NULL, card TEXT NOT NULL);
CREATE TABLE run (
    rule TEXT NOT NULL, task TEXT NOT NULL, steps INTEGER NOT NULL, schedule TEXT NOT NULL,
    seed INTEGER NOT NULL, lr REAL NOT NULL, weight_decay REAL NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('ok', 'diverged')),
    loss REAL {FINITE.format("loss")}, test REAL {FINITE.format("test")},
    curve TEXT NOT NULL, seconds REAL NOT NULL,
    CHECK ((status = 'ok') = (loss IS NOT NULL)),
    PRIMARY KEY (rule, task, steps, schedule, seed, lr, weight_decay)) WITHOUT ROWID;
{seals.SCHEMA}
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
COMMIT;
"""
STUDY = ("rule", "task", "steps", "schedule")
PARTS = {  # whatever columns there are
    "fact": Part("SELECT key, * FROM fact", ("key",), "key"),
    "rule": Part("SELECT name, * FROM rule", ("name",), "name"),
    "task": Part("SELECT name, * FROM task", ("name",), "name"),
    "run": Part(f"SELECT {', '.join(STUDY)}, * FROM run", STUDY, "seed, lr, weight_decay"),
}


class Study(NamedTuple):
    """What all runs of a rule on a task have in common."""

    rule: str  # identity
    task: str  # identity
    steps: int
    schedule: str


class Run(NamedTuple):
    """One training run. ``loss`` and ``test`` are the final validation and test losses, None if
    it diverged; ``curve`` is ``((step, validation loss or None), ...)``; ``seconds`` are those of
    one step of one model, timed beside the runs that were made with it."""

    seed: int
    lr: float
    weight_decay: float
    status: str
    loss: float | None
    test: float | None
    curve: tuple[tuple[int, float | None], ...]
    seconds: float


class ResultsError(RunError):
    """One line about a results file, for the person who named it."""


class Results:
    """An open results file. Use as a context manager; every ``add`` is a transaction."""

    def __init__(self, file: Path, readonly: bool = False) -> None:
        """Opens ``file``, and makes it if it does not exist; ``readonly`` it must exist.

        One process at a time writes: what an evaluation is asked for is noted in the file.
        """
        self.file = file
        existing = file.exists() and file.stat().st_size > 0
        if file.exists() and not file.is_file():
            raise ResultsError(f"{file}: not a file; expected a results file, new or not")
        if readonly and not existing:
            said = "an empty file" if file.exists() else "no such results file"
            raise ResultsError(f"{file}: {said}")
        if not readonly and not file.absolute().parent.is_dir():
            raise ResultsError(f"{file}: the directory {file.parent} does not exist")
        self._held = None if readonly else _held(file)
        try:
            with _explained(file):
                self._db = self._opened("ro" if readonly else "rwc")
            self._seals = self._checked(readonly)
            self._identity = sqlite_errors.identity(file)
        except BaseException:
            self._close()
            raise

    def _opened(self, mode: str) -> sqlite3.Connection:
        """A connection; its file is made a results file if there was nothing in it."""
        where = files.database(self.file, mode)
        db = self._db = sqlite3.connect(where, uri=True, isolation_level=None, timeout=WAIT)
        found = db.execute("PRAGMA application_id").fetchone()[0]
        empty = db.execute("SELECT 1 FROM sqlite_master").fetchone() is None
        if mode == "rwc" and found == 0 and empty:  # new, or begun and stopped at once
            db.executescript(SCHEMA)
            found = APPLICATION
        if found != APPLICATION:
            raise ResultsError(f"{self.file}: an SQLite file, but not one of results")
        return db

    def _checked(self, readonly: bool) -> Seals | None:
        """The digests, which all rows have; none in an older file, which gets them when it is
        written to."""
        with _explained(self.file):
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise ResultsError(f"{self.file}: version {version}, this program knows {VERSION}")
            known = self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'seal'").fetchone()
            kept = Seals(self._db, PARTS)
            if version < SEALED and not known:
                return None if readonly else self._upgraded(kept)
            self._db.execute("BEGIN")  # all of one moment
            found = [str(group) for group in kept.damaged()]
            self._db.execute("COMMIT")
        if found:
            raise _damaged(self.file, f"not what was written: {', '.join(found[:3])}")
        return kept

    def _upgraded(self, kept: Seals) -> Seals:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(seals.SCHEMA)
        kept.renew()
        self._db.execute(f"PRAGMA user_version = {VERSION}")
        self._db.execute("COMMIT")
        return kept

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, *trace: object) -> None:
        self._close()
        if self._seals is None and isinstance(error, sqlite_errors.NONSENSE):
            raise _damaged(self.file, f"{type(error).__name__}: {error}") from error

    def _close(self) -> None:
        if hasattr(self, "_db"):
            self._db.close()
        if self._held is not None:
            self._held.close()

    def set_fact(self, key: str, value: Any) -> None:
        """Something about the evaluations: what was asked for, versions, device."""
        self._write("INSERT OR REPLACE INTO fact VALUES (?, ?)", [(key, _json(value))], "fact", key)

    def facts(self) -> dict[str, Any]:
        return {key: self._loaded(text) for key, text in self._rows("SELECT * FROM fact")}

    def made_in(self, environment: Mapping[str, str | None]) -> None:
        """Note an environment that runs are made in, unless it is there: fact ``environments``."""
        known = self.facts().get("environments", [])
        if environment not in known:
            self.set_fact("environments", [*known, environment])

    def set_rule(self, name: str, identity: str, source: str) -> None:
        """``source``: what a reader may want to see of the rule, such as its program."""
        row = (name, identity, source)
        self._write("INSERT OR REPLACE INTO rule VALUES (?, ?, ?)", [row], "rule", name)

    def rules(self) -> dict[str, tuple[str, str]]:
        """name -> (identity, source)."""
        return {name: (key, text) for name, key, text in self._rows("SELECT * FROM rule")}

    def set_task(self, name: str, identity: str, card: Mapping[str, Any]) -> None:
        row = (name, identity, _json(card))
        self._write("INSERT OR REPLACE INTO task VALUES (?, ?, ?)", [row], "task", name)

    def tasks(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """name -> (identity, card)."""
        rows = self._rows("SELECT * FROM task")
        return {name: (key, self._loaded(card)) for name, key, card in rows}

    def add(self, study: Study, runs: Iterable[Run]) -> None:
        """All of ``runs`` or none; a run that is there already is kept as it is."""
        rows = [(*study, *run._replace(curve=_json(run.curve))) for run in runs]
        statement = f"INSERT OR IGNORE INTO run VALUES ({', '.join('?' * 12)})"
        self._write(statement, rows, "run", *study)

    def runs(self, study: Study) -> dict[tuple[int, float, float], Run]:
        """(seed, lr, weight decay) -> run."""
        rows = self._rows(
            "SELECT seed, lr, weight_decay, status, loss, test, curve, seconds FROM run "
            "WHERE rule = ? AND task = ? AND steps = ? AND schedule = ?",
            *study,
        )
        found = {}
        for row in rows:
            curve = tuple((step, loss) for step, loss in self._loaded(row[6]))
            found[row[:3]] = Run(*row)._replace(curve=curve)
        return found

    def count(self) -> int:
        """How many runs there are."""
        return self._rows("SELECT count(*) FROM run")[0][0]

    def _loaded(self, text: str) -> Any:
        """The content of a column that holds JSON."""
        try:
            return from_json(text)
        except (ValueError, RecursionError) as error:
            raise _damaged(self.file, str(error)) from error

    def _write(
        self, statement: str, rows: Sequence[Sequence[Any]], part: str, *key: str | int
    ) -> None:
        """Write rows of one group, and its digest."""
        with _explained(self.file):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(statement, rows)
                if self._seals is not None:
                    self._seals.touch(part, *key)
                    self._seals.write()
                sqlite_errors.same(self.file, self._identity)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with _explained(self.file):
            return self._db.execute(query, values).fetchall()


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Raise what SQLite says about ``file`` in one line."""
    try:
        with sqlite_errors.explained(file, partial(_damaged, file)):
            yield
    except DiskFull:
        raise
    except RunError as error:
        raise ResultsError(str(error)) from error
    except sqlite3.DatabaseError as error:
        raise ResultsError(f"{file}: {error}") from error


def _damaged(file: Path, what: str) -> ResultsError:
    if what == sqlite_errors.NO_DATABASE:
        return ResultsError(f"{file}: not a results file, or one that is damaged ({what})")
    return ResultsError(
        f"{file}: damaged ({what}); left as it is: restore it from a copy, or begin another one "
        "with --out"
    )


def _held(file: Path) -> IO[bytes]:
    """``file``, locked until what is returned is closed or this process dies. SQLite's own locks
    are of another kind, so that readers are left alone."""
    try:
        opened = file.open("ab")
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ResultsError(f"{file}: another process is adding to it; wait, or stop it") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise files.full(file) from error
        raise ResultsError(f"{file}: cannot be written: {error.strerror}") from error
    return opened


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)
