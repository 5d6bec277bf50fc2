"""How far do meta-trained optimizers carry? Wider, deeper, longer, other data, a transformer.

Four optimizers: the two checkpoints (one meta-trained in muP, one not) as they are, AdamW and
muAdam with learning rate and weight decay tuned (54 settings, one seed, final training loss) at
the middle width of each group of tasks; 5 other seeds are reported. A figure, a table and a file
of results, to which what is missing is added: interrupt it at will.

    python scripts/studies/meta_generalization.py --scale minutes
    python scripts/studies/meta_generalization.py --scale full --out results/generalization
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from generalization_table import draw, markdown
from torch import Tensor

from l2o import checkpoint
from search.interpreter.population import Population
from search.language.program import to_text
from search.loading import rule as program
from tasks.cards import digest
from tasks.data.fetch import DataMissing
from tasks.data.loaders import breast_cancer, digits, fashion_mnist, help_text, mnist5k
from tasks.evaluation.tuning import Setting
from tasks.families.mlp import MLP
from tasks.families.transformer import Transformer
from tasks.inner.unroll import evaluate, unroll
from tasks.mup.scaling import mup, scaled, update_multiplier
from tasks.runs.environment import environment
from tasks.runs.files import SHIPPED, save_text
from tasks.types import Task, UpdateRule

TRAINED = 64
"""The widest network of meta-training; its depth was 3, its longest run 1,000 steps."""
DEPTH = 3
BASE = 64
"""The width at which muAdam is Adam."""
SETTINGS = [
    Setting(float(lr), decay)
    for lr, decay in product(np.geomspace(1e-4, 1e-1, 9), (0.0, 1e-3, 1e-2, 3e-2, 0.1, 0.3))
]
TUNED_ON = 7
"""The seed."""
LAST = 0.02
"""The final training loss is the mean over this share of the steps, the last ones."""
ALONE = 300_000
"""Networks of more parameters are trained one seed after another, for memory's sake."""
POINTS = 60
"""Of a stored learning curve."""


