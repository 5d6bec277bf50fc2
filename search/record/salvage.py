"""What is sound of a damaged archive, as a run of its own that can be looked at.

Every group of rows that still has its digest is copied, one after the other, so that a page that
cannot be read costs no more than what lies on it. The copy is not gone on with: a search is a
function of all its rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from search.record.archive import FILE, to_json
from search.record.schema import PARTS, SALVAGED, SCHEMA
from tasks.runs import database, files
from tasks.runs.database import explained
from tasks.runs.seals import Group, Seals, digest


def salvage(run_dir: Path, new: Path) -> list[str]:
    """Make the run ``new`` of what is sound of ``run_dir``; the groups that are lost, in words.

    Raises ArchiveError where nothing can be vouched for: no digests, or no configuration.
    """
    file = run_dir / FILE
    with explained(file), closing(database.connect(file, "ro")) as old:
        if not database.has_seals(old):
            raise database.ArchiveError(
                f"{file}: of a version that kept no digests, which would tell what is sound of it"
            )
        groups = Seals(old, PARTS).sealed()
        sound = {group: rows for group in groups if (rows := _sound(old, group))}
    if Group("run", ("config",)) not in sound:
        raise database.ArchiveError(f"{file}: nothing can be saved: its configuration is lost")
    lost = [str(group) for group in groups if group not in sound]
    with (
        files.new_directory(new) as staging,
        explained(new),
        closing(database.connect(staging / FILE, "rwc")) as db,
    ):
        db.executescript(SCHEMA)
        db.execute("PRAGMA foreign_keys = OFF")  # parents may be among what is lost
        db.execute("BEGIN")
        for group, rows in sound.items():
            _copy(db, group.part, rows)
        _consistent(db)
        db.execute("INSERT OR REPLACE INTO run VALUES (?, ?)", (SALVAGED, to_json(lost)))
        Seals(db, PARTS).renew()
        db.execute("COMMIT")
    return lost


def _sound(db: sqlite3.Connection, group: Group) -> list[Any]:
    """The rows of a group; none if they cannot be read or are not what was written."""
    try:
        kept = db.execute(
            "SELECT digest FROM seal WHERE part = ? AND name = ?", (group.part, group.name)
        ).fetchone()
        rows = PARTS[group.part].rows(db, group.key)
    except sqlite3.DatabaseError:
        return []
    return rows if kept and kept[0] == digest(rows) else []


def _copy(db: sqlite3.Connection, part: str, rows: Sequence[Sequence[Any]]) -> None:
    if part == "candidate":
        for batch, id, parent, mutation, fate, lr, score, ladder, original, program, *own in rows:
            if program is not None:
                _insert(db, "program", (program, *own))
            known = (id, batch, parent, program, mutation, fate, lr, score, ladder, original)
            _insert(db, "candidate", known)
        return
    for row in rows:
        _insert(db, part, row[1:] if part == "evaluation" else row)


def _insert(db: sqlite3.Connection, table: str, row: Sequence[Any]) -> None:
    db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def _consistent(db: sqlite3.Connection) -> None:
    """Leave out what is about candidates that are lost: their measurements, and the verdict."""
    there = "(SELECT id FROM candidate)"
    db.execute(f"DELETE FROM evaluation WHERE candidate NOT IN {there}")
    gone = f"rule GLOB '[0-9]*' AND CAST(rule AS INTEGER) NOT IN {there}"
    if db.execute(f"DELETE FROM final WHERE {gone}").rowcount:
        db.execute("DELETE FROM run WHERE key IN ('winner', 'finalists')")
    winner = f"key = 'winner' AND value != 'null' AND CAST(value AS INTEGER) NOT IN {there}"
    db.execute(f"DELETE FROM run WHERE {winner}")
