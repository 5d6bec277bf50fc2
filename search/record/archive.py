"""What a run has done so far, in one SQLite file that survives being killed at any moment.

``RUN/archive.sqlite`` has one writer and any number of readers (WAL journal, readers open it
read-only). Everything that happens in one step of the search is written in one transaction:

    with archive.transaction():
        archive.decide(...)         # what became of candidates
        archive.add_evaluations(...)
        archive.add_candidate(...)  # the next batch, pending
        archive.set_snapshot(...)

so after ``kill -9`` either all of it is there or none, and resuming means running again whatever
is ``pending``. Nothing in these tables depends on a clock, on the number of workers or on the
order in which they finished, unless a batch failed: a run that was killed and resumed ends with
the same rows as one that never was, as ``dump`` shows, which leaves out ``timing`` and ``clock``.

A killed process loses nothing committed; a power cut may lose what came after the last milestone.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self

from search.record import sound
from search.record.schema import (
    CLOCK,
    FATES,
    ORDER,
    PARTS,
    SCHEMA,
    SHOWN,
    VERSION,
    Evaluation,
    Final,
    Record,
    Snapshot,
)
from tasks.runs import database as storage
from tasks.runs import files, sqlite_errors
from tasks.runs.database import ArchiveError, explained
from tasks.runs.nesting import from_json
from tasks.runs.seals import Seals

FILE = "archive.sqlite"
AT_ONCE = 1000
"""Rows that are read at a time where there may be a million."""
SNAPSHOTS = 8  # kept; one is enough to resume, a few are a comfort


class Archive:
    """An open archive; made by ``create`` and ``open_existing``. Use as a context manager.

    Whatever goes wrong with the file is raised as a RunError (``tasks/runs/files.py``,
    ``database.py``).
    """

    def __init__(self, file: Path, db: sqlite3.Connection, lock: int | None) -> None:
        self.file = file
        self.run_dir = file.parent
        self._db = db
        self._lock = lock
        self._identity = sqlite_errors.identity(file)
        self._seals = sound.seals(file, db)

    def close(self) -> None:
        self._db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, *trace: object) -> None:
        self.close()
        if self._seals is None and isinstance(error, sqlite_errors.NONSENSE):
            raise storage.corrupt(self.file, f"{type(error).__name__}: {error}") from error

    # -- writing -----------------------------------------------------------------------------

    @contextmanager
    def transaction(self, milestone: bool = False) -> Iterator[None]:
        """All writes in the block, or none. A ``milestone`` is on the disk when this returns."""
        with explained(self.file):
            self._db.execute(f"PRAGMA synchronous = {'FULL' if milestone else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                if self._seals:
                    self._seals.write()
                sqlite_errors.same(self.file, self._identity)
                self._db.execute("COMMIT")
            except BaseException:
                if self._seals:
                    self._seals.forget()
                if self._db.in_transaction:  # some errors have already rolled it back
                    self._db.execute("ROLLBACK")
                raise

    def set_run(self, key: str, value: Any) -> None:
        """A fact about the run: configuration, versions, seed, a calibration."""
        self._write("INSERT OR REPLACE INTO run VALUES (?, ?)", [(key, to_json(value))])
        self._touch("run", key)

    def add_program(self, text: str, canonical: str, signature: str, length: int) -> int:
        """The id of ``text``, which is stored unless it is known."""
        row = (text, canonical, signature, length)
        self._write("INSERT OR IGNORE INTO program VALUES (NULL, ?, ?, ?, ?)", [row])
        return self._rows("SELECT id FROM program WHERE text = ?", text)[0][0]

    def add_batch(self, batch: int, job: Mapping[str, Any]) -> None:
        """``job``: what evaluating the batch needs to know besides its candidates."""
        self._write("INSERT INTO batch VALUES (?, ?)", [(batch, to_json(job))])
        self._touch("batch", batch)

    def withdraw(self, batch: int) -> None:
        """Take back the newest batch, as if it had never been asked."""
        for part in ("candidate", "batch"):
            self._write(f"DELETE FROM {part} WHERE batch = ?", [(batch,)])
            self._touch(part, batch)
        unused = "SELECT id FROM program EXCEPT SELECT program FROM candidate"
        self._write(f"DELETE FROM program WHERE id IN ({unused})", [()])

    def add_candidate(
        self,
        id: int,
        batch: int,
        parent: int | None,
        program: int | None,
        mutation: str,
        fate: str = "pending",
        lr: float | None = None,
        original: int | None = None,
    ) -> None:
        """A child at birth: pending, invalid or a duplicate of ``original``."""
        row = (id, batch, parent, program, mutation, fate, lr, None, "[]", original)
        self._write("INSERT INTO candidate VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", [row])
        self._touch("candidate", batch)

    def decide(
        self, id: int, fate: str, lr: float | None, score: float | None, ladder: Sequence[float]
    ) -> None:
        """What became of a candidate."""
        changed = self._write(
            "UPDATE candidate SET fate = ?, lr = ?, score = ?, ladder = ? WHERE id = ?",
            [(fate, lr, score, to_json(list(ladder)), id)],
        )
        if changed != 1:
            raise KeyError(f"no candidate {id} to decide")
        self._touch("candidate", self._batch(id))

    def add_evaluations(self, rows: Iterable[Evaluation]) -> None:
        rows = list(rows)
        self._write("INSERT INTO evaluation VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        for batch in {self._batch(id) for id in {row.candidate for row in rows}}:
            self._touch("evaluation", batch)

    def add_finals(self, rows: Iterable[Final]) -> None:
        """A row that is measured again replaces the earlier one."""
        rows = list(rows)
        self._write("INSERT OR REPLACE INTO final VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        for stage in {row.stage for row in rows}:
            self._touch("final", stage)

    def set_snapshot(
        self, batch: int, population: Sequence[Sequence[int]], counters: Mapping[str, Any]
    ) -> None:
        row = (batch, to_json(list(population)), to_json(counters))
        self._write("INSERT INTO snapshot VALUES (?, ?, ?)", [row])
        self._write("DELETE FROM snapshot WHERE batch <= ?", [(batch - SNAPSHOTS,)])
        for one in (batch, batch - SNAPSHOTS):
            self._touch("snapshot", one)

    def add_timing(self, batch: int, wall: float, busy: float) -> None:
        """Seconds since the last batch was integrated, and those its worker was busy."""
        self._write("INSERT OR REPLACE INTO timing VALUES (?, ?, ?)", [(batch, wall, busy)])
        self._touch("timing", batch)

    def _touch(self, part: str, key: Any) -> None:
        if self._seals:
            self._seals.touch(part, key)

    def _batch(self, id: int) -> int:
        return self._rows("SELECT batch FROM candidate WHERE id = ?", id)[0][0]

    def _write(self, statement: str, rows: Iterable[Sequence[Any]]) -> int:
        if not self._db.in_transaction:
            raise RuntimeError("write outside of Archive.transaction()")
        return self._db.executemany(statement, rows).rowcount

    # -- reading -----------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """The facts of ``set_run``."""
        rows = self._rows("SELECT key, value FROM run ORDER BY key")
        return {key: self._loaded("run", value) for key, value in rows}

    def _loaded(self, table: str, text: str) -> Any:
        """The content of a column that holds JSON."""
        try:
            return from_json(text)
        except ValueError as error:
            raise storage.corrupt(self.file, f"table {table}: {error}") from error

    def pending(self) -> dict[int, list[Record]]:
        """Batches that were handed out and never came back, to be run again."""
        batches: dict[int, list[Record]] = {}
        for record in self.records("WHERE c.fate = 'pending' ORDER BY c.id"):
            batches.setdefault(record.batch, []).append(record)
        return batches

    def job(self, batch: int) -> dict[str, Any]:
        """What ``add_batch`` was given."""
        rows = self._rows("SELECT job FROM batch WHERE batch = ?", batch)
        return self._loaded("batch", rows[0][0])

    def records(self, where: str = "ORDER BY c.id", *values: Any) -> Iterator[Record]:
        """Candidates ``c`` joined with their programs ``p``, in order of creation or as asked."""
        query = (
            "SELECT c.id, c.batch, c.parent, c.mutation, c.fate, c.lr, c.score, c.ladder, "
            "c.original, p.text, p.canonical, p.signature, p.length "
            f"FROM candidate c LEFT JOIN program p ON p.id = c.program {where}"
        )
        with explained(self.file):
            rows = self._db.execute(query, values)
            while some := rows.fetchmany(AT_ONCE):
                for row in some:
                    yield Record(*row)._replace(ladder=tuple(self._loaded("candidate", row[7])))

    def record(self, candidate: int) -> Record:
        """One candidate; ArchiveError if there is none of that number."""
        (newest,) = self._rows("SELECT max(id) FROM candidate")[0]
        if newest is not None and 0 <= candidate <= newest:  # SQLite knows no larger integers
            for record in self.records("WHERE c.id = ?", candidate):
                return record
        raise ArchiveError(f"{self.run_dir}: no candidate {candidate}; expected 0 to {newest}")

    def best(self, k: int) -> list[Record]:
        """The ``k`` evaluated candidates of lowest score; ties to the shorter, then the older."""
        order = "WHERE c.fate = 'evaluated' ORDER BY c.score, p.length, c.id LIMIT ?"
        return list(self.records(order, min(k, sys.maxsize)))

    def lineage(self, candidate: int) -> list[Record]:
        """From the founder to ``candidate``: which mutation made which gain."""
        line = [self.record(candidate)]
        while line[-1].parent is not None:
            line.append(self.record(line[-1].parent))
        return line[::-1]

    def counts(self) -> dict[str, int]:
        """How many candidates met each fate."""
        found = dict(self._rows("SELECT fate, count(*) FROM candidate GROUP BY fate"))
        return {fate: found.get(fate, 0) for fate in FATES}

    def rejected(self) -> int:
        """How many invalid children were drawn that never became candidates."""
        query = "SELECT coalesce(sum(json_extract(job, '$.rejected')), 0) FROM batch"
        return int(self._rows(query)[0][0])

    def evaluations(self, candidate: int) -> list[Evaluation]:
        """All of one candidate."""
        batch = self._batch(self.record(candidate).id)
        with explained(self.file):
            right = self._seals is None or self._seals.holds("evaluation", batch)
        if not right:
            raise sound.not_written(self.file, [f"evaluation {batch}"])
        order = f"SELECT * FROM evaluation WHERE candidate = ? ORDER BY {ORDER['evaluation']}"
        return [Evaluation(*row) for row in self._rows(order, candidate)]

    def finals(self) -> list[Final]:
        return [Final(*row) for row in self._rows(f"SELECT * FROM final ORDER BY {ORDER['final']}")]

    def snapshot(self) -> Snapshot | None:
        """The newest, or None before the first."""
        rows = self._rows("SELECT * FROM snapshot ORDER BY batch DESC LIMIT 1")
        for batch, population, counters in rows:
            found = (self._loaded("snapshot", text) for text in (population, counters))
            return Snapshot(batch, *found)
        return None

    def timings(self) -> tuple[float, float]:
        """Seconds of wall clock, and of busy workers, over all batches."""
        return self._rows("SELECT total(wall), total(busy) FROM timing")[0]

    def dump(self) -> Iterator[tuple[Any, ...]]:
        """``(table, *row)`` for every row that must not depend on how the run was executed."""
        for table, order in ORDER.items():
            for row in self._rows(f"SELECT * FROM {table} ORDER BY {order}"):
                yield from [] if row[0] == CLOCK else [(table, *row)]

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with explained(self.file):
            return self._db.execute(query, values).fetchall()


def to_json(value: Any) -> str:
    """Equal values, equal text. Raises ValueError for a number that is not finite."""
    return json.dumps(value, sort_keys=True, allow_nan=False)


def create(run_dir: Path | str, config: Mapping[str, Any]) -> Archive:
    """A new run, open for writing; ``config`` becomes its ``run`` table.

    Raises RunExists if anything is at ``run_dir``. The directory appears complete or not at all.
    """
    with files.new_directory(Path(run_dir)) as staging:
        file = staging / FILE
        with explained(file), closing(storage.connect(file, "rwc")) as db:
            db.executescript(SCHEMA)
            rows = [(key, to_json(value)) for key, value in config.items()]
            db.executemany("INSERT INTO run VALUES (?, ?)", rows)
            Seals(db, PARTS).renew()
    return open_existing(run_dir)


def open_existing(run_dir: Path | str, readonly: bool = False) -> Archive:
    """An existing run, to continue it or, ``readonly``, to look at it while it goes on.

    Raises NotARun, RunBusy (another writer), ArchiveCorrupt, ArchiveNewer.
    """
    run_dir = Path(run_dir)
    file = run_dir / FILE
    if not file.is_file():
        if not run_dir.exists():
            raise storage.NotARun(f"{run_dir}: no such run: there is nothing of that name")
        if (run_dir / "run.json").is_file():
            raise storage.NotARun(
                f"{run_dir}: a meta-training, expected a search: it has no {FILE}"
            )
        raise storage.NotARun(f"{run_dir}: not a run directory: it has neither run.json nor {FILE}")
    if readonly:
        with storage.closed_on_error(storage.checked(file, VERSION)) as db:
            sound.verify(file, db, SHOWN)
            return Archive(file, db, None)
    lock = files.lock(run_dir / "writer.lock")
    try:
        with closing(
            storage.checked(file, VERSION)
        ) as db:  # a writer would repair before it looked
            sound.verify(file, db)
        with explained(file):
            return Archive(file, storage.connect(file, "rw"), lock)
    except BaseException:
        os.close(lock)
        raise
