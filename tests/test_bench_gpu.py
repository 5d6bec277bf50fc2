"""The GPU benchmark runs from end to end without a GPU; its numbers then mean nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/bench.py", "gpu", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_everything_is_measured_and_written(tmp_path: Path) -> None:
    done = bench("--device", "cpu", "--small", "--out", str(tmp_path / "gpu.json"))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert {"torch", "device", "date", "commit", "copy bandwidth, GB/s"} <= results["facts"].keys()
    on_mlp, on_text, pes, large = results["tables"].values()
    for rows in (on_mlp, on_text):
        assert [row["loop"] for row in rows] == ["eager loop", "batched", "batched"]
        assert all(row["model-steps/s"] > 0 and row["bound by"] for row in rows)
    assert all(row["inner steps/s"] > 0 for row in pes)
    assert large[0]["times AdamW"] == 1
    page = (tmp_path / "gpu.md").read_text()
    assert all(title in page for title in results["tables"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_an_absent_device_is_one_line() -> None:
    done = bench("--device", "cuda")
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "device: got 'cuda', but there is no CUDA device here; expected cpu"
    )
