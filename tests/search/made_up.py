"""A search without training runs: outcomes are a function of the program."""

from pathlib import Path
from zlib import crc32

from search.fitness.funnel import Calibration, Fate, Outcome
from search.record.archive import open_existing
from search.run.config import Config
from search.run.loop import Search
from search.run.view import View
from tasks.display.plain import Console
from tasks.executors.named import executor

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


def gone_on(folder: Path, workers: int = 0) -> list[tuple]:
    """Search to the end: the rows of the archive."""
    with (
        open_existing(folder) as archive,
        View(Console(quiet=True)) as view,
        executor(f"{__file__}:made_up", None, workers) as jobs,
    ):
        config = Config.from_dict(archive.run()["config"])
        Search(archive, config, CALIBRATION, jobs, view, workers, lambda: False).to_the_end()
        return [*archive.dump()]
