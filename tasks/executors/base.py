"""What an executor is: jobs in, results or failures out, in any order.

A job's function is named by its import path, because it is built once in every worker.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import traceback
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from tasks.user_code import imports


class Executor(Protocol):
    """Runs jobs somewhere. ``busy`` holds the seconds each worker has spent on finished jobs."""

    busy: list[float]

    @abstractmethod
    def submit(self, job: Any, limit: float = math.inf) -> int:
        """Queue ``job``; the ticket under which its result will be reported. A worker that has it
        for longer than ``limit`` seconds may be taken for hung."""

    @abstractmethod
    def withdraw(self, ticket: int) -> bool:
        """Take back a job that nobody has begun, which is then never reported. False where somebody
        has: it is reported as if nothing had been asked."""

    @abstractmethod
    def completed(self, timeout: float | None = None) -> Iterator[tuple[int, Any]]:
        """``(ticket, result)`` as jobs finish, in any order. Ends when nothing is outstanding, or
        when nothing finished for ``timeout`` seconds. Jobs submitted meanwhile are included."""

    def close(self) -> None:
        """Stop everything now; outstanding jobs are lost."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


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
