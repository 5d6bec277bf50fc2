"""What the workers of test_workers.py do: one function, many ways to misbehave."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def build(context: Any) -> Callable[[Any], Any]:
    """A job is (deed, argument); a deed 'once' misbehaves only the first time, by a marker file."""

    def run(job: tuple[str, Any]) -> Any:
        deed, argument = job
        if deed.startswith("once "):
            try:
                Path(argument).touch(exist_ok=False)
            except FileExistsError:
                return "survived"
            deed = deed.removeprefix("once ")
        return DEEDS[deed](argument, context)

    return run


def cannot_build(context: Any) -> Callable[[Any], Any]:
    raise ValueError(f"no task called {context!r}")


def _segfault(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _out_of_memory(*_: Any) -> None:
    raise MemoryError


class AcceleratorError(RuntimeError):
    """As torch calls it."""


def _lose_device(*_: Any) -> None:
    raise AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")


def _raise(argument: Any, _: Any) -> None:
    raise KeyError(argument)


def _child(argument: str, _: Any) -> None:
    """Leave a child's pid in a file and hang with it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(argument).write_text(f"{os.getpid()} {child.pid}\n")
    time.sleep(600)


def _threads(*_: Any) -> int:
    import torch

    return torch.get_num_threads()


DEEDS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda argument, context: argument + context,
    "sleep": lambda argument, _: time.sleep(argument) or argument,
    "pid": lambda *_: os.getpid(),
    "interrupt": lambda *_: os.kill(os.getpid(), signal.SIGINT) or "unmoved",
    "hang": lambda *_: time.sleep(600),
    "unpicklable": lambda *_: lambda: None,
    "print": lambda argument, _: print(argument),
    "size": lambda argument, _: len(argument),
    "exit": lambda *_: sys.exit(3),
    "segfault": _segfault,
    "die": _die,
    "out of memory": _out_of_memory,
    "lose device": _lose_device,
    "raise": _raise,
    "child": _child,
    "threads": _threads,
}
