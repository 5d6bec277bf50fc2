"""Files that are whole or absent, and what to say when the disk does not cooperate.

The file system's side of a run: a directory that appears complete, a lock that dies with its
owner, a SQLite connection whose errors are one line for the person who gave the command, and text
files that are replaced, never half-written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

APPLICATION = 0x6C326F00  # "l2o" in the file's header: an SQLite file is not yet an archive
WAIT = 30.0
"""Seconds to wait for a lock somebody else holds on the database, such as its shell."""


class ArchiveError(ValueError):
    """One line about a run directory, for the person who named it."""


class RunExists(ArchiveError):
    """The directory for a new run is taken."""


class NotARun(ArchiveError):
    """There is no archive there."""


class RunBusy(ArchiveError):
    """Another process is writing to this run."""


class ArchiveCorrupt(ArchiveError):
    """The file is damaged; it has not been touched."""


class ArchiveNewer(ArchiveError):
    """Written by a later version of this program."""


class ArchiveFull(ArchiveError):
    """No space left; everything up to the last transaction is there."""


class NotWritable(ArchiveError):
    """The place cannot be written to, or a device fails."""


@contextmanager
def explained(file: Path) -> Iterator[None]:
    """Raise what SQLite says about ``file`` as ArchiveErrors; mistakes in the statements
    themselves (constraints, syntax) stay what they are."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise corrupt(file, str(error)) from error
        if code == sqlite3.SQLITE_FULL:
            raise _full(file) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise RunBusy(f"{file}: locked by another process for {WAIT:g} s") from error
        if code == sqlite3.SQLITE_IOERR and not _space(file):
            raise _full(file) from error
        unwritable = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)
        if code in (*unwritable, sqlite3.SQLITE_PERM):
            raise NotWritable(f"{file}: {error}") from error
        raise


@contextmanager
def _writable(file: Path) -> Iterator[None]:
    """Raise what the system says about ``file`` as ArchiveErrors."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(file) from error
        raise NotWritable(f"{file}: {error.strerror}") from error


def corrupt(file: Path, what: str) -> ArchiveCorrupt:
    return ArchiveCorrupt(f"{file}: damaged ({what}); left as it is, restore it from a copy")


def _full(file: Path) -> ArchiveFull:
    return ArchiveFull(f"{file}: no space left; nothing is lost: make room, then resume the run")


def _space(file: Path) -> bool:
    """Whether the disk has room for a page or two."""
    return shutil.disk_usage(file.parent).free > 64 * 1024


def connect(file: Path, mode: str) -> sqlite3.Connection:
    """A connection in autocommit: transactions begin and end where they are written.

    ``mode``: 'ro', 'rw' or 'rwc' (create).
    """
    uri = f"{file.absolute().as_uri()}?mode={mode}"
    if mode == "ro" and not Path(f"{file}-wal").exists() and not os.access(file.parent, os.W_OK):
        uri += "&immutable=1"  # no journal to read and no way to make one
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=WAIT)
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


def lock(file: Path) -> int:
    """Hold ``file`` until the descriptor is closed or this process dies; RunBusy if it is held."""
    with _writable(file):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(descriptor, 20).decode() or "unknown"
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise NotWritable(f"{file}: cannot be locked: {error.strerror}") from error
        raise RunBusy(
            f"{file.parent}: process {owner} is writing to this run; wait for it, or stop it"
        ) from error
    with suppress(OSError):  # a full disk: the number is only for the message above
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
    return descriptor


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Fill the directory that is yielded; when the block ends it is at ``path``, complete.

    Raises RunExists, and touches nothing, if anything is there already.
    """
    if os.path.lexists(path):
        raise _exists(path)
    staging = path.parent / f".{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        with _writable(path):
            staging.mkdir(parents=True)
            yield staging
            try:
                staging.rename(path)
            except OSError as error:
                if os.path.lexists(path):  # somebody was faster
                    raise _exists(path) from error
                raise
            _sync(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _exists(path: Path) -> RunExists:
    return RunExists(
        f"{path} exists and is never overwritten: choose another --run-dir, "
        f"or continue that run with `l2o resume {path}`"
    )


def save_text(path: Path, text: str) -> None:
    """Replace the file at ``path``; whoever reads it sees the old text or the new, all of it."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    with _writable(path):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    """Make names in ``directory`` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
