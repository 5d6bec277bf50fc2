"""Do the finds hold, and is what evolution ends with better than tuned constants?

    python scripts/studies/rediscover_confirm.py results/lion-swap
    python scripts/studies/rediscover_confirm.py results/lion-swap --trials 61

While ``rediscover_lion.py`` searches, its candidates are judged on the same ten fresh seeds until
one passes, which flatters the one that does; and the winners of its strategies are not compared
with one another. Here every find and every winner in the folder, AdamW and Lion are tuned as they
were, on the same 16 learning rates a task, and run on the twenty fresh seeds after those ten, by
which nothing has been chosen. Intervals are over these seeds, 95 %, paired. How near to its best
the 16 rates let a rule come is in none of them: of 61, among which those are, the neighbours differ
by 17 % and not by 85.

Leaves ``confirmed.json`` and ``confirmed.md`` (``confirmed_61``) in the folder. What is there is
not run again, and what was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rediscover_judge
from rediscover_judge import SEEDS, answer
from rediscover_table import CONSTANTS

from search.fitness.verdict import Trial, standings
from search.language.program import to_text
from search.record.schema import Final
from search.zoo import lookup
from tasks.executors.named import executor
from tasks.runs.files import save_text
from tasks.suites import names, resolve

FURTHER = 20
"""Fresh seeds, after those that finds were judged on."""
REFERENCES = ("adamw", "lion")


def rules_of(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What is measured, by name: the text of each reference, find and winner."""
    rules = {name: to_text(lookup(name).program) for name in REFERENCES}
    for record in records:
        for part in ("found", "winner"):
            if record[part]:
                rules[f"{record['strategy']} {record['seed']}, {part}"] = record[part]["program"]
    return rules


def trials(asked: dict[str, Any], rules: dict[str, str]) -> dict[tuple[str, str], Trial]:
    """A job for each rule and held-out task, as ``asked`` of the baselines."""
    return {
        (rule, task): Trial(
            stage="held_out",
            suite=asked["suite"],
            entry=entry,
            length=asked["length"],
            schedule=asked.get("schedule", "cosine"),  # older files do not say
            rules=((rule, text),),
            trials=asked["trials"],
            seeds=FURTHER,
            skip=SEEDS,
        )
        for entry, task in enumerate(names(resolve(asked["suite"])))
        for rule, text in rules.items()
    }


def measure(file: Path, asked: dict[str, Any], rules: dict[str, str], workers: int) -> list[Final]:
    """Losses on the further seeds: what ``file`` has of them, and the others measured now."""
    known: dict[str, Any] = {"rules": {}, "rows": []}
    if file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
    same = {name for name, text in rules.items() if known["rules"].get(name) == text}
    rows = [row for row in map(Final._make, known["rows"]) if row.rule in same]
    done = {(row.rule, row.task) for row in rows}
    jobs = trials(asked, rules)
    with executor(f"{rediscover_judge.__file__}:worker", None, workers) as working:
        for name, trial in jobs.items():
            if name not in done:
                working.submit(trial)
        for _, found in working.completed():
            rows += answer(found)
            save_text(file, json.dumps({"rules": rules, "rows": rows}) + "\n")
            print(f"{len(rows) // FURTHER} of {len(jobs)} measured", flush=True)
    return rows


def table(rows: Sequence[Final]) -> str:
    """Markdown: each rule against the references and the winners of the rival strategy."""
    rivals = sorted({row.rule for row in rows if row.rule.startswith(CONSTANTS)})
    against = (*REFERENCES, *rivals)
    lines = [
        f"| rule | {' | '.join(f'against {name}' for name in against)} |",
        "| --- " * (1 + len(against)) + "|",
    ]
    for standing in standings(rows, "held_out", against):
        others = (str(standing.against[name]) if name != standing.rule else "" for name in against)
        lines.append(f"| {standing.rule} | {' | '.join(others)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path, help="a folder of rediscover_lion.py")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--trials", type=int, help="learning rates a task; as in the search")
    options = parser.parse_args()
    for name in ("workers", "trials"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name}: got {value}, expected more than 0")
    files = sorted(options.out.glob("*-[0-9]*.json"))
    if not files:
        parser.error(f"out: got {options.out}, which has no results of rediscover_lion.py")
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    asked = json.loads((options.out / "baselines.json").read_text(encoding="utf-8"))["asked"]
    name = "confirmed"
    if options.trials is not None:
        name, asked["trials"] = f"confirmed_{options.trials}", options.trials
    file = options.out / f"{name}.json"
    try:
        rows = measure(file, asked, rules_of(records), options.workers)
    except KeyboardInterrupt:
        print("stopped, nothing is lost; the same command goes on")
        return
    text = table(rows)
    save_text(options.out / f"{name}.md", text)
    print(text)


if __name__ == "__main__":
    main()
