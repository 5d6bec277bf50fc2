"""Every strategy of the room, and a user's: the books are kept for all of them alike."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from deap import tools
from hypothesis import given
from hypothesis import strategies as st

from l2o.cli.main import main
from search.commands.search import asked as asked_for
from search.evolution.candidates import Candidate
from search.evolution.nsga2 import survivors
from search.evolution.settings import Settings, strategies
from search.evolution.strategy import Evolution
from search.fitness.funnel import Outcome
from search.language.program import parse
from search.record.archive import open_existing
from search.run.config import Budget, Config
from search.run.stages import begin
from tests.search.made_up import CONFIG, SMALL, START, begun, gone_on

HERE = Path(__file__).parent
TRICKS = {"regularized": {"islands": 2, "patience": 2, "migration": 0.3}}
"""Settings with which a strategy has more to write down."""
MINE = '''
from search import Proposal, Strategy, parse

SIGN = parse("def update(w, g):\\n    update = sign(g)\\n    return update")
DEAF = parse("def update(w, g):\\n    update = 2.0 * w\\n    return update")


class Best(Strategy):
    """Children of the best alone."""

    def propose(self, batch, rng):
        return self.child(self.best[0] if self.best else None, rng)

    def accept(self, batch, scored, asked):
        self.groups = [[*self.groups[0], *scored][-5:]]
        self.state = {"batches": self.state.get("batches", 0) + 1}


class Stubborn(Best):
    """Nothing that can be evaluated."""

    def propose(self, batch, rng):
        return Proposal(SIGN if batch % 2 else DEAF, 0.1)


class Broken(Best):
    def propose(self, batch, rng):
        return 1 / 0


class Lazy(Strategy):
    pass
'''


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    """A user's module, and suites that take milliseconds, where the user is."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(HERE))


def settings(name: str, given: Settings = SMALL) -> Settings:
    return replace(given, strategy=name, **TRICKS.get(name, {}))


def evolution(given: Settings, seed: int = 0) -> Evolution:
    return Evolution(given, [START], lrs=[0.01], seed=seed, rungs=2)


def outcomes(batch):
    """Some fail, some are stopped; what is evaluated has a score and a ladder of its own."""
    for candidate in batch.fresh:
        fate = ("evaluated", "evaluated", "evaluated", "stopped", "failed")[candidate.id % 5]
        score = float(np.sin(candidate.id)) if fate == "evaluated" else None
        ladder = (0.1, score) if score is not None else ()
        yield Outcome(fate, score, candidate.lr * 1.1 if score is not None else None, ladder, ())


def asked(batch):
    return [(c.id, c.parent, c.mutation, str(c.program), c.lr, c.original, c.fate)
            for c in batch.candidates], batch.hurdles, batch.rejected  # fmt: skip


ALL = [*strategies(), "mine:Best"]


def test_the_room_has_what_is_named():
    assert {"nsga2", "random_search", "regularized"} <= {*strategies()}
    assert SMALL.strategy == "regularized"


def played(search, batches):
    waiting = [search.ask() for _ in range(search.settings.ahead)]
    for _ in range(batches):
        batch = waiting.pop(0)
        search.tell(batch, [*outcomes(batch)])
        yield batch
        waiting.append(search.ask())


@pytest.mark.parametrize("name", ALL)
def test_a_batch_that_is_withdrawn_is_asked_again(name):
    search = evolution(settings(name))
    for _ in played(search, 6):
        pass
    before = search.tried
    batches = [search.ask(), search.ask()]
    with pytest.raises(ValueError, match=f"batch: got {batches[0].number}, .* the newest"):
        search.withdraw(batches[0])
    said = [asked(batch) for batch in batches]
    for batch in reversed(batches):
        search.withdraw(batch)
    assert search.tried == before
    assert [asked(search.ask()) for _ in said] == said


# -- searches, whose outcomes are made up ----------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_search_that_breaks_off_goes_on_bit_for_bit(name, tmp_path, monkeypatch):
    """Whichever batch it was at, others being in flight."""
    whole = gone_on(begun(tmp_path / "whole", settings(name)))
    shown = iter(range(10**6))

    def breaks(view, progress):
        if next(shown) % 2:
            raise OSError("the terminal is gone")

    folder = begun(tmp_path / "broken", settings(name))
    with monkeypatch.context() as broken:
        broken.setattr("search.run.view.View.show", breaks)
        for _ in range(3):
            with pytest.raises(OSError, match="terminal"):
                gone_on(folder)
    assert gone_on(folder) == whole
    assert len(whole) > CONFIG.budget.candidates


DRIVER = """
import sys
from pathlib import Path
from tests.search.made_up import CONFIG, SMALL, START, begun, gone_on
gone_on(Path(sys.argv[1]))
"""


def test_non_dominated_sorting_survives_kill_9_and_has_any_number_of_workers(tmp_path):
    whole = gone_on(begun(tmp_path / "whole", settings("nsga2")), workers=2)
    folder = begun(tmp_path / "killed", settings("nsga2"))
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder)], env=os.environ | {"PYTHONPATH": path}
    )
    while process.poll() is None and batches(folder) < 4:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert gone_on(folder) == whole


def batches(folder: Path) -> int:
    with sqlite3.connect(f"file:{folder / 'archive.sqlite'}?mode=ro", uri=True) as db:
        return db.execute("SELECT coalesce(max(batch), -1) FROM snapshot").fetchone()[0]


# -- non-dominated sorting -------------------------------------------------------------------------


def candidate(number: int, score: float, length: int) -> Candidate:
    made = Candidate(number, 0, None, "", START, 0.1, fate="evaluated", score=score)
    made.fitness.values = (score, length)
    return made


