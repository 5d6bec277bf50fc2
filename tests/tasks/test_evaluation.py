"""Evaluations: equal budgets, nothing twice, resumable at any run, honest about divergence."""

import math
import os
import sqlite3
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tasks import suites
from tasks.cards import card, digest, fingerprint
from tasks.data.loaders import digits
from tasks.evaluation import bench, report, statistics
from tasks.evaluation import evaluate as evaluation
from tasks.evaluation.bench import TIMED, Entrant
from tasks.evaluation.evaluate import evaluate, measured
from tasks.evaluation.plan import TUNING_SEED, Plan
from tasks.evaluation.results import Results, ResultsError, Run, Study
from tasks.evaluation.spaces import LEARNED, WRITTEN, Space
from tasks.evaluation.tuning import Setting
from tasks.families.composite import Lasso
from tasks.families.mlp import MLP
from tasks.families.quadratic import Quadratic
from tasks.inner import recorded
from tasks.mup.scaling import mup
from tasks.optim.torch_rule import torch_optimizer
from tasks.runs.files import new_directory
from tasks.suites import Entry

TASKS = (Entry(MLP(width=3, batch_size=8), 8), Entry(Quadratic(dimension=4), 6))
suite = list(TASKS)
PLAN = Plan(suite=f"{__name__}:suite", trials=4, seeds=2)


@pytest.fixture(autouse=True)
def this_suite(monkeypatch):
    monkeypatch.setattr(suites, "resolve", lambda name: TASKS)


def entrant(name: str, made: list | None = None) -> Entrant:
    """A rule that notes each time it is made."""

    def make(task, instances, device):
        if made is not None:
            made.append((name, task.name, instances))
        return torch_optimizer(f"torch.optim.{name}")

    return Entrant(name, digest(name), f"the source of {name}", make)


def test_every_rule_gets_the_same_trials_and_fresh_seeds(tmp_path):
    with Results(tmp_path / "r.sqlite") as results:
        evaluate(PLAN, [entrant("SGD"), entrant("Adam")], results)
        found = measured(results)
        for name in ("SGD", "Adam"):
            for entry in TASKS:
                study = Study(digest(name), fingerprint(entry.task), entry.steps, "cosine")
                runs = results.runs(study)
                tuned = {(lr, decay) for seed, lr, decay in runs if seed == TUNING_SEED}
                assert tuned == set(WRITTEN.settings(4))
                fresh = [key for key in runs if key[0] != TUNING_SEED]
                assert [seed for seed, *_ in fresh] == [1001, 1002]
                best = min(tuned, key=lambda s: runs[TUNING_SEED, *s].loss or math.inf)
                assert {key[1:] for key in fresh} == {best}
    assert found.rules == ("SGD", "Adam")
    assert found.final.shape == found.test.shape == (2, 2, 2)
    assert found.trials.shape == (2, 2, 4)
    assert [curve.shape for curve in found.curves] == [(2, 2, 9), (2, 2, 7)]
    assert np.array_equal(found.curves[0][..., -1], found.final[:, 0])


def test_a_task_may_be_there_at_several_horizons(tmp_path, monkeypatch):
    longer = Entry(TASKS[0].task, 16)
    monkeypatch.setattr(suites, "resolve", lambda name: (*TASKS, longer))
    with Results(tmp_path / "r.sqlite") as results:
        evaluate(replace(PLAN), [entrant("SGD")], results)
        found = measured(results)
        assert found.tasks == ("mlp-digits-w3-d1-s8", TASKS[1].task.name, "mlp-digits-w3-d1-s16")
        assert [marks[-1] for marks in found.marks] == [8, 6, 16]
        assert {n: about["steps"] for n, (_, about) in results.tasks().items()} == dict(
            zip(found.tasks, (8, 6, 16), strict=True)
        )


def test_a_suite_is_made_once(tmp_path, monkeypatch):
    """It is checked, noted and run; a user's may take long to make."""
    made: list[str] = []
    monkeypatch.setattr(suites, "resolve", lambda name: made.append(name) or TASKS)
    plan = replace(PLAN)
    with Results(tmp_path / "r.sqlite") as results:
        evaluation.check(plan, [entrant("SGD")])
        evaluate(plan, [entrant("SGD")], results)
    assert made == [PLAN.suite]


