"""The tutorials do what they say: every block is run as it stands, in order, by a shell."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WRITTEN = {
    "search": ["runs/first/report.html", "my_rule.py"],
    "meta-train": ["runs/learned/report.html", "check/coordinates.png", "learned.json"],
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", WRITTEN)
def test_every_block_runs(name: str, tmp_path: Path) -> None:
    blocks = BLOCK.findall((ROOT / f"docs/tutorial-{name}.md").read_text(encoding="utf-8"))
    assert [language for language, _ in blocks].count("python") == 1
    command = tmp_path / "l2o"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m l2o.cli "$@"\n')
    command.chmod(0o755)
    place = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "OMP_NUM_THREADS": "1",
    }
    work = tmp_path / "work"
    work.mkdir()
    last = ""
    for language, text in blocks:
        program = ["sh", "-e", "-c", text] if language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(
            program, cwd=work, env=os.environ | place, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{text}\n{done.stderr}"
        last = done.stdout
    assert math.isfinite(float(last))  # the training script's loss
    assert all((work / file).is_file() for file in WRITTEN[name])
