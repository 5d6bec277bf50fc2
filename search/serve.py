"""The worker's side of the pipe: what runs in each process that ``workers.Processes`` starts.

A worker builds its ``run`` once, then answers each job with (seconds, result). Its first answer,
to the message that tells it what to build, is (0, None), or (0, Failure) if it could not.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tasks.user_code import imports

Run = Callable[[Any], Any]
Function = str | Callable[[Any], Run]

OUT_OF_MEMORY, DEVICE_LOST = 12, 13
"""Exit statuses of a worker that met a MemoryError, whose heap is not to be trusted afterwards, or
an error of a GPU, which no later call of the same process gets past."""
ENDINGS = {OUT_OF_MEMORY: "out of memory", DEVICE_LOST: "lost its device"}

DEVICE_ERRORS = ("AcceleratorError", "CudaAPIError")
"""Of torch and numba, which may not be imported."""


@dataclass(frozen=True)
class Failure:
    """The result of a job that has none: one line saying why, and the traceback if there is one."""

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}\n{self.detail}"


class DeviceLost(OSError):
    """A GPU that worked when it was checked does not work any more."""


def attempt(run: Run, job: Any) -> Any:
    """``run(job)``, or a Failure if it raises. Raises MemoryError and DeviceLost: see there."""
    try:
        return run(job)
    except MemoryError:
        raise
    except Exception as error:
        if any(kind.__name__ in DEVICE_ERRORS for kind in type(error).__mro__):
            reason = str(error).partition("\n")[0]
            raise DeviceLost(f"device: it was there and is lost: {reason}") from error
        return failure(error)


def failure(error: BaseException) -> Failure:
    """An exception as one line and its traceback."""
    line = " ".join("".join(traceback.format_exception_only(error)).split())
    return Failure(line, "".join(traceback.format_exception(error)))


def name_of(function: Function) -> str:
    """The name under which a fresh interpreter finds ``function``; ValueError if it cannot."""
    name = function if isinstance(function, str) else f"{function.__module__}:{function.__name__}"
    module, _, attribute = name.rpartition(":")
    if not attribute.isidentifier() or not module or module == "__main__":
        raise ValueError(
            f"function: {name!r} cannot be imported by a worker; "
            "must be 'package.module:function' or 'path/to/file.py:function'"
        )
    return name


def load(name: str) -> Callable[[Any], Run]:
    """Import ``"package.module:function"`` or ``"file.py:function"``."""
    module, _, attribute = name_of(name).rpartition(":")
    if not module.endswith(".py"):
        return getattr(imports.module(module), attribute)
    spec = importlib.util.spec_from_file_location(Path(module).stem, module)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, loaded)  # so that what it defines can be pickled
    spec.loader.exec_module(loaded)
    return getattr(loaded, attribute)


def serve(fileno: int) -> None:
    """The life of a worker process: build once, then jobs until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which decides
    os.set_inheritable(fileno, False)
    pipe = Connection(fileno)
    inbox: SimpleQueue[bytes] = SimpleQueue()
    try:
        threading.Thread(target=_listen, args=(pipe, inbox), daemon=True).start()
        name, context = pickle.loads(inbox.get())
        run = load(name)(context)
    except Exception as error:
        return pipe.send_bytes(pickle.dumps((0.0, failure(error))))
    pipe.send_bytes(pickle.dumps((0.0, None)))
    while True:
        job = inbox.get()
        start = time.perf_counter()
        try:
            result = attempt(lambda data: run(pickle.loads(data)), job)
            message = pickle.dumps((time.perf_counter() - start, result))
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        except DeviceLost as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(DEVICE_LOST)
        except Exception as error:  # a result that cannot be pickled
            message = pickle.dumps((time.perf_counter() - start, failure(error)))
        pipe.send_bytes(message)


def _listen(pipe: Connection, inbox: SimpleQueue[bytes]) -> None:
    with suppress(EOFError, OSError):
        while True:
            inbox.put(pipe.recv_bytes())
    os.killpg(0, signal.SIGKILL)
