"""A SQLite connection whose errors are one line for the person who gave the command."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.files import NotWritable, RunBusy, RunError, database, full

APPLICATION = 0x6C326F00  # "l2o" in the file's header: an SQLite file is not yet an archive
WAIT = 30.0
"""Seconds to wait for a lock somebody else holds on the database, such as its shell."""


class ArchiveError(RunError):
    """One line about an archive, for the person who named its run."""


class NotARun(ArchiveError):
    """There is no archive there."""


class ArchiveCorrupt(ArchiveError):
    """The file is damaged; it has not been touched."""


class ArchiveNewer(ArchiveError):
    """Written by a later version of this program."""


@contextmanager
def explained(file: Path) -> Iterator[None]:
    """Raise what SQLite says about ``file`` as RunErrors; mistakes in the statements
    themselves (constraints, syntax) stay what they are."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        lost = str(error).startswith(("no such table", "no such column", "Could not decode"))
        if lost or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise corrupt(file, str(error)) from error
        if code == sqlite3.SQLITE_FULL:
            raise full(file) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise RunBusy(f"{file}: locked by another process for {WAIT:g} s") from error
        if code == sqlite3.SQLITE_IOERR and not _space(file):
            raise full(file) from error
        unwritable = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)
        if code in (*unwritable, sqlite3.SQLITE_PERM):
            raise NotWritable(f"{file}: {error}") from error
        raise


def corrupt(file: Path, what: str) -> ArchiveCorrupt:
    return ArchiveCorrupt(f"{file}: damaged ({what}); left as it is, restore it from a copy")


def _space(file: Path) -> bool:
    """Whether the disk has room for a page or two."""
    return shutil.disk_usage(file.parent).free > 64 * 1024


def connect(file: Path, mode: str) -> sqlite3.Connection:
    """A connection in autocommit: transactions begin and end where they are written.

    ``mode``: 'ro', 'rw' or 'rwc' (create).
    """
    db = sqlite3.connect(database(file, mode), uri=True, isolation_level=None, timeout=WAIT)
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
