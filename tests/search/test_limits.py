"""Limits of time: what is withdrawn when time is up, what a run will take, what is dropped."""

from dataclasses import replace
from pathlib import Path

import pytest

from search.record.archive import open_existing
from search.run import timetable
from search.run.config import Budget
from search.run.loop import Search
from search.run.reproduce import again
from search.run.stages import begin, proceed
from search.run.summary import summary
from search.run.timetable import Timetable
from search.run.view import View
from tests.search.test_run import CONFIG
from tests.search.test_show import printed

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


def test_what_does_not_fit_into_the_whole_is_dropped_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run whose time is over as soon as its search is; it can be reproduced all the same."""

    def left(table: Timetable) -> float:
        return 0.0 if "finalists" in table.archive.run() else 1e6

    monkeypatch.setattr(Timetable, "left", left)
    budget = Budget(candidates=20, minutes=30, total_minutes=30)
    with begin(tmp_path / "run", replace(CONFIG, budget=budget)) as archive:
        proceed(archive, 0, View())
        content = summary(archive)
    said = capsys.readouterr().out
    assert "the search at most 30:00, judging about" in said
    assert "at most 30:00 in all" in said
    assert "1 of 2 finalists are dropped" in said
    assert "no time left: on the held-out tasks of tiny_suites:held_out" in said
    assert content["finished"]
    assert content["discovery"] is False
    assert content["verdict"].startswith("Not judged on the held-out tasks")
    assert content["stages"]["proxy"], "one task at least"
    assert not content["stages"]["held_out"]
    assert not content["meta_validation"]
    assert "Dropped to meet the limit on the whole: 1 finalists." in printed(content)
    monkeypatch.setattr(Timetable, "left", lambda table: float("inf"))
    with open_existing(tmp_path / "run", readonly=True) as archive:
        assert again(archive, 0, View())[1] is None


def test_a_forecast_counts_tasks_rules_runs_and_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timetable, "_pace", lambda config: 1e-9)
    with begin(tmp_path / "run", CONFIG) as archive:
        one, two = (Timetable(archive, CONFIG, n).forecast() for n in (1, 2))
        more = replace(CONFIG, verdict=replace(CONFIG.verdict, trials=8, seeds=6))
        twice = Timetable(archive, more, 1).forecast()
    assert two.proxy <= one.proxy <= 2 * two.proxy
    assert twice.proxy == pytest.approx(2 * one.proxy)
    assert twice.tuning == pytest.approx(2 * one.tuning)
    assert one.judging == pytest.approx(one.proxy + one.held_out + one.meta_validation)


@pytest.mark.parametrize("minutes", [0, -1, float("inf"), float("nan")])
def test_a_limit_on_the_whole_is_a_number_above_0(minutes: float) -> None:
    with pytest.raises(ValueError, match=r"total_minutes: got .*, expected a number above 0"):
        Budget(total_minutes=minutes)
