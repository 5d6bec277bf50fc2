"""Workers that Ray starts: what is true of worker processes is true of them."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.executors.base import Executor
from tasks.executors.named import executor
from tasks.runs.files import RunError
from tests.search.made_up import begun, gone_on
from tests.search.test_workers import DEATHS, JOBS, PATIENCE, alive, results, until

ray: Any = pytest.importorskip("ray", reason="ray is an extra: pip install 'l2o[ray]'")


@pytest.fixture(scope="module")
def instance() -> Iterator[None]:
    """One Ray for the executors of these tests: that of a caller, which they leave as it is."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False,
             logging_level="error", object_store_memory=100 << 20)  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pair(instance: None) -> Iterator[Executor]:
    with executor(JOBS, 100, workers=2, retries=1, name="ray") as workers:
        yield workers
    assert ray.is_initialized()


def test_jobs_are_reported_as_they_finish(pair: Executor) -> None:
    assert results(pair, [("add", i) for i in range(20)]) == list(range(100, 120))
    slow, fast = pair.submit(("sleep", 1.0)), pair.submit(("sleep", 0.01))
    assert [ticket for ticket, _ in pair.completed(PATIENCE)] == [fast, slow]
    assert sum(pair.busy) >= 1.0


def test_a_worker_is_as_the_processes_are(pair: Executor) -> None:
    jobs = [("threads", None), ("interrupt", None), ("size", bytes(5_000_000))]
    assert results(pair, jobs) == [1, "unmoved", 5_000_000]


def test_what_a_job_raises_is_a_failure_and_not_retried(pair: Executor) -> None:
    failed, odd, fine = results(pair, [("raise", "momentum"), ("unpicklable", None), ("add", 1)])
    assert failed.reason == "KeyError: 'momentum'"
    assert "_raise" in failed.detail
    assert "pickle" in odd.reason
    assert fine == 101


@pytest.mark.parametrize("deed", DEATHS)
def test_a_job_whose_worker_is_lost_runs_again(deed: str, pair: Executor, tmp_path: Path) -> None:
    jobs = [(f"once {deed}", str(tmp_path / "marker")), ("add", 1)]
    assert results(pair, jobs, limit=1.0) == ["survived", 101]


@pytest.mark.parametrize("deed", DEATHS)
def test_a_job_that_always_loses_its_worker_fails_alone(deed: str, pair: Executor) -> None:
    failed, *others = results(pair, [(deed, None), ("add", 1), ("add", 2)], limit=1.0)
    assert others == [101, 102]
    said = "worker died" if DEATHS[deed].startswith("SIG") else DEATHS[deed]
    assert said in failed.reason
    assert "attempt 2" in failed.reason
    assert "\n" not in failed.reason


def test_what_nobody_has_begun_can_be_withdrawn(pair: Executor) -> None:
    results(pair, [("add", 1)] * 4)
    running = [pair.submit(("sleep", 0.5)) for _ in range(2)]
    queued = pair.submit(("add", 1))
    list(pair.completed(timeout=0.2))
    assert not any(map(pair.withdraw, running))
    assert pair.withdraw(queued)
    assert {ticket for ticket, _ in pair.completed(PATIENCE)} == {*running}


def test_workers_that_cannot_start_say_why(instance: None) -> None:
    function = JOBS.replace(":build", ":cannot_build")
    with executor(function, "digitz", workers=1, name="ray") as workers:
        workers.submit(("add", 1))
        with pytest.raises(RunError, match=r"workers cannot start: .*no task called 'digitz'"):
            list(workers.completed(PATIENCE))


def test_a_search_has_the_rows_that_it_has_with_processes(
    instance: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "search"))
    here = gone_on(begun(tmp_path / "here"))
    assert gone_on(begun(tmp_path / "there"), workers=2, where="ray") == here


DRIVER = """
import signal
from tasks.executors.ray import Ray
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
with Ray({jobs!r}, 1, workers=1) as workers:
    print(workers._folder, flush=True)
    workers.submit(("child", {file!r}))
    print(*workers.completed(60))
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_a_driver_that_dies_leaves_nothing(ending: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C reaches all of the terminal's processes. After kill -9 agents of Ray's own take a
    minute to notice; workers, and what they started, do not."""
    file = tmp_path / "pids"
    code = DRIVER.format(jobs=JOBS, file=str(file))
    driver = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert driver.stdout
    folder = Path(driver.stdout.readline().strip())
    assert until(lambda: file.exists() and file.read_text().endswith("\n"), 120)
    workers = [int(pid) for pid in file.read_text().split()]
    everybody = [*processes(driver.pid), *workers]
    assert len(everybody) > 4
    if ending == signal.SIGINT:
        os.killpg(driver.pid, ending)
    else:
        driver.send_signal(ending)
    driver.communicate(timeout=60)
    assert until(lambda: not any(map(alive, workers)), 60)
    if ending == signal.SIGINT:
        assert not any(map(alive, everybody))
        assert not folder.exists()
    shutil.rmtree(folder, ignore_errors=True)


def processes(driver: int) -> list[int]:
    """Those that a process started, and theirs, and so on."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])
    found = [driver]
    for one in found:
        found += [pid for pid, parent in parents.items() if parent == one]
    return found[1:]
