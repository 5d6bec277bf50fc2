"""Results of evaluations: every training run once, in one SQLite file.

A *run* is one training run: a rule on a task, from one seed, at one learning rate and weight
decay. It is filed under what it is a function of, so a result that is there is never computed
again, whoever asks for it and in whichever evaluation. Rules and tasks are filed under an identity
(a digest of what they compute) and listed under their names; a rule whose text has changed is
another rule.

A run that diverged has a status and no loss.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from tasks.files import database, full

APPLICATION = 0x6C326F01
VERSION = 1
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
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
COMMIT;
"""


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


class ResultsError(ValueError):
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
        mode = "ro" if readonly else "rwc"
        self._held = None if readonly else _held(file)
        try:
            where = database(file, mode)
            self._db = sqlite3.connect(where, uri=True, isolation_level=None, timeout=30)
            found = self._db.execute("PRAGMA application_id").fetchone()[0]
            empty = self._db.execute("SELECT 1 FROM sqlite_master").fetchone() is None
            if not readonly and found == 0 and empty:  # new, or begun and stopped at once
                self._db.executescript(SCHEMA)
                found = APPLICATION
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise full(file) from error
            raise ResultsError(f"{file}: not a results file: {error}") from error
        if found != APPLICATION:
            raise ResultsError(f"{file}: an SQLite file, but not one of results")
        if version > VERSION:
            raise ResultsError(f"{file}: version {version}, this program knows {VERSION}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._db.close()
        if self._held is not None:
            self._held.close()

    def set_fact(self, key: str, value: Any) -> None:
        """Something about the evaluations: what was asked for, versions, device."""
        self._write("INSERT OR REPLACE INTO fact VALUES (?, ?)", [(key, _json(value))])

    def facts(self) -> dict[str, Any]:
        return {key: json.loads(value) for key, value in self._rows("SELECT * FROM fact")}

    def made_in(self, environment: Mapping[str, str | None]) -> None:
        """Note an environment that runs are made in, unless it is there: fact ``environments``."""
        known = self.facts().get("environments", [])
        if environment not in known:
            self.set_fact("environments", [*known, environment])

    def set_rule(self, name: str, identity: str, source: str) -> None:
        """``source``: what a reader may want to see of the rule, such as its program."""
        self._write("INSERT OR REPLACE INTO rule VALUES (?, ?, ?)", [(name, identity, source)])

    def rules(self) -> dict[str, tuple[str, str]]:
        """name -> (identity, source)."""
        return {name: (key, text) for name, key, text in self._rows("SELECT * FROM rule")}

    def set_task(self, name: str, identity: str, card: Mapping[str, Any]) -> None:
        self._write("INSERT OR REPLACE INTO task VALUES (?, ?, ?)", [(name, identity, _json(card))])

    def tasks(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """name -> (identity, card)."""
        rows = self._rows("SELECT * FROM task")
        return {name: (key, json.loads(card)) for name, key, card in rows}

    def add(self, study: Study, runs: Iterable[Run]) -> None:
        """All of ``runs`` or none; a run that is there already is kept as it is."""
        rows = [(*study, *run._replace(curve=_json(run.curve))) for run in runs]
        self._write(f"INSERT OR IGNORE INTO run VALUES ({', '.join('?' * 12)})", rows)

    def runs(self, study: Study) -> dict[tuple[int, float, float], Run]:
        """(seed, lr, weight decay) -> run."""
        rows = self._rows(
            "SELECT seed, lr, weight_decay, status, loss, test, curve, seconds FROM run "
            "WHERE rule = ? AND task = ? AND steps = ? AND schedule = ?",
            *study,
        )
        found = {}
        for row in rows:
            curve = tuple((step, loss) for step, loss in json.loads(row[6]))
            found[row[:3]] = Run(*row)._replace(curve=curve)
        return found

    def count(self) -> int:
        """How many runs there are."""
        return self._rows("SELECT count(*) FROM run")[0][0]

    def _write(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(statement, rows)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.DatabaseError as error:
            raise ResultsError(f"{self.file}: {error}") from error

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise ResultsError(f"{self.file}: {error}") from error


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
            raise full(file) from error
        raise ResultsError(f"{file}: cannot be written: {error.strerror}") from error
    return opened


def digest(*parts: str | bytes) -> str:
    """16 hexadecimal digits that tell different contents apart."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        total.update(len(content).to_bytes(8, "little") + content)
    return total.hexdigest()[:16]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)
