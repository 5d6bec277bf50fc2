"""The funnel: what scores mean, who is dropped where, and what a result may depend on."""

import math
import sys
from pathlib import Path

import pytest
import torch

from search.fitness.funnel import RATES, Evaluator, Job, calibrate
from search.fitness.settings import Funnel
from search.language.program import parse, to_text
from search.zoo import ZOO
from tasks.families.mlp import MLP
from tasks.suites import Entry

FUNNEL = Funnel(suite="tiny_suites:proxy")
OPEN = (math.inf,) * 4
ADAM, SIGN = (to_text(ZOO[name].program) for name in ("adamw", "sign_sgd"))
EXPLODES = (
    "def update(w, g):\n    x = exp10(g)\n    x = x * 1e9\n    update = exp(x)\n    return update\n"
)
USELESS = "def update(w, g):\n    update = g * 1e-9\n    return update\n"


@pytest.fixture(scope="module", autouse=True)
def importable_suites():
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def calibration():
    return calibrate(FUNNEL, [ZOO["adamw"].program, ZOO["sgd"].program], trials=8)


@pytest.fixture(scope="module")
def evaluator(calibration):
    return Evaluator(FUNNEL, calibration.references)


def test_the_reference_scores_zero_at_its_own_learning_rates(calibration):
    assert len(calibration.references) == 2
    assert all(len(curve) == len(FUNNEL.rungs) for curve in calibration.references)
    # One learning rate for all tasks is at best as good as one for each.
    assert calibration.scores[0] >= 0
    assert calibration.scores[0] < 0.2


def test_a_candidate_that_is_the_reference_scores_like_it(calibration, evaluator):
    (outcome,) = evaluator(Job((ADAM,), (calibration.lrs[0],), OPEN))
    assert outcome.fate == "evaluated"
    assert outcome.score is not None
    assert outcome.score <= calibration.scores[0] + 1e-6
    assert len(outcome.ladder) == 4
    assert len(outcome.measurements) == 4 * len(FUNNEL.factors)


def test_the_best_learning_rate_is_passed_on(calibration, evaluator):
    centre = calibration.lrs[0] / 3
    (outcome,) = evaluator(Job((ADAM,), (centre,), OPEN))
    rates = {round(m.lr / centre, 3) for m in outcome.measurements}
    assert rates == {round(factor, 3) for factor in FUNNEL.factors}
    final = {}  # learning rate -> sum over tasks of final log losses
    for m in outcome.measurements:
        if m.steps == 12 and m.loss is not None:
            final[m.lr] = final.get(m.lr, 0.0) + math.log(m.loss)
    assert outcome.lr == pytest.approx(min(final, key=lambda lr: final[lr]))


BLIND = "def full_update(w, g):\n    update = g * 0.05\n    return update\n"


@pytest.mark.parametrize("lr", [1e-40, 1e-3, 1e30])
def test_where_the_learning_rate_does_nothing_it_stays_and_its_trials_differ(evaluator, lr):
    (outcome,) = evaluator(Job((BLIND,), (lr,), OPEN))
    assert outcome.fate == "evaluated"
    assert outcome.lr == pytest.approx(min(max(lr, RATES[0]), RATES[1]))
    assert len({(m.task, m.steps, m.lr) for m in outcome.measurements}) == 12


def test_of_several_seeds_each_counts_as_much(calibration):
    """Two seeds are the two searches of one seed each, joined: references, measurements, score."""
    lr = calibration.lrs[0]
    funnels = [Funnel(suite=FUNNEL.suite, seed=seed, factors=(1.0,)) for seed in (0, 1)]
    both = Funnel(suite=FUNNEL.suite, seeds=2, factors=(1.0,))
    known = [calibrate(funnel, [ZOO["adamw"].program], trials=8) for funnel in (*funnels, both)]
    assert known[2].references == known[0].references + known[1].references
    jobs = [Job((SIGN,), (lr,), OPEN), Job((SIGN,), (lr,), OPEN), Job((SIGN,), (lr,), 2 * OPEN)]
    first, second, joined = (
        Evaluator(funnel, found.references)(job)[0]
        for funnel, found, job in zip((*funnels, both), known, jobs, strict=True)
    )
    assert joined.ladder == first.ladder + second.ladder
    assert joined.measurements == first.measurements + second.measurements
    assert {m.seed for m in joined.measurements} == {0, 1}
    assert first.score is not None
    assert second.score is not None
    assert first.score != second.score
    assert joined.score == pytest.approx((first.score + second.score) / 2)


