"""Lion's family: one momentum, and a function of its blend with the gradient.

Lion-kappa (Chen et al. 2024) replaces the sign, the gradient of the sum of |x_i|, by the gradient
of another convex function kappa. Bounded, it keeps Lion's balance with the weight decay: the
weights end within 1 / weight_decay in the dual norm.
"""

from __future__ import annotations

from search.zoo.entry import entry

_LION_L2 = """
    def update(w, g, m):
        blend = interp(g, m, 0.9)
        size = global_norm(blend)
        update = blend / size
        m = interp(g, m, 0.99)
        return update, m
"""

_LION_GROUP = """
    def update(w, g, m):
        blend = interp(g, m, 0.9)
        size = norm(blend)
        update = blend / size
        m = interp(g, m, 0.99)
        return update, m
"""

_LION_HUBER = """
    def update(w, g, m):
        blend = interp(g, m, 0.9)
        steep = blend * 1000.0
        low = maximum(steep, -1.0)
        update = minimum(low, 1.0)
        m = interp(g, m, 0.99)
        return update, m
"""

_CAUTIOUS_LION = """
    def update(w, g, m):
        blend = interp(g, m, 0.9)
        step = sign(blend)
        m = interp(g, m, 0.99)
        agree = step * g
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
        return update, m
"""

_TIGER = """
    def update(w, g, m):
        m = interp(g, m, 0.965)
        update = sign(m)
        return update, m
"""

_KAPPA = "Lion-kappa, Chen et al. 2024"

LIONS = (
    entry("lion_l2", f"{_KAPPA}: |x|", _LION_L2, lr=0.1, weight_decay=0.1),
    entry("lion_group", f"{_KAPPA}: |x| by tensor", _LION_GROUP, lr=0.01, weight_decay=0.1),
    entry("lion_huber", f"{_KAPPA}: Huber", _LION_HUBER, lr=1e-4, weight_decay=0.1),
    entry("cautious_lion", "Liang et al. 2024", _CAUTIOUS_LION, lr=1e-4, weight_decay=0.1),
    entry("tiger", "Su 2023", _TIGER, lr=1e-3, weight_decay=0.01),
)
