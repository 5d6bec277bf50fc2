"""The tables of an archive, and their rows as Python sees them.

    run         what was asked for: one fact a row, as JSON
    program     every distinct program text, with its canonical form and probe signature
    batch       what evaluating a batch needs besides its candidates
    candidate   every child ever made, in order of creation: its parent, mutation, fate and score
    evaluation  every loss measured for a candidate during the search
    final       every loss measured afterwards, on fresh seeds and held-out tasks, and of baselines
    snapshot    the population after a batch, for the last few batches
    timing      seconds a batch; it differs between two runs of one configuration
    seal        digests of groups of these rows (``tasks/runs/seals.py``), since version 2

A number that is not finite is a status, never a number: the constraints below refuse it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tasks.runs import seals
from tasks.runs.database import APPLICATION
from tasks.runs.seals import Part

VERSION = 2
SALVAGED = "salvaged"
"""A fact of a run that is what was left of another one: what was lost."""
CLOCK = "clock"
"""The fact that no two runs share: seconds and pace."""
FATES = ("pending", "invalid", "duplicate", "stopped", "diverged", "evaluated", "failed")

FINITE = "({0} IS NULL OR abs({0}) < 9e999)"
MEASURED = f"""
    task TEXT NOT NULL, seed INTEGER NOT NULL, steps INTEGER NOT NULL, lr REAL NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('ok', 'diverged', 'failed')),
    loss REAL CHECK {FINITE.format("loss")},
    CHECK ((status = 'ok') = (loss IS NOT NULL))"""
SCHEMA = f"""
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE program (
    id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE, canonical TEXT NOT NULL,
    signature TEXT NOT NULL, length INTEGER NOT NULL);
CREATE TABLE batch (batch INTEGER PRIMARY KEY, job TEXT NOT NULL);
CREATE TABLE candidate (
    id INTEGER PRIMARY KEY, batch INTEGER NOT NULL REFERENCES batch,
    parent INTEGER REFERENCES candidate, program INTEGER REFERENCES program,
    mutation TEXT NOT NULL, fate TEXT NOT NULL CHECK (fate IN {FATES}),
    lr REAL CHECK {FINITE.format("lr")}, score REAL CHECK {FINITE.format("score")},
    ladder TEXT NOT NULL, original INTEGER REFERENCES candidate,
    CHECK ((fate = 'duplicate') = (original IS NOT NULL)),
    CHECK ((fate = 'invalid') = (program IS NULL)),
    CHECK (fate != 'evaluated' OR score IS NOT NULL));
CREATE INDEX by_batch ON candidate (batch);
CREATE INDEX by_fate ON candidate (fate, score);
CREATE TABLE evaluation (
    candidate INTEGER NOT NULL REFERENCES candidate, {MEASURED},
    PRIMARY KEY (candidate, task, seed, steps, lr)) WITHOUT ROWID;
CREATE TABLE final (
    stage TEXT NOT NULL, rule TEXT NOT NULL, {MEASURED},
    PRIMARY KEY (stage, rule, task, seed, steps, lr)) WITHOUT ROWID;
CREATE TABLE snapshot (
    batch INTEGER PRIMARY KEY, population TEXT NOT NULL, counters TEXT NOT NULL);
CREATE TABLE timing (batch INTEGER PRIMARY KEY, wall REAL NOT NULL, busy REAL NOT NULL);
{seals.SCHEMA}
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
COMMIT;
"""
ORDER = {  # the tables that are a function of the configuration, and the order of their rows
    "run": "key",
    "program": "id",
    "batch": "batch",
    "candidate": "id",
    "evaluation": "candidate, task, seed, steps, lr",
    "final": "stage, rule, task, seed, steps, lr",
    "snapshot": "batch",
}

PARTS = {  # in groups that are written together; what is read of a candidate is its program, too
    "run": Part("SELECT key, value FROM run", ("key",), "key"),
    "batch": Part("SELECT batch, job FROM batch", ("batch",), "batch"),
    "candidate": Part(
        "SELECT c.batch, c.id, c.parent, c.mutation, c.fate, c.lr, c.score, c.ladder, c.original, "
        "c.program, p.text, p.canonical, p.signature, p.length "
        "FROM candidate c LEFT JOIN program p ON p.id = c.program",
        ("c.batch",),
        "c.id",
    ),
    "evaluation": Part(
        "SELECT c.batch, e.* FROM candidate c CROSS JOIN evaluation e ON e.candidate = c.id",
        ("c.batch",),
        "e.candidate, e.task, e.seed, e.steps, e.lr",
    ),
    "final": Part("SELECT * FROM final", ("stage",), "rule, task, seed, steps, lr"),
    "snapshot": Part("SELECT batch, population, counters FROM snapshot", ("batch",), "batch"),
    "timing": Part("SELECT batch, wall, busy FROM timing", ("batch",), "batch"),
}
SHOWN = tuple(part for part in PARTS if part != "evaluation")
"""What is looked at of a run, all but the many rows that only those who go on with it read."""


class Record(NamedTuple):
    """A candidate and its program. ``text``, ``signature`` and ``length`` are None if invalid."""

    id: int
    batch: int
    parent: int | None
    mutation: str
    fate: str
    lr: float | None
    score: float | None
    ladder: tuple[float, ...]
    original: int | None
    text: str | None
    canonical: str | None
    signature: str | None
    length: int | None


class Evaluation(NamedTuple):
    """One measurement of one candidate; ``loss`` is None unless ``status`` is 'ok'."""

    candidate: int
    task: str
    seed: int
    steps: int
    lr: float
    status: str
    loss: float | None


class Final(NamedTuple):
    """One measurement after the search: ``stage`` such as 'fresh' or 'held_out', ``rule`` a
    name ('adamw') or a candidate's id as text."""

    stage: str
    rule: str
    task: str
    seed: int
    steps: int
    lr: float
    status: str
    loss: float | None


class Snapshot(NamedTuple):
    """The search after ``batch`` was integrated; ``population``: candidate ids of each group, in
    its order; ``counters``: the state of the strategy."""

    batch: int
    population: list[list[int]]
    counters: dict[str, Any]
