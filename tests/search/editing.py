"""Archives changed behind the back of a run, with or without their digests."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from search.record.archive import FILE
from search.record.schema import PARTS
from tasks.runs.seals import Seals


@contextmanager
def rewritten(folder: Path) -> Iterator[sqlite3.Connection]:
    """As if what is done in the block had been written by a run."""
    with closing(sqlite3.connect(folder / FILE)) as db, db:
        yield db
        Seals(db, PARTS).renew()


@contextmanager
def damaged(folder: Path) -> Iterator[sqlite3.Connection]:
    """Without a word to the digests."""
    with closing(sqlite3.connect(folder / FILE)) as db, db:
        yield db


def older(folder: Path) -> Path:
    """The run as version 1 would have kept it, without digests."""
    with damaged(folder) as db:
        db.execute("DROP TABLE seal")
        db.execute("PRAGMA user_version = 1")
    return folder
