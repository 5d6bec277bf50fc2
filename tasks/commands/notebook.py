"""What the commands share as functions of a notebook: their fields as arguments, and tables.

A function takes the fields of its command under the same names, groups as dictionaries, and goes
through the same parser: what is refused is refused in the same words, as a ValueError.
"""

from __future__ import annotations

import json
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from importlib import import_module
from importlib.util import find_spec
from os import PathLike, fspath
from typing import Any

import torch

Fields = Mapping[str, Any]


def arguments(config: str | PathLike[str] | None, fields: Fields) -> list[str]:
    """``fields`` as a command line has them, after those of the file ``config``, which they beat.

    A function stands for its import path. Raises ValueError for what cannot be written down.
    """
    before = [] if config is None else ["--config", fspath(config)]
    try:
        return [*before, "--config", json.dumps(fields, default=_plain)] if fields else before
    except (TypeError, ValueError) as error:
        raise ValueError(f"fields: got one that YAML cannot hold: {error}") from None


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, PathLike):
        return fspath(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}:{value.__qualname__}"
    raise TypeError(f"{value!r}, a {type(value).__name__}")


@contextmanager
def as_a_function(again: str) -> Iterator[None]:
    """A command's way to end is a function's: ArgumentError is a ValueError, torch has its threads
    back, and KeyboardInterrupt says that ``again`` goes on."""
    threads = torch.get_num_threads()
    try:
        yield
    except ArgumentError as error:
        raise ValueError(str(error)) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped, nothing is lost; go on with {again}") from None
    finally:
        torch.set_num_threads(threads)


def table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """``rows`` as a pandas DataFrame where pandas is installed, else as they are, in a list."""
    if find_spec("pandas") is None:
        return [*rows]
    return import_module("pandas").DataFrame([*rows])
