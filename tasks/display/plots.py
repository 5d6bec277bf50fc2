"""What all figures share: colours, sizes, style, and a figure as SVG in a page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from tasks.checks import printable
from tasks.runs.caches import settle_matplotlib

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D", "#4D4D4D")
"""Told apart by most colour-blind readers (Okabe and Ito), darkest first."""


GREY = "#8A8A8A"


NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What a drawing as text cannot hold."""


SIZE = (4.6, 3.1)
"""Inches. Narrow, so that 8-point text is still 8 points on a phone."""


STYLE: Any = {
    "font.size": 8.5,
    "font.family": "sans-serif",
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "l2o",
}


@dataclass(frozen=True)
class Figure:
    """``drawing``: a matplotlib figure; ``hover``: what pointing at the artist with that ``gid``
    shows; ``name``: of the PNG file, without its ending."""

    name: str
    drawing: Any
    caption: str
    hover: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def drawing(size: tuple[float, float] = SIZE) -> Iterator[tuple[Any, Any]]:
    """Yields a matplotlib (figure, axes) to draw on in the style of the reports."""
    settle_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    with matplotlib.rc_context(STYLE):
        figure = Drawing(figsize=size, layout="constrained")
        yield figure, figure.subplots()


def label(name: str) -> str:
    """``name`` as matplotlib shows it letter by letter: no formula, and not left out of legends."""
    hidden = "\N{ZERO WIDTH SPACE}" if name.startswith("_") else ""
    return hidden + printable(name).replace("$", r"\$")


def svg(figure: Figure) -> str:
    """The drawing as an SVG element of flexible width, with a tooltip for each ``hover``."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    space = "http://www.w3.org/2000/svg"
    ElementTree.register_namespace("", space)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(NO_XML.sub("\N{REPLACEMENT CHARACTER}", buffer.getvalue()))
    for metadata in root.findall(f"{{{space}}}metadata"):
        root.remove(metadata)
    for name in ("width", "height"):
        root.attrib.pop(name)
    root.set("role", "img")
    root.set("aria-label", printable(figure.caption))
    for element in list(root.iter()):
        if element.get("id") in figure.hover:
            tip = ElementTree.Element(f"{{{space}}}title")
            tip.text = printable(figure.hover[str(element.get("id"))])
            element.insert(0, tip)
    return _own_ids(ElementTree.tostring(root, encoding="unicode"), figure.name)


def _own_ids(text: str, name: str) -> str:
    """Prefix every id with the figure's name: those of two figures must differ in one page."""
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    return re.sub(r'href="#', f'href="#{name}-', text)


def sparse_ticks(axis: Any) -> None:
    """Plain numbers on a logarithmic axis that is drawn: a few, whatever its range."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    low, high = axis.get_view_interval()
    if high / low < 5:
        axis.set_major_locator(MaxNLocator(5))
    else:
        axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 30 else (1.0, 2.0, 3.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
