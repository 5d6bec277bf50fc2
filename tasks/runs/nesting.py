"""Text that nests too deeply is refused before a parser sees it.

Parsers call themselves for whatever is inside of something, so that a few kilobytes of brackets
exhaust the stack, which in a thread ends the whole process.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

DEEPEST = 64
"""Brackets inside of each other; what we write ourselves has six."""
STRING = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
BRACKET = re.compile(r"[\[\]{}]")
DIGEST = "digest"
"""The field of a document that says what the others were."""


def depth(text: str) -> int:
    """The most brackets that are open at once, those within double quotes left out."""
    if text.count("[") + text.count("{") <= DEEPEST:  # as nearly always, and cheap
        return 0
    deepest = level = 0
    for found in BRACKET.finditer(STRING.sub("", text)):
        level += 1 if found[0] in "[{" else -1
        deepest = max(deepest, level)
    return deepest


def from_json(text: str | bytes) -> Any:
    """What a JSON text says. Raises ValueError for what is none, nests too deeply, or has numbers
    that JSON has not (NaN, Infinity)."""
    decoded = text.decode() if isinstance(text, bytes) else text
    if depth(decoded) > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} deep (maximum recursion)")
    return json.loads(decoded, parse_constant=_refuse)


def _refuse(number: str) -> None:
    raise ValueError(f"got the number {number}, expected finite ones")


def with_digest(document: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON document with the digest of what it says."""
    return {**document, DIGEST: digest_of(document)}


def check_digest(document: Mapping[str, Any]) -> None:
    """Raise ValueError unless a document says what it did, or has no digest."""
    if DIGEST in document and document[DIGEST] != digest_of(document):
        raise ValueError(
            f"not what was written; whoever changed it on purpose leaves out its field {DIGEST!r}"
        )


def digest_of(document: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of all fields but ``digest``, whatever their order and layout."""
    rest = {name: value for name, value in document.items() if name != DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]
