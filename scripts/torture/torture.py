"""Jobs under torture: killed, crowded out, damaged; and then compared with jobs left in peace.

    python scripts/torture/torture.py --faults 1000 --damaged 2000 \\
        --document docs/results/torture.md
    python scripts/torture/torture.py --seconds 60

A search (in one process, and with a worker), a meta-training and an evaluation are begun, something
happens to them, they are gone on with, something else happens; what they end with must be what they
end with undisturbed, row for row and number for number, and no process may end in a traceback. Then
their files are damaged: whoever reads one must be refused in one line, or get what was written.
All is drawn from ``--seed``; the moments of faults are in seconds, so a slow machine is met
elsewhere. Exit status 1 if anything went wrong.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torture_faults import FAULTS, Case, Job, completed, damage, small_disk
from torture_subjects import SUBJECTS, Subject, same

from l2o.cli.main import main as l2o

HERE = Path(__file__).parent
IN_A_ROW = 12
"""Faults of one job, before it is gone on with to its end."""


@dataclass
class Tally:
    """What was done, and what went wrong: ``(subject, fault)`` counts, and lines."""

    done: Counter[tuple[str, str]] = field(default_factory=Counter)
    compared: Counter[str] = field(default_factory=Counter)
    read: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def note(self, what: str, wrong: str) -> None:
        if wrong:
            self.wrong.append(f"{what}: {wrong}")
            print(f"WRONG: {what}: {wrong}", flush=True)


@dataclass(frozen=True)
class Peace:
    """A subject that nothing happened to: where it is, what it came to, and how long that took."""

    subject: Subject
    place: Path
    contents: Any
    seconds: float


def peace(subject: Subject, place: Path) -> Peace:
    place.mkdir()
    start = time.monotonic()
    ended = Job(subject, place).wait()
    if ended.status:
        raise RuntimeError(f"{subject.name} undisturbed: status {ended.status}: {ended.said}")
    return Peace(subject, place, subject.contents(place), time.monotonic() - start)


def name(subject: Subject) -> str:
    return subject.name + (f", {subject.workers} worker" if subject.workers else "")


def disturbed(one: Peace, place: Path, rng: random.Random, tally: Tally) -> None:
    """A job that faults happen to, one after the other, and its comparison in the end."""
    place.mkdir()
    subject, kinds = one.subject, list(FAULTS)
    for _ in range(IN_A_ROW):
        kind = rng.choice(kinds)
        case = Case(subject, place, rng.uniform(0, 0.3 * one.seconds), rng)
        tally.note(f"{name(subject)}, {kind}", FAULTS[kind](case))
        tally.done[name(subject), kind] += 1
    compare(one, place, tally, completed(Case(subject, place, 0, rng)))
    shutil.rmtree(place)


def crowded(one: Peace, place: Path, rng: random.Random, tally: Tally) -> None:
    """A job on a small disk, and its comparison."""
    place.mkdir()
    wrong = small_disk(Case(one.subject, place, 0, rng))
    tally.done[name(one.subject), "small disk"] += 1
    compare(one, place, tally, wrong or completed(Case(one.subject, place, 0, rng)))
    shutil.rmtree(place)


def compare(one: Peace, place: Path, tally: Tally, wrong: str) -> None:
    if not wrong and not same(one.subject.contents(place), one.contents):
        wrong = f"not what it is undisturbed; kept in {place}"
        shutil.copytree(place, place.with_name(f"kept-{place.name}"))
    tally.note(f"{name(one.subject)}, in the end", wrong)
    tally.compared[name(one.subject)] += 1


def damaged(one: Peace, place: Path, rng: random.Random, tally: Tally) -> None:
    """One file of a finished job is changed, and all are read."""
    shutil.copytree(one.place, place)
    try:
        file = rng.choice(one.subject.files(place))
        kind = damage(file, rng)
        what = f"{name(one.subject)}, {file.name}, {kind}"
        try:
            right = same(one.subject.contents(place), one.contents)
            tally.note(what, "" if right else "read as something else in silence")
            tally.read[one.subject.name, "unchanged in what is read"] += 1
        except (ValueError, OSError) as error:
            tally.note(what, "" if "\n" not in str(error) else f"several lines: {error}")
            tally.read[one.subject.name, "refused in one line"] += 1
        except Exception as error:
            tally.note(what, f"{type(error).__name__}: {error}")
    finally:
        shutil.rmtree(place)


def warmed(place: Path) -> None:
    """Every subject once in this process: copies of it find modules loaded and kernels compiled."""
    for number, subject in enumerate(SUBJECTS):
        if not subject.workers:
            (place / f"warm-{number}").mkdir()
            with redirect_stdout(io.StringIO()):
                l2o(subject.commands(place / f"warm-{number}"))


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder, with that of the suites on ``sys.path``."""
    sys.path.insert(0, str(HERE))
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def torture(faults: int, files: int, seconds: float, seed: int) -> Tally:
    """As many faults and damaged files, or as many as there is time for."""
    tally, rng = Tally(), random.Random(seed)
    with scratch() as folder:
        warmed(folder)
        references = [peace(subject, folder / f"peace-{k}") for k, subject in enumerate(SUBJECTS)]
        start = time.monotonic()  # of the faults alone, so that some there are
        for number in range(files):
            if time.monotonic() - start > seconds / 2:
                break
            one = references[number % len(references)]
            if not one.subject.workers:
                damaged(one, folder / f"damaged-{number}", rng, tally)
        number = 0
        while sum(tally.done.values()) < faults and time.monotonic() - start < seconds:
            act = crowded if number % 3 == 2 else disturbed
            act(references[number % len(references)], folder / f"job-{number}", rng, tally)
            number += 1
            print(
                f"{sum(tally.done.values())} faults, {time.monotonic() - start:.0f} s", flush=True
            )
    return tally


