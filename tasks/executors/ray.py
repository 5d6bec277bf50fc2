"""Workers that Ray starts, on a local instance that begins and ends with the executor.

    pip install 'l2o[ray]'
    l2o search --executor ray

A worker is an actor, one process of one thread. An actor answers with bytes as worker processes
do; when an answer is there, or the actor has died, a pipe rings, and the rest is as with
processes. A Ray that the caller has initialised is used, and left as it is.

When the driver is killed, workers end at once; Ray's own agents take a minute or two to notice.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
import tempfile
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

from tasks.executors.base import Function, failure
from tasks.executors.processes import ONE_THREAD, ROOT, Processes, Worker, unpickled
from tasks.user_code import imports

ray: Any = import_module("ray")  # which type checkers take for this file

STORE = 100 << 20
"""Bytes of Ray's store of objects: jobs and results are small."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # workers see the GPUs that this process sees
}


class Ray(Processes):
    """Raises what ``ray.init`` does where an instance cannot begin."""

    def __init__(self, function: Function, context: Any, workers: int, retries: int = 2) -> None:
        self._cores, self._folder = workers, ""
        try:
            super().__init__(function, context, workers, retries)
        except BaseException:
            self._end()
            raise

    def hire(self) -> Worker:
        if not ray.is_initialized():
            self._begin()
        return _Actor(ours=bool(self._folder))

    def _begin(self) -> None:
        """An instance of our own, in a folder that nobody else reads. Its sockets lie there, whose
        paths have to be short ones."""
        short = "/tmp" if Path("/tmp").is_dir() else None
        self._folder = tempfile.mkdtemp(prefix="l2o-ray-", dir=short)
        os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
        ray.init(
            address="local",
            num_cpus=self._cores,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=STORE,
            _temp_dir=f"{self._folder}/ray",
        )

    def close(self) -> None:
        super().close()
        self._end()

    def _end(self) -> None:
        if self._folder:
            ray.shutdown()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""


class _Actor(Worker):
    """The driver's side of an actor: ``pipe`` rings once for each of its answers. ``ours``: it is
    a process of this machine, and may be looked up and killed as one."""

    def __init__(self, ours: bool) -> None:
        super().__init__()
        self._ours = ours
        self.pipe, self._button = Pipe(duplex=False)
        self._answers = deque[Future[Any]]()
        self._ending, self._pid = "died", 0
        kind = ray.remote(num_cpus=1, runtime_env={"env_vars": ONE_THREAD})(_serving())
        script = [*map(str, imports.script())]
        self._actor = kind.remote(ROOT, imports.shared_path(), script, os.getcwd())

    def send(self, data: bytes) -> None:
        answer = self._actor.answer.remote(data).future()
        answer.add_done_callback(self._ring)

    def _ring(self, answer: Future[Any]) -> None:
        self._answers.append(answer)
        with suppress(OSError):  # nobody listens any more
            self._button.send_bytes(b"!")

    def receive(self) -> tuple[float, Any] | None:
        self.pipe.recv_bytes()
        try:
            answer = self._answers.popleft().result()
        except ray.exceptions.RayActorError:
            return None
        except Exception as error:  # an actor's own, or Ray's
            return 0.0, failure(error)
        if isinstance(answer, str):
            self._ending = answer
            return None
        if isinstance(answer, int):
            self._pid = answer
            return 0.0, None
        return unpickled(answer)

    def is_gone(self) -> bool:
        if not (self._ours and self._pid):  # then Ray tells, when it has a job
            return False
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return True
        return False

    def kill(self) -> str:
        ray.kill(self._actor)
        with suppress(ProcessLookupError, PermissionError):
            if self._ours and self._pid and os.getpgid(self._pid) == self._pid:
                os.killpg(self._pid, signal.SIGKILL)  # its children, too
        self.pipe.close()
        self._button.close()
        return self._ending


def _serving() -> type:
    """The actor's side. A class within a function is sent as it is, so that an actor finds the
    project, and what the driver finds, before it imports anything of either."""

    class Serving:
        def __init__(self, root: str, path: list[str], script: list[str], folder: str) -> None:
            sys.path.insert(0, root)
            for name in ("search", "tasks"):  # the user's folder may hold others of these names
                import_module(name)
            sys.path[:] = path
            os.chdir(folder)
            sys.modules["__main__"].__file__ = script[0] if script else None
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self.run: Any = None

        def answer(self, data: bytes) -> bytes | int | str:
            """Its process number when it has built what answers jobs, then answers; in words, why
            no other job should be given to it."""
            base = import_module("tasks.executors.base")
            worker = import_module("tasks.executors.worker")
            try:
                if self.run is not None:
                    return worker.answer(self.run, data)
                self.run = worker.built(data)
                return os.getpid()
            except MemoryError:
                return base.ENDINGS[base.OUT_OF_MEMORY]
            except base.DeviceLost:
                return base.ENDINGS[base.DEVICE_LOST]
            except SystemExit as error:
                return f"exited with status {error.code}"
            except Exception as error:
                return pickle.dumps((0.0, base.failure(error)))

    return Serving