@dataclass(frozen=True)
class Scale:
    """How much is run. Widths and depths in units of meta-training's largest."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    text_widths: tuple[int, ...]
    steps: int
    horizon: int
    seeds: int
    settings: int = len(SETTINGS)


SCALES = {
    "minutes": Scale((1, 4), (1, 2), (32, 64), steps=150, horizon=1000, seeds=2, settings=9),
    "hour": Scale((1, 2, 4, 8), (1, 2, 5), (32, 64, 128), steps=500, horizon=10_000, seeds=5),
    "full": Scale(
        (1, 2, 4, 8, 16, 32), (1, 2, 3, 5), (32, 64, 128, 256), steps=400, horizon=25_000, seeds=5
    ),
}


class Case(NamedTuple):
    """A task, how long it is trained for, and what AdamW and muAdam are tuned on."""

    group: str
    value: int  # what grows within the group
    task: Task
    steps: int
    tuned_on: Task
    tuning_steps: int


def cases(scale: Scale) -> list[Case]:
    """All tasks. Unseen data is Fashion-MNIST; where that was not fetched, tumours. The widest
    network is trained on one data set only, the hardest."""
    try:
        unseen = fashion_mnist()
    except DataMissing:
        unseen = breast_cancer()
    n = scale.steps
    found = []
    fewer = scale.widths[:-1]
    for data, some in ((mnist5k(), scale.widths), (digits(), fewer), (unseen, fewer)):
        tasks = [MLP(TRAINED * times, DEPTH, data=data, batch_size=64) for times in some]
        middle = tasks[(len(scale.widths) - 1) // 2]
        found += [Case(f"width, {data.name}", t.width, t, n, middle, n) for t in tasks]
    shallow = MLP(TRAINED, DEPTH, data=mnist5k(), batch_size=64)
    deep = [replace(shallow, depth=DEPTH * times) for times in scale.depths]
    found += [Case("depth", t.depth, t, n, shallow, n) for t in deep]
    found.append(Case("horizon", scale.horizon, shallow, scale.horizon, shallow, n))
    texts = [Transformer(w, 2, 4, data=help_text(32), batch_size=16) for w in scale.text_widths]
    found += [Case("transformer", t.width, t, n, texts[(len(texts) - 1) // 2], n) for t in texts]
    return found


class Competitor(NamedTuple):
    """``make(instances)``: its rule; ``identity`` changes when what it computes changes."""

    name: str
    identity: str
    parametrise: Callable[[Task], Task]
    make: Callable[[Task, int], UpdateRule]
    tuned: bool


def learned(name: str, folder: Path) -> Competitor:
    """A checkpoint, in the parametrisation that it was meta-trained in."""
    loaded = checkpoint.load(folder)
    in_mup = bool(loaded.card.get("mup"))
    optimizer, theta = loaded.optimizer, loaded.theta

    def make(task: Task, instances: int) -> UpdateRule:
        return optimizer.on(task).rule(theta, update_multiplier if in_mup else None)

    identity = digest("learned", (folder / checkpoint.TENSORS).read_bytes())
    return Competitor(name, identity, mup if in_mup else _as_it_is, make, tuned=False)


def adamw(task: Task, instances: int) -> UpdateRule:
    return Population.of([program("adamw")], torch.zeros(instances, dtype=torch.int64))


def mu_adam(task: Task, instances: int) -> UpdateRule:
    return scaled(adamw(task, instances), task.multipliers())  # type: ignore[attr-defined]


def _as_it_is(task: Task) -> Task:
    return task


def _from_base(task: Task) -> Task:
    return mup(task, base_width=BASE)


class Bench:
    """Runs what the file of results does not have yet."""

    def __init__(self, file: Path, seeds: Sequence[int], settings: Sequence[Setting]) -> None:
        self.file, self.seeds, self.settings = file, seeds, settings
        self.results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def row(self, case: Case, competitor: Competitor) -> dict[str, Any]:
        """Losses of all seeds, and the setting that was chosen."""
        setting = Setting(1.0)
        if competitor.tuned:
            setting = self.tuned(competitor, case.tuned_on, case.tuning_steps)
        key = _key(competitor, case.task, case.steps, setting, self.seeds)
        return self._kept(key, lambda: self._train(case, competitor, setting))

    def tuned(self, competitor: Competitor, task: Task, steps: int) -> Setting:
        key = _key(competitor, task, steps, self.settings, [TUNED_ON])
        found = self._kept(key, lambda: self._tune(competitor, task, steps))
        return Setting(*found["best"])

    def _kept(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if key not in self.results:
            self.results[key] = make()
            save_text(self.file, json.dumps(self.results, indent=1) + "\n")
        return self.results[key]

    def _tune(self, competitor: Competitor, task: Task, steps: int) -> dict[str, Any]:
        task = competitor.parametrise(task)
        rates, decays = (torch.tensor(column) for column in zip(*self.settings, strict=True))
        trained = unroll(
            task,
            competitor.make(task, len(rates)),
            instances=len(rates),
            steps=steps,
            lr=rates,
            weight_decay=decays,
            seed=TUNED_ON,
            eval_at=(),
        ).training
        losses = torch.nan_to_num(_final(trained), nan=math.inf)
        return {"best": list(self.settings[int(losses.argmin())]), "loss": float(losses.min())}

    def _train(self, case: Case, competitor: Competitor, setting: Setting) -> dict[str, Any]:
        """Small networks all seeds side by side, large ones one after another."""
        task = competitor.parametrise(case.task)
        together = len(self.seeds) if task.layout.n < ALONE else 1
        train, test, curves = [], [], []
        for seeds in torch.tensor(self.seeds).split(together):
            trajectory = unroll(
                task,
                competitor.make(task, len(seeds)),
                instances=len(seeds),
                steps=case.steps,
                lr=setting.lr,
                weight_decay=setting.weight_decay,
                seed=seeds,
                eval_at=(),
            )
            losses = trajectory.training
            train += [_number(x) for x in _final(losses)]
            test += [_number(x) for x in evaluate(task, trajectory.inner.params, "test")]
            for row in losses.double().T.numpy():
                parts = np.array_split(row, min(POINTS, len(row)))
                curves.append([_number(part.mean()) for part in parts])
        print(f"{case.group} {case.value}: {competitor.name}: {train[0]}", flush=True)
        return {"train": train, "test": test, "curves": curves, "setting": list(setting)}


def _final(losses: Tensor) -> Tensor:
    return losses[-max(1, round(LAST * len(losses))) :].mean(dim=0)


def _number(x: Any) -> float | None:
    """JSON has no NaN; a run that diverged has no loss."""
    return float(x) if math.isfinite(float(x)) else None


def _key(competitor: Competitor, task: Task, steps: int, *how: Any) -> str:
    batch = f"b{task.batch_size}"
    return " ".join([competitor.name, competitor.identity, task.name, batch, f"{steps} steps"]) + (
        " " + digest(repr(how))
    )


def main() -> None:
    options_of = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options_of.add_argument("--mulo", type=Path, default=SHIPPED / "mulo_small")
    options_of.add_argument("--lo", type=Path, default=SHIPPED / "lo_small")
    options_of.add_argument("--scale", choices=SCALES, default="minutes")
    options_of.add_argument(
        "--groups", nargs="+", default=None, help="only these, such as depth; the table is printed"
    )
    options_of.add_argument("--out", type=Path, default=Path("results/generalization"))
    options = options_of.parse_args()
    torch.set_num_threads(1)
    scale = SCALES[options.scale]
    text_of = to_text(program("adamw"))
    try:
        competitors = [
            learned("mulo", options.mulo),
            learned("lo", options.lo),
            Competitor("muAdam", digest(text_of, f"mup {BASE}"), _from_base, mu_adam, tuned=True),
            Competitor("AdamW", digest(text_of), _as_it_is, adamw, tuned=True),
        ]
    except ValueError as error:
        options_of.error(str(error))
    everything = cases(scale)
    groups = list(dict.fromkeys(case.group for case in everything))
    for group in options.groups or ():
        if group not in groups:
            options_of.error(f"--groups: got {group!r}, expected some of {', '.join(groups)}")
    every = len(SETTINGS) // scale.settings
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.out / "results.json", range(1001, 1001 + scale.seeds), SETTINGS[::every])
    chosen = [c for c in everything if c.group in (options.groups or groups)]
    table = {(c.group, c.value): {o.name: bench.row(c, o) for o in competitors} for c in chosen}
    names = [competitor.name for competitor in competitors]
    made_with = ", ".join(f"{k} {v}" for k, v in environment().items())
    text = "\n".join([*markdown(table, names, TRAINED), "", f"Scale {options.scale}; {made_with}."])
    if len(chosen) == len(everything):  # some groups do not replace the table of all
        save_text(options.out / "table.md", text + "\n")
        draw(table, names, options.out / "figure.png")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped, nothing is lost; the same command goes on")
