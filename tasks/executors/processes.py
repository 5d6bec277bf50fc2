"""Worker processes that may hang, crash or be killed without harming the run.

The search hands out *jobs* (plain data) and takes results back as they finish, through three
calls: ``submit``, ``withdraw``, ``completed``. ``Inline`` runs jobs in this process, ``Processes``
in several. Where somebody else starts the workers, theirs is another ``Worker``, and queue, limits
and retries are the same.

A thread of the driver hands jobs to processes and takes their results, so that no worker waits
for its next job while the driver is busy making candidates.

What a worker does is named, not passed: ``"package.module:function"`` or ``"file.py:function"``.
The worker calls ``function(context)`` once, which builds whatever is expensive (tasks, compiled
kernels) and returns ``run(job) -> result``. Nothing a job does raises in the driver: its result
is then a ``Failure`` that says why.

A worker is a fresh interpreter in a session of its own. Not a fork, because the threads of torch
and numba do not survive one; not ``multiprocessing`` either, which would import the driver's main
module again. It reads its pipe in a thread, so jobs can be sent while it is still importing, and
it kills its whole process group when the pipe closes: a driver that dies, however it dies, leaves
no orphans.
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from tasks.executors.base import (
    ENDINGS,
    Executor,
    Failure,
    Function,
    failure,
    name_of,
)
from tasks.runs.files import RunError
from tasks.user_code import imports

ROOT = str(Path(__file__).resolve().parents[2])
TICK = 0.1
"""Seconds between looks at deadlines and at dead workers."""
START_LIMIT = 600.0
"""Seconds a worker may take to import and build before it counts as hung."""
JOIN_LIMIT = 5.0
"""Seconds that ``close`` waits for the thread, which may wait for ever itself: Ctrl-C between
``Condition.__enter__`` and its block leaves the lock taken."""
ONE_THREAD = {
    f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA", "VECLIB_MAXIMUM")
}


@dataclass
class _Job:
    ticket: int
    data: bytes
    limit: float  # seconds
    attempts: int = 0


class Worker(ABC):
    """Where jobs run: ``pipe`` has something to read when there is news, an answer or the end."""

    pipe: Connection

    def __init__(self) -> None:
        self.job: _Job | None = None
        self.ready = False
        self.deadline = math.inf

    @abstractmethod
    def send(self, data: bytes) -> None:
        """What to build, at first, then jobs; to one that is dead, too."""

    @abstractmethod
    def receive(self) -> tuple[float, Any] | None:
        """The next (seconds, result), or None if the worker is gone."""

    @abstractmethod
    def is_gone(self) -> bool:
        """Whether it has ended."""

    @abstractmethod
    def kill(self) -> str:
        """End it and its children; how it ended."""


class Process(Worker):
    """A process, and the driver's end of its pipe."""

    def __init__(self) -> None:
        super().__init__()
        self.pipe, theirs = Pipe()
        script = "".join(f"__file__ = {str(path)!r}; " for path in imports.script())
        code = (  # first our packages, which import nothing else; a user may have a folder `search`
            f"import sys; sys.path.insert(0, {ROOT!r}); import search, tasks; "
            # A path may hold what PYTHONPATH is split at. The script says where the user is.
            f"sys.path[:] = {imports.shared_path()!r}; {script}"
            f"from tasks.executors.worker import serve; serve({theirs.fileno()})"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            env=os.environ | ONE_THREAD,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a job prints must not mix with the driver's output
            start_new_session=True,
        )
        theirs.close()

    def send(self, data: bytes) -> None:
        with suppress(OSError):  # a dead worker is noticed when its pipe is read
            self.pipe.send_bytes(data)

    def receive(self) -> tuple[float, Any] | None:
        try:
            data = self.pipe.recv_bytes()
        except (EOFError, OSError):
            return None
        return unpickled(data)

    def is_gone(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> str:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        status = self.process.wait()
        self.pipe.close()
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        return ENDINGS.get(status, f"exited with status {status}")


def unpickled(data: bytes) -> tuple[float, Any]:
    """An answer as (seconds, result)."""
    try:
        return pickle.loads(data)
    except Exception as error:
        return 0.0, failure(error)


class Processes(Executor):
    """Runs jobs in ``workers`` processes of one thread each.

    What is in here is the thread's (``_tend``); what it shares with its caller, jobs, queue and
    results, is touched under the lock of ``_news``.

    A worker that dies, or is over its job's limit, is replaced and the job run again, at most
    ``retries`` times. An exception in a job is not retried. ``completed`` raises RuntimeError only
    when no worker at all can be started.
    """

    def __init__(self, function: Function, context: Any, workers: int, retries: int = 2) -> None:
        if workers < 1:
            raise ValueError(f"workers: {workers}; must be 1 or more")
        if retries < 0:
            raise ValueError(f"retries: {retries}; must be 0 or more")
        self._start = pickle.dumps((name_of(function), context))
        self._retries = retries
        self._jobs: dict[int, _Job] = {}  # everything outstanding, so not what was withdrawn
        self._queue: deque[_Job] = deque()
        self._finished: deque[tuple[int, Any]] = deque()
        self._tickets = 0
        self._started = False  # has any worker ever got as far as taking jobs?
        self._closed = False
        self._error: Exception | None = None  # that ended the thread
        self._news = threading.Condition()
        self._bell, self._button = Pipe(duplex=False)  # wakes the thread
        self.busy = [0.0] * workers
        self._workers: list[Worker | None] = [self.hire() for _ in range(workers)]
        for worker in filter(None, self._workers):
            worker.send(self._start)
        self._thread = threading.Thread(target=self._tend, daemon=True)
        self._thread.start()

    def hire(self) -> Worker:
        """A new worker, which has not been sent anything."""
        return Process()

    def submit(self, job: Any, limit: float = math.inf) -> int:
        if self._closed:
            raise RuntimeError("submit after close")
        if not limit > 0:
            raise ValueError(f"limit: {limit}; must be more than 0 seconds")
        data = pickle.dumps(job)
        with self._news:
            self._tickets += 1
            self._jobs[self._tickets] = _Job(self._tickets, data, limit)
            self._queue.append(self._jobs[self._tickets])
        self._button.send_bytes(b"job")
        return self._tickets

    def withdraw(self, ticket: int) -> bool:
        with self._news:
            job = self._jobs.get(ticket)
            return job is not None and not job.attempts and self._jobs.pop(ticket) is job

    def completed(self, timeout: float | None = None) -> Iterator[tuple[int, Any]]:
        while True:
            with self._news:
                self._news.wait_for(self._anything, timeout)
                if not self._finished:
                    if self._error:
                        raise self._error
                    return
                ticket, result = self._finished.popleft()
                wanted = self._jobs.pop(ticket, None)
            if wanted:
                yield ticket, result

    def _anything(self) -> bool:
        """Whether ``completed`` has something to do: report, raise or end."""
        return bool(self._finished or self._error or not self._jobs)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._button.send_bytes(b"close")
        self._thread.join(JOIN_LIMIT)
        for worker in filter(None, self._workers):
            worker.kill()
        self._jobs.clear()

    def _tend(self) -> None:
        """The life of the thread: jobs out, results in, until ``close``."""
        try:
            while not self._closed:
                pipes = [worker.pipe for worker in filter(None, self._workers)]
                ready = wait([self._bell, *pipes], TICK)
                with self._news:
                    if self._bell in ready:
                        self._bell.recv_bytes()
                    self._collect(ready)
                    self._dispatch()
                    self._news.notify_all()
        except Exception as error:
            with self._news:
                self._error = error
                self._news.notify_all()

    def _dispatch(self) -> None:
        """Give queued jobs to idle workers; start one where there is none."""
        for place, worker in enumerate(self._workers):
            if worker and worker.job:
                continue
            while self._queue and self._queue[0].ticket not in self._jobs:
                self._queue.popleft()
            if not self._queue:
                return
            if worker and worker.is_gone():
                worker.kill()
                worker = None
            if worker is None:
                worker = self._workers[place] = self.hire()
                worker.send(self._start)
            worker.job = self._queue.popleft()
            worker.job.attempts += 1
            worker.send(worker.job.data)
            worker.deadline = time.monotonic() + self._limit(worker)

    def _collect(self, ready: list[Any]) -> None:
        """Take note of what has happened. ``ready``: the pipes that have something to say."""
        now = time.monotonic()
        for place, worker in enumerate(self._workers):
            if worker is None:
                continue
            if worker.pipe in ready:
                self._receive(place, worker)
            elif worker.pipe.poll():
                continue  # arrived since: next time, ahead of any deadline
            elif worker.is_gone():
                self._lose(place, worker)
            elif now > worker.deadline:
                self._lose(place, worker, f"not finished after {self._limit(worker):g} s")

    def _limit(self, worker: Worker) -> float:
        return worker.job.limit if worker.ready and worker.job else START_LIMIT

    def _receive(self, place: int, worker: Worker) -> None:
        message = worker.receive()
        if message is None:
            return self._lose(place, worker)
        seconds, result = message
        if worker.ready:
            assert worker.job is not None
            self._finished.append((worker.job.ticket, result))
            self.busy[place] += seconds
            worker.job, worker.deadline = None, math.inf
        elif isinstance(result, Failure):
            if not self._started:
                raise RunError(f"workers cannot start: {result.reason}") from RuntimeError(
                    str(result)
                )
            self._lose(place, worker, f"worker could not be replaced: {result.reason}")
        else:
            self._started = worker.ready = True
            worker.deadline = time.monotonic() + worker.job.limit if worker.job else math.inf
        return None

    def _lose(self, place: int, worker: Worker, reason: str | None = None) -> None:
        """Bury a worker; its job goes to the head of the queue, or fails for good."""
        ending = worker.kill()
        self._workers[place] = None
        job = worker.job
        if job is None:
            return
        if job.attempts <= self._retries:
            self._queue.appendleft(job)
        else:
            why = reason or f"worker {ending}"
            self._finished.append((job.ticket, Failure(f"{why} (attempt {job.attempts})")))
