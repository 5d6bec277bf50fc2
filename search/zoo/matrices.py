"""Rules of matrices: tensors with two axes and more, the first by the rest.

What has no two axes is moved by the rule without its functions of matrices, so by a momentum that
knows no scale: biases and gains want a learning rate of their own, or an optimizer.
"""

from __future__ import annotations

from search.zoo.entry import entry

_MUON = """
    def update(w, g, m):
        m = interp(g, m, 0.95)
        ahead = interp(g, m, 0.95)
        step = orthogonalize(ahead)
        update = stretch(step)
        return update, m
"""

MATRICES = (entry("muon", "Jordan et al. 2024", _MUON, lr=0.02, weight_decay=0.1),)
