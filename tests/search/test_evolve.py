"""The search as ask and tell: no evaluation, so outcomes are made up."""

import math
from dataclasses import replace

import numpy as np
import pytest

from search.evolution.mutate import mutate
from search.evolution.settings import Mutation, Settings
from search.evolution.strategy import Evolution
from search.fitness.funnel import Outcome
from search.language.program import parse
from search.zoo import ZOO

START = ZOO["adam_no_correction"].program
SMALL = Settings(population=12, tournament=3, batch=6, ahead=2)


def evolution(settings=SMALL, seed=0):
    return Evolution(settings, [START], lrs=[0.01], seed=seed, rungs=2)


def outcomes(batch, score=lambda candidate: -float(candidate.program.length)):
    """Everybody is evaluated; by default the longer program is the better one."""
    return [
        Outcome("evaluated", score(candidate), candidate.lr * 3, (0.5, score(candidate)), ())
        for candidate in batch.fresh
    ]


def told(search, batches):
    """Play ``batches`` batches, always ``ahead`` of them in flight."""
    waiting = [search.ask() for _ in range(search.settings.ahead)]
    history = []
    for _ in range(batches):
        batch = waiting.pop(0)
        search.tell(batch, outcomes(batch))
        history.append(batch)
        waiting.append(search.ask())
    return history


def test_the_first_batch_is_the_start():
    batch = evolution().ask()
    assert [candidate.program for candidate in batch.candidates] == [START]
    assert batch.hurdles == (math.inf, math.inf)
    assert batch.job.lrs == (0.01,)


def test_a_search_is_a_function_of_its_seed():
    one, two, other = (
        [str(c.program) for batch in told(evolution(seed=seed), 6) for c in batch.candidates]
        for seed in (1, 1, 2)
    )
    assert one == two != other


def test_batches_hold_as_many_new_programs_as_asked_for():
    for batch in told(evolution(), 8)[1:]:
        assert len(batch.fresh) == 0  # told: nobody is pending any more
        assert len([c for c in batch.candidates if c.fate == "evaluated"]) == SMALL.batch


def test_new_programs_differ_from_all_known_ones():
    batches = told(evolution(), 10)
    evaluated = [c.signature for b in batches for c in b.candidates if c.fate == "evaluated"]
    assert len(set(evaluated)) == len(evaluated)


def test_duplicates_share_score_and_learning_rate():
    batches = told(evolution(), 10)
    everybody = {c.id: c for batch in batches for c in batch.candidates}
    duplicates = [c for c in everybody.values() if c.fate == "duplicate"]
    assert len(duplicates) > 5
    for candidate in duplicates:
        original = everybody[candidate.original]
        assert original.id < candidate.id
        assert (candidate.score, candidate.lr) == (original.score, original.lr)


def test_the_oldest_die_whatever_their_score():
    search = evolution()
    history = told(search, 10)
    scored = [c.id for batch in history for c in batch.candidates if c.score is not None]
    assert [c.id for c in search.population] == scored[-SMALL.population :]


def test_children_inherit_the_best_learning_rate_of_their_parent():
    history = told(evolution(), 10)
    by_id = {c.id: c for batch in history for c in batch.candidates}
    late = [c for c in history[-1].candidates if c.fate == "evaluated"]
    for candidate in late:
        assert candidate.lr == pytest.approx(3 * by_id[candidate.parent].lr)


def test_hurdles_follow_the_population():
    search = evolution()
    told(search, 6)
    ladders = sorted(c.ladder[1] for c in search.population)
    middle = (ladders[5] + ladders[6]) / 2
    assert search.ask().hurdles == pytest.approx((0.5 + SMALL.slack, middle + SMALL.slack))


def test_ties_go_to_the_shorter_program():
    search = evolution()
    batch = search.ask()
    search.tell(batch, [Outcome("evaluated", 0.0, 0.01, (0.0, 0.0), ())])
    batch = search.ask()
    search.tell(batch, outcomes(batch, lambda candidate: -1.0))
    lengths = [c.program.length for c in batch.candidates if c.program and c.fate == "evaluated"]
    best = search.best[0]
    assert best.program is not None
    assert best.program.length == min(lengths)


def test_what_failed_never_lives():
    search = evolution()
    told(search, 4)
    batch = search.ask()
    while batch.number > search.told:  # those asked before it
        search.told += 1
    search.tell(batch, [Outcome("diverged", None, None, (), ()) for _ in batch.fresh])
    ids = {candidate.id for candidate in search.population}
    assert not ids & {c.id for c in batch.candidates if c.fate == "diverged"}


def test_what_failed_is_known_no_more():
    """Else everything like it would be its duplicate, without a score, for ever."""
    search = evolution()
    search.tell(first := search.ask(), [Outcome("failed", None, None, (), ())])
    (founder,) = first.candidates
    batch = search.ask()
    search.tell(batch, outcomes(batch, lambda candidate: -1.0))
    told(search, 8)
    likes = [c for c in (search.known.get(founder.signature),) if c]
    assert likes
    assert likes[0].id != founder.id
    assert likes[0].fate == "evaluated"


