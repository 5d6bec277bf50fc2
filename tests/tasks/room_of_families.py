"""Families that a table of tests does not list: those of files that came later."""

from collections.abc import Iterable

from tasks.families.named import families, fields_of
from tasks.types import Task


def others(listed: Iterable[Task], *needed: str) -> list[Task]:
    """The member without arguments of each family of the room, unless one is ``listed``, or it
    lacks one of the ``needed`` fields."""
    tasks = [*listed]
    kinds = [kind for kind in families().values() if fields_of(kind) >= {*needed}]
    return [kind() for kind in kinds if not any(isinstance(task, kind) for task in tasks)]
