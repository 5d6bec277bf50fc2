"""The recipes of docs/extending.md work: each file is made where its recipe says, and used.

"This is `path`:" stands before the block of a file. A path with a folder is in a copy of the
project, one without is the user's own. All other blocks are run, in order: python as it stands,
commands in their smallest form. One process runs all recipes, so that this stays cheap.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
BLOCK = re.compile(r"(?:This\s+is\s+`([^`]+)`:\s+)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUNNER = """
import json, shlex, subprocess, sys, traceback
from l2o.cli.main import main

def run(language, text):
    lines = text.replace("\\\\\\n", " ").splitlines()
    if language == "python":
        exec(compile(text, "<recipe>", "exec"), {"__name__": "__recipe__"})
    elif all(line.startswith("l2o ") for line in lines):
        for line in lines:
            command = shlex.split(line, comments=True)[1:]
            several = command[0] in ("search", "evaluate", "resume", "reproduce")
            if several and not {"--workers", "--executor"} & {*command}:
                command += ["--workers", "0"]
            if status := main(command):
                raise SystemExit(f"{line}: status {status}")
    else:
        subprocess.run(["sh", "-e", "-c", text], check=True)

failures = {}
for section, blocks in json.load(open("blocks.json")).items():
    try:
        for block in blocks:
            run(*block)
    except BaseException:
        failures[section] = traceback.format_exc()
json.dump(failures, open("failures.json", "w"))
"""


def parts(section: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The files of a recipe by their paths, and the blocks that use them."""
    found = BLOCK.findall(SECTIONS[section])
    files = {path: text for path, _, text in found if path}
    return files, [(language, text) for path, language, text in found if not path]


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong, by section."""
    copy, work = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("work")
    for package in ("tasks", "search", "l2o"):
        shutil.copytree(ROOT / package, copy / package)  # with what is compiled
    (copy / "checkpoints").symlink_to(ROOT / "checkpoints")
    for section in SECTIONS:
        for path, text in parts(section)[0].items():
            file = (copy if "/" in path else work) / path
            assert not file.exists(), f"{path}: expected a new file"
            assert ".." not in path, path
            file.write_text(text, encoding="utf-8")
    command = work / "l2o"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m l2o.cli "$@"\n')
    command.chmod(0o755)
    (work / "blocks.json").write_text(json.dumps({name: parts(name)[1] for name in SECTIONS}))
    place = os.environ | {
        "PATH": f"{work}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(copy), *filter(None, sys.path)]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUNNER], cwd=work, env=place, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((work / "failures.json").read_text())
    return {name: f"{why}\n{done.stderr}" for name, why in found.items()}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_recipe_works(section: str, failures: dict[str, str]) -> None:
    files, uses = parts(section)
    assert files, f"{section}: expected a file, a block after 'This is `path`:'"
    assert uses, f"{section}: expected a block that uses it"
    assert section not in failures, failures[section]


def test_every_seam_has_a_recipe() -> None:
    seams = "function of the language, architecture, oracle, family of tasks, known optimizer"
    seams += ", strategy, executor"
    assert SECTIONS.keys() >= {f"A new {seam}" for seam in seams.split(", ")}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_recipe_is_short(section: str) -> None:
    assert len(SECTIONS[section].splitlines()) < 70
