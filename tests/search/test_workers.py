import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from l2o.cli.main import main
from tasks.executors.base import DeviceLost, Executor, Failure
from tasks.executors.inline import Inline
from tasks.executors.named import executor, executors, known
from tasks.executors.processes import Processes
from tasks.runs.files import RunError

JOBS = f"{Path(__file__).with_name('worker_jobs.py')}:build"
PATIENCE = 60.0


@pytest.fixture(scope="module")
def pair() -> Iterator[Processes]:
    """Two workers shared by the tests that do not wear them out."""
    with Processes(JOBS, 100, workers=2) as workers:
        yield workers


def results(workers: Executor, jobs: list[Any], limit: float = math.inf) -> list[Any]:
    """The results in order of submission; fails rather than wait forever."""
    tickets = [workers.submit(job, limit) for job in jobs]
    found = dict(workers.completed(PATIENCE))
    assert sorted(found) == sorted(tickets)
    return [found[ticket] for ticket in tickets]


def alive(pid: int) -> bool:
    """Running, in any of its threads, and not merely waiting to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Any, seconds: float = 20.0) -> bool:
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_do_not_depend_on_the_number_of_workers(workers: int) -> None:
    with executor(JOBS, 100, workers) as engine:
        assert results(engine, [("add", i) for i in range(20)]) == list(range(100, 120))
        assert len(engine.busy) == max(1, workers)


@pytest.mark.parametrize("name", executors())
def test_every_executor_of_the_room_has_the_same_results(name: str) -> None:
    try:
        known(name)
    except ValueError as error:
        pytest.skip(str(error))
    with executor(JOBS, 100, 2, name=name) as engine:
        jobs = [*(("add", i) for i in range(5)), ("raise", "momentum")]
        assert [*map(str, results(engine, jobs))][:5] == ["100", "101", "102", "103", "104"]
        assert len(engine.busy) == 2


@pytest.mark.parametrize("command", ["search --run-dir run", "evaluate lion"])
def test_what_is_not_installed_is_said_in_one_line(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "tasks.executors.ray", raising=False)
    assert main([*command.split(), "--executor", "ray"]) == 2
    said = capsys.readouterr().err
    assert "executor: got 'ray', which needs more" in said
    assert said.endswith("pip install 'l2o[ray]'\n")
    assert said.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


def test_an_executor_of_nobodys_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"executor: got 'rai', expected one of .*did you mean ray"
    ):
        known("rai")


def test_jobs_are_reported_as_they_finish(pair: Processes) -> None:
    results(pair, [("sleep", 0.2)] * 2)  # both are up
    slow, fast = pair.submit(("sleep", 1.0)), pair.submit(("sleep", 0.01))
    assert [ticket for ticket, _ in pair.completed(PATIENCE)] == [fast, slow]


def test_jobs_submitted_while_completing_are_completed_too(pair: Processes) -> None:
    pair.submit(("add", 0))
    seen = []
    for _, result in pair.completed(PATIENCE):
        seen.append(result)
        if len(seen) < 5:
            pair.submit(("add", len(seen)))
    assert seen == [100, 101, 102, 103, 104]


def test_completed_ends_when_nothing_finishes_in_time(pair: Processes) -> None:
    ticket = pair.submit(("sleep", 0.5))
    assert list(pair.completed(timeout=0.05)) == []
    assert list(pair.completed(PATIENCE)) == [(ticket, 0.5)]


def test_busy_seconds_are_those_spent_in_jobs(pair: Processes) -> None:
    before = sum(pair.busy)
    results(pair, [("sleep", 0.3)] * 2)
    assert 0.6 <= sum(pair.busy) - before < 3.0


def test_a_job_larger_than_the_pipe(pair: Processes) -> None:
    assert results(pair, [("size", bytes(5_000_000))] * 3) == [5_000_000] * 3


def test_a_worker_has_one_torch_thread(pair: Processes) -> None:
    assert results(pair, [("threads", None)]) == [1]


def test_ctrl_c_does_not_reach_a_worker(pair: Processes) -> None:
    assert results(pair, [("interrupt", None)]) == ["unmoved"]
    pid = results(pair, [("pid", None)])[0]
    assert os.getpgid(pid) == pid != os.getpgid(0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exception_is_a_failure_and_not_retried(workers: int, tmp_path: Path) -> None:
    with executor(JOBS, 0, workers) as engine:
        failed, fine = results(engine, [("raise", "momentum"), ("add", 1)])
        assert fine == 1
        assert failed.reason == "KeyError: 'momentum'"
        assert "_raise" in failed.detail


def test_without_workers_a_lost_device_ends_the_run() -> None:
    with (
        executor(JOBS, 0, workers=0) as engine,
        pytest.raises(DeviceLost, match=r"lost: CUDA error: an illegal memory access was enc\w+$"),
    ):
        results(engine, [("lose device", None)])


def test_a_result_that_cannot_be_pickled_is_a_failure(pair: Processes) -> None:
    (result,) = results(pair, [("unpicklable", None)])
    assert isinstance(result, Failure)
    assert "pickle" in result.reason


DEATHS = {
    "die": "SIGKILL",
    "segfault": "SIGSEGV",
    "out of memory": "out of memory",
    "lose device": "lost its device",
    "exit": "status 3",
    "hang": "not finished after 1 s",
}


@pytest.mark.parametrize("deed", DEATHS)
def test_a_job_whose_worker_is_lost_runs_again(deed: str, tmp_path: Path) -> None:
    with Processes(JOBS, 0, workers=1) as workers:
        jobs = [(f"once {deed}", str(tmp_path / "marker")), ("add", 1)]
        assert results(workers, jobs, limit=1.0) == ["survived", 1]


@pytest.mark.parametrize("deed", DEATHS)
def test_a_job_that_always_loses_its_worker_fails_alone(deed: str) -> None:
    with Processes(JOBS, 0, workers=2, retries=1) as workers:
        jobs = [(deed, None), *[("add", i) for i in range(4)]]
        failed, *others = results(workers, jobs, limit=1.0)
        assert others == [0, 1, 2, 3]
        assert DEATHS[deed] in failed.reason
        assert "attempt 2" in failed.reason
        assert "\n" not in failed.reason


def test_kill_9_from_outside_in_the_middle_of_jobs() -> None:
    with Processes(JOBS, 0, workers=2) as workers:
        victims = set(results(workers, [("pid", None)] * 8))
        tickets = [workers.submit(("sleep", 0.3)) for _ in range(4)]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        assert dict(workers.completed(PATIENCE)) == dict.fromkeys(tickets, 0.3)
        assert victims.isdisjoint(results(workers, [("pid", None)] * 4))


def test_a_worker_killed_while_idle_costs_no_attempt() -> None:
    with Processes(JOBS, 0, workers=1, retries=0) as workers:
        (pid,) = results(workers, [("pid", None)])
        os.kill(pid, signal.SIGKILL)
        assert until(lambda: not alive(pid))
        assert results(workers, [("add", 1)]) == [1]


def test_every_job_has_its_own_time_limit() -> None:
    with executor(JOBS, 0, 1, retries=0) as engine:
        tickets = {engine.submit(("sleep", 1.5), limit): limit for limit in (math.inf, 1.0, 9.0)}
        for ticket, found in engine.completed(PATIENCE):
            assert isinstance(found, Failure) == (tickets[ticket] == 1.0)


def test_a_limit_that_allows_nothing_is_refused(pair: Processes) -> None:
    with pytest.raises(ValueError, match="limit: 0; must be more than 0 seconds"):
        pair.submit(("add", 1), 0)
    assert results(pair, [("add", 1)]) == [101]


def test_a_lost_worker_takes_its_children_with_it(tmp_path: Path) -> None:
    with Processes(JOBS, 0, workers=1, retries=0) as workers:
        (result,) = results(workers, [("child", str(tmp_path / "pids"))], limit=1.0)
        assert "not finished" in result.reason
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert until(lambda: not any(map(alive, pids)))


def test_what_nobody_has_begun_can_be_withdrawn() -> None:
    with Processes(JOBS, 0, workers=1) as workers:
        running, queued, kept = (workers.submit(("sleep", s)) for s in (0.5, 0.0, 0.1))
        list(workers.completed(timeout=0.2))
        assert not workers.withdraw(running)
        assert workers.withdraw(queued)
        assert not workers.withdraw(queued)
        assert list(workers.completed(PATIENCE)) == [(running, 0.5), (kept, 0.1)]
        assert list(workers.completed(PATIENCE)) == []
        assert not workers.withdraw(kept)


def test_what_has_finished_cannot(pair: Processes) -> None:
    tickets = [pair.submit(("add", i)) for i in range(6)]
    reports = pair.completed(PATIENCE)
    first, _ = next(reports)
    assert until(lambda: len(pair._finished) == 5)  # unreported
    assert not any(pair.withdraw(ticket) for ticket in tickets)
    assert {first, *(ticket for ticket, _ in reports)} == {*tickets}


def test_inline_is_lazy_and_in_order() -> None:
    engine = Inline(JOBS, 0)
    tickets = [engine.submit(("add", i)) for i in range(4)]
    assert engine.withdraw(tickets[1])
    assert not engine.withdraw(tickets[1])
    assert list(engine.completed()) == [(tickets[0], 0), (tickets[2], 2), (tickets[3], 3)]


def test_nothing_is_accepted_after_close() -> None:
    workers = Processes(JOBS, 0, workers=1)
    workers.close()
    with pytest.raises(RuntimeError, match="after close"):
        workers.submit(("add", 1))
    assert list(workers.completed()) == []


def test_a_path_may_hold_what_separates_paths(tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / f"a{os.pathsep}b"
    folder.mkdir()
    (folder / "jobs_apart.py").write_text(
        "def build(context):\n    return lambda job: job + context\n"
    )
    monkeypatch.syspath_prepend(folder)
    with Processes("jobs_apart:build", 40, workers=1) as workers:
        workers.submit(2)
        assert [result for _, result in workers.completed(PATIENCE)] == [42]


def test_workers_that_cannot_start_say_why() -> None:
    with Processes(JOBS.replace(":build", ":cannot_build"), "digitz", workers=2) as workers:
        workers.submit(("add", 1))
        with pytest.raises(RunError, match=r"workers cannot start: .*no task called 'digitz'"):
            list(workers.completed(PATIENCE))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": -1}, "workers: -1; must be 0"),
        ({"retries": -1}, "retries: -1; must be 0 or more"),
        ({"function": "build"}, "function: 'build' cannot be imported"),
        ({"function": "__main__:build"}, "cannot be imported"),
        ({"function": lambda context: context}, "cannot be imported"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        executor(**{"function": JOBS, "context": 0, "workers": 1} | arguments)


DRIVER = """
import signal
from tasks.executors.processes import Processes
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
with Processes({jobs!r}, 1, workers=2) as workers:
    print("driver", flush=True)
    for job in {work!r}:
        workers.submit(job)
    print(sorted(result for _, result in workers.completed(60)))
