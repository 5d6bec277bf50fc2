"""The report of a meta-training run, finished, stopped and not yet saved."""

import json
import re
import shutil
from html import unescape
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from l2o import checkpoint
from l2o.architectures.l2o_pa import L2OPA
from l2o.architectures.tuned_adam import TunedAdam
from l2o.architectures.velo import Velo
from l2o.cli.main import main
from l2o.meta import curves, report, run
from l2o.meta.config import Config, Estimation, Evaluation, Outer
from l2o.meta.distribution import Distribution
from l2o.meta.held_out import SEED, HeldOut
from l2o.meta.ranks import Ranks
from l2o.meta.view import View
from tasks.display.page import Tiles
from tasks.display.plots import Figure
from tasks.evaluation.wording import per_cent
from tasks.families.mlp import MLP

CONFIG = Config(
    train=Distribution(widths=(4,), batch_size=8),
    held_out=Distribution(widths=(8, 12), batch_size=8),
    estimation=Estimation(particles=2, truncation=2, horizon=(4, 10)),
    outer=Outer(steps=6, warmup=3, save_every=2),
    evaluation=Evaluation(every=2, steps=6, seeds=2),
)
PAIR = ((0, 1), (0, 1))
OPTIMIZER = TunedAdam(lr=0.01)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "learned"
    run.begin(folder, CONFIG, OPTIMIZER, OPTIMIZER.initial(0), ["l2o", "meta-train", "..."])
    with View(silent=True) as view:
        run.proceed(folder, Ranks(), view)
    return folder


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(report, "WIDTHS", (4, 8))


@pytest.mark.parametrize(("saved", "figures"), [(True, 7), (False, 0)])
def test_a_run_is_reported_at_any_time(finished, tmp_path, saved, figures):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    if not saved:
        (folder / run.STATE).unlink()
        shutil.rmtree(folder / run.BEST)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["report", str(folder), "--out", str(tmp_path / "r.html")]) == 0
    text = (tmp_path / "r.html").read_text()
    assert text.count("<figure>") == figures
    assert ("that did not choose it" in text) == saved
    assert "l2o meta-train ..." in text
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_commands_of_a_report_can_be_pasted(finished, tmp_path):
    folder = Path(shutil.copytree(finished, tmp_path / "my run"))
    (folder / run.STATE).unlink()
    facts = json.loads((folder / run.FACTS).read_text())
    facts["command"] = ["l2o", "meta-train", "--run-dir", "my run"]
    del facts["digest"]
    (folder / run.FACTS).write_text(json.dumps(facts))
    assert main(["report", str(folder)]) == 0
    text = unescape((folder / "report.html").read_text())
    assert f"l2o report '{folder}'" in text
    assert f"l2o reproduce '{folder}'" in text
    assert "l2o meta-train --run-dir 'my run'" in text


def test_the_report_measures_on_seeds_that_did_not_choose(finished):
    """Adam's objectives are those of the run where seeds are the run's own, and differ on fresh
    ones; all rules of a seed start alike."""
    measured = report.measure(finished, CONFIG)
    held_out = HeldOut.of(CONFIG.held_out.tasks(), CONFIG.mup, CONFIG.evaluation)
    for (task, by_rule), adam in zip(measured.items(), held_out.adam, strict=True):
        assert list(by_rule) == ["kept", "untrained", "Adam at 0.001"], task
        fresh = by_rule["Adam at 0.001"]
        assert fresh.objectives.shape == (report.SEEDS,)
        assert fresh.curves.shape == (report.SEEDS, len(fresh.steps))
        assert 0.5 < fresh.objectives.mean() / np.mean(adam) < 2
        assert fresh.objectives.mean() != pytest.approx(np.mean(adam), rel=1e-6)
    gaps = report.against_adam(measured, CONFIG)
    gap = gaps["objective"]
    ratios = [
        np.log(rules["kept"].objectives / rules["Adam at 0.001"].objectives)
        for rules in measured.values()
    ]
    assert gap.tasks == len(measured)
    assert gap.seeds.n == report.SEEDS
    for found in (gap.seeds, gap.both):
        assert found.mean == pytest.approx(np.mean(ratios), rel=1e-5)
        assert found.low < found.mean < found.high


