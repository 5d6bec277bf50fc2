"""docs/first-use.md says what README says, and its script trains."""

import math
import re
import sys
from pathlib import Path

import pytest

import search
from search.commands.inspection import save_optimizer

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
README, PAGE = (
    BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))
    for name in ("README.md", "docs/first-use.md")
)
BEFORE = ("git clone ", "python3 -m venv ")
"""Of a transcript alone: what comes before README's first command."""
TIMES = re.compile(r"^\| (.+?) \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)


def test_commands_are_those_of_the_readme() -> None:
    known = {line for language, text in README if language == "sh" for line in text.splitlines()}
    given = [line for language, text in PAGE if language == "sh" for line in text.splitlines()]
    assert [line for line in given if line not in known and not line.startswith(BEFORE)] == []
    assert len(given) > len(BEFORE)


def test_the_module_is_that_of_the_readme() -> None:
    (mine,) = (text for _, text in PAGE if "# my_tasks.py" in text)
    assert ("python", mine) in README


def test_the_script_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (script,) = (text for _, text in PAGE if "from my_rule import" in text)
    save_optimizer(search.load("adam"), tmp_path / "my_rule.py", "MyRule")
    monkeypatch.syspath_prepend(tmp_path)
    exec(script, {})
    del sys.modules["my_rule"]
    loss = float(capsys.readouterr().out.split()[-1])
    assert math.isfinite(loss)
    assert loss < 0.5


def test_times_add_up() -> None:
    rows = TIMES.findall((ROOT / "docs/first-use.md").read_text(encoding="utf-8"))
    place = [name for name, *_ in rows].index("together")
    for column in (1, 2):
        total = sum(float(row[column]) for row in rows[:place])
        assert total == pytest.approx(float(rows[place][column]), abs=0.06)
