"""Documents are what they are made from, and as long as they may be."""

import importlib
import re
from pathlib import Path

import pytest

from tests.test_floors import FLOORS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LONGEST = {"design.md": 150, "results/rediscovery.md": 150}


@pytest.mark.parametrize("page", LONGEST)
def test_some_pages_are_short(page: str) -> None:
    assert len((DOCS / page).read_text(encoding="utf-8").splitlines()) <= LONGEST[page]


def test_the_design_names_every_room() -> None:
    page = (DOCS / "design.md").read_text(encoding="utf-8")
    for package, floors in FLOORS.items():
        table = page[page.index(f"| `{package}` | holds |") :].partition("\n\n")[0]
        assert [*re.findall(r"`(\w+)`", table)][1:] == floors.replace(" <", "").split(), package


def test_the_language_lists_its_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else: python scripts/language_table.py"""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    page = (DOCS / "language.md").read_text(encoding="utf-8")
    assert importlib.import_module("language_table").written(page) == page


@pytest.mark.parametrize("page", sorted((DOCS / "results").glob("*.md")), ids=lambda p: p.name)
def test_a_page_of_results_names_the_script_that_makes_or_checks_it(page: Path) -> None:
    named = re.findall(r"scripts/[\w/]+\.py", re.sub(r"\s+", " ", page.read_text(encoding="utf-8")))
    assert named
    assert all((ROOT / script).is_file() for script in named)


def test_tables_of_rediscovery_are_what_was_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else: python scripts/studies/rediscover_page.py"""
    monkeypatch.syspath_prepend(ROOT / "scripts" / "studies")
    script = importlib.import_module("rediscover_page")
    for page in script.PAGES:
        text = page.read_text(encoding="utf-8")
        assert script.written(text) == text
    assert [*script.mistakes()] == []


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("searches.csv", "10 (69–100 %)", "10 (71–100 %)", "expected 10 (69–100 %)"),
        ("searches.csv", "20:39", "20:40", "expected 20:39"),
        ("finds.csv", "−0.0021 [", "−0.0022 [", "expected −0.0021 ["),
        ("finds.csv", "−0.0111 [−0.0158", "−0.0112 [−0.0158", "lion_form: got −0.0111"),
        ("regimes.csv", "−0.0064 [−0.0156", "−0.0164 [−0.0156", "expected a row of its table"),
    ],
)
def test_a_wrong_number_is_told(
    file: str, old: str, new: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "studies")
    script = importlib.import_module("rediscover_page")
    for path in script.FILES.iterdir():
        text = path.read_text(encoding="utf-8")
        assert path.name != file or old in text
        (tmp_path / path.name).write_text(text.replace(old, new) if path.name == file else text)
    monkeypatch.setattr(script, "FILES", tmp_path)
    assert any(said in line for line in script.mistakes())


CLAIM = re.compile(r"^\| ([^|]+) \| ([^|]+) \| \[\w+\]\((docs/results/[\w./]+)\) \|$", re.MULTILINE)
CLAIMS = CLAIM.findall((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("claim", "number", "page"), CLAIMS)
def test_numbers_of_the_readme_stand_on_the_page_behind_them(
    claim: str, number: str, page: str
) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for figure in re.findall(r"[−+]?\d+(?:\.\d+)?", f"{claim} {number}"):
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.]\d)", text), figure


def test_the_readme_has_claims() -> None:
    assert len(CLAIMS) > 5
