"""Rules that read ``h``, an estimate of the diagonal of the Hessian.

The inner loop estimates it for them (``tasks/oracles/gradient.py``), so they are evaluated like any
other rule; as optimizers they have one method more, ``set_hessian(loss)``. They are not among the
rules to search from: a search compares programs by what they make of gradients alone.
"""

from __future__ import annotations

from search.zoo.entry import entry

_ADAHESSIAN = """
    def update(w, g, m, v, t, h):
        m = interp(g, m, 0.9)
        h2 = square(h)
        v = interp(h2, v, 0.999)
        b1 = power(0.9, t)
        c1 = 1.0 - b1
        b2 = power(0.999, t)
        c2 = 1.0 - b2
        grow = power(c1, -1.0)
        m_hat = m * grow
        shrink = power(c2, -0.5)
        root = sqrt(v)
        root = root * shrink
        update = m_hat / root
        return update, m, v
"""

_OASIS = """
    def update(w, g, d, t, h):
        d = interp(h, d, 0.99)
        b2 = power(0.99, t)
        c2 = 1.0 - b2
        grow = power(c2, -1.0)
        d_hat = d * grow
        size = abs(d_hat)
        size = maximum(size, 0.1)
        update = g / size
        return update, d
"""

_SOPHIA = """
    def update(w, g, m, d, h):
        m = interp(g, m, 0.96)
        d = interp(h, d, 0.99)
        size = maximum(d, 0.0)
        step = m / size
        step = maximum(step, -0.01)
        update = minimum(step, 0.01)
        return update, m, d
"""

CURVATURE = (
    entry("adahessian", "Yao et al. 2021", _ADAHESSIAN, lr=0.1),
    entry("oasis", "Jahani et al. 2022, without its warm start", _OASIS, lr=0.1),
    entry("sophia", "Liu et al. 2024, h at every step", _SOPHIA, lr=0.06),
)