def test_a_parent_that_cannot_change_leaves_it_to_the_start_programs():
    body = "    m = interp(g, m, 0.9)\n    update = sign(m)\n    return update, m\n"
    start = parse(f"def update(w, g, m):\n{body}")
    settings = replace(SMALL, mutation=Mutation(insert=0.0))
    search = Evolution(settings, [start], lrs=[0.01], seed=0, rungs=2)
    for _ in range(30):  # programs get shorter, until nothing in them may be another
        batch = search.ask()
        search.tell(batch, outcomes(batch, lambda candidate: float(candidate.program.length)))
    stuck = [c.program for c in search.population if c.program and c.program.length == 1]
    assert stuck
    with pytest.raises(ValueError, match="no valid child"):
        mutate(stuck[0], np.random.default_rng(0), settings.mutation)


def test_results_come_in_order():
    search = evolution()
    search.ask()
    second = search.ask()
    with pytest.raises(ValueError, match="batch: got 1, expected 0"):
        search.tell(second, [])


def test_constants_only_keeps_the_form():
    start = parse("def update(w, g, m):\n    m = interp(g, m, 0.9)\n    update = 1.0 * m\n"
                  "    return update, m\n")  # fmt: skip
    settings = Settings(
        population=12, tournament=3, batch=6, mutation=Mutation(constants_only=True)
    )
    search = Evolution(settings, [start], lrs=[0.01], seed=0, rungs=2)
    for batch in told(search, 5):
        for candidate in batch.candidates:
            assert candidate.program is None or [s.op for s in candidate.program.statements] == [
                "interp",
                "mul",
            ]


def test_random_search_inherits_nothing():
    search = evolution(replace(SMALL, strategy="random_search(length=5)"))
    children = [c for batch in told(search, 6)[1:] for c in batch.candidates]
    assert {c.parent for c in children} == {None}
    assert {c.program.length for c in children if c.program} == {1, 2, 3, 4, 5}
    assert len({c.lr for c in children}) > len(children) / 2


def test_islands_take_turns_and_keep_to_themselves():
    search = evolution(replace(SMALL, islands=2, migration=0.0))
    history = told(search, 12)
    for number, population in enumerate(search.strategy.groups):
        assert {c.batch % 2 for c in population} == {number}
    by_id = {c.id: c for batch in history for c in batch.candidates}
    parents = [(c, by_id[c.parent]) for b in history[6:] for c in b.candidates if c.parent]
    assert all(child.batch % 2 == parent.batch % 2 for child, parent in parents)


def test_migrants_come_from_other_islands():
    history = told(evolution(replace(SMALL, islands=2, migration=0.5)), 12)
    by_id = {c.id: c for batch in history for c in batch.candidates}
    children = [c for batch in history[6:] for c in batch.candidates if c.parent]
    share = sum(c.batch % 2 != by_id[c.parent].batch % 2 for c in children) / len(children)
    assert 0.1 < share < 0.5


def test_an_island_without_progress_starts_again_from_the_best():
    search = evolution(replace(SMALL, patience=3))
    batch = search.ask()
    search.tell(batch, outcomes(batch))
    for _ in range(3):
        assert len(search.population) > 1 or search.told == 1
        batch = search.ask()
        search.tell(batch, outcomes(batch, lambda candidate: 1.0))
    assert [c.score for c in search.population] == [-float(START.length)]
    assert search.strategy.state["islands"][0]["idle"] == 0


def test_small_gains_count_once_they_have_added_up():
    search, best = evolution(replace(SMALL, patience=9, gain=0.25)), []
    for k in range(6):
        batch = search.ask()
        search.tell(batch, outcomes(batch, lambda candidate, k=k: -0.1 * k))
        (island,) = search.strategy.state["islands"]
        best.append((round(island["best"], 6), island["idle"]))
    assert best == [(0, 0), (0, 1), (0, 2), (-0.3, 0), (-0.3, 1), (-0.3, 2)]


@pytest.mark.parametrize(("restart", "survivors"), [("best", [0]), ("start", [])])
def test_what_was_asked_before_an_island_started_again_stays_outside(restart, survivors):
    search = evolution(replace(SMALL, patience=3, restart=restart))
    waiting = [search.ask(), search.ask()]
    for _ in range(4):  # nobody does better than the start
        batch = waiting.pop(0)
        score = 0.0 if batch.number == 0 else 1.0
        search.tell(batch, outcomes(batch, lambda candidate, score=score: score))
        waiting.append(search.ask())
    assert [c.id for c in search.population] == survivors
    before, after = waiting
    search.tell(before, outcomes(before, lambda candidate: -1.0))
    assert [c.id for c in search.population] == survivors
    assert search.best[0].batch == before.number
    assert {c.parent for c in after.candidates} == {0}
    search.tell(after, outcomes(after, lambda candidate: -2.0))
    assert {c.batch for c in search.population} - {0} == {after.number}
    assert search.strategy.state["islands"][0]["best"] == -2.0


def test_a_restart_from_anything_else_is_refused():
    with pytest.raises(ValueError, match="restart: got 'worst', expected 'best' or 'start'"):
        replace(SMALL, restart="worst")
    with pytest.raises(ValueError, match="gain: got -1, expected a number of at least 0"):
        replace(SMALL, gain=-1)
