"""``NAME(a=1, b="x")``, as a user writes a thing with its settings: read, never executed."""

from __future__ import annotations

import ast
from typing import Any


def call(text: str, form: str) -> tuple[str, dict[str, Any]]:
    """NAME and the settings, which are literals; brackets may be left out.

    Raises ValueError, which says that ``form`` was expected.
    """
    name, bracket, rest = text.strip().partition("(")
    try:
        found = ast.parse(f"f{bracket}{rest}" if bracket else "f()", mode="eval").body
        if not isinstance(found, ast.Call) or not isinstance(found.func, ast.Name) or found.args:
            raise ValueError
        settings = {str(k.arg): ast.literal_eval(k.value) for k in found.keywords}
        if "None" in settings:  # **what
            raise ValueError
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError(f"{text!r}: expected {form}; the values are literals") from None
    return name.strip(), settings
