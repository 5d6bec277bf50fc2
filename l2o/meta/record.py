"""What a meta-training run has written of itself, read back: damage is named, never passed on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import Tensor

from l2o import checkpoint
from tasks.runs import tensors
from tasks.runs.files import RunError
from tasks.runs.nesting import check_digest, from_json

VERSION = 1
STATE_VERSION = 2
FACTS = "run.json"
STATE = checkpoint.STATE
HEADER = ("format_version", "config", "record", "seconds")


def is_run(run_dir: Path) -> bool:
    """Whether there is a meta-training run, of any version."""
    return (run_dir / FACTS).is_file()


def facts(run_dir: Path) -> dict[str, Any]:
    """What ``begin`` wrote. Raises RunError where that is nothing, or of another version."""
    if not is_run(run_dir):
        raise RunError(f"{run_dir}: not a meta-training run: it has no {FACTS}")
    try:
        found = from_json((run_dir / FACTS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{run_dir / FACTS}: damaged: {error}") from error
    got = found.get("format_version") if isinstance(found, dict) else None
    if got != VERSION:
        raise RunError(f"{run_dir / FACTS}: format_version is {got}, expected {VERSION}")
    if missing := [name for name in ("command", "config", "environment") if name not in found]:
        raise RunError(f"{run_dir / FACTS}: damaged: it has no {', '.join(missing)}")
    try:
        check_digest(found)
    except ValueError as error:
        raise RunError(f"{run_dir / FACTS}: damaged: {error}") from error
    return found


class Saved(NamedTuple):
    """A run as of its last save. ``history``: held-out evaluations, ``{"step", "score",
    "objectives": {task: [one a seed]}}``; ``adam``: Adam's objectives, task by task; ``config``:
    what it was made with."""

    tensors: dict[str, Tensor]
    history: list[dict[str, Any]]
    adam: list[list[float]]
    seconds: float
    config: dict[str, Any]


def saved(run_dir: Path, wanted: Sequence[str] | None = None) -> Saved | None:
    """What a run can go on from, all of its tensors or those ``wanted``; None before the first
    save. Raises RunError for a file that is damaged or of another version."""
    path = run_dir / STATE
    if not path.exists():
        return None
    try:
        header, found = tensors.read(path, HEADER, wanted)
    except (SafetensorError, ValueError) as error:
        raise RunError(f"{path}: damaged: {error}") from error
    if header.get("format_version") != STATE_VERSION:
        got = header.get("format_version")
        raise RunError(f"{path}: format_version is {got}, expected {STATE_VERSION}")
    known = {*header, *found}
    if missing := [x for x in ("record", "seconds", "config", *(wanted or ())) if x not in known]:
        raise RunError(f"{path}: damaged: it has no {', '.join(missing)}")
    try:
        history, adam = _record(header["record"])
        return Saved(found, history, adam, float(header["seconds"]), dict(header["config"]))
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
        raise RunError(f"{path}: damaged: no record of a run ({said})") from error


def _record(found: Any) -> tuple[list[dict[str, Any]], list[list[float]]]:
    """History and Adam's objectives, as ``Saved`` has them."""
    history = [
        {
            "step": int(past["step"]),
            "score": float(past["score"]),
            "objectives": {task: [*map(float, own)] for task, own in past["objectives"].items()},
        }
        for past in found["history"]
    ]
    adam = [[*map(float, seeds)] for seeds in found["adam"]]
    shapes = [[*map(len, adam)], *([*map(len, past["objectives"].values())] for past in history)]
    if not history or any(shape != shapes[0] for shape in shapes):
        raise ValueError("expected evaluations of the same tasks and seeds, one at least")
    return history, adam
