"""Optimizers that everybody knows, and the programs that the Lion paper starts from.

All but ``adamw_initial`` are directions: the harness multiplies by the learning rate and adds the
decoupled weight decay, so ``adam`` and ``adamw`` are one program at different settings. Formulas
follow torch.optim, with one difference: the epsilon is that of division (1e-8, see ``ops``), also
for Adagrad, where torch adds 1e-10.
"""

from __future__ import annotations

from search.zoo.entry import entry

_SGD = """
    def update(w, g):
        update = 1.0 * g
        return update
"""

_MOMENTUM = """
    def update(w, g, m):
        decayed = 0.9 * m
        m = decayed + g
        update = 1.0 * m
        return update, m
"""

_NESTEROV = """
    def update(w, g, m):
        decayed = 0.9 * m
        m = decayed + g
        ahead = 0.9 * m
        update = g + ahead
        return update, m
"""

_ADAGRAD = """
    def update(w, g, v):
        g2 = square(g)
        v = v + g2
        root = sqrt(v)
        update = g / root
        return update, v
"""

_RMSPROP = """
    def update(w, g, v):
        g2 = square(g)
        v = interp(g2, v, 0.99)
        root = sqrt(v)
        update = g / root
        return update, v
"""

_ADAM = """
    def update(w, g, m, v, t):
        m = interp(g, m, 0.9)
        g2 = square(g)
        v = interp(g2, v, 0.999)
        b1 = power(0.9, t)
        c1 = 1.0 - b1
        b2 = power(0.999, t)
        c2 = 1.0 - b2
        m_hat = m / c1
        v_hat = v / c2
        root = sqrt(v_hat)
        update = m_hat / root
        return update, m, v
"""

_ADAM_NO_CORRECTION = """
    def update(w, g, m, v):
        m = interp(g, m, 0.9)
        g2 = square(g)
        v = interp(g2, v, 0.999)
        root = sqrt(v)
        update = m / root
        return update, m, v
"""

_ADABELIEF = """
    def update(w, g, m, v):
        m = interp(g, m, 0.9)
        surprise = g - m
        surprise2 = square(surprise)
        v = interp(surprise2, v, 0.999)
        root = sqrt(v)
        update = m / root
        return update, m, v
"""

_SIGN_SGD = """
    def update(w, g):
        update = sign(g)
        return update
"""

_SIGN_MOMENTUM = """
    def update(w, g, m):
        m = interp(g, m, 0.9)
        update = sign(m)
        return update, m
"""

_LION = """
    def update(w, g, m):
        blend = interp(g, m, 0.9)
        update = sign(blend)
        m = interp(g, m, 0.99)
        return update, m
"""

_ADAMW_INITIAL = """
    def full_update(w, g, m, v, lr):
        g2 = square(g)
        m = interp(g, m, 0.9)
        v = interp(g2, v, 0.999)
        sqrt_v = sqrt(v)
        update = m / sqrt_v
        wd = w * 0.01
        update = update + wd
        lr = lr * 0.001
        update = update * lr
        return update, m, v
"""

CLASSICS = (
    entry("sgd", "Robbins and Monro 1951", _SGD, lr=0.1),
    entry("momentum", "Polyak 1964", _MOMENTUM, lr=0.01),
    entry("nesterov", "Nesterov 1983; Sutskever et al. 2013", _NESTEROV, lr=0.01),
    entry("adagrad", "Duchi et al. 2011", _ADAGRAD, lr=0.01),
    entry("rmsprop", "Tieleman and Hinton 2012", _RMSPROP),
    entry("adam", "Kingma and Ba 2015", _ADAM),
    entry("adamw", "Loshchilov and Hutter 2019", _ADAM, weight_decay=0.01),
    entry("adam_no_correction", "Chen et al. 2023, program 3", _ADAM_NO_CORRECTION),
    entry("adamw_no_correction", "Chen et al. 2023", _ADAM_NO_CORRECTION, weight_decay=0.01),
    entry("adabelief_no_correction", "Zhuang et al. 2020", _ADABELIEF),
    entry("sign_sgd", "Bernstein et al. 2018", _SIGN_SGD, lr=1e-4),
    entry("sign_momentum", "Bernstein et al. 2018", _SIGN_MOMENTUM, lr=1e-4),
    entry("lion", "Chen et al. 2023", _LION, lr=1e-4, weight_decay=0.1),
    entry("adamw_initial", "Chen et al. 2023, program 3", _ADAMW_INITIAL, lr=1.0),
)
