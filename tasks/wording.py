"""How numbers are said to people: log ratios as per cent, intervals, times."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tasks.scoring import Interval


def per_cent(ratio: float, digits: int = 1) -> str:
    """A log ratio as a change: 0.01 is ``+1.0 %``, its parts kept together."""
    if not math.isfinite(ratio):
        return "diverged" if ratio > 0 else "–"
    return f"{_signed(ratio, digits)}\N{NO-BREAK SPACE}%"


def distance(ratio: float) -> str:
    """A log ratio in a sentence: ``1.0 % above``, ``8.7 % below``."""
    return f"{abs(100 * math.expm1(ratio)):.1f} % {'below' if ratio < 0 else 'above'}"


def interval(x: Interval) -> str:
    """The ends of an interval of log ratios, in per cent."""
    if not math.isfinite(x.mean):
        return ""
    if not math.isfinite(x.low):
        return "one seed"
    return f"{_end(x.low)} to {_end(x.high)}"


def _end(ratio: float) -> str:
    return _signed(ratio, 1) if math.isfinite(ratio) else "diverged"


def _signed(ratio: float, digits: int) -> str:
    return f"{100 * math.expm1(ratio):+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def times(factors: Sequence[float]) -> str:
    """The median of speed-ups over tasks, of two middle ones the smaller; 0 means never."""
    middle = sorted(factors)[(len(factors) - 1) // 2]
    return f"{middle:.2f}x" if middle > 0 else "never"


def duration(seconds: float) -> str:
    """``42 s``, ``3.1 min`` or ``2.4 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