def test_runs_are_paired(tmp_path):
    """All rules of a seed start from the same weights."""
    with Results(tmp_path / "r.sqlite") as results:
        evaluate(PLAN, [entrant("SGD"), entrant("Adam")], results)
        for curves in measured(results).curves:
            assert np.array_equal(curves[0, :, 0], curves[1, :, 0])
            assert curves[0, 0, 0] != curves[0, 1, 0]


def rows(results: Results) -> dict:
    """All runs, times left out."""
    found = {}
    for identity, _ in results.rules().values():
        for task, (task_id, task_card) in results.tasks().items():
            study = Study(identity, task_id, task_card["steps"], "cosine")
            for key, run in results.runs(study).items():
                found[identity, task, *key] = run._replace(seconds=0.0)
    return found


def test_nothing_is_computed_twice(tmp_path):
    made: list = []
    with Results(tmp_path / "r.sqlite") as results:
        evaluate(PLAN, [entrant("SGD", made)], results)
        first, calls = rows(results), len(made)
        evaluate(PLAN, [entrant("SGD", made)], results)
        assert len(made) == calls == 6  # tuning, fresh runs and a clock, on two tasks
        evaluate(replace(PLAN, seeds=3), [entrant("SGD", made)], results)
        assert made[calls:] == [("SGD", e.task.name, n) for e in TASKS for n in (1, TIMED)]
        assert first.items() <= rows(results).items()


def test_steps_are_timed_on_recorded_gradients_whatever_ran_before(tmp_path, monkeypatch):
    """Of every rule alike; in the runs themselves the first of them would pay for recording."""
    recorded.recording.cache_clear()
    plain, timed = [], []
    original = recorded.Recording.plain

    def counted(self, *given):
        plain.append(len(given[0]))
        return original(self, *given)

    def clock():
        timed.append(plain.count(TIMED))
        return 0.0

    monkeypatch.setattr(recorded.Recording, "plain", counted)
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=clock))
    with Results(tmp_path / "r.sqlite") as results:
        evaluate(PLAN, [entrant("SGD"), entrant("Adam")], results)
    before, *rest = (timed[k : k + 8] for k in range(0, len(timed), 8))  # warm, then three times
    assert len(rest) == 3
    for found in (before, *rest):
        assert len(set(found[2:])) == 1


@pytest.mark.parametrize(("space", "undecayed"), [(WRITTEN, 100), (LEARNED, 200)])
def test_more_trials_extend_fewer(space, undecayed):
    assert space.settings(16)[:5] == space.settings(5)
    rates = sorted(setting.lr for setting in space.settings(31))
    ratios = np.diff(np.log(rates))
    assert ratios.max() / ratios.min() == pytest.approx(1, abs=1e-6)
    decays = [setting.weight_decay for setting in space.settings(300)]
    assert decays.count(0) == pytest.approx(undecayed, abs=2)
    least, most = space.decays
    assert all(least <= decay <= most for decay in decays if decay)
    assert len({*space.settings(300)}) == 300


def test_the_first_trial_of_what_was_meta_trained_is_as_it_was_meta_trained():
    assert LEARNED.settings(1) == (Setting(1.0, 0.0),)


def test_an_interrupted_evaluation_ends_with_the_same_runs(tmp_path):
    with Results(tmp_path / "whole.sqlite") as results:
        evaluate(PLAN, [entrant("SGD"), entrant("Adam")], results)
        expected = rows(results)
    for stop in (1, 3, 6, 7):
        said: list[str] = []

        def impatient(task, instances, device, stop=stop, said=said):
            said.append("made")
            if len(said) == stop:
                raise KeyboardInterrupt
            return torch_optimizer("torch.optim.Adam")

        adam = replace(entrant("Adam"), make=impatient)
        with Results(tmp_path / f"{stop}.sqlite") as results:
            if stop <= 6:
                with pytest.raises(KeyboardInterrupt):
                    evaluate(PLAN, [entrant("SGD"), adam], results)
            else:
                evaluate(PLAN, [entrant("SGD"), adam], results)
        with Results(tmp_path / f"{stop}.sqlite") as results:
            evaluate(PLAN, [entrant("SGD"), entrant("Adam")], results)
            assert rows(results) == expected


