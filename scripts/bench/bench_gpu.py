"""What a GPU makes of the inner loop: ``python scripts/bench/bench.py gpu``.

Tables, written as Markdown and as JSON with device, versions and date:

* curve: model-steps and programs a second against the number of instances on two tasks, beside the
  loop one would write on the same device in the same run, and what bounds them;
* kernel: the population kernel against its bytes at the copy bandwidth measured here;
* decided: ``l2o search --preset gpu``: candidates decided in ten minutes, and what bounds that;
* pes: inner steps a second of meta-training against the number of particles, and what bounds them;
* small_fc: a step on one large tensor list against fused AdamW.

``--parts`` chooses among them. ``--device cpu --small`` runs all of it in a minute without a GPU,
to see that it works; its numbers mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bench_gpu_learned as learned
import bench_gpu_search as search
import torch
from gpu_bounds import Machine, Row, machine

from tasks.runs.environment import environment, prepare

PARTS = ("curve", "kernel", "decided", "pes", "small_fc")
Tables = dict[str, Callable[[], list[Row]]]
COPIED, SIDE = 2**32, 8192
SMALL_SEARCH = search.Sizes((6, 24), 2, 1, 0.1, 2**14, 0.05, 0, 64, 100)
SMALL_LEARNED = learned.Sizes((2, 4), 2, 20_000, 1)


def tables(device: torch.device, small: bool, minutes: float, can: Machine) -> dict[str, Tables]:
    """The tables of each part, to be made when they are called."""
    sizes = SMALL_SEARCH if small else replace(search.Sizes(), minutes=minutes)
    also = SMALL_LEARNED if small else learned.Sizes()
    return {
        "curve": {
            f"The search's inner loop, {name}": lambda name=name: search.curve(
                name, device, sizes, can
            )
            for name in search.SUITES
        },
        "kernel": {"The population kernel": lambda: search.kernel(device, sizes, can)},
        "decided": {"l2o search --preset gpu": lambda: search.decided(device, sizes)},
        "pes": {"PES, small_fc on the MLP proxy": lambda: learned.particles(device, also, can)},
        "small_fc": {"small_fc beside AdamW": lambda: learned.large_step(device, also, can)},
    }


def gpu(
    device: str, small: bool, out: Path, parts: Sequence[str] = (), minutes: float = 10.0
) -> dict[str, Any]:
    """Measure ``parts`` (all if there are none) and write ``out`` (JSON), and ``out.md``.

    Raises ValueError for a device that is not there and for a part that there is none of.
    """
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"--parts: got {', '.join(sorted(unknown))}, expected {', '.join(PARTS)}")
    prepare(device)
    place, repeats = torch.device(device), 2 if small else 5
    can = machine(place, 2**20 if small else COPIED, 64 if small else SIDE, repeats)
    known = tables(place, small, minutes, can)
    facts = environment(device) | {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "CUDA": torch.version.cuda,
        "copy bandwidth, GB/s": f"{can.bandwidth / 1e9:.0f}",
        "float32 matrix products, TFLOP/s": f"{can.products / 1e12:.2f}",
        "tiny operations/s": f"{can.launches:.0f}",
        "sizes": "small: to see that it works" if small else "full",
    }
    results: dict[str, Any] = {"facts": facts, "tables": {}}
    for part in parts or PARTS:
        for title, make in known[part].items():
            results["tables"][title] = make()
            write(results, out)  # what is measured is kept, whatever happens to the rest
    print(markdown(results))
    return results


def write(results: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(markdown(results), encoding="utf-8")


def markdown(results: dict[str, Any]) -> str:
    """The results as a page of tables."""
    facts = [f"* {name}: {value}" for name, value in results["facts"].items() if value]
    lines = [f"# The inner loop on {results['facts']['device']}", "", *facts]
    for title, rows in results["tables"].items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines += ["", f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for row in rows:
            lines.append("| " + " | ".join(shown(row.get(key, "")) for key in columns) + " |")
    return "\n".join(lines) + "\n"


def shown(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
