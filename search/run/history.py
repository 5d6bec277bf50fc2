"""A run as it went, batch by batch: what the curves of a report are drawn from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from search.fitness.verdict import standings
from search.language.program import parse
from search.language.validity import live
from search.record.archive import Archive
from search.record.schema import FATES, VERSION, Record
from search.run.config import BASELINES
from tasks.evaluation.intervals import Interval
from tasks.runs.database import checked, explained

META_VALIDATION = "meta_validation"
"""The stage that measures ``leaders``."""
POINTS = 8
DECIDED = tuple(fate for fate in FATES if fate != "pending")


@dataclass(frozen=True)
class History:
    """One entry a batch that has come back, in order. Scores are NaN where there is none."""

    tried: np.ndarray  # [B] candidates so far, the invalid ones that got no number included
    seconds: np.ndarray  # [B] of wall clock so far
    best: np.ndarray  # [B] score of the best of this batch
    best_so_far: np.ndarray  # [B]
    fates: np.ndarray  # [B, len(DECIDED)] candidates of this batch by fate


def history(archive: Archive) -> History:
    """Read from the archive's file by a connection of its own, so a running search may go on."""
    with explained(archive.file), closing(checked(archive.file, VERSION)) as db:
        db.execute("BEGIN")  # all of one moment
        cells = db.execute(
            "SELECT batch, fate, count(*), min(score) FROM candidate GROUP BY batch, fate"
        ).fetchall()
        rejected = dict(
            db.execute("SELECT batch, json_extract(job, '$.rejected') FROM batch").fetchall()
        )
        walls = dict(db.execute("SELECT batch, wall FROM timing").fetchall())
    batches = sorted(walls)
    row = {batch: k for k, batch in enumerate(batches)}
    fates, best = np.zeros((len(batches), len(DECIDED))), np.full(len(batches), np.nan)
    for batch, fate, count, score in cells:
        if batch in row and fate in DECIDED:
            fates[row[batch], DECIDED.index(fate)] += count
            if fate == "evaluated":
                best[row[batch]] = score
    fates[:, DECIDED.index("invalid")] += [rejected.get(batch) or 0 for batch in batches]
    return History(
        tried=fates.sum(1).cumsum(),
        seconds=np.cumsum([walls[batch] for batch in batches]),
        best=best,
        best_so_far=np.fmin.accumulate(best) if len(best) else best,
        fates=fates,
    )


class Found(NamedTuple):
    """When a candidate was found: with its batch, after so many candidates, that batch included,
    and so many seconds of search, those before interruptions included."""

    batch: int
    tried: int
    seconds: float


def found(past: History, record: Record) -> Found | None:
    """None for a candidate whose batch is still out."""
    if not 0 <= record.batch < len(past.tried):
        return None
    return Found(record.batch, int(past.tried[record.batch]), float(past.seconds[record.batch]))


def leaders(archive: Archive) -> list[Record]:
    """The best so far after each batch that made a better one; the first, the last and some
    between, at most ``POINTS``."""
    by_batch, best = {}, math.inf
    for record in archive.records("WHERE c.fate = 'evaluated' ORDER BY c.id"):
        if record.score is not None and record.score < best:
            by_batch[record.batch] = record
            best = record.score
    found = list(by_batch.values())
    places = np.linspace(0, len(found) - 1, min(POINTS, len(found))).round().astype(int)
    return [found[place] for place in places]


def meta_validation(archive: Archive) -> list[tuple[Record, Interval]]:
    """The leaders and their loss against the reference's on the meta-validation tasks."""
    reference = BASELINES[0]
    table = standings(archive.finals(), META_VALIDATION, (reference,))
    found = [(s.rule, s.against[reference]) for s in table if s.rule != reference]
    return [
        (archive.record(int(rule)), gap) for rule, gap in sorted(found, key=lambda x: int(x[0]))
    ]


def trimmed(records: Iterable[Record]) -> list[Record]:
    """The same, but as long as that part of each program which has an effect and is shown."""
    lengths = ((r, live(parse(r.text)).length if r.text else r.length) for r in records)
    return [record._replace(length=length) for record, length in lengths]


def front(records: Iterable[Record]) -> list[Record]:
    """Those that no shorter or equally long program beats, the shortest first."""
    found: list[Record] = []
    for record in sorted(records, key=lambda r: (r.length or 0, r.score or 0.0, r.id)):
        if not found or (record.score or 0.0) < (found[-1].score or 0.0):
            found.append(record)
    return found
