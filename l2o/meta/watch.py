"""Look at a meta-training run while somebody else is at it; never writes.

What is seen is the run's last save; it saves every ``outer.save_every`` steps.
"""

from __future__ import annotations

import time
from pathlib import Path

from l2o.meta import run
from l2o.meta.config import Config
from l2o.meta.loop import learning_rate
from l2o.meta.run import Saved
from l2o.meta.view import Progress, View
from tasks.display.plain import Console
from tasks.evaluation.wording import duration

SEEN = ("step", "skipped", "norm", "losses")
"""The tensors of a save that are looked at."""


def follow(run_dir: Path, every: float, console: Console) -> None:
    """Show a run, with a look ``every`` so many seconds, until it has taken all its steps."""
    config = _config(run_dir)
    found, told = run.saved(run_dir, SEEN), 0  # told: held-out evaluations that were said
    if found is not None and not _left(config, found):
        return
    with View(console) as view:
        while True:
            for past in found.history[told:] if found else ():
                view.evaluated(past["step"], past["score"], config.evaluation.adam_lr)
                told += 1
            if found is not None and not _left(config, found):
                return
            if found is not None:
                view.show(progress(config, found))
            time.sleep(every)
            found = run.saved(run_dir, SEEN)


def _config(run_dir: Path) -> Config:
    return Config.from_dict(run.facts(run_dir)["config"])


def _left(config: Config, found: Saved) -> int:
    return config.outer.steps - int(found.tensors["step"])


def progress(config: Config, found: Saved) -> Progress:
    """The state of a run as of a save."""
    step, losses = int(found.tensors["step"]), found.tensors["losses"].tolist()
    return Progress(
        step=step,
        steps=config.outer.steps,
        loss=losses[-1],
        recent=losses[-50:],
        norm=float(found.tensors["norm"]),
        lr=learning_rate(config.outer, step - 1),
        skipped=int(found.tensors["skipped"]),
        seconds=found.seconds,
        by_task={},
    )


def line(run_dir: Path) -> str:
    """The last save of a run in a line, and how long ago it was."""
    config, found = _config(run_dir), run.saved(run_dir, SEEN)
    if found is None:
        return f"outer step 0 of {config.outer.steps}: nothing has been saved yet"
    best = min(found.history, key=lambda past: past["score"])
    age = time.time() - (run_dir / run.STATE).stat().st_mtime
    state = f"saved {duration(max(age, 0.0))} ago" if _left(config, found) else "finished"
    return (
        f"{progress(config, found)}  held-out objective {View.gap(best['score'])} against Adam at "
        f"outer step {best['step']}  {duration(found.seconds)}  {state}"
    )
