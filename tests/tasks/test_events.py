"""Curves on disks that are full, gone or good."""

import resource
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tasks.display.events import Events
from tasks.runs.files import DiskFull, NotWritable


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_what_is_written_is_there_at_once(tmp_path: Path) -> None:
    events = Events(tmp_path / "curves")
    events.add_scalar("a", 0.5, 1)
    events.add_text("b", "def update ...", 2)
    events.add_figure("c", Figure(figsize=(1, 1)), 3)
    found = read(tmp_path / "curves")  # not closed: a process that is killed closes nothing
    assert [(point.step, point.value) for point in found.Scalars("a")] == [(1, 0.5)]
    assert found.Tags()["images"] == ["c"]
    assert found.Tags()["tensors"] == ["b/text_summary"]
    events.close()


def test_a_second_process_replaces_what_came_after_its_first_step(tmp_path: Path) -> None:
    for start, value in ((None, 0.25), (2, 0.5)):
        events = Events(tmp_path, start)
        for step in range(start or 0, 4):
            events.add_scalar("a", value, step)
        events.close()
    points = read(tmp_path).Scalars("a")
    assert [(point.step, point.value) for point in points] == [
        *((step, 0.25) for step in range(2)),
        *((step, 0.5) for step in range(2, 4)),
    ]


def test_a_full_disk_is_said_where_it_is_met(tmp_path: Path, monkeypatch) -> None:
    events = Events(tmp_path)
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(events, "_file", full)
        with pytest.raises(DiskFull, match="no space left"):
            events.add_scalar("a", 0.5, 1)
    events.close()


def test_so_are_limits_and_what_is_no_folder(tmp_path: Path) -> None:
    events, before = Events(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
        with pytest.raises(NotWritable, match=r"File too large, .*ulimit -f"):
            events.add_text("a", "x" * 300, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (tmp_path / "file").touch()
    with pytest.raises(NotWritable, match="file"):
        Events(tmp_path / "file")
