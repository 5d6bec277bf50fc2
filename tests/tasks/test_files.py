"""What writers leave behind when they are killed, and who clears it away."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.runs.files import NotWritable, abandoned, new_directory, save_bytes

KILLED = {
    "file": "files.save_bytes(Path('card.json'), b'x' * 100)",
    "directory": "with files.new_directory(Path('card.json')) as staging: os.fsync(0)",
}
PROGRAM = """
import os, signal
from pathlib import Path
from tasks.runs import files
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("what", KILLED)
def test_what_a_killed_writer_left_goes_with_the_next_save(what: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM + KILLED[what]]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run(command, cwd=tmp_path, env=env).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".card.json-")
    (tmp_path / ".card.json-mine").touch()  # of somebody else's
    save_bytes(tmp_path / "card.json", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".card.json-mine", "card.json"]


def test_what_somebody_is_writing_is_left_alone(tmp_path: Path) -> None:
    with new_directory(tmp_path / "run") as staging:
        (staging / "a").touch()
        abandoned(tmp_path / "run")
        assert (staging / "a").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("place", ["gone/card.json", "file/card.json", "/proc/card.json"])
def test_where_nothing_can_be_written_is_said(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotWritable, match=r"card.json: "):
        save_bytes(tmp_path / place, b"x")
    if not place.startswith("gone"):
        with pytest.raises(NotWritable, match=r"card.json: "), new_directory(tmp_path / place):
            pass