def document(tally: Tally, seconds: float, seed: int) -> str:
    """The table of a run, as Markdown."""
    kinds = sorted({kind for _, kind in tally.done})
    subjects = sorted(tally.compared)
    rows = [
        f"| {kind} | " + " | ".join(f"{tally.done[subject, kind]:,}" for subject in subjects) + " |"
        for kind in kinds
    ]
    rows.append(
        "| **compared in the end** | "
        + " | ".join(f"{tally.compared[subject]:,}" for subject in subjects)
        + " |"
    )
    reads = [f"- {subject}: {n:,} {how}" for (subject, how), n in sorted(tally.read.items())]
    counts = sum(tally.done.values()), sum(tally.compared.values()), sum(tally.read.values())
    made_with = f"Python {platform.python_version()}, torch {torch.__version__}"
    lines = [
        "# Under torture",
        "",
        "Written by `scripts/torture/torture.py`, whose head says what it does, with "
        f"`--seed {seed}`: {counts[0]:,} faults in {counts[1]:,} jobs and {counts[2]:,} damaged "
        f"files in {seconds / 60:.0f} minutes. **{len(tally.wrong)} went wrong.** {made_with}, "
        f"SQLite {sqlite3.sqlite_version}, {os.cpu_count()} cores.",
        "",
        "| fault | " + " | ".join(subjects) + " |",
        "|---|" + "---|" * len(subjects),
        *rows,
        "",
        "A job gets several faults, one after the other, and is gone on with after each. What it "
        "ends with is compared with what it ends with undisturbed, row for row.",
        "",
        "Damaged files (bits, blocks, ends, values of valid SQLite), each read as a whole:",
        "",
        *reads,
        "",
        *(f"- wrong: {line.splitlines()[0][:300]}" for line in tally.wrong),
    ]
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    given = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    given.add_argument("--faults", type=int, default=10**9, help="at most")
    given.add_argument("--damaged", type=int, default=10**9, help="files, at most")
    given.add_argument("--seconds", type=float, default=1e9, help="of wall clock, at most")
    given.add_argument("--seed", type=int, default=0)
    given.add_argument("--document", type=Path, default=None, help="a file for the table")
    options = given.parse_args(arguments)
    torch.set_num_threads(1)
    start = time.monotonic()
    tally = torture(options.faults, options.damaged, options.seconds, options.seed)
    text = document(tally, time.monotonic() - start, options.seed)
    print(text)
    if options.document is not None:
        options.document.write_text(text, encoding="utf-8")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