def test_what_is_finished_can_be_read_before_the_rest(tmp_path):
    with Results(tmp_path / "r.sqlite") as results:
        with pytest.raises(ResultsError, match="no evaluation was started"):
            measured(results)

        def stopped_on_the_second(task, instances, device):
            if task.name == TASKS[1].task.name:
                raise KeyboardInterrupt
            return torch_optimizer("torch.optim.Adam")

        with pytest.raises(KeyboardInterrupt):
            evaluate(PLAN, [replace(entrant("Adam"), make=stopped_on_the_second)], results)
        assert measured(results).tasks == (TASKS[0].task.name,)
        evaluation.note(PLAN, [entrant("Adam"), entrant("SGD")], results)
        results.set_rule("SGD", digest("SGD"), "")
        with pytest.raises(ResultsError, match="no task is finished yet"):
            measured(results)


def fails(on: str, name: str = "bad", **fields) -> Entrant:
    def make(task, instances, device):
        if task.name == on:
            raise ValueError("not here")
        return torch_optimizer("torch.optim.Adam")

    return Entrant(name, name, "", make, **fields)


def test_a_rule_that_fails_on_the_way_is_left_out_and_says_why(tmp_path):
    """What was measured of it stays; asked again, it is tried again."""
    said: list[str] = []
    second = TASKS[1].task.name
    with Results(tmp_path / "r.sqlite") as results:
        evaluate(PLAN, [fails(second), entrant("SGD")], results, say=said.append)
        assert results.facts()["failed"] == {"bad": f"bad: {second}: not here"}
        assert f"left out: bad: {second}: not here" in said
        found = measured(results)
        assert (found.rules, len(found.tasks)) == (("SGD",), 2)
        results.set_fact("reference", "bad")
        assert evaluation.reference(results, found) == "SGD"
        evaluate(PLAN, [fails("nowhere"), entrant("SGD")], results)
        assert measured(results).rules == ("bad", "SGD")
        evaluate(PLAN, [fails(second, "never")], results)
        with pytest.raises(ResultsError, match=f"every rule failed: never: {second}: not here"):
            measured(results)


def test_what_is_foreign_is_tried_before_anything_is_measured(tmp_path):
    with Results(tmp_path / "r.sqlite") as results:
        with pytest.raises(ValueError, match=r"bad: quadratic.*: not here"):
            evaluate(PLAN, [entrant("SGD"), fails(TASKS[1].task.name, foreign=True)], results)
        assert (results.count(), results.facts()) == (0, {})


@pytest.mark.parametrize(
    ("plan", "schedule", "asked", "expected"),
    [
        (None, None, False, "cosine"),
        (None, "constant", False, "constant"),
        ("linear", None, False, "linear"),
        ("linear", "constant", False, "linear"),
        ("linear", "constant", True, "constant"),
        (None, "constant", True, "constant"),
    ],
)
def test_which_schedule_a_rule_has(plan, schedule, asked, expected):
    rule = replace(entrant("SGD"), schedule=schedule, asked=asked)
    assert replace(PLAN, schedule=plan).schedule_of(rule) == expected


def test_results_are_filed_by_the_schedule_that_a_rule_had(tmp_path):
    """And those of a file from before rules had one of their own are found again."""
    own = replace(entrant("SGD"), name="own", schedule="constant", space=LEARNED)
    with Results(tmp_path / "r.sqlite") as results:
        evaluate(PLAN, [entrant("SGD"), own], results)
        found = measured(results)
        assert found.schedules == ("cosine", "constant")
        assert found.settings == (WRITTEN.settings(4), LEARNED.settings(4))
        for name in ("cosine", "constant"):
            study = Study(own.identity, fingerprint(TASKS[1].task), 6, name)
            assert len(results.runs(study)) == 6
        assert not np.array_equal(found.final[0], found.final[1])

        plan = results.facts()["plan"] | {"rules": ["SGD"], "schedule": "cosine"}
        results.set_fact(
            "plan", {k: v for k, v in plan.items() if k not in ("schedules", "spaces")}
        )
        old = measured(results)
        assert old.schedules == ("cosine",)
        assert np.array_equal(old.final[0], found.final[0])


class Explodes:
    def init(self, params):
        return {}

    def update(self, grads, state, params, info):
        return info.lr[:, None] * torch.full_like(grads, math.inf), state

    def select(self, index):
        return self


