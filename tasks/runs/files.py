"""Files that are whole or absent, and what to say when the disk does not cooperate.

A directory that appears complete, a lock that dies with its owner, and files that are replaced,
never half-written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote

SHIPPED = Path(__file__).parents[2] / "checkpoints"
"""What was found and is delivered with the project, a folder each."""


ADVICE = {
    errno.EFBIG: ", beyond the limit that this shell sets (ulimit -f)",
    errno.EROFS: ": give a place that can be written to",
    errno.EACCES: ": give a place that you may write to",
    errno.EPERM: ": give a place that you may write to",
    errno.EIO: ": the disk fails",
    errno.EEXIST: ": something of that name is in the way",
    errno.ENOTDIR: ": a part of it is no directory",
    errno.EMFILE: ", beyond the limit that this shell sets (ulimit -n)",
}
"""What to do, by what the system says."""


class RunError(ValueError):
    """One line about a run directory or a file, for the person who named it."""


class RunExists(RunError):
    """The directory for a new run is taken."""


class RunBusy(RunError):
    """Another process is writing to this run."""


class DiskFull(RunError):
    """No space left; everything that was saved before is there."""


class NotWritable(RunError):
    """The place cannot be written to, or a device fails."""


@contextmanager
def writable(file: Path) -> Iterator[None]:
    """Raise what the system says about ``file`` as RunErrors."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not the system's, and it says itself what is wrong
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full(file) from error
        raise NotWritable(f"{file}: {error.strerror}{ADVICE.get(error.errno, '')}") from error


def or_shipped(name: str | os.PathLike[str], shipped: Path = SHIPPED) -> Path:
    """``name`` as a path; where nothing is there, the ``shipped`` folder of that name, if any."""
    path = Path(name)
    return shipped / path if not path.exists() and (shipped / path).is_dir() else path


KINDS = {
    "archive.sqlite": "a search",
    "run.json": "a meta-training",
    "theta.safetensors": "a learned optimizer",
    "rule.txt": "a program",
}
"""What a folder is, by a file in it."""


def one_thing(folder: Path) -> None:
    """Raise RunError where a folder could be loaded as several things: whoever was sent it, with a
    file more than was written, would get another rule than its report shows."""
    found = [f"{name} ({kind})" for name, kind in KINDS.items() if (folder / name).is_file()]
    if len(found) > 1:
        raise RunError(f"{folder}: holds {' and '.join(found)}, expected one of them")


def full(file: Path) -> DiskFull:
    return DiskFull(
        f"{file}: no space left; what was saved before is kept: make room, then give the command "
        "again, or l2o resume for a run that has begun"
    )


def database(file: Path, mode: str) -> str:
    """The URI of an SQLite database; ``mode``: 'ro', 'rw' or 'rwc' (create)."""
    uri = f"{file.absolute().as_uri()}?mode={mode}"
    if mode == "ro" and not Path(f"{file}-wal").exists() and not os.access(file.parent, os.W_OK):
        uri += "&immutable=1"  # no journal to read and no way to make one
    return uri


def lock(file: Path) -> int:
    """Hold ``file`` until the descriptor is closed or this process dies; RunBusy if it is held."""
    with writable(file):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
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
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        abandoned(path)
        staging, descriptor = _held(path, directory=True)
    try:
        with writable(path):
            yield staging
            try:
                staging.rename(path)
            except OSError as error:
                if os.path.lexists(path):  # somebody was faster
                    raise _exists(path) from error
                raise
            _sync(path.parent)
    finally:
        os.close(descriptor)
        shutil.rmtree(staging, ignore_errors=True)


def _exists(path: Path) -> RunExists:
    if not path.is_dir():
        return RunExists(f"--run-dir: got {path}, a file; expected a directory, which is made")
    return RunExists(
        f"{path} exists and is never overwritten: choose another --run-dir, "
        f"or continue that run with `{resuming(path)}`"
    )


def resuming(run_dir: Path, trusted: bool = False) -> str:
    """The command that goes on with a run, to be pasted; ``trusted``: one that names code."""
    return f"l2o resume {quote(str(run_dir))}{' --trust' if trusted else ''}"


def save_text(path: Path, text: str) -> None:
    """``save_bytes`` of text."""
    save_bytes(path, text.encode())


def save_bytes(path: Path, content: bytes) -> None:
    """Replace the file at ``path``; whoever reads it sees the old content or the new, all of it."""
    with writable(path):
        abandoned(path)
        temporary, descriptor = _held(path)
        try:
            with open(descriptor, "wb") as file:  # held until it has its name
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _held(path: Path, directory: bool = False) -> tuple[Path, int]:
    """A new file or directory beside ``path``, locked for as long as its writer lives."""
    while True:
        temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
        if directory:
            temporary.mkdir()
        try:
            flags = os.O_RDONLY if directory else os.O_WRONLY | os.O_CREAT | os.O_EXCL
            descriptor = os.open(temporary, flags, 0o666)
        except FileNotFoundError:
            if not directory:
                raise
            continue  # taken for abandoned before it was opened
        with suppress(OSError):  # file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if temporary.exists() or not path.parent.exists():  # gone with all else: told later
            return temporary, descriptor
        os.close(descriptor)  # taken for abandoned before it was locked


def abandoned(path: Path) -> None:
    """Remove what writers of ``path``, a file or a directory, left beside it when they were
    killed: what nobody holds any more."""
    left = re.compile(rf"\.{re.escape(path.name)}-[0-9a-f]{{8}}")
    for found in path.parent.iterdir() if path.parent.is_dir() else ():
        if left.fullmatch(found.name):
            with suppress(OSError):
                _remove(found)


def _remove(left: Path) -> None:
    """Unless somebody holds it: BlockingIOError."""
    descriptor = os.open(left, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    finally:
        os.close(descriptor)


def _sync(directory: Path) -> None:
    """Make names in ``directory`` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
