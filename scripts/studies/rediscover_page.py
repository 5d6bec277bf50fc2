"""Write tables of docs/results, rediscovery.md and regimes.md, from docs/results/rediscovery/*.csv,
and check what can be worked out again.

    python scripts/studies/rediscover_page.py

A comment on the page, ``<!-- finds.csv: goal, seed -->``, says which file and which columns the
table below it shows. The files hold what ``rediscover_lion.py``, ``rediscover_confirm.py``,
``choose_regime.py`` and ``l2o evaluate`` printed, row by row. Worked out again are the shares of
seeds with their intervals, medians and ranges of the times to discovery, what is copied from one
file to another, the tables of regimes.md, and what the cards of ``checkpoints`` say of held-out
tasks.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from rediscover_table import share

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
FILES = RESULTS / "rediscovery"
PAGES = (RESULTS / "rediscovery.md", RESULTS / "regimes.md")
TITLES = {
    "adamw": "against AdamW",
    "best_rule": "against the best rule",
    "candidates": "candidates, median",
    "constants": "twenty further seeds: against constants alone",
    "found": "found (95 % interval)",
    "further": "twenty further seeds: against AdamW",
    "held_out": "held out: the best against AdamW",
    "lion": "against Lion",
    "million_steps": "million inner steps",
    "proxy": "proxy score",
    "sign_momentum": "against sign momentum",
    "steps_2000": "2,000 steps",
    "steps_8000": "8,000 steps",
    "test": "test loss",
    "the_lion_form": "the Lion form on the front of score against length",
    "validation": "validation loss against AdamW",
}
TABLE = re.compile(r"<!-- (\w+\.csv): ([\w, ]+) -->\n\n(?:\|.*\n)*\n*")


def rows(name: str) -> list[dict[str, str]]:
    """A file of numbers, by column."""
    with (FILES / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def written(page: str) -> str:
    """The ``page`` with its tables as the files have them."""
    return TABLE.sub(lambda found: _table(*found.groups()), page)


def _table(name: str, columns: str) -> str:
    keys = columns.split(", ")
    lines = [[TITLES.get(key, key.replace("_", " ")) for key in keys], ["---"] * len(keys)]
    lines += [[row[key].replace("|", "\\|") for key in keys] for row in rows(name)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"<!-- {name}: {columns} -->\n\n{text}\n"


def mistakes() -> Iterator[str]:
    """What does not agree with what it was made from."""
    yield from _searches()
    yield from _copies()
    yield from _regimes()
    yield from _cards()


def _searches() -> Iterator[str]:
    finds = rows("finds.csv")
    for row in rows("searches.csv"):
        if "cannot" in row["found"] or not row["seeds"]:
            continue
        got, expected = row["found"], share(int(row["found"].split()[0]), int(row["seeds"]))
        if got != expected:
            yield f"searches.csv, {row['goal']}, {row['strategy']}: got {got}, expected {expected}"
        times = [_seconds(x["after"]) for x in finds if x["goal"] == row["goal"]]
        times = sorted(time for time in times if time is not None)
        if row["strategy"].startswith("evolution") and times:
            middle, low, high = map(_clock, (statistics.median(times), times[0], times[-1]))
            if row["time"] != (time := f"{middle} ({low} to {high})"):
                yield f"searches.csv, {row['goal']}: got {row['time']}, expected {time}"


def _seconds(text: str) -> int | None:
    """Of minutes:seconds; None in brackets, which is a search that found nothing."""
    minutes, colon, seconds = text.partition(":")
    return 60 * int(minutes) + int(seconds) if colon and "(" not in text else None


def _clock(seconds: float) -> str:
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"


def _copies() -> Iterator[str]:
    known = {
        (row["goal"], *re.findall(r"(find|winner) of seed (\d)", row["rule"])[0]): row
        for row in rows("confirmed.csv")
        if " of seed " in row["rule"]
    }
    for file, kind in (("finds.csv", "find"), ("winners.csv", "winner")):
        for row in rows(file):
            found = known.get((row["goal"], kind, row["seed"]), {})
            for copy, column in (("further", "adamw"), ("constants", "constants_0")):
                expected = found.get(column, "–")
                if row.get(copy, expected) != expected:
                    where = f"{file}, {row['goal']}, seed {row['seed']}"
                    yield f"{where}: got {row[copy]}, expected {expected}"


def _regimes() -> Iterator[str]:
    text = (RESULTS / "regimes.md").read_text(encoding="utf-8").replace("-0.", "−0.")
    sections = dict(
        re.findall(r"^## ([^\n]+?)(?:, six rules)?\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    )
    for row in rows("regimes.csv"):
        steps, comma, rest = row["setting"].partition(", ")
        section = sections[f"{steps} steps{comma}{rest}"]
        for column in ("sign_momentum", "adam", "best_rule"):
            if (gap := row[column].rpartition(": ")[2].replace("*", "")) not in section:
                yield f"regimes.csv, {row['setting']}: got {gap}, expected a row of its table"


def _cards() -> Iterator[str]:
    measured = {row["adamw"] for name in ("finds.csv", "winners.csv") for row in rows(name)}
    for path in sorted((ROOT / "checkpoints").glob("*/card.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        gap = card.get("scores", {}).get("held_out", {}).get("adamw")
        if gap and "rediscover_lion.py lion" in card["command"]:
            mean, low, high = (
                f"{gap[key]:+.4f}".replace("-", "−") for key in ("mean", "low", "high")
            )
            if f"{mean} [{low}, {high}]" not in measured:
                yield f"{path.parent.name}: got {mean} [{low}, {high}], expected a row of that"


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit("\n".join(mistakes()) or None)
