"""Learned optimizers on disk: a folder with ``theta.safetensors`` and ``card.json``.

The tensors' file alone is enough to load from: its header names the format, the architecture, its
constructor arguments and whether it was meta-trained in muP (in older files only the card says
that, so these need it). The card repeats them for people and adds what they want to know: the
command, the seed, the scores, the licence. Both files are replaced atomically, tensors first, so
that a run killed while saving leaves the old or the new optimizer, never half of one. Nothing is
pickled, nothing in a checkpoint is executed. An architecture of the user's own goes by its import
path; it is imported where the user agrees to that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from l2o.architectures.named import architectures, name_of, own
from l2o.base import LearnedOptimizer, ThetaError, saved_fields
from tasks.checks import plausible
from tasks.runs import tensors
from tasks.runs.files import save_bytes, save_text, writable
from tasks.runs.nesting import check_digest, from_json, with_digest
from tasks.user_code.imports import Trusted, agreed

VERSION = 1
TENSORS = "theta.safetensors"
CARD = "card.json"
HEADER = ("format_version", "architecture", "arguments", "mup")
BEST, STATE = "best", "state.safetensors"
"""Where a meta-training run has its best optimizer, and the file that has that, too."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or is not what its header says."""


class Checkpoint(NamedTuple):
    """What ``load`` returns: ``optimizer.rule(theta)`` is ready to run."""

    optimizer: LearnedOptimizer
    theta: Tensor  # [D]
    card: dict[str, Any]


def save(
    folder: str | Path,
    optimizer: LearnedOptimizer,
    theta: Tensor,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write ``theta [D]``; ``card`` is anything that JSON can hold.

    Raises CheckpointError for a class that could not be found again and ThetaError for a ``theta``
    that does not fit.
    """
    if theta.ndim != 1:
        raise ThetaError(f"theta: got shape {list(theta.shape)}, expected one vector [D]")
    if theta.dtype != torch.float32:
        raise ThetaError(f"theta: got {theta.dtype}, expected torch.float32")
    try:
        architecture = name_of(type(optimizer))
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    named = {k: v.detach().cpu().contiguous() for k, v in optimizer.named(theta).items()}
    header = {
        "format_version": VERSION,
        "architecture": architecture,
        "arguments": optimizer.arguments(),
        "mup": bool(card and card.get("mup")),
    }
    folder = Path(folder)
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    save_bytes(folder / TENSORS, tensors.to_bytes(named, header))
    readable = with_digest(header | {"meta_parameters": optimizer.size} | dict(card or {}))
    save_text(folder / CARD, json.dumps(readable, indent=2) + "\n")


def load(folder: str | Path, trusted: Trusted | None = False, **unsaved: Any) -> Checkpoint:
    """Read what ``save`` wrote. ``unsaved``: fields that no file can hold, such as ``nominal``.

    ``trusted``: whether the code that it names may be run; None: the user was asked before.

    Raises ValueError where it may not; CheckpointError, with the file and the reason, for a missing
    or damaged file, another format version, an unknown architecture, unsuitable arguments, tensors
    of other shapes or precision, values that are not finite, or nothing that says whether it is for
    muP.
    """
    path = Path(folder) / TENSORS
    header, named = _read(path)
    found = header.get("format_version")
    if found != VERSION or isinstance(found, bool):
        raise CheckpointError(f"{path}: format_version is {found}, expected {VERSION}")
    architecture = str(header.get("architecture"))
    if trusted is not None and _imports(architecture):
        agreed(_imports(architecture), trusted, Path(folder))
    kind = _kind(path, architecture)
    for name, tensor in named.items():
        if tensor.dtype != torch.float32:
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}, expected torch.float32")
    arguments = header.get("arguments", {})
    try:
        _check_names(kind, arguments)
        optimizer = kind(**arguments, **unsaved)
        _check_layers(optimizer, len(named))
        theta = optimizer.flatten(named)
        optimizer.named(theta)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # sizes beyond all memory
        raise CheckpointError(f"{path}: not a {architecture}: {error}") from error
    card = read_card(folder)
    if "mup" in header:
        card["mup"] = header["mup"]
    elif not card:
        raise CheckpointError(f"{path}: does not say whether it is for muP, and has no {CARD}")
    if not isinstance(card.get("mup", False), bool):
        raise CheckpointError(f"{path}: mup is {card['mup']!r}, expected true or false")
    return Checkpoint(optimizer, theta, card)


def load_best(run_dir: Path, trusted: Trusted | None = False) -> Checkpoint:
    """The best of a meta-training, as ``load`` reads it.

    Raises CheckpointError, too, where it is not the one that the run itself has for its best.
    """
    found = load(run_dir / BEST, trusted)
    state = run_dir / STATE
    try:
        kept = tensors.read(state, (), ("best",))[1] if state.is_file() else {"best": found.theta}
    except (ValueError, SafetensorError, OSError) as error:
        raise CheckpointError(f"{state}: damaged: {error}") from error
    if "best" not in kept or not torch.equal(kept["best"].float(), found.theta):
        raise CheckpointError(
            f"{run_dir / BEST}: is not the best of {state}: somebody changed one of them, or the "
            f"run was killed between the two; l2o resume {run_dir} writes it anew"
        )
    return found


def read_card(folder: str | Path) -> dict[str, Any]:
    """The card; empty when there is none. Raises CheckpointError when it is not a JSON object."""
    path = Path(folder) / CARD
    if not path.exists():
        return {}
    try:
        card = from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    if not isinstance(card, dict):
        raise CheckpointError(f"{path}: got a JSON {type(card).__name__}, expected an object")
    try:
        check_digest(card)
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    return card


def imports(folder: str | Path) -> list[str]:
    """The import path of the architecture, if it is of the user's own. Raises CheckpointError for
    what cannot be read."""
    header, _ = _read(Path(folder) / TENSORS, [])
    return _imports(str(header.get("architecture")))


def _imports(architecture: str) -> list[str]:
    return [architecture] if ":" in architecture else []


def _kind(path: Path, architecture: str) -> type[LearnedOptimizer]:
    known = architectures()
    if architecture in known:
        return known[architecture]
    if not _imports(architecture):
        raise CheckpointError(
            f"{path}: architecture is {architecture!r}, expected one of {', '.join(known)}, or "
            "package.module:Class"
        )
    try:
        return own(architecture)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_names(architecture: type[LearnedOptimizer], arguments: Any) -> None:
    """Of a file's arguments, and that true and false are only given for what is true or false."""
    if not isinstance(arguments, dict):
        raise ValueError(f"arguments: got {arguments!r}, expected an object")
    known = {f.name: f for f in saved_fields(architecture)}
    for name, value in arguments.items():
        if name not in known:
            raise ValueError(f"arguments: got {name}, expected only {', '.join(known)}")
        if isinstance(value, bool) and "bool" not in str(known[name].type):
            raise ValueError(f"{name}: got {value}, expected no true or false")
    plausible(architecture, arguments)


def _check_layers(optimizer: LearnedOptimizer, tensors: int) -> None:
    """A few bytes can ask for a million layers, whose names alone take minutes to write down."""
    for name, value in optimizer.arguments().items():
        if name.endswith("layers") and value > tensors:
            raise ValueError(f"{name}: got {value}, but the file has only {tensors} tensors")


def _read(
    path: Path, wanted: Sequence[str] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header, its values parsed, and the tensors."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    try:
        return tensors.read(path, HEADER, wanted)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: not a checkpoint: {error}") from error