def test_divergence_is_a_status(tmp_path):
    bad = Entrant("bad", "bad", "", lambda task, instances, device: Explodes())
    with Results(tmp_path / "r.sqlite") as results:
        evaluate(PLAN, [entrant("SGD"), bad], results)
        found = measured(results)
        assert np.isposinf(found.final[1]).all()
        assert np.isposinf(found.trials[1]).all()
        assert np.isfinite(found.curves[0][1, :, 0]).all()  # before the first step
        assert {run.status for key, run in rows(results).items() if key[0] == "bad"} == {"diverged"}


def test_tasks_whose_losses_have_no_ratios(tmp_path, monkeypatch):
    class Below(Quadratic):
        def loss(self, params, batch):
            return super().loss(params, batch) - 1000

    task = Below(dimension=4)
    monkeypatch.setattr(suites, "resolve", lambda name: (Entry(task, 6),))
    with Results(tmp_path / "r.sqlite") as results:
        with pytest.raises(ValueError, match=rf"{task.name}: got a loss of -9.*, expected none"):
            evaluate(replace(PLAN), [entrant("SGD")], results)
        assert results.count() == 0


def test_a_task_that_is_solved(tmp_path, monkeypatch):
    """Down to the last bit: SGD is at 0, Adam close to it."""
    bowl = Quadratic(dimension=4, spectrum="constant", noise=0.0)
    monkeypatch.setattr(suites, "resolve", lambda name: (Entry(bowl, 60),))
    monkeypatch.setattr(Space, "settings", lambda self, n: (Setting(1.0), Setting(0.5)) * (n // 2))
    twins = [entrant("SGD"), replace(entrant("SGD"), name="twin"), entrant("Adam")]
    with Results(tmp_path / "r.sqlite") as results:
        evaluate(replace(PLAN, trials=2, seeds=3, schedule="constant"), twins, results)
        found = measured(results)
    assert not found.final[:2].any()
    table = {s.rule: s for s in statistics.standings(found, "SGD")}
    assert table["SGD"].gap[:3] == table["twin"].gap[:3] == (0, 0, 0)
    assert 1 < table["Adam"].gap.mean < 200


def test_stopped_before_the_first_run(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    for method in ("set_rule", "set_fact", "set_task"):
        file = tmp_path / f"{method}.sqlite"
        with Results(file) as results:
            monkeypatch.setattr(results, method, stop)
            with pytest.raises(KeyboardInterrupt):
                evaluate(PLAN, [entrant("SGD")], results)
        with Results(file) as results, pytest.raises(ResultsError, match=r"no (evaluation|task) "):
            measured(results)


@pytest.mark.parametrize(
    "field",
    [{"trials": 0}, {"seeds": 0}, {"length": 0.0}, {"length": math.inf}, {"schedule": "steep"}],
)
def test_plans_that_make_no_sense(field):
    (name,) = field
    with pytest.raises(ValueError, match=f"{name}: got"):
        Plan(**field)


# ------------------------------------------------------------------------------- cards and files


def test_a_card_tells_what_a_task_costs():
    found = card(Entry(MLP(width=32, depth=1, batch_size=64), 100))
    assert found["parameters"] == 2410
    assert found["family"] == "MLP"
    # Forward and the gradient of two weight matrices, and of one input: 2 * 64 * (2w + 2w + w').
    assert found["flops_a_step"] == 2 * 64 * (2 * 64 * 32 + 3 * 32 * 10)
    assert found["examples"]["train"] > found["examples"]["test"] > 0
    assert (found["width"], found["activation"]) == (32, "relu")


@pytest.mark.parametrize(
    ("activations", "sections"), [(("relu", "relu"), 1), (("relu", "gelu"), 0)]
)
def test_transfer_is_between_tasks_that_differ_in_one_size(
    tmp_path, monkeypatch, activations, sections
):
    pair = [Entry(MLP(w, activation=a), 6) for w, a in zip((3, 4), activations, strict=True)]
    monkeypatch.setattr(suites, "resolve", lambda name: pair)
    with Results(tmp_path / "r.sqlite") as results:
        evaluate(replace(PLAN), [entrant("SGD")], results)
        assert len(report._transfer(results, measured(results), {"SGD": "SGD"})) == sections


def test_fingerprints_tell_tasks_apart():
    tasks = [
        MLP(width=3),
        MLP(width=4),
        MLP(width=3, batch_size=8),
        MLP(width=3, activation="tanh"),
        Quadratic(dimension=4),
        Lasso(rows=5, columns=6, nonzeros=2, penalty=0.1),
        Lasso(rows=5, columns=6, nonzeros=2, penalty=5.0),
        mup(MLP(width=4)),
        mup(MLP(width=4), base_width=2),
        mup(MLP(width=4), base_width=3),
    ]
    data = digits()
    inputs, targets = data.train
    other = torch.where(torch.arange(len(targets)) == 5, (targets + 1) % 10, targets)
    tasks.append(MLP(width=3, data=replace(data, train=(inputs, other))))  # one label of 1,257
    assert len({fingerprint(task) for task in tasks}) == len(tasks)
    assert fingerprint(MLP(width=3)) == fingerprint(MLP(width=3))


STUDY = Study("rule", "task", 10, "cosine")
RUN = Run(1, 0.1, 0.0, "ok", 0.5, 0.6, ((0, 1.0), (10, 0.5)), 1e-5)


def test_results_keep_the_first_and_refuse_what_is_not_finite(tmp_path):
    with Results(tmp_path / "r.sqlite") as results:
        results.add(STUDY, [RUN])
        results.add(STUDY, [RUN._replace(loss=0.1)])
        assert results.runs(STUDY) == {(1, 0.1, 0.0): RUN}
        for bad in ({"loss": math.inf}, {"loss": None}, {"status": "diverged"}):
            with pytest.raises(sqlite3.IntegrityError):
                results._db.execute(
                    f"INSERT INTO run VALUES ({', '.join('?' * 12)})",
                    (*STUDY, *RUN._replace(seed=2, curve="[]", **bad)),  # type: ignore[arg-type]
                )
        assert results.count() == 1
    with Results(tmp_path / "r.sqlite", readonly=True) as results:
        assert results.count() == 1
        with pytest.raises(ResultsError, match="readonly"):
            results.set_fact("a", 1)


def test_one_writer_and_any_number_of_readers(tmp_path):
    file = tmp_path / "r.sqlite"
    with Results(file) as results:
        with pytest.raises(ResultsError, match="another process is adding to it"):
            Results(file)
        results.add(STUDY, [RUN])
        with Results(file, readonly=True) as reader:
            assert reader.count() == 1
    with Results(file) as results:
        assert results.count() == 1


def test_results_are_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    """No journal can be made there: a directory of somebody else's, a read-only disk."""
    with Results(tmp_path / "r.sqlite") as results:
        results.add(STUDY, [RUN])
    monkeypatch.setattr("tasks.runs.files.os.access", lambda *_: False)
    with Results(tmp_path / "r.sqlite", readonly=True) as results:
        assert results.count() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["r.sqlite"]


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # which would be waited for
    for readonly in (False, True):
        with pytest.raises(ResultsError, match="pipe"):
            Results(tmp_path / "pipe", readonly=readonly)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"not a database at all" * 99, "not a database"), (None, "no such results file")],
)
def test_files_that_hold_no_results(tmp_path, content, message):
    file = tmp_path / "r.sqlite"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ResultsError, match=message):
        Results(file, readonly=True)