def test_failure_is_a_fate_and_never_a_number(evaluator):
    (diverged,) = evaluator(Job((EXPLODES,), (1.0,), OPEN))
    assert (diverged.fate, diverged.score, diverged.lr) == ("diverged", None, None)
    assert all(m.loss is None for m in diverged.measurements)
    (stopped,) = evaluator(Job((USELESS,), (0.01,), (0.1,) * 4))
    assert (stopped.fate, stopped.score) == ("stopped", None)


def test_the_dropped_are_not_run_any_further(evaluator):
    (outcome,) = evaluator(Job((USELESS,), (0.01,), (-10.0, 0, 0, 0)))
    assert {m.steps for m in outcome.measurements} == {3}
    assert len(outcome.ladder) == 1


@pytest.mark.parametrize("companions", [(EXPLODES,), (USELESS, SIGN), (SIGN, EXPLODES, USELESS)])
def test_companions_do_not_matter(evaluator, companions):
    (alone,) = evaluator(Job((ADAM,), (0.01,), OPEN))
    job = Job((*companions, ADAM), (0.01,) * (1 + len(companions)), OPEN)
    assert evaluator(job)[-1] == alone


def test_a_funnel_that_everything_fails_returns_fates(evaluator):
    outcomes = evaluator(Job((ADAM, SIGN), (0.01, 0.01), (-50.0,) * 4))
    assert [outcome.fate for outcome in outcomes] == ["stopped", "stopped"]


def test_no_programs_have_no_outcomes(evaluator):
    assert evaluator(Job((), (), OPEN)) == []


def test_jobs_can_be_repeated(evaluator):
    job = Job((ADAM, SIGN, EXPLODES), (0.01, 0.003, 1.0), (0.3,) * 4)
    assert evaluator(job) == evaluator(job)


class Solved(MLP):
    """Its loss is 0 once it is below 2.2."""

    def loss(self, params, batch):
        loss = super().loss(params, batch)
        return torch.where(loss < 2.2, 0.0 * loss, loss)


def test_a_loss_of_0_is_the_best_there_is(monkeypatch):
    task = Solved(width=8)
    monkeypatch.setattr("tasks.suites.resolve", lambda suite: (Entry(task, 40),))
    funnel = Funnel(rungs=(0.5, 1.0))
    found = calibrate(funnel, [ZOO["adamw"].program, ZOO["sgd"].program], 5)
    assert all(math.isfinite(score) for score in found.scores)
    job = Job((to_text(ZOO["adamw"].program),), (found.lrs[0],), (math.inf,) * 2)
    (outcome,) = Evaluator(funnel, found.references)(job)
    assert outcome.fate == "evaluated"
    monkeypatch.setattr(Solved, "loss", lambda self, p, b: MLP.loss(self, p, b) - 9)
    with pytest.raises(ValueError, match="expected none below 0"):
        calibrate(funnel, [ZOO["adamw"].program], 5)


def test_the_reference_has_to_work_somewhere():
    with pytest.raises(ValueError, match="diverges"):
        calibrate(FUNNEL, [parse(EXPLODES)], trials=2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_scores_on_the_gpu_agree(calibration):
    funnel = Funnel(suite="tiny_suites:proxy", device="cuda")
    (there,) = Evaluator(funnel, calibration.references)(Job((ADAM,), (0.01,), OPEN))
    (here,) = Evaluator(FUNNEL, calibration.references)(Job((ADAM,), (0.01,), OPEN))
    assert there.score == pytest.approx(here.score, abs=1e-3)
