"""What is wrong with the machine is one line that says what to do."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from l2o.cli import main
from l2o.cli.failures import explained

SAID = {
    "full disk": (OSError(errno.ENOSPC, "No space left", "x/rule.py"), r"x/rule.py: no space left"),
    "full disk, nameless": (OSError(errno.ENOSPC, "No space left"), "^no space left; .* make room"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded", "a"), "a: no space left"),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "a"), "a: Read-only .*: give a"),
    "two names": (OSError(errno.EXDEV, "Invalid link", "a", None, "b"), "^a and b: Invalid link$"),
    "open files": (OSError(errno.EMFILE, "Too many open files"), r"Too many .*ulimit -n"),
    "processes": (BlockingIOError(errno.EAGAIN, "Resource temporarily"), "no more processes"),
    "threads": (RuntimeError("can't start new thread"), r"no more processes .*ulimit -u"),
    "memory": (MemoryError(), "not enough memory: end other programs"),
    "memory of numpy": (MemoryError("Unable to allocate 9 GiB"), "not enough .* 9 GiB"),
    "memory of torch": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough"),
    "memory of a library": (ImportError("x.so: failed to map segment"), "not enough memory"),
    "nesting": (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
    "a user's mistake": (ValueError("lr: got 0, expected more"), "^lr: got 0, expected more$"),
    "our own words": (OSError("digits: not on this machine"), "^digits: not on this machine$"),
}


@pytest.mark.parametrize("case", SAID)
def test_one_line(case: str, monkeypatch, capsys) -> None:
    error, said = SAID[case]

    def fail(_) -> int:
        raise error

    monkeypatch.setattr(main, "command", lambda _: fail)
    assert main.main(["zoo"]) == 2
    line = capsys.readouterr().err.removeprefix("l2o zoo: ")
    assert line.count("\n") == 1
    with pytest.raises(ValueError, match=said):
        raise ValueError(line.rstrip("\n"))


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ImportError("no module x")])
def test_a_defect_of_ours_keeps_its_traceback(error: Exception) -> None:
    assert explained(error) is None


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "l2o.cli", "zoo", "lion"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    assert done.returncode == 2
    assert done.stderr.startswith("l2o zoo: no space left")
    assert done.stderr.count("\n") == 1
