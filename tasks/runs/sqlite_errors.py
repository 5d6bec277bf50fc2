"""What SQLite says of a file, in one line for the person who gave the command."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.checks import printable
from tasks.runs.files import NotWritable, RunBusy, RunError, full

WAIT = 30.0
"""Seconds to wait for a lock somebody else holds on the database, such as its shell."""
LOST = ("no such table", "no such column", "Could not decode", "malformed JSON")
"""How messages about contents begin that only damage explains."""
NO_DATABASE = "file is not a database"
"""What SQLite says of any other file."""
SAID = 200  # characters of what SQLite says
NONSENSE = (LookupError, TypeError, AttributeError, ArithmeticError, AssertionError)
"""What contents lead to that are not what they should be. Where there are digests they are noticed
before; of older files it has to be said of the file."""


class Damaged(RunError):
    """The file is damaged; it has not been touched."""


@contextmanager
def explained(file: Path, damaged: Callable[[str], RunError]) -> Iterator[None]:
    """Raise what SQLite says about ``file`` as RunErrors, damage as ``damaged`` makes of its
    description; mistakes in the statements themselves (constraints, syntax) stay what they are."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if str(error).startswith(LOST) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise damaged(_line(error)) from error
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


def _line(error: Exception) -> str:
    """What is said, which may quote whatever is in the file."""
    return printable(" ".join(str(error).split()))[:SAID]


def identity(file: Path) -> tuple[int, int]:
    """What tells the file at this place from another one. Raises NotWritable where it is gone."""
    try:
        found = os.stat(file)
    except OSError as error:
        raise NotWritable(
            f"{file}: gone ({error.strerror}): deleted or moved while it was written to; what it "
            "held is where it was moved to, and nothing more is kept"
        ) from error
    return found.st_dev, found.st_ino


def same(file: Path, before: tuple[int, int]) -> None:
    """Raise NotWritable unless ``file`` is still the one whose identity was ``before``: SQLite
    would go on writing to one that nobody can open any more."""
    if identity(file) != before:
        raise NotWritable(f"{file}: replaced by another file while it was written to")


def _space(file: Path) -> bool:
    """Whether the disk has room for a page or two."""
    try:
        return shutil.disk_usage(file.parent).free > 64 * 1024
    except OSError:  # the directory is gone: that is not for want of space
        return True