def test_an_optimizer_for_other_problems_has_no_coordinate_check(tmp_path):
    optimizer = L2OPA()
    checkpoint.save(tmp_path / run.BEST, optimizer, optimizer.initial())
    (said,) = report._coordinates(tmp_path)
    assert "expected a Composite" in str(said)


def test_an_optimizer_that_is_not_for_mup_is_checked_without(tmp_path):
    optimizer = Velo(4, 2)
    checkpoint.save(tmp_path / run.BEST, optimizer, optimizer.initial())
    said = report._coordinates(tmp_path)
    assert [part.name for part in said if isinstance(part, Figure)] == ["coordinates-standard"]
    assert "Not made in muP" in str(said[1])
    assert "param_scale: got True in muP" in str(said[1])


def test_a_tasks_name_may_hold_a_slash(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(MLP, "name", property(lambda task: f"mlp/{task.width}"))
    assert main(["report", str(finished), "--out", str(tmp_path / "r.html")]) == 0
    assert len(list((tmp_path / "r-figures").glob("curve-*.png"))) == 2


def test_one_held_out_task_has_no_interval_over_tasks(finished):
    found = run.saved(finished)
    assert found is not None
    for past in found.history:
        del past["objectives"][next(iter(past["objectives"]))]
    found = found._replace(adam=found.adam[1:])
    assert "No band: that takes two tasks" in curves.gap(CONFIG, found).caption


def test_every_curve_and_tile_tells_n_and_seeds(finished):
    page = report.page(finished, "l2o report ...")
    parts = [part for section in page.sections for part in section.parts]
    captions = {part.name: part.caption for part in parts if isinstance(part, Figure)}
    first, fresh = SEED, SEED + CONFIG.evaluation.seeds
    assert "n = 1 tasks × 2 particles of 1 run (seed 0)" in captions["meta-loss"]
    for name in ("held-out-gap", "held-out"):
        assert f"seeds ({first} to {first + 1})" in captions[name]
    assert "n = 2 tasks × 2" in captions["held-out-gap"]
    assert "95 % bootstrap interval" in captions["held-out-gap"]
    for name, caption in captions.items():
        if name.startswith("curve"):
            assert f"seeds ({fresh} to {fresh + 4})" in caption
        if name.startswith("coordinates"):
            assert "n = 2 seeds (0 and 1)" in caption
    (tiles,) = [part.tiles for part in parts if isinstance(part, Tiles)]
    measured = [what for _, what in tiles if "against" in what]
    assert len(measured) == 2
    for what in measured:
        assert re.search(r"\(.* to .*; n = 2 tasks × 5 fresh seeds\)", what)


def test_the_band_of_the_held_out_curve_is_over_tasks_and_seeds(finished):
    """Resampled here by itself: tasks and seeds with replacement, seeds alike for all tasks."""
    found = run.saved(finished)
    assert found is not None
    own, adam = (np.array([*x]) for x in (found.history[1]["objectives"].values(), found.adam))
    gaps = np.log(own / adam)
    assert gaps.shape == (2, 2)
    means = [gaps[np.ix_(t, s)].mean() for t in product(*PAIR) for s in product(*PAIR)]
    drawn = curves.gap(CONFIG, found).drawing.axes[0]
    (band,) = drawn.collections
    at_first = band.get_paths()[0].vertices[:, 1][band.get_paths()[0].vertices[:, 0] == 2]
    assert at_first.min() == pytest.approx(np.exp(min(means)), rel=1e-6)
    assert at_first.max() == pytest.approx(np.exp(max(means)), rel=1e-6)


def test_several_meta_trainings_are_one_report(finished, tmp_path):
    """One of them has not saved anything yet."""
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    (other / run.STATE).unlink()
    asked = ["report", f"first={finished}", f"second={other}", "--out", str(tmp_path / "both.html")]
    assert main(asked) == 0
    text = unescape((tmp_path / "both.html").read_text())
    saved = run.saved(finished)
    assert saved is not None
    best = min(range(len(saved.history)), key=lambda k: saved.history[k]["score"])
    kept = curves.against_adam(saved)[best].mean
    assert f"2 meta-trainings: median {per_cent(kept)} against Adam" in text
    assert "differ in" not in text
    for cell in ("first", "second", "6 of 6", "0 of 6", "tuned_adam", "Adam at 0.001"):
        assert f"<td>{cell}</td>" in text, cell
