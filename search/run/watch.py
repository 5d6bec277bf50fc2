"""Look at a run while somebody else is at it; never writes."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from search.language.program import parse, to_text
from search.language.validity import live
from search.record.archive import Archive, open_existing
from search.run import view
from search.run.config import BASELINES
from search.run.loop import fates
from search.run.view import Progress, View
from tasks.display.plain import Console


def follow(run_dir: Path, every: float, console: Console) -> None:
    """Show a run, with a look ``every`` so many seconds, until it is finished."""
    with open_existing(run_dir, readonly=True) as archive, View(console) as shown:
        while (seen := progress(archive)).stage != "finished":
            shown.show(seen)
            time.sleep(every)


def line(run_dir: Path) -> str:
    """The state of a run in a line."""
    with open_existing(run_dir, readonly=True) as archive:
        return view.line(progress(archive))


def progress(archive: Archive) -> Progress:
    """The state of a run as its archive has it."""
    facts = archive.run()
    best, counts = archive.best(1), fates(archive)
    wall, busy = archive.timings()
    tried, budget = sum(counts.values()), facts["config"]["budget"]
    searching = "finalists" not in facts
    done = max(tried / budget["candidates"], wall / (60 * budget["minutes"])) if searching else 1.0
    workers = max(1, math.ceil(busy / max(wall, 1e-9)))  # at least so many; it is not written down
    snapshot, known = archive.snapshot(), facts.get("calibration", {})
    return Progress(
        stage=_stage(facts),
        batch=0 if snapshot is None else snapshot.batch + 1,
        best_score=best[0].score if best else None,
        best_text=to_text(live(parse(best[0].text or ""))) if best else "",
        baselines=dict(zip(BASELINES, known.get("scores", ()), strict=False)),
        fates=counts,
        candidates_a_second=tried / max(wall, 1e-9) if wall else 0.0,
        workers=workers,
        busy=min(1.0, busy / max(wall * workers, 1e-9)),
        done=min(1.0, done),
        seconds=wall,
        seconds_left=max(0.0, wall / max(done, 1e-9) - wall) if searching else 0.0,
    )


def _stage(facts: dict[str, Any]) -> str:
    if "calibration" not in facts:
        return "tuning the baselines"
    if "finalists" not in facts:
        return "search"
    return "finished" if "winner" in facts else "judging the finalists"
