"""The parts of scripts/torture that need no minute: damage, and the words it ends with."""

import importlib
import random
from pathlib import Path

import pytest

from tasks.evaluation.results import Results, ResultsError, Run, Study

ROOT = Path(__file__).parents[1]
STUDY = Study("rule", "task", 10, "cosine")


def contents(file: Path) -> object:
    with Results(file, readonly=True) as results:
        return results.facts(), results.rules(), results.tasks(), results.runs(STUDY)


def test_of_hundreds_of_damaged_files_none_is_read_as_something_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A seeded slice; the script does the same with files of all kinds, by thousands."""
    monkeypatch.syspath_prepend(ROOT / "scripts" / "torture")
    damage = importlib.import_module("torture_faults").damage
    file, rng = tmp_path / "r.sqlite", random.Random(0)
    with Results(file) as results:
        results.set_fact("plan", {"seeds": 2})
        results.set_rule("lion", "rule", "def update ...")
        results.set_task("digits", "task", {"steps": 10})
        curve = tuple((step, step / 7) for step in range(30))
        results.add(STUDY, [Run(n, 0.1, 0.0, "ok", n / 3, n / 5, curve, 1e-5) for n in range(20)])
    whole, before, refused = file.read_bytes(), contents(file), 0
    for _ in range(300):
        file.write_bytes(whole)
        kind = damage(file, rng)
        try:
            assert contents(file) == before, kind
        except ResultsError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017
    assert 100 < refused < 300


def test_the_table_names_what_was_done_and_what_went_wrong(monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "torture")
    torture = importlib.import_module("torture")
    tally = torture.Tally()
    tally.done["search", "signals"] += 3
    tally.compared["search"] += 1
    tally.read["evaluate", "refused in one line"] += 7
    tally.note("search, signals", "a traceback")
    text = torture.document(tally, 120, seed=4)
    assert "`--seed 4`: 3 faults in 1 jobs and 7 damaged files in 2 minutes" in text
    assert "**1 went wrong.**" in text
    assert "| signals | 3 |" in text
    assert "- evaluate: 7 refused in one line" in text
