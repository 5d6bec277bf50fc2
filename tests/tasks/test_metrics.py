"""A metric besides the loss: what it is, what it costs to have another one, where it is shown."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tasks.cards import fingerprint
from tasks.data.loaders import digits
from tasks.display.page import Table
from tasks.evaluation import evaluate as evaluation
from tasks.evaluation import metric_tables
from tasks.evaluation import report as reports
from tasks.evaluation.bench import Entrant
from tasks.evaluation.plan import Plan
from tasks.evaluation.results import Results
from tasks.families.module import ModuleTask
from tasks.inner.unroll import evaluate, initial
from tasks.optim.torch_rule import TorchRule
from tasks.suites import Entry, resolve
from tasks.types import Metric, accuracy


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.1))


def wrong(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) != targets).float().mean()


TASK = ModuleTask(network, cross_entropy, digits(), 64, "with-accuracy", 7, accuracy)
ERROR = Metric("error", wrong, higher=False)


def test_steps_are_those_of_the_task_unless_one_says_otherwise() -> None:
    assert Entry(TASK).steps == 7
    assert Entry(TASK, 3).steps == 3
    assert [entry.steps for entry in resolve(f"{__name__}:TASK")] == [7]
    with pytest.raises(ValueError, match="steps: got 0, expected a positive integer"):
        replace(TASK, steps=0)


def test_accuracy_is_the_share_that_is_right() -> None:
    flat = initial(TASK, 2, torch.arange(2))
    x, y = TASK.data.batch("validation", torch.arange(TASK.data.size("validation")))
    expected = []
    for row in flat:
        module = network().eval()
        module.load_state_dict(TASK.layout.views(row))
        expected.append((module(x).argmax(-1) == y).float().mean())
    assert torch.allclose(evaluate(TASK, flat, metric=True), torch.stack(expected))


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (cross_entropy, "metric: got <function cross_entropy.*, expected tasks.accuracy"),
        (
            Metric("twice", lambda x, y: x),
            r"metric: got 'twice .*ValueError: it is shape \(2, 10\)",
        ),
        (
            Metric("number", cast(Any, lambda x, y: 1.0)),
            "metric: got 'number .*ValueError: it is 1.0",
        ),
    ],
)
def test_wrong_metrics_are_refused(metric, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TASK, metric=metric)


def test_it_is_part_of_what_a_task_is() -> None:
    others = [TASK, replace(TASK, metric=None), replace(TASK, metric=ERROR)]
    assert len({fingerprint(task) for task in others}) == 3


def test_it_is_filed_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [
        Entrant(name, name, name, lambda task, instances, device: TorchRule(torch.optim.SGD))
        for name in ("one", "two")
    ]
    plan = Plan(f"{__name__}:TASK", trials=2, seeds=2)
    with Results(tmp_path / "results.sqlite") as results:
        evaluation.evaluate(plan, rules, results)
        measured = evaluation.measured(results)
        rows = metric_tables.found(results, measured)
        assert [(row.task, row.rule) for row in rows] == [(TASK.name, r) for r in ("one", "two")]
        assert all(0 <= row.test.mean <= 1 and row.test.n == 2 for row in rows)
        assert rows[0].validation == rows[1].validation
        page = reports.page(results, "l2o report")
    parts = next(s.parts for s in page.sections if s.title == "Task by task")
    shown = [part for part in parts if isinstance(part, Table)][-1]
    assert shown.rows[0][2] == "accuracy (higher is better)"
