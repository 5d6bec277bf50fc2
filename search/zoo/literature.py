"""Optimizers of the literature, as far as a program can say them.

All are directions with the usual decoupled weight decay, and their epsilon is that of division,
1e-8, whatever the authors' default is. Bias corrections are powers, ``power(c, -1.0)``, so no
epsilon meets them. ``power(g, 0.0)`` is one for every element, and its norm counts elements.
"""

from __future__ import annotations

from search.zoo.entry import entry

NO_PROGRAM = {
    "Shampoo, SOAP, K-FAC": "states that are matrices of another shape, and their decompositions",
    "M-FAC": "a window of a thousand past gradients and their Gram matrix",
    "Adafactor, factored": "means of rows and of columns; adafactor_unfactored is what it does to "
    "vectors",
}
"""Optimizers that no program can be, and why."""

_ADABELIEF = """
    def update(w, g, m, v, t):
        m = interp(g, m, 0.9)
        surprise = g - m
        surprise2 = square(surprise)
        v = interp(surprise2, v, 0.999)
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

_AMSGRAD = """
    def update(w, g, m, v, top, t):
        m = interp(g, m, 0.9)
        g2 = square(g)
        v = interp(g2, v, 0.999)
        top = maximum(top, v)
        b1 = power(0.9, t)
        c1 = 1.0 - b1
        b2 = power(0.999, t)
        c2 = 1.0 - b2
        grow = power(c1, -1.0)
        m_hat = m * grow
        shrink = power(c2, -0.5)
        root = sqrt(top)
        root = root * shrink
        update = m_hat / root
        return update, m, v, top
"""

_OPTIMISTIC_AMSGRAD = """
    def update(w, g, m, v, top, before, t):
        m = interp(g, m, 0.9)
        g2 = square(g)
        v = interp(g2, v, 0.999)
        top = maximum(top, v)
        b1 = power(0.9, t)
        c1 = 1.0 - b1
        b2 = power(0.999, t)
        c2 = 1.0 - b2
        grow = power(c1, -1.0)
        m_hat = m * grow
        shrink = power(c2, -0.5)
        root = sqrt(top)
        root = root * shrink
        now = m_hat / root
        twice = 2.0 * now
        update = twice - before
        before = 1.0 * now
        return update, m, v, top, before
"""

_NADAM = """
    def update(w, g, m, v, q, t):
        m = interp(g, m, 0.9)
        g2 = square(g)
        v = interp(g2, v, 0.999)
        age = t * 0.004
        p = power(0.96, age)
        half = 0.5 * p
        short = 1.0 - half
        mu = 0.9 * short
        next_t = t + 1.0
        next_age = next_t * 0.004
        next_p = power(0.96, next_age)
        next_half = 0.5 * next_p
        next_short = 1.0 - next_half
        next_mu = 0.9 * next_short
        q = interp(1.0, q, mu)
        next_q = interp(1.0, q, next_mu)
        present = 1.0 - mu
        present = present / q
        past = next_mu / next_q
        now = present * g
        then = past * m
        blend = now + then
        b2 = power(0.999, t)
        c2 = 1.0 - b2
        shrink = power(c2, -0.5)
        root = sqrt(v)
        root = root * shrink
        update = blend / root
        return update, m, v, q
"""

_RADAM = """
    def update(w, g, m, v, t):
        m = interp(g, m, 0.9)
        g2 = square(g)
        v = interp(g2, v, 0.999)
        b1 = power(0.9, t)
        c1 = 1.0 - b1
        grow = power(c1, -1.0)
        m_hat = m * grow
        x = t * -0.0010005003335835344
        b2_less_one = expm1(x)
        c2 = 0.0 - b2_less_one
        b2 = 1.0 - c2
        odds = power(c2, -1.0)
        odds = b2 * odds
        lost = t * odds
        lost = 2.0 * lost
        rho = 1999.0 - lost
        rho_2 = rho - 2.0
        rho_4 = rho - 4.0
        rest = rho_2 * rho_4
        rest = rest * 0.000501754010025125
        inverse = power(rho, -1.0)
        rest = rest * inverse
        rest = rest * c2
        rectifier = sqrt(rest)
        root = sqrt(v)
        adaptive = rectifier / root
        over = rho - 5.0
        side = sign(over)
        on = maximum(side, 0.0)
        size = interp(1.0, adaptive, on)
        update = m_hat * size
        return update, m, v
"""

_DIFFGRAD = """
    def update(w, g, m, v, before, t):
        m = interp(g, m, 0.9)
        g2 = square(g)
        v = interp(g2, v, 0.999)
        change = before - g
        before = 1.0 * g
        size = abs(change)
        e = 0.0 - size
        e = exp(e)
        e = 1.0 + e
        friction = power(e, -1.0)
        b1 = power(0.9, t)
        c1 = 1.0 - b1
        b2 = power(0.999, t)
        c2 = 1.0 - b2
        grow = power(c1, -1.0)
        m_hat = m * grow
        slow = m_hat * friction
        shrink = power(c2, -0.5)
        root = sqrt(v)
        root = root * shrink
        update = slow / root
        return update, m, v, before
