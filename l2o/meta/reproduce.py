"""Run a meta-training again from its recorded configuration, and compare the two.

Everything random is a function of the configuration, so the same program on the same machine gives
the same numbers, whatever the interruptions; another machine, or several processes, may round
otherwise, which is then what is found.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from l2o import checkpoint
from l2o.meta import run
from l2o.meta.config import Budget, Config
from l2o.meta.ranks import Ranks
from l2o.meta.run import Saved
from l2o.meta.view import View
from tasks.runs.environment import changes, prepare
from tasks.runs.files import resuming
from tasks.user_code.imports import Trusted, agreed


def reproduce(run_dir: Path, trusted: Trusted = False) -> int:
    """Repeat a finished meta-training, in one process; see ``l2o.cli.runs.reproduce``.

    Raises ValueError for one that names code, unless that is ``trusted``.
    """
    facts, old = run.facts(run_dir), run.saved(run_dir)
    config = replace(Config.from_dict(facts["config"]), budget=Budget())
    if old is None or len(old.tensors["losses"]) < config.outer.steps:
        raise ValueError(f"{run_dir}: not finished; go on with: {resuming(run_dir)}")
    agreed(run.imports(run_dir), trusted, run_dir)
    prepare(config.device)  # so that threads are those of the run
    with View() as view:
        for change in changes(facts["environment"], config.device):
            view.say(change)
        difference = compare(old, again(run_dir, config, facts["command"], view))
        count = f"{config.outer.steps:,} outer steps and {len(old.history)} held-out evaluations"
        view.say(difference or f"identical: {count}, {len(old.tensors)} tensors, times left out")
    return 1 if difference else 0


def again(run_dir: Path, config: Config, command: list[str], view: View) -> Saved:
    """What a second run of ``config``, from the same optimizer, comes to."""
    start = checkpoint.load(run_dir / run.START, trusted=None)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        run.begin(folder, config, start.optimizer, start.theta, command)
        run.proceed(folder, Ranks(), view)
        found = run.saved(folder)
        assert found is not None
        return found


def compare(old: Saved, new: Saved) -> str:
    """The first difference, in words; nothing where there is none."""
    pairs = zip(old.tensors["losses"].tolist(), new.tensors["losses"].tolist(), strict=True)
    for step, (then, now) in enumerate(pairs, 1):
        if then != now:
            return f"different from outer step {step} on: its meta-loss was {then}, is {now}"
    for past, now in zip(old.history, new.history, strict=True):
        if past != now:
            return (
                f"different: the held-out score after outer step {past['step']} was "
                f"{past['score']}, is {now['score']}"
            )
    for name in sorted(old.tensors.keys() | new.tensors.keys()):
        then, now = old.tensors.get(name), new.tensors.get(name)
        if then is None or now is None or not then.equal(now):
            return f"different: the tensor {name} at the end"
    return ""
