"""Limits of time: what is withdrawn when time is up, what a run will take, what is dropped."""

from dataclasses import replace
from pathlib import Path

import pytest

from search.archive import open_existing
from search.config import Budget
from search.loop import Search
from search.reproduce import again
from search.run import begin, proceed
from search.show import summary
from search.view import View
from tests.search.test_run import CONFIG

SMALL = replace(CONFIG, verdict=replace(CONFIG.verdict, finalists=1, meta_validation=None))


@pytest.fixture(autouse=True)
def importable_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)


@pytest.mark.parametrize("after", [0, 3])
def test_when_time_is_up_what_nobody_has_begun_is_withdrawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """And the rows are those of a search of so many candidates that had all the time."""
    ran = []

    def seconds(search: Search) -> float:
        return 60.0 * (search.evolution.told >= after)

    monkeypatch.setattr(Search, "_seconds", seconds)
    integrate = Search._integrate
    monkeypatch.setattr(Search, "_integrate", lambda self, x: [ran.append(1), integrate(self, x)])
    config = replace(SMALL, budget=Budget(candidates=10_000, minutes=1.0))
    with begin(tmp_path / "run", config) as archive:
        proceed(archive, 0, View())
        assert len(ran) == max(after, 1)
        assert not archive.counts()["pending"]
    monkeypatch.setattr(Search, "_seconds", lambda self: 0.0)
    with open_existing(tmp_path / "run", readonly=True) as archive:
        assert summary(archive)["finished"]
        count, difference = again(archive, 0, View())
        assert difference is None
        assert count > 10
