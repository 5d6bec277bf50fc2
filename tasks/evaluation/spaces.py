"""What tuning tries: settings of learning rate and weight decay.

The trials are the points of a Halton sequence: fewer trials are the first of more, so that a budget
can be raised later and nothing is run twice. The first of them is the middle of the learning rates,
without weight decay unless that is rare.

Rules that are written down share ``WRITTEN``. What was meta-trained has the right step already, a
learning rate of 1 that is a factor to it, and a decay of its own: in ``LEARNED`` that is the first
trial, and decays are rarer and smaller. Measured with ``lo_small`` and ``mulo_small`` on six tasks:
the best learning rate is from 0.3 to 10, a decay of 0.001 or less moves the best loss by a few per
cent either way, and one of 0.01 doubles it.
"""

from __future__ import annotations

from dataclasses import dataclass

import scipy

from tasks.evaluation.tuning import Setting


@dataclass(frozen=True)
class Space:
    """Learning rates and weight decays, each spread evenly over its logarithm; ``no_decay`` is the
    share of the trials that have no weight decay at all."""

    rates: tuple[float, float] = (1e-4, 10.0)
    decays: tuple[float, float] = (1e-3, 1.0)
    no_decay: float = 1 / 3

    def settings(self, trials: int) -> tuple[Setting, ...]:
        """The first ``trials`` settings of the sequence."""
        (low, high), (least, most) = self.rates, self.decays
        sequence = scipy.stats.qmc.Halton(2, scramble=False).fast_forward(1)
        settings = []
        for x, y in sequence.random(trials).tolist():
            lr = low * (high / low) ** x
            z = (y - self.no_decay) / (1 - self.no_decay)
            settings.append(Setting(lr, 0.0 if z < 0 else least * (most / least) ** z))
        return tuple(settings)


WRITTEN = Space()
LEARNED = Space(rates=(0.1, 10.0), decays=(1e-5, 1e-3), no_decay=2 / 3)