def test_a_file_that_was_damaged_later_on_is_one_sentence(tmp_path):
    file = tmp_path / "results.sqlite"
    with Results(file) as results:
        results.set_fact("command", "x" * 9000)
    with file.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xff" * (file.stat().st_size - 4096))
    with pytest.raises(ResultsError, match="malformed"):  # when it is opened: all has digests
        Results(file)


def test_a_file_that_was_begun_and_stopped_at_once_is_a_new_one(tmp_path):
    file = tmp_path / "r.sqlite"
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA journal_mode = WAL")
    assert file.stat().st_size > 0
    with Results(file) as results:
        results.add(STUDY, [RUN])
    with Results(file, readonly=True) as results:
        assert results.count() == 1


def test_other_databases_are_left_alone(tmp_path):
    file = tmp_path / "other.sqlite"
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE precious (x)")
    before = file.read_bytes()
    with pytest.raises(ResultsError, match="not one of results"):
        Results(file)
    assert file.read_bytes() == before
    with pytest.raises(ResultsError, match="does not exist"):
        Results(tmp_path / "nowhere" / "r.sqlite")


def test_an_error_that_is_not_the_systems_says_itself_what_is_wrong(tmp_path):
    with pytest.raises(OSError, match="no such codec"), new_directory(tmp_path / "run"):
        raise OSError("no such codec")
    assert list(tmp_path.iterdir()) == []
