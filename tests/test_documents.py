"""Documents are what they are made from, and as long as they may be."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LONGEST = {"design.md": 150}


@pytest.mark.parametrize("page", LONGEST)
def test_some_pages_are_short(page: str) -> None:
    assert len((DOCS / page).read_text(encoding="utf-8").splitlines()) <= LONGEST[page]


def test_the_language_lists_its_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else: python scripts/language_table.py"""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    page = (DOCS / "language.md").read_text(encoding="utf-8")
    assert importlib.import_module("language_table").written(page) == page