"""


@pytest.mark.parametrize("entry", ["-c", "-", "file"])
def test_any_kind_of_main_module_can_drive(entry: str, tmp_path: Path) -> None:
    """In particular a script with no ``if __name__ == "__main__"``."""
    code = DRIVER.format(jobs=JOBS, work=[("add", 1), ("add", 2)])
    script = tmp_path / "script.py"
    script.write_text(code)
    command = {"-c": ["-c", code], "-": ["-"], "file": [str(script)]}[entry]
    done = subprocess.run(
        [sys.executable, *command], input=code, text=True, capture_output=True, timeout=60
    )
    assert (done.stdout, done.returncode) == ("driver\n[2, 3]\n", 0), done.stderr


def test_what_a_job_prints_stays_out_of_the_drivers_output() -> None:
    code = DRIVER.format(jobs=JOBS, work=[("print", "noise")])
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=60)
    assert (done.stdout, done.stderr) == ("driver\n[None]\n", "noise\n")


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_driver_that_dies_leaves_no_orphans(ending: signal.Signals, tmp_path: Path) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    code = DRIVER.format(jobs=JOBS, work=[("child", str(file)) for file in files])
    driver = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    assert until(lambda: all(f.exists() and f.read_text().endswith("\n") for f in files))
    pids = [int(pid) for file in files for pid in file.read_text().split()]
    assert all(map(alive, pids))
    driver.send_signal(ending)
    driver.wait(timeout=20)
    assert until(lambda: not any(map(alive, pids)))
