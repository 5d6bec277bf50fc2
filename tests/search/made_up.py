"""A search without training runs: outcomes are a function of the program."""

from dataclasses import asdict, replace
from pathlib import Path
from zlib import crc32

from search.evolution.settings import Settings
from search.fitness.funnel import Calibration, Fate, Outcome
from search.fitness.settings import Funnel, Verdict
from search.record import archive as archives
from search.record.archive import open_existing
from search.run.config import Budget, Config
from search.run.loop import Search
from search.run.view import View
from search.zoo import ZOO
from tasks.display.plain import Console
from tasks.executors.named import PROCESSES, executor

START = ZOO["adam_no_correction"].program
SMALL = Settings(population=12, tournament=2, batch=6, ahead=3)
CONFIG = Config(
    start=(str(START),),
    seed=5,
    budget=Budget(candidates=400, minutes=30),
    funnel=Funnel(suite="tiny_suites:proxy"),
    evolution=SMALL,
    verdict=Verdict(
        finalists=1, trials=2, seeds=2, held_out="tiny_suites:held_out", meta_validation=None
    ),
)
CALIBRATION = Calibration([[1.0, 1.0], [1.0, 1.0]], [0.01] * 4, [0.0] * 4)


def made_up(context):
    """What a worker does: the outcome is a function of the program."""

    def run(job):
        numbers = [crc32(text.encode()) % 1000 / 1000 for text in job.texts]
        fates: list[Fate] = [
            "evaluated" if x > 0.3 else "stopped" if x > 0.1 else "diverged" for x in numbers
        ]
        return [
            Outcome(fate, x - 0.6 if x > 0.3 else None, lr, (x, x - 0.6) * 2, ())
            for fate, x, lr in zip(fates, numbers, job.lrs, strict=True)
        ]

    return run


def begun(folder: Path, evolution: Settings = SMALL) -> Path:
    """A run that nobody has proceeded with."""
    facts = {"config": asdict(replace(CONFIG, evolution=evolution))}
    archives.create(folder, facts).close()
    return folder


def gone_on(folder: Path, workers: int = 0, where: str = PROCESSES) -> list[tuple]:
    """Search to the end: the rows of the archive."""
    with (
        open_existing(folder) as archive,
        View(Console(quiet=True)) as view,
        executor(f"{__file__}:made_up", None, workers, name=where) as jobs,
    ):
        config = Config.from_dict(archive.run()["config"])
        Search(archive, config, CALIBRATION, jobs, view, workers, lambda: False).to_the_end()
        return [*archive.dump()]
