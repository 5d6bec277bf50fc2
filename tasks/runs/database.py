"""A SQLite connection whose errors are one line for the person who gave the command."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from shlex import quote

from tasks.runs import sqlite_errors, files
from tasks.runs.sqlite_errors import WAIT, Damaged
from tasks.runs.files import RunError

APPLICATION = 0x6C326F00  # "l2o" in the file's header: an SQLite file is not yet an archive


SEALED = 2
"""The version of archives since which there are digests."""


class ArchiveError(RunError):
    """One line about an archive, for the person who named its run."""


class NotARun(ArchiveError):
    """There is no archive there."""


class ArchiveCorrupt(ArchiveError, Damaged):
    """The file is damaged; it has not been touched."""


class ArchiveNewer(ArchiveError):
    """Written by a later version of this program."""


def explained(file: Path) -> AbstractContextManager[None]:
    """Raise what SQLite says about ``file`` as RunErrors (``tasks/runs/sqlite_errors.py``)."""
    return sqlite_errors.explained(file, partial(corrupt, file))


def corrupt(file: Path, what: str) -> ArchiveCorrupt:
    return ArchiveCorrupt(
        f"{file}: damaged ({what}); left as it is: restore it from a copy, or save what is sound "
        f"with `l2o show {quote(str(file.parent))} --salvage NEW_RUN`"
    )


def connect(file: Path, mode: str) -> sqlite3.Connection:
    """A connection in autocommit: transactions begin and end where they are written.

    ``mode``: 'ro', 'rw' or 'rwc' (create).
    """
    db = sqlite3.connect(files.database(file, mode), uri=True, isolation_level=None, timeout=WAIT)
    db.execute("PRAGMA foreign_keys = ON")
    return db


def checked(file: Path, version: int) -> sqlite3.Connection:
    """A read-only connection to an undamaged archive of at most this ``version``."""
    with explained(file):
        db = connect(file, "ro")
        try:
            (application,) = db.execute("PRAGMA application_id").fetchone()
            if application != APPLICATION:
                raise NotARun(f"{file}: an SQLite file, but not an archive of a run")
            (found,) = db.execute("PRAGMA user_version").fetchone()
            if found > version:
                raise ArchiveNewer(
                    f"{file}: schema version {found}, this program knows {version}: upgrade l2o"
                )
            (state,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if state != "ok":
                raise corrupt(file, " ".join(state.split()))
        except BaseException:
            db.close()
            raise
    return db


def has_seals(db: sqlite3.Connection) -> bool:
    """Whether it keeps digests: all do since version 2."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    found = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'seal'").fetchone()
    return version >= SEALED or found is not None


@contextmanager
def closed_on_error(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Whoever opens a database keeps it open, unless it is not what it should be."""
    try:
        yield db
    except BaseException:
        db.close()
        raise
