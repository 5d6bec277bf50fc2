"""Suites that take milliseconds, named by import path in the tests of a whole run."""

import math

from tasks.data.loaders import breast_cancer, digits
from tasks.families.linear import Logistic
from tasks.families.mlp import MLP
from tasks.families.quadratic import Quadratic
from tasks.suites import Entry


def proxy():
    return (
        Entry(Logistic(data=digits(), batch_size=16), steps=12),
        Entry(MLP(width=4, depth=1, batch_size=16), steps=12),
    )


def repeated():
    task = MLP(width=4, depth=1, batch_size=16)
    return Entry(task, steps=8), Entry(task, steps=16), Entry(task, steps=16)


def meta_validation():
    return (Entry(MLP(width=6, depth=1, batch_size=16), steps=12),)


class NeverFinite(Quadratic):
    def loss(self, params, batch):
        return super().loss(params, batch) * math.nan


def never_finite():
    return (Entry(NeverFinite(dimension=4), steps=12),)


class Below(Quadratic):
    def loss(self, params, batch):
        return super().loss(params, batch) - 1000


def below_zero():
    return (Entry(Below(dimension=4), steps=12),)


def held_out():
    return (Entry(Logistic(data=breast_cancer(), batch_size=16), steps=12),)
