"""The benchmark of a whole search adds up; its numbers mean nothing at this size."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from search.evolution.settings import Settings
from search.fitness.settings import Funnel
from search.run.config import Budget

ROOT = Path(__file__).parents[1]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch):
    """The benchmark's modules, and a search of seconds."""
    monkeypatch.syspath_prepend(ROOT / "scripts" / "bench")
    monkeypatch.syspath_prepend(ROOT / "tests" / "search")
    import bench_run  # pyright: ignore[reportMissingImports]

    config = replace(
        bench_run.config(minutes=1.0),
        budget=Budget(candidates=150, minutes=1.0),
        funnel=Funnel(suite="tiny_suites:proxy"),
        evolution=Settings(population=20, tournament=4, batch=8, ahead=3),
    )
    monkeypatch.setattr(bench_run, "MADE", 2)
    return bench_run, config


def test_the_parts_of_all_processes_add_up_to_the_whole(small) -> None:
    bench_run, config = small
    found = bench_run.measure(config, 1)
    assert sum(found.fates.values()) >= 150
    assert sum(part.wall for part in found.driver.values()) == pytest.approx(found.seconds, rel=0.1)
    inside = sum(part.wall for part in found.jobs.values())
    assert inside + sum(found.waits.values()) == pytest.approx(found.seconds, rel=0.1)
    assert {"gradient", "update kernel", "validation"} < found.jobs.keys()
    assert {"mutation", "canonical form", "signature", "database"} < found.driver.keys()
    assert min(found.waits.values()) >= 0
    assert 0 < found.busy <= 1
    assert found.children_a_second > 0
    console = Console(record=True, width=100)
    for table in bench_run.tables(found):
        console.print(table)
    text = console.export_text()
    assert f"{sum(found.fates.values()):,}" in text
    assert "workers busy" in text


def test_time_belongs_to_the_innermost_and_nothing_stays_replaced(small) -> None:
    import stopwatch  # pyright: ignore[reportMissingImports]

    class Subject:
        def outer(self) -> int:
            return self.inner() + 1

        def inner(self) -> int:
            return 1

    before = Subject.outer, Subject.inner
    watch = stopwatch.Stopwatch("rest")
    ticks = iter(range(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopwatch, "now", lambda: stopwatch.Seconds(next(ticks), 0.0))
        with watch.on((Subject, "outer", "a"), (Subject, "inner", "b")):
            assert Subject().outer() == 2
    assert (Subject.outer, Subject.inner) == before
    walls = {name: spent.wall for name, spent in watch.spent.items()}
    assert walls == {"rest": 2.0, "a": 2.0, "b": 1.0}
