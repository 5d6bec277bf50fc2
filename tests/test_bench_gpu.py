"""The GPU benchmark runs from end to end without a GPU; its numbers then mean nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
MEASURED = "copy bandwidth, GB/s", "float32 matrix products, TFLOP/s", "tiny operations/s"
BOUNDS = {"launches", "bandwidth", "arithmetic"}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/bench/bench.py", "gpu", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    """The JSON and the Markdown of a run of all parts."""
    out = tmp_path_factory.mktemp("bench") / "gpu.json"
    # In the order in which they are asked for, and all of them.
    parts = ("curve", "kernel", "decided", "pes", "small_fc")
    sizes = ("--small", "--minutes", "0.02")
    done = bench("--device", "cpu", *sizes, "--out", str(out), "--parts", *parts)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), out.with_suffix(".md").read_text()


def test_what_it_was_measured_with_is_written(written) -> None:
    results, page = written
    assert {"torch", "numba", "device", "date", "commit", *MEASURED} <= results["facts"].keys()
    assert all(f"## {title}" in page for title in results["tables"])


def test_the_curve_is_beside_the_eager_loop_and_says_what_bounds_it(written) -> None:
    *curves, _, _, _, _ = written[0]["tables"].values()
    assert len(curves) == 2
    for eager, *batched in curves:
        assert eager["loop"] == "eager"
        assert eager["x eager programs"] == eager["x eager model-steps"] == 1
        assert len(batched) == 2
        for row in batched:
            assert row["bound by"] in BOUNDS
            assert min(row["model-steps/s"], row["programs/s"], row["share explained"]) > 0
            floors = {name: row[f"{name} ms"] for name in BOUNDS}
            assert row["bound by"] == max(floors, key=lambda name: floors[name])


def test_a_real_search_is_counted(written) -> None:
    rows = {row["what"]: row["value"] for row in written[0]["tables"]["l2o search --preset gpu"]}
    assert rows["candidates decided"] >= 40
    shares = [value for what, value in rows.items() if what.startswith("share ")]
    assert sum(shares) == pytest.approx(1)
    assert 0 < rows["programs run"] < rows["candidates decided"]
    assert rows["candidates/s of the driver alone"] > 0
    assert rows["bound by"] in ("driver", "workers")


def test_kernels_and_meta_training_are_measured(written) -> None:
    *_, kernel, _, pes, large = written[0]["tables"].values()
    assert all(row["x"] > 0 for row in kernel)
    assert [row["parameters"] for row in kernel][1] == max(row["parameters"] for row in kernel)
    assert all(row["inner steps/s"] > 0 and row["bound by"] for row in pes)
    assert large[0]["x AdamW"] == 1
    assert large[1]["bytes a parameter"] == 76


def test_an_unknown_part_is_one_line() -> None:
    done = bench("--device", "cpu", "--parts", "kernels")
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "--parts: got kernels, expected curve, kernel, decided, pes, small_fc"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_an_absent_device_is_one_line() -> None:
    done = bench("--device", "cuda")
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "device: got 'cuda', but there is no CUDA device here; expected cpu"
    )


def test_what_a_step_asks_for_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "bench")
    from gpu_bounds import (  # pyright: ignore[reportMissingImports]
        Machine,
        Work,
        counted,
        work_of_a_step,
    )

    a, b = torch.ones(2, 3), torch.ones(3, 5)
    assert counted(lambda: a @ b) == Work(1, 4 * (6 + 15 + 10), 2 * 2 * 3 * 5)
    assert counted(lambda: a.t().reshape(6)[:4].view(2, 2)) == Work(1, 4 * (6 + 6), 0)
    wide = torch.ones(1).expand(7)
    assert counted(lambda: wide + wide) == Work(1, 4 * (1 + 1 + 7), 0)

    def steps(count: int) -> None:
        b.clone()
        for _ in range(count):
            a.add_(1)

    assert work_of_a_step(steps) == Work(1, 4 * (6 + 6), 0)
    found = Machine(100.0, 10.0, 1000.0).bounds(Work(2, 50, 1), step=1.0)
    assert (found["bound by"], found["share explained"]) == ("bandwidth", 0.5)
