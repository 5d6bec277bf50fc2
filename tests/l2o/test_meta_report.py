"""The report of a meta-training run, finished, stopped and not yet saved."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from l2o import meta_report, meta_run
from l2o.cli import main
from l2o.distribution import Distribution
from l2o.held_out import HeldOut
from l2o.meta_config import Config, Estimation, Evaluation, Outer
from l2o.meta_view import View
from l2o.ranks import Ranks
from l2o.tuned import TunedAdam

CONFIG = Config(
    train=Distribution(widths=(4,), batch_size=8),
    held_out=Distribution(widths=(8, 12), batch_size=8),
    estimation=Estimation(particles=2, truncation=2, horizon=(4, 10)),
    outer=Outer(steps=6, warmup=3, save_every=2),
    evaluation=Evaluation(every=2, steps=6, seeds=2),
)
OPTIMIZER = TunedAdam(lr=0.01)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "learned"
    meta_run.begin(folder, CONFIG, OPTIMIZER, OPTIMIZER.initial(0), ["l2o", "meta-train", "..."])
    with View(silent=True) as view:
        meta_run.proceed(folder, Ranks(), view)
    return folder


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(meta_report, "WIDTHS", (4, 8))


@pytest.mark.parametrize(("saved", "figures"), [(True, 6), (False, 0)])
def test_a_run_is_reported_at_any_time(finished, tmp_path, saved, figures):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    if not saved:
        (folder / meta_run.STATE).unlink()
        shutil.rmtree(folder / meta_run.BEST)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["report", str(folder), "--out", str(tmp_path / "r.html")]) == 0
    text = (tmp_path / "r.html").read_text()
    assert text.count("<figure>") == figures
    assert ("that did not choose it" in text) == saved
    assert "l2o meta-train ..." in text
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_report_measures_on_seeds_that_did_not_choose(finished):
    """Adam's objectives are those of the run where seeds are the run's own, and differ on fresh
    ones; all rules of a seed start alike."""
    measured = meta_report.measure(finished, CONFIG)
    held_out = HeldOut.of(CONFIG.held_out.tasks(), CONFIG.mup, CONFIG.evaluation)
    for (task, by_rule), adam in zip(measured.items(), held_out.adam, strict=True):
        assert list(by_rule) == ["kept", "untrained", "Adam at 0.001"], task
        fresh = by_rule["Adam at 0.001"]
        assert fresh.objectives.shape == (meta_report.SEEDS,)
        assert fresh.curves.shape == (meta_report.SEEDS, len(fresh.steps))
        assert 0.5 < fresh.objectives.mean() / adam < 2
        assert fresh.objectives.mean() != pytest.approx(adam, rel=1e-6)
    gap = meta_report.against_adam(measured, CONFIG)
    ratios = [
        np.log(rules["kept"].objectives / rules["Adam at 0.001"].objectives)
        for rules in measured.values()
    ]
    assert gap.mean == pytest.approx(np.mean(ratios), rel=1e-5)
    assert gap.n == meta_report.SEEDS
