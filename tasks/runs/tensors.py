"""Tensors and facts about them in one safetensors file, with digests.

A flipped bit makes another number, which no format notices. So the header has a digest of each
tensor and one of the facts; all that is read is checked. Files of versions that kept none are read
as they are. A digest shows damage, not forgery.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from tasks.runs.nesting import from_json

DIGESTS = "digests"
FACTS = "facts"
"""What the digest of the facts is called; tensors have their own names."""


def to_bytes(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """The content of a file; ``facts``: anything that JSON can hold."""
    header = {name: json.dumps(value) for name, value in facts.items()}
    digests = {f"tensor {name}": _of_tensor(value) for name, value in tensors.items()}
    digests[FACTS] = _of_facts(header)
    return serialize(dict(tensors), header | {DIGESTS: json.dumps(digests)})


def read(
    path: Path, facts: Collection[str], wanted: Collection[str] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors, all or those ``wanted``. ``facts``: what files without digests may hold,
    so that one whose digests have lost their name is none of these.

    Raises ValueError or SafetensorError for a file that is damaged, OSError for one that is gone.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            names = [n for n in file.keys() if wanted is None or n in wanted]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
    except RuntimeError as error:  # torch's, which opens the file once more: it was moved meanwhile
        raise OSError(f"{path}: {str(error).partition(chr(10))[0]}") from error
    text = header.pop(DIGESTS, None)
    if text is not None:
        _check(from_json(text), header, tensors)
    elif unknown := sorted(header.keys() - facts):
        raise ValueError(f"its header has {unknown[0]!r}, expected only {', '.join(facts)}")
    return {name: from_json(value) for name, value in header.items()}, tensors


def _check(digests: Any, header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    kept = digests if isinstance(digests, dict) else {}
    if kept.get(FACTS) != _of_facts(header):
        raise ValueError("its header is not what was written")
    for name, tensor in tensors.items():
        if kept.get(f"tensor {name}") != _of_tensor(tensor):
            raise ValueError(f"{name} is not what was written")


def _of_facts(header: Mapping[str, str]) -> str:
    return _digest(json.dumps(header, sort_keys=True).encode())


def _of_tensor(tensor: Tensor) -> str:
    kind = f"{tensor.dtype} {list(tensor.shape)} ".encode()
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return _digest(kind + flat.view(torch.uint8).numpy().tobytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
