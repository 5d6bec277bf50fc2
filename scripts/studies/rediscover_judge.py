"""What ``rediscover_lion.py`` asks of a candidate before it calls it found.

It must be of the kind that is looked for, by experiment, and on held-out tasks be ahead of AdamW,
tuned alike, with the whole 95 % interval over fresh seeds.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from search.behaviour.kind import kind_of
from search.evolution.candidates import Candidate
from search.fitness.verdict import Standing, Trial, judge, standings
from search.language.program import parse, to_text
from search.language.validity import live
from search.record.archive import Archive
from search.record.schema import Final
from search.run.config import BASELINES, Config
from search.run.stages import trials
from search.zoo import lookup
from tasks.executors.base import Failure
from tasks.executors.named import executor
from tasks.runs.files import save_text

SEEDS = 10
"""Fresh ones that a find is judged on."""
GAIN = 0.01
"""By how much a candidate must be better on the proxies than the last one that was judged."""
MOST = 1_000_000
"""Best programs that are looked at again, all: where a search goes on, and at its end."""
CANDIDATE = "candidate"
"""What it is called among the baselines."""
Scored = tuple[float, int, str]
"""A candidate: score, id, text."""


class Hunter:
    """Has what was evaluated looked at, and the best of the wanted kind judged, one at a time, in
    a process of its own, until one is confirmed.

    ``kind`` is what ``search.behaviour.kind`` calls it; ``rival``: what it must be at least as good
    as, if not None; ``known``: the baselines on held-out tasks; ``file``: keeps what was judged,
    those that failed too, for a hunt that was stopped and goes on.
    """

    def __init__(
        self,
        archive: Archive,
        config: Config,
        kind: str,
        rival: str | None,
        known: list[Final],
        file: Path,
    ) -> None:
        self.config, self.kind, self.rival, self.known = config, kind, rival, known
        self.file = file
        self.jobs = executor(f"{__file__}:worker", None, 1)
        self.busy = False
        self.began = self.waited = 0.0  # seconds: of the clock, and of judging after the search
        self.searching = True
        self.tried = GAIN  # the best score put to the test; the first must beat AdamW's, which is 0
        self.unseen = scored(archive)
        self.judged: list[dict[str, Any]] = []
        self.found: dict[str, Any] | None = None
        if file.exists():
            for past in json.loads(file.read_text(encoding="utf-8")):
                self._note(past)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.jobs.close()

    def __call__(self, candidates: list[Candidate]) -> bool:
        self.unseen += [(c.score or 0.0, c.id, to_text(c.program)) for c in candidates if c.program]
        self._go_on(0.0)
        return self.found is not None

    def finish(self, archive: Archive) -> None:
        """Wait for what is being judged, and for what came up meanwhile; then have the best of all
        judged, whatever its margin, if it is better than what was judged before. A judgement that
        is concluded here counts as time after the search, all of it."""
        self.searching = False
        self._to_the_end()
        if self.found is None:
            self._submit(scored(archive), min(self.tried, 0.0))
            self._to_the_end()

    def _to_the_end(self) -> None:
        self._go_on(0.0)
        while self.found is None and self.busy:
            self._go_on(None)

    def _go_on(self, timeout: float | None) -> None:
        for _, result in self.jobs.completed(timeout):
            self.busy = False
            if found := answer(result):
                self._conclude(*found)
        if self.busy or self.found:
            return
        unseen, self.unseen = self.unseen, []
        self._submit(unseen, self.tried - GAIN)

    def _submit(self, candidates: list[Scored], bar: float) -> None:
        """Have the best of the kind judged, if there is one below the bar."""
        promising = sorted(x for x in candidates if x[0] < bar)
        if promising:
            self.jobs.submit((promising, self.kind, held_out(self.config, {})))
            self.busy, self.began = True, time.monotonic()

    def _conclude(self, candidate: Scored, rows: list[Final]) -> None:
        score, number, text = candidate
        found = standings(self.known + rows, "held_out", BASELINES)
        standing = next(s for s in found if s.rule == CANDIDATE)
        self._note(
            {
                "candidate": number,
                "score": score,
                "kind": str(kind_of(text)),
                "program": text,
                "passed": ahead(standing) and equals(standing, self.rival),
                "held_out": noted(standing),
                "waited": 0.0 if self.searching else time.monotonic() - self.began,
                "rows": rows,
            }
        )
        self.file.parent.mkdir(exist_ok=True)
        save_text(self.file, json.dumps(self.judged, allow_nan=False) + "\n")

    def _note(self, judgement: dict[str, Any]) -> None:
        self.judged.append(judgement)
        self.tried = judgement["score"]
        self.waited += judgement.get("waited", 0.0)  # older files do not say
        if judgement["passed"]:
            self.found = judgement


def scored(archive: Archive) -> list[Scored]:
    """The best candidates of a run."""
    return [(r.score or 0.0, r.id, r.text or "") for r in archive.best(MOST)]


Suspects = tuple[list[Scored], str, list[Trial]]
"""A job: candidates, the kind that is looked for, and the trials that one of it is put to."""


def worker(_: None) -> Callable[[Trial | Suspects], Any]:
    """What a process does with a job: the baselines have trials alone."""
    return lambda job: judge(job) if isinstance(job, Trial) else hunt(*job)


def hunt(
    candidates: list[Scored], wanted: str, jobs: list[Trial]
) -> tuple[Scored, list[Final]] | None:
    """The first of the candidates that is of the kind, and how it does in the trials."""
    for score, number, text in candidates:
        kind = kind_of(text)
        if kind.name == wanted and not kind.climbs:
            rule = (CANDIDATE, to_text(live(parse(text))))
            rows = [row for trial in jobs for row in judge(trial._replace(rules=(rule,)))]
            return (score, number, rule[1]), rows
    return None


def held_out(config: Config, rules: dict[str, str]) -> list[Trial]:
    """The jobs that judge ``rules`` as a run does, on more seeds."""
    jobs = trials(config, "held_out", config.verdict.held_out, rules)
    return [trial._replace(seeds=SEEDS) for trial in jobs.values()]


def baselines(config: Config, out: Path, workers: int) -> list[Final]:
    """Those of every seed: what ``out`` has of them, or measured now.

    Raises ValueError where ``out`` has those of another goal.
    """
    file, verdict = out / "baselines.json", config.verdict
    asked = {
        "suite": verdict.held_out,
        "length": config.funnel.length,
        "schedule": config.funnel.schedule,
        "trials": verdict.trials,
        "seeds": SEEDS,
    }
    if file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        if {"schedule": "cosine"} | known["asked"] != asked:  # older files do not say
            raise ValueError(f"{file}: got {known['asked']}, expected {asked}: not of this goal")
        return [Final(*row) for row in known["rows"]]
    print(f"tuning {', '.join(BASELINES)} on held-out tasks …", flush=True)
    rules = {name: to_text(lookup(name).program) for name in BASELINES}
    rows: list[Final] = []
    with executor(f"{__file__}:worker", None, workers) as jobs:
        for trial in held_out(config, rules):
            jobs.submit(trial)
        for _, found in jobs.completed():
            rows += answer(found)
    save_text(file, json.dumps({"asked": asked, "rows": rows}) + "\n")
    return rows


def answer(result: Any) -> Any:
    """What came of a job. Raises RuntimeError if it failed."""
    if isinstance(result, Failure):
        raise RuntimeError(f"judging: {result}")
    return result


def noted(standing: Standing) -> dict[str, dict[str, float | None]]:
    """The intervals against each baseline as JSON has them: what is infinite is null."""
    return {
        name: {k: x if math.isfinite(x) else None for k, x in interval._asdict().items()}
        for name, interval in standing.against.items()
    }


def ahead(standing: Standing) -> bool:
    """Better than tuned AdamW, and not by chance: the whole interval is below zero."""
    return standing.against[BASELINES[0]].high < 0


def equals(standing: Standing, rival: str | None) -> bool:
    """Whether it does at least as well on average."""
    return rival is None or standing.against[rival].mean <= 0
