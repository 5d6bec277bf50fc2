"""What a result was made with: recorded beside every result, so that it can be made again."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


LIBRARIES = ("l2o", "torch", "numpy", "numba", "scipy", "deap")


def environment(device: str = "cpu") -> dict[str, str | None]:
    """Versions, machine, device, torch's threads and the commit of the source, all as text; None
    if unknown."""
    facts: dict[str, str | None] = {name: _version(name) for name in LIBRARIES}
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return facts | {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "system": f"{platform.system()} {platform.machine()}",
        "device": name,
        "threads": str(torch.get_num_threads()),
        "commit": _commit(),
    }


def changes(then: Mapping[str, Any], device: str) -> Iterator[str]:
    """What of the environment is not as it was ``then``, a line each."""
    now = environment(device)
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            yield f"{name} was {then.get(name)} then, is {now.get(name)} now"


def prepare(device: str) -> None:
    """Check a device and make what is computed on it repeatable: same seed, same result.

    In the whole process sums are then added in a fixed order, torch has one thread (two are slower
    on small tensors, and parallelism is processes), and on a GPU float32 is not cut to 19 bits.
    Call it before anything is computed on the device. Raises ValueError as ``check_device``.
    """
    check_device(device)
    torch.set_num_threads(1)
    if not device.startswith("cuda"):
        return
    if torch.device(device).index is not None:
        torch.cuda.set_device(device)  # compiled kernels are launched on the current one
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is loaded
    torch.use_deterministic_algorithms(True, warn_only=True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def own_defaults() -> Iterator[None]:
    """Torch's defaults, float32 on the CPU, while other people's code makes tensors for us: what
    the process has set must not change what is measured. Where it is the CPU already nothing is
    set, for torch would look at each call, and small steps take twice as long."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    elsewhere = torch.get_default_device().type != "cpu"
    try:
        with torch.device("cpu") if elsewhere else nullcontext():
            yield
    finally:
        torch.set_default_dtype(before)


def check_device(device: str) -> None:
    """Raise ValueError unless torch can put tensors on ``device``."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"device: got {device!r}, expected cpu, cuda or cuda:N") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got {device!r}, but there is no CUDA device here; expected cpu")
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device: got {device!r}, expected cpu, cuda or cuda:N")
    try:
        torch.zeros(1, device=device, dtype=torch.float32)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device: got {device!r}, which does not work: {reason}") from error






def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    """The commit of the checkout this file lies in, with ``+`` if it has uncommitted changes."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *command: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *command], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