"""

_ADAN = """
    def update(w, g, m, d, v, before, t):
        m = interp(g, m, 0.98)
        age = t - 1.0
        later = minimum(age, 1.0)
        change = g - before
        change = change * later
        before = 1.0 * g
        d = interp(change, d, 0.92)
        ahead = 0.92 * change
        ahead = g + ahead
        ahead2 = square(ahead)
        v = interp(ahead2, v, 0.99)
        b1 = power(0.98, t)
        c1 = 1.0 - b1
        grow = power(c1, -1.0)
        m_hat = m * grow
        b2 = power(0.92, t)
        c2 = 1.0 - b2
        grow_d = power(c2, -1.0)
        d_hat = d * grow_d
        d_hat = 0.92 * d_hat
        step = m_hat + d_hat
        b3 = power(0.99, t)
        c3 = 1.0 - b3
        shrink = power(c3, -0.5)
        root = sqrt(v)
        root = root * shrink
        update = step / root
        return update, m, d, v, before
"""

_EXADAM = """
    def update(w, g, m, v, t):
        m = interp(g, m, 0.9)
        g2 = square(g)
        v = interp(g2, v, 0.999)
        b1 = power(0.9, t)
        c1 = 1.0 - b1
        b2 = power(0.999, t)
        c2 = 1.0 - b2
        grow = power(c1, -1.0)
        grow_v = power(c2, -1.0)
        sure = v / v
        more = sure * b2
        more = 1.0 + more
        m_tilde = m * grow
        m_tilde = m_tilde * more
        g_tilde = g * grow
        g_tilde = g_tilde * more
        m2 = square(m)
        sure_m = m2 / m2
        more_v = sure_m * b1
        more_v = 1.0 + more_v
        v_tilde = v * grow_v
        v_tilde = v_tilde * more_v
        root = sqrt(v_tilde)
        both = m_tilde + g_tilde
        update = both / root
        return update, m, v
"""

_GRAMS = """
    def update(w, g, m, v, t):
        m = interp(g, m, 0.9)
        g2 = square(g)
        v = interp(g2, v, 0.999)
        b1 = power(0.9, t)
        c1 = 1.0 - b1
        b2 = power(0.999, t)
        c2 = 1.0 - b2
        grow = power(c1, -1.0)
        m_hat = m * grow
        shrink = power(c2, -0.5)
        root = sqrt(v)
        root = root * shrink
        step = m_hat / root
        size = abs(step)
        way = sign(g)
        update = size * way
        return update, m, v
"""

_CAUTIOUS_ADAMW = """
    def update(w, g, m, v, t):
        m = interp(g, m, 0.9)
        g2 = square(g)
        v = interp(g2, v, 0.999)
        b1 = power(0.9, t)
        c1 = 1.0 - b1
        b2 = power(0.999, t)
        c2 = 1.0 - b2
        grow = power(c1, -1.0)
        m_hat = m * grow
        shrink = power(c2, -0.5)
        root = sqrt(v)
        root = root * shrink
        step = m_hat / root
        agree = m * g
        side = sign(agree)
        mask = maximum(side, 0.0)
        ones = power(g, 0.0)
        kept = norm(mask)
        all = norm(ones)
        share = kept / all
        share = square(share)
        share = maximum(share, 0.001)
        mask = mask / share
        update = step * mask
        return update, m, v
"""

_ADAFACTOR_UNFACTORED = """
    def update(w, g, v, t):
        g2 = square(g)
        fresh = power(t, -0.8)
        keep = 1.0 - fresh
        v = interp(g2, v, keep)
        root = sqrt(v)
        step = g / root
        ones = power(g, 0.0)
        all = norm(ones)
        size = norm(step)
        rms = size / all
        limit = maximum(rms, 1.0)
        step = step / limit
        size_w = norm(w)
        rms_w = size_w / all
        rms_w = maximum(rms_w, 0.001)
        update = step * rms_w
        return update, v
"""

LITERATURE = (
    entry("adabelief", "Zhuang et al. 2020", _ADABELIEF),
    entry("amsgrad", "Reddi et al. 2018", _AMSGRAD),
    entry("optimistic_amsgrad", "Daskalakis et al. 2018; Wang et al. 2019", _OPTIMISTIC_AMSGRAD),
    entry("nadam", "Dozat 2016", _NADAM, lr=2e-3),
    entry("radam", "Liu et al. 2020", _RADAM),
    entry("diffgrad", "Dubey et al. 2020", _DIFFGRAD),
    entry("adan", "Xie et al. 2022", _ADAN, weight_decay=0.02),
    entry("exadam", "Adly 2024", _EXADAM),
    entry("grams", "Cao et al. 2024", _GRAMS),
    entry("cautious_adamw", "Liang et al. 2024", _CAUTIOUS_ADAMW, weight_decay=0.01),
    entry("adafactor_unfactored", "Shazeer and Stern 2018", _ADAFACTOR_UNFACTORED, lr=0.01),
)
