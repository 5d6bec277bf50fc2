"""README does what it says: each block is run, in order, each command in its smallest form."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
LEAST = {
    "search": "--budget.candidates 200 --evolution.population 20 --evolution.batch 24 "
    "--funnel.length 0.2 --verdict.finalists 1 --verdict.trials 2 --verdict.seeds 2 "
    "--verdict.meta_validation null --verdict.held_out brief:suite",
    "evaluate": "--suite brief:suite --trials 2 --seeds 2",
    "meta-train": "--train.widths [4] --held_out.widths [4] --outer.steps 2 --evaluation.steps 4 "
    "--evaluation.every 2 --estimation.horizon [4,8] --estimation.truncation 4",
    "simplify": "--exact",
    "coord-check": "--widths [64,128] --seeds 1",
    "resume": "--trust",
    "reproduce": "--trust",
}
BRIEF = """
from tasks import Entry, Logistic, breast_cancer

def suite():
    return Entry(Logistic(data=breast_cancer(), batch_size=16), steps=8)
"""
MODEL = "import torch\nmodel = torch.nn.Linear(3, 1)\nmodel(torch.ones(2, 3)).sum().backward()\n"
COMMAND = """#!{python}
import sys
from l2o.cli.main import main
LEAST = {least}
sys.exit(main([*sys.argv[1:], *LEAST.get(sys.argv[1], "").split()]))
"""


def test_readme_is_a_door():
    assert len(README.splitlines()) <= 130
    assert [language for language, _ in BLOCKS].count("sh") == 3


def test_links_lead_somewhere():
    for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.name}: {link}"


@pytest.mark.timeout(600)
def test_every_block_runs(tmp_path: Path) -> None:
    work, bin_ = tmp_path / "work", tmp_path / "bin"
    work.mkdir()
    bin_.mkdir()
    (bin_ / "pip").write_text("#!/bin/sh\n")
    (bin_ / "l2o").write_text(COMMAND.format(python=sys.executable, least=LEAST))
    for command in bin_.iterdir():
        command.chmod(0o755)
    place = os.environ | {
        "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "OMP_NUM_THREADS": "1",
    }
    (work / "brief.py").write_text(BRIEF)
    for language, text in BLOCKS:
        if "# my_tasks.py" in text:
            (work / "my_tasks.py").write_text(text)
        else:
            program = ["sh", "-e", "-c", text]
            if language == "python":
                program = [sys.executable, "-c", f"{MODEL}{text}optimizer.step()\n"]
            done = subprocess.run(program, cwd=work, env=place, capture_output=True, text=True)
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    assert {"check", "my_rule.py", "my_tasks.py", "runs"} <= {path.name for path in work.iterdir()}
    assert (work / "runs/first/report.html").is_file()