@hypothesis.settings(max_examples=25, deadline=None)
@given(
    st.sets(st.tuples(st.integers(-5, 5), st.integers(1, 9)), min_size=1, max_size=30),
    st.integers(1, 20),
)
def test_survivors_are_those_of_deb_et_al(points, size):
    population = [candidate(k, float(x), y) for k, (x, y) in enumerate(sorted(points))]
    found, ranks = survivors(population, size), ranked(population)
    assert len(found) == min(size, len(population))
    keys = [(ranks[c.id], -c.fitness.crowding_dist) for c in found]
    assert keys == sorted(keys)
    left = [ranks[c.id] for c in population if c not in found]
    assert not left or min(left) >= keys[-1][0]
    theirs = tools.selNSGA2([candidate(c.id, *c.fitness.values) for c in population], size)
    assert sorted(ranks[c.id] for c in theirs) == [rank for rank, _ in keys]


def ranked(population: list[Candidate]) -> dict[int, int]:
    """The front of each, by the definition: who is left that nobody left dominates."""
    ranks, left, number = {}, population, 0
    while left:
        front = [c for c in left if not any(o.fitness.dominates(c.fitness) for o in left)]
        ranks |= dict.fromkeys((c.id for c in front), number)
        left, number = [c for c in left if c not in front], number + 1
    return ranks


def test_nobody_on_the_front_is_lost_and_of_equals_the_youngest_lives():
    search = evolution(settings("nsga2"))
    scored = [c for batch in played(search, 14) for c in batch.candidates if c.score is not None]
    values = {c.fitness.values for c in scored}
    front = {x for x in values if not any(dominates(y, x) for y in values)}
    (population,) = search.strategy.groups
    assert front <= {c.fitness.values for c in population}
    assert len({c.fitness.values for c in population}) == len(population) == SMALL.population
    for living in population:
        assert living.id == max(c.id for c in scored if c.fitness.values == living.fitness.values)


def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(x <= y for x, y in zip(one, other, strict=True))


# -- a user's own, and what is refused -------------------------------------------------------------


def test_what_is_not_valid_is_a_candidate_that_is_not():
    search = evolution(settings("mine:Stubborn"))
    batches = [*played(search, 4)]
    invalid, alike = batches[2].candidates, batches[3].candidates
    assert {c.fate for c in invalid} == {"invalid"}
    assert len(invalid) == 30 * SMALL.batch
    assert {c.fate for c in alike[1:]} == {"duplicate"}
    assert parse(str(START)) == START


def test_a_search_with_nothing_new_comes_to_its_end(tmp_path):
    folder = begun(tmp_path / "run", settings("mine:Stubborn"))
    gone_on(folder)
    with open_existing(folder, readonly=True) as archive:
        assert archive.counts()["evaluated"] == 2
        assert archive.counts()["pending"] == 0


def test_going_on_with_a_strategy_of_a_users_asks_first(tmp_path, capsys):
    few = replace(CONFIG, evolution=settings("mine:Best"), budget=Budget(candidates=20))
    begin(tmp_path / "run", few).close()
    assert main(["resume", "run", "--workers", "0"]) == 2
    said = capsys.readouterr().err
    assert "names code that would be run" in said
    assert "'mine:Best'" in said
    assert main(["resume", "run", "--workers", "0", "--trust"]) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nsga", r"strategy: got 'nsga', expected one of nsga2, .* did you mean nsga2\?, or pack"),
        ("mutate", "strategy: got 'mutate', expected one of "),
        ("random_search(length=0)", "length: got 0, expected 1 to"),
        ("random_search(size=3)", r"strategy: got 'random_search\(size=3\)': .* argument 'size'"),
        ("mine:Nothing", "strategy: got 'mine:Nothing', which cannot be imported"),
        ("mine:parse", "expected a class on search.evolution.strategy.Strategy"),
        ("mine:Lazy", "strategy: got 'mine:Lazy': .*abstract"),
        ("mine:Broken", "evolution.strategy: got 'mine:Broken', which fails: ZeroDivisionError"),
        ("nsga2(", "strategy.* expected NAME"),
        ("", "strategy: got '', expected one of"),
    ],
)
def test_a_strategy_that_is_none_is_named_before_a_run_is_made(name, message, tmp_path, capsys):
    with pytest.raises(ValueError, match=message):
        begin(tmp_path / "run", replace(CONFIG, evolution=settings(name)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", [{"islands": 2}, {"patience": 3}])
def test_non_dominated_sorting_says_what_it_does_not_do(change, tmp_path):
    config = replace(CONFIG, evolution=replace(settings("nsga2"), **change))
    with pytest.raises(ValueError, match=f"evolution.{next(iter(change))}: got .* no islands"):
        begin(tmp_path / "run", config)


def test_random_search_was_a_number_once(tmp_path):
    """In the facts of a run, and in the file of its fields."""
    facts = asdict(CONFIG)
    del facts["evolution"]["strategy"]
    for number, name in {0: "regularized", 5: "random_search(length=5)"}.items():
        facts["evolution"]["random"] = number
        assert Config.from_dict(facts).evolution.strategy == name
        (tmp_path / "old.yaml").write_text(f"evolution:\n  random: {number}\n")
        found = asked_for(["--run-dir", "again", "--config", "old.yaml"])
        assert found.config.evolution.strategy == name
        assert "random:" not in found.kept
        assert name in found.kept


def test_help_lists_the_room(capsys):
    with pytest.raises(SystemExit):
        main(["search", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"who is born and who lives: {', '.join(strategies())}, or package.module:Class" in said
    assert "evolution.random" not in said
