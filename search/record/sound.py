"""Whether an archive holds what was written to it, by the digests of its rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from search.record.schema import PARTS, SALVAGED
from tasks.runs import database
from tasks.runs.seals import Seals

SAID = 3
"""Damaged groups that are named."""


def seals(file: Path, db: sqlite3.Connection) -> Seals | None:
    """Those of an archive; none in one of version 1."""
    with database.explained(file):
        return Seals(db, PARTS) if database.has_seals(db) else None


def verify(file: Path, db: sqlite3.Connection, parts: Sequence[str] = tuple(PARTS)) -> None:
    """Raise ArchiveCorrupt unless all rows of ``parts`` are those that were written. An archive
    of version 1 has nothing to tell it by."""
    kept = seals(file, db)
    if kept is None:
        return
    with database.explained(file):
        db.execute("BEGIN")  # all of one moment, while somebody else may write
        try:
            found = [str(group) for group in kept.damaged(parts)]
            found = found or [f"no candidates of batch {batch}" for (batch,) in _bare(db)]
        finally:
            db.execute("COMMIT")
    if found:
        raise not_written(file, found)


def _bare(db: sqlite3.Connection) -> list[tuple[int]]:
    """Batches that have lost all their candidates, and the digest of these."""
    query = "SELECT batch FROM batch WHERE batch NOT IN (SELECT batch FROM candidate)"
    saved = db.execute("SELECT 1 FROM run WHERE key = ?", (SALVAGED,)).fetchone()
    return [] if saved else db.execute(query).fetchall()


def not_written(file: Path, found: Sequence[str]) -> database.ArchiveCorrupt:
    """What is said of groups of rows that are not what was written."""
    more = f" and {len(found) - SAID} more" if len(found) > SAID else ""
    return database.corrupt(file, f"not what was written: {', '.join(found[:SAID])}{more}")
