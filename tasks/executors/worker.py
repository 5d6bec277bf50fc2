"""The worker's side of the pipe: what runs in each process that ``workers.Processes`` starts.

A worker builds its ``run`` once, then answers each job with (seconds, result). Its first answer,
to the message that tells it what to build, is (0, None), or (0, Failure) if it could not.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue

from tasks.executors.base import (
    DEVICE_LOST,
    OUT_OF_MEMORY,
    DeviceLost,
    Run,
    attempt,
    failure,
    load,
)


def serve(fileno: int) -> None:
    """The life of a worker process: build once, then jobs until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which decides
    os.set_inheritable(fileno, False)
    pipe = Connection(fileno)
    inbox: SimpleQueue[bytes] = SimpleQueue()
    try:
        threading.Thread(target=_listen, args=(pipe, inbox), daemon=True).start()
        run = built(inbox.get())
    except Exception as error:
        return pipe.send_bytes(pickle.dumps((0.0, failure(error))))
    pipe.send_bytes(pickle.dumps((0.0, None)))
    while True:
        try:
            message = answer(run, inbox.get())
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        except DeviceLost as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(DEVICE_LOST)
        pipe.send_bytes(message)


def built(start: bytes) -> Run:
    """What answers jobs, of the message that says what to build. Raises whatever that does."""
    name, context = pickle.loads(start)
    return load(name)(context)


def answer(run: Run, job: bytes) -> bytes:
    """A job's (seconds, result). Raises MemoryError and DeviceLost: see ``attempt``."""
    start = time.perf_counter()
    result = attempt(lambda data: run(pickle.loads(data)), job)
    seconds = time.perf_counter() - start
    try:
        return pickle.dumps((seconds, result))
    except MemoryError:
        raise
    except Exception as error:  # a result that cannot be pickled
        return pickle.dumps((seconds, failure(error)))


def _listen(pipe: Connection, inbox: SimpleQueue[bytes]) -> None:
    with suppress(EOFError, OSError):
        while True:
            inbox.put(pipe.recv_bytes())
    os.killpg(0, signal.SIGKILL)
