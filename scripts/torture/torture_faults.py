"""What can happen to a job: kills, signals, full disks, directories that vanish, damaged files."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torture_subjects import Subject

from l2o.cli.main import main

LIMIT = 300.0
"""Seconds after which a job hangs."""


class Ended(NamedTuple):
    """How a process ended: its status, negative for a signal, and what it said."""

    status: int
    said: str


class Job:
    """A command in a process of its own, a copy of this one, so that it starts at once."""

    def __init__(
        self,
        subject: Subject,
        place: Path,
        largest: int | None = None,
        log: Path | None = None,
    ) -> None:
        self.log = log or place / "log.txt"
        arguments = subject.commands(place)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(arguments, largest)

    def _run(self, arguments: list[str], largest: int | None) -> None:
        """In the copy; ``largest``: bytes that a file may have there."""
        status = 70
        try:
            os.setsid()
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(log, stream)
            torch.set_num_threads(1)
            if largest is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
            status = main(arguments)
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
            os._exit(status)

    def children(self) -> list[int]:
        """The processes that it has started, and theirs."""
        parents = _parents()
        family = {self.pid}
        while more := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= more
        return sorted(family - {self.pid})

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Until it ends by itself, or hangs."""
        deadline = time.monotonic() + LIMIT
        while not (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return Ended(-1000, "it hung")
            time.sleep(0.005)
        said = self.log.read_text(errors="replace") if self.log.exists() else ""
        return Ended(os.waitstatus_to_exitcode(found[1]), said)


def _parents() -> dict[int, int]:
    """Of every process here."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError, ValueError, IndexError):
                found[int(entry.name)] = int(
                    (entry / "stat").read_text().rpartition(")")[2].split()[1]
                )
    return found


class Case(NamedTuple):
    """A job that something is to happen to, after ``pause`` seconds, as ``rng`` says."""

    subject: Subject
    place: Path
    pause: float
    rng: random.Random


def completed(case: Case) -> str:
    """Go on with a job to its end; what is wrong about that, if anything."""
    ended = Job(case.subject, case.place).wait()
    return "" if ended.status == 0 else f"status {ended.status}: {ended.said[-500:]}"


def _killed(case: Case, kill: Callable[[Job], None]) -> str:
    job = Job(case.subject, case.place)
    time.sleep(case.pause)
    kill(job)
    return _clean(job.wait(), (0, -signal.SIGKILL))


def kill_driver(case: Case) -> str:
    """``kill -9`` of the process; its workers notice."""
    return _killed(case, lambda job: job.send(signal.SIGKILL))


def kill_group(case: Case) -> str:
    """``kill -9`` of the process and of all that it has started."""

    def kill(job: Job) -> None:
        workers = job.children()
        job.send(signal.SIGKILL)
        _kill(workers)

    return _killed(case, kill)


def kill_workers(case: Case) -> str:
    """``kill -9`` of the workers alone; where there are none, of the process."""

    def kill(job: Job) -> None:
        workers = job.children()
        _kill(workers)
        if not workers:
            job.send(signal.SIGKILL)

    return _killed(case, kill)


def _kill(processes: list[int]) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_at_once(case: Case) -> str:
    """Several starts, each killed within its first moments."""
    for _ in range(3):
        wrong = kill_driver(case._replace(pause=case.rng.uniform(0, 0.15)))
        if wrong:
            return wrong
    return ""


def signalled(case: Case) -> str:
    """Ctrl-C once or twice, a terminal that is closed, SIGTERM, a stop and its end."""
    job = Job(case.subject, case.place)
    time.sleep(case.pause)
    number = case.rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGSTOP))
    for _ in range(case.rng.choice((1, 2)) if number == signal.SIGINT else 1):
        job.send(number)
        time.sleep(0.01)
    if number == signal.SIGSTOP:
        time.sleep(0.05)
        job.send(signal.SIGCONT)
    return _clean(job.wait(), (0, 130, -number))


def _clean(ended: Ended, statuses: tuple[int, ...], lines: int | None = None) -> str:
    if "Traceback" in ended.said:
        return f"a traceback: {ended.said.strip().splitlines()[-1]}"
    if ended.status not in statuses:
        return f"status {ended.status}, expected {statuses}: {ended.said[-500:]}"
    errors = [line for line in ended.said.splitlines() if line.startswith("l2o ")]
    if lines is not None and len(errors) != lines:
        return f"{len(errors)} lines of errors, expected {lines}: {ended.said[-500:]}"
    return ""


def limited(case: Case) -> str:
    """No file may have more than some kilobytes."""
    size = case.rng.randrange(16, 400) * 1024
    return _clean(Job(case.subject, case.place, largest=size).wait(), (0, 2))


def small_disk(case: Case) -> str:
    """A run on a disk that is full after some kilobytes, and grows."""
    disk = case.place / "disk"
    disk.mkdir()
    if not _mounted(disk, case.rng.randrange(64, 600) * 1024):
        return limited(case)
    try:
        there = case._replace(place=disk)
        wrong = _clean(Job(case.subject, disk, log=case.place / "log.txt").wait(), (0, 2))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        wrong = wrong or completed(there)
        shutil.copytree(disk / "run", case.place / "run", dirs_exist_ok=True)
        return wrong
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def _mounted(folder: Path, size: int) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def vanish(case: Case) -> str:
    """The directory of a run is moved away while it is written to, and back afterwards."""
    job = Job(case.subject, case.place)
    time.sleep(case.pause)
    run, away = case.place / "run", case.place / "away"
    moved = run.is_dir()
    if moved:
        run.rename(away)
    ended = job.wait()
    if moved:
        shutil.rmtree(run, ignore_errors=True)
        away.rename(run)
    return _clean(ended, (0, 2) if moved else (0,))


FAULTS: dict[str, Callable[[Case], str]] = {
    "kill -9 of the process": kill_driver,
    "kill -9 of all its processes": kill_group,
    "kill -9 of its workers": kill_workers,
    "kill -9 of three starts": kill_at_once,
    "signals": signalled,
    "a limit on files": limited,
    "directory moved away": vanish,
}


def damage(file: Path, rng: random.Random) -> str:
    """Change a file as disks and people do; what was done."""
    kinds = [_flip, _overwrite, _cut, _swap]
    if file.suffix == ".sqlite":
        kinds += [_rewrite] * 4
    kind = rng.choice(kinds)
    kind(file, rng)
    return kind.__name__.lstrip("_")


def _flip(file: Path, rng: random.Random) -> None:
    """One bit."""
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def _overwrite(file: Path, rng: random.Random) -> None:
    """Up to 64 bytes."""
    content = file.read_bytes()
    start, length = rng.randrange(len(content)), rng.randrange(1, 65)
    file.write_bytes(content[:start] + rng.randbytes(length) + content[start + length :])


def _cut(file: Path, rng: random.Random) -> None:
    """Its end."""
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content))])


def _swap(file: Path, rng: random.Random) -> None:
    """Two blocks."""
    content = bytearray(file.read_bytes())
    size = min(512, len(content) // 3)
    one, other = (rng.randrange(len(content) - size) for _ in range(2))
    first, second = content[one : one + size], content[other : other + size]
    content[one : one + size], content[other : other + size] = second, first
    file.write_bytes(content)


VALUES = ("NULL", "''", "'[]'", "'{'", "-1", "0", "1e300", "9e999", "x'ff00'", "'\n'", "2e-308")


def _rewrite(file: Path, rng: random.Random) -> None:
    """Valid SQLite with other contents: a value, a row less, a row twice, a table less."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        names = [
            name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")
        ]
        table = rng.choice(names)
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        column, value = rng.choice(columns), rng.choice(VALUES)
        if rng.random() < 0.05:
            db.execute(f"DROP TABLE {table}")
            return
        count = db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        order = f"ORDER BY {', '.join(columns)} LIMIT 1 OFFSET {rng.randrange(max(1, count))}"
        row = db.execute(f"SELECT {', '.join(columns)} FROM {table} {order}").fetchone()
        if row is None:
            return
        where = " AND ".join(f"{name} IS ?" for name in columns)
        with suppress(sqlite3.IntegrityError):  # SQLite refuses some
            if rng.random() < 0.3:
                db.execute(f"DELETE FROM {table} WHERE {where}", row)
            else:
                db.execute(f"UPDATE {table} SET {column} = {value} WHERE {where}", row)
