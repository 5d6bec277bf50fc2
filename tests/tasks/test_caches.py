"""Installed by root, run by somebody who can write neither there nor at home."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tasks.data import fetch
from tasks.runs import caches

ROOT = Path(__file__).parents[2]
SOMEBODY = 54321
LOADS = """
import search.interpreter.cpu, l2o.architectures.kernels.compiled, tasks.display.page, os
with tasks.display.plots.drawing() as (figure, axes):
    axes.plot([0, 1])
assert tasks.runs.caches.kept()
print(os.environ["NUMBA_CACHE_DIR"], os.environ["MPLCONFIGDIR"])
"""


@pytest.fixture
def everybodys():
    """A folder that everybody can write to, as those of pytest cannot."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, setpriv")
@pytest.mark.parametrize("home", ["/nonexistent", None])
def test_what_is_kept_goes_to_a_temporary_folder(tmp_path, everybodys, home):
    for package in ("l2o", "search", "tasks"):
        shutil.copytree(
            ROOT / package,
            tmp_path / "site" / package,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    user = ["setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups"]
    user += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # reads, not writes
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, sys.path)])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "TMPDIR": str(everybodys)}
    done = subprocess.run(
        [*user, sys.executable, "-c", LOADS],
        env=environment | ({"HOME": home} if home else {}),
        cwd="/",
        capture_output=True,
        text=True,
    )
    folder = everybodys / f"l2o-{SOMEBODY}"
    assert (done.stderr, done.stdout) == ("", f"{folder} {folder / 'matplotlib'}\n")
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("there", ["a link", "a file", "open to others", "nothing can be made"])
def test_a_folder_that_is_not_the_users_alone_is_not_used(tmp_path, monkeypatch, there):
    """What numba finds in its cache is run."""
    monkeypatch.setattr(caches.tempfile, "gettempdir", lambda: str(tmp_path))
    mine = tmp_path / f"l2o-{os.getuid()}"
    assert caches.private() == mine == caches.private()
    mine.rmdir()
    if there == "a link":
        mine.symlink_to(tmp_path)
    elif there == "a file":
        mine.write_text("")
    elif there == "open to others":
        mine.mkdir()
        mine.chmod(0o777)
    else:
        monkeypatch.setattr(caches.tempfile, "gettempdir", lambda: str(tmp_path / "gone"))
    assert caches.private() is None


def test_without_any_place_nothing_is_kept_and_everything_compiled(monkeypatch):
    monkeypatch.setattr(caches, "kept", lambda: False)
    assert caches.compiled()(lambda x: x + 1)(1) == 2


def test_a_place_for_data_can_be_named(tmp_path, monkeypatch):
    monkeypatch.delenv("L2O_DATA", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(fetch.DataMissing, match="L2O_DATA"):
        fetch.cache_folder()
    (tmp_path / "file").write_text("")
    with pytest.raises(fetch.DataMissing, match="L2O_DATA=FOLDER"):
        fetch._write(tmp_path / "file" / "data.npz", {})
