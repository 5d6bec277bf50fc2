"""How numbers are said to people: log ratios as per cent, intervals, times."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tasks.evaluation.intervals import LEAST, REFERENCE_DIVERGED, Interval
from tasks.evaluation.statistics import ALPHA, least_p

LARGE = math.log(11.0)
"""From here on a log ratio is said as a factor, in place of more than 1000 %."""

OF_SETTINGS = (
    "All of it is about the settings that tuning chose on one seed: how near to the best the "
    "trials happened to come is in no interval and no q, and small differences may be that alone."
)


def per_cent(ratio: float, digits: int = 1) -> str:
    """A log ratio as a change: 0.01 is ``+1.0 %``, its parts kept together; 4.6 is ``×99``."""
    if not math.isfinite(ratio):
        return REFERENCE_DIVERGED if ratio < 0 else "diverged"
    return _signed(ratio, digits) + ("" if ratio > LARGE else "\N{NO-BREAK SPACE}%")


def distance(ratio: float) -> str:
    """A log ratio in a sentence: ``1.0 % above``, ``8.7 % below``, ``99 times``."""
    if ratio > LARGE:
        return f"{as_factor(ratio)} times"
    return f"{abs(100 * math.expm1(ratio)):.1f} % {'below' if ratio < 0 else 'above'}"


def interval(x: Interval, unit: str = "") -> str:
    """The ends of an interval of log ratios, in per cent; ``unit`` follows a number that is one."""
    if not math.isfinite(x.mean):
        return ""
    if math.isinf(x.low) and math.isinf(x.high) and x.low < x.high:
        return none_of(x)
    return f"{_end(x.low)} to {_end(x.high)}{'' if x.high > LARGE else unit}"


def change(x: Interval) -> str:
    """A log ratio with its interval, as changes: ``-3.1 % (-4.0 to -2.2)``; ``–`` if unknown."""
    if math.isnan(x.mean):
        return "–"
    return _with(per_cent(x.mean), interval(x))


def portion(x: Interval) -> str:
    """A share with its interval: ``8 % (0 to 26)``."""
    if not math.isfinite(x.low):
        return _with(f"{100 * x.mean:.0f} %", none_of(x)) if x.mean == x.mean else "–"
    return _with(f"{100 * x.mean:.0f} %", f"{100 * x.low:.0f} to {100 * x.high:.0f}")


def factor(x: Interval) -> str:
    """So many times, with its interval: ``1.43x (1.20 to 1.61)``; 0 means never."""
    if math.isinf(x.mean) or math.isnan(x.mean):
        return "–"
    if not x.mean > 0:
        return "never"
    known = math.isfinite(x.low)
    low, high = (_factor(end) for end in (x.low, x.high))
    return _with(f"{x.mean:.2f}x", f"{low} to {high}" if known else none_of(x))


def _factor(end: float) -> str:
    return "∞" if end == math.inf else f"{end:.2f}" if end > 0 else "never"


def count(n: int, what: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{n} {what}{'s' * (n != 1)}"


def none_of(x: Interval) -> str:
    """What is said where a mean has no interval."""
    return f"n = {x.n}" if 0 < x.n < LEAST else "no interval"


def _with(number: str, ends: str) -> str:
    number = number.replace(" %", "\N{NO-BREAK SPACE}%")
    return f"{number} ({ends})" if ends else number


def _end(ratio: float) -> str:
    return _signed(ratio, 1) if math.isfinite(ratio) else per_cent(ratio)


def _signed(ratio: float, digits: int) -> str:
    if ratio > LARGE:
        return f"×{as_factor(ratio)}"
    return f"{100 * math.expm1(ratio):+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def as_factor(ratio: float) -> str:
    """A large log ratio as a factor: ``1,234``, from a million on its power of ten: ``10^37``."""
    return f"{math.exp(ratio):,.0f}" if ratio < math.log(1e6) else f"10^{ratio / math.log(10):.0f}"


def times(factors: Sequence[float]) -> str:
    """The median of speed-ups over tasks, of two middle ones the smaller; 0 means never."""
    middle = sorted(factors)[(len(factors) - 1) // 2]
    return f"{middle:.2f}x" if middle > 0 else "never"


def too_few(pairs: int) -> str:
    """A sentence where no test of so many pairs can find anything; else nothing."""
    least = least_p(pairs)
    if least < ALPHA:
        return ""
    return (
        f" With {pairs} pairs its p-value cannot be below {least:.2g}, so everything is a tie: "
        "more seeds are needed to tell rules apart."
    )


def duration(seconds: float) -> str:
    """``42 s``, ``3.1 min`` or ``2.4 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
