"""A coordinate check as a picture: change of activations against width and step."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from tasks.display.plots import label
from tasks.mup.coordinates import Coordinates
from tasks.runs.caches import settle_matplotlib
from tasks.runs.files import save_bytes


def draw(checks: Mapping[str, Coordinates], path: Path) -> None:
    """A figure: a column for each check (title: its key).

    Above, the last step's change against the width, a line a layer, its range over seeds shaded;
    below, the change of the layer
    with the largest ratio against the step, a line a width.
    """
    settle_matplotlib()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        2, len(checks), figsize=(4.5 * len(checks), 7), sharey="row", squeeze=False
    )
    for column, (title, check) in zip(axes.T, checks.items(), strict=True):
        shades = plt.get_cmap("viridis")
        for k, layer in enumerate(check.layers):
            colour = shades(k / max(len(check.layers) - 1, 1))
            change, name = check.change[:, -1, k], label(layer)
            column[0].loglog(check.widths, change, ".-", color=colour, label=name)
            column[0].fill_between(check.widths, *check.range(k), color=colour, alpha=0.15, lw=0)
        worst = max(check.ratios().items(), key=lambda item: item[1])[0]
        for i, width in enumerate(check.widths):
            colour = shades(i / max(len(check.widths) - 1, 1))
            change = check.change[i, :, check.layers.index(worst)]
            column[1].loglog(check.steps, change, ".-", color=colour, label=str(width))
        several = len(check.each) > 1
        seeds = f"mean and range of {len(check.each)} seeds" if several else "1 seed"
        column[0].set(title=f"{title}, step {check.steps[-1]}: {seeds}", xlabel="width")
        column[1].set(title=label(f"{title}, {worst}"), xlabel="step")
        for panel, marks in zip(column, (check.widths, check.steps), strict=True):
            panel.set_xticks(marks, [str(mark) for mark in marks])
            panel.minorticks_off()
        column[1].legend(title="width", fontsize=7)
        if len(check.layers) <= 12:
            column[0].legend(fontsize=7)
    for row in axes:
        row[0].set_ylabel("change of activations (RMS)")
    figure.tight_layout()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, format=path.suffix.lstrip(".") or "png")
    save_bytes(path, drawn.getvalue())
    plt.close(figure)
