"""Digests of groups of rows, kept beside them: what a database holds is what was written to it.

SQLite notices a damaged page, but no damaged number. So rows that are written together have a
digest in the table ``seal``, over every column that is read of them:

    seals = Seals(db, PARTS)
    seals.touch("final", "proxy", "digits")  # within a transaction, whenever rows change
    seals.write()                            # at its end
    seals.damaged()                          # the groups that are not what was written

A digest shows damage, not forgery: whoever changes a row on purpose can change its digest.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from tasks.checks import printable

SCHEMA = """
CREATE TABLE seal (
    part TEXT NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL,
    PRIMARY KEY (part, name)) WITHOUT ROWID;
"""


class Part(NamedTuple):
    """A table, or a join, in groups. ``select``: all that is ever read of it, what groups it
    first; ``key``: the expressions that do; ``order``: of the rows of a group."""

    select: str
    key: tuple[str, ...]
    order: str

    def rows(self, db: sqlite3.Connection, key: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Those of one group."""
        one = " AND ".join(f"{name} = ?" for name in self.key)
        return db.execute(f"{self.select} WHERE {one} ORDER BY {self.order}", key).fetchall()

    def groups(self, db: sqlite3.Connection) -> Iterator[tuple[Sequence[Any], list[Any]]]:
        """All groups, each with its key."""
        rows = db.execute(f"{self.select} ORDER BY {', '.join((*self.key, self.order))}")
        for key, group in groupby(rows, lambda row: row[: len(self.key)]):
            yield key, list(group)


class Group(NamedTuple):
    """What a digest is of, such as ``candidate`` and ``(17,)``."""

    part: str
    key: tuple[Any, ...]

    @property
    def name(self) -> str:
        """Its key as it stands in the table."""
        return json.dumps(self.key, default=repr)

    def __str__(self) -> str:
        words = (self.part, *(str(value)[:40] for value in self.key))
        return printable(" ".join(" ".join(words).split()))


class Seals:
    """The digests of a database's ``parts``."""

    def __init__(self, db: sqlite3.Connection, parts: Mapping[str, Part]) -> None:
        self._db, self._parts = db, parts
        self._touched: set[Group] = set()

    def touch(self, part: str, *key: Any) -> None:
        """Rows of this group have changed."""
        self._touched.add(Group(part, key))

    def forget(self) -> None:
        """What was touched was rolled back."""
        self._touched.clear()

    def write(self) -> None:
        """Digests of what was touched, read back from the database."""
        for group in sorted(self._touched, key=lambda group: (group.part, group.name)):
            rows = self._parts[group.part].rows(self._db, group.key)
            if rows:
                values = group.part, group.name, digest(rows)
                self._db.execute("INSERT OR REPLACE INTO seal VALUES (?, ?, ?)", values)
            else:
                values = group.part, group.name
                self._db.execute("DELETE FROM seal WHERE part = ? AND name = ?", values)
        self._touched.clear()

    def renew(self) -> None:
        """Digests of everything as it is now."""
        self._db.execute("DELETE FROM seal")
        for name, part in self._parts.items():
            self._touched |= {Group(name, tuple(key)) for key, _ in part.groups(self._db)}
        self.write()

    def holds(self, part: str, *key: Any) -> bool:
        """Whether this one group is what was written."""
        group = Group(part, key)
        query = "SELECT digest FROM seal WHERE part = ? AND name = ?"
        kept = self._db.execute(query, (part, group.name)).fetchone()
        rows = self._parts[part].rows(self._db, key)
        return (digest(rows) if rows else None) == (kept[0] if kept else None)

    def damaged(self, parts: Sequence[str] | None = None) -> list[Group]:
        """All groups of ``parts`` that are not what was written, those that are lost included."""
        found: list[Group] = []
        for name in self._parts if parts is None else parts:
            query = "SELECT name, digest FROM seal WHERE part = ?"
            kept = dict(self._db.execute(query, (name,)).fetchall())
            for key, rows in self._parts[name].groups(self._db):
                group = Group(name, tuple(key))
                if kept.pop(group.name, None) != digest(rows):
                    found.append(group)
            found += [Group(name, _key(text)) for text in kept]
        return list(dict.fromkeys(found))

    def sealed(self) -> list[Group]:
        """Every group that there should be."""
        rows = self._db.execute("SELECT part, name FROM seal ORDER BY part, name").fetchall()
        return [Group(part, _key(name)) for part, name in rows if part in self._parts]


def digest(rows: Sequence[Sequence[Any]]) -> str:
    """16 hexadecimal digits, the same on every machine: of the shortest decimal forms."""
    text = json.dumps(rows, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _key(name: Any) -> tuple[Any, ...]:
    """The key in a name, or the name as it is, where that is damaged itself."""
    try:
        key = json.loads(name)
    except (TypeError, ValueError, RecursionError):
        return (name,)
    return tuple(key) if isinstance(key, list) and not any(map(_nested, key)) else (name,)


def _nested(value: Any) -> bool:
    return isinstance(value, list | dict)
