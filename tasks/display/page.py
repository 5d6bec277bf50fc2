"""Reports as one HTML file that needs nothing else: no network, no scripts.

A ``Page`` is plain content: sections of text, figures, tables and programs. Figures are made with
matplotlib; they go into the page as SVG and beside it as PNG files. The page is laid out for a
phone first (one column, text that can be read without zooming), uses more columns where there is
room, and prints.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import product
from pathlib import Path
from typing import Any

from tasks.checks import printable
from tasks.display.plots import Figure, svg
from tasks.runs.files import RunError, save_bytes, save_text, writable

NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Table:
    """Cells are text, or a ``Program``; the first column is the one that names the row."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Program]]


@dataclass(frozen=True)
class Program:
    """Text in fixed width; with a ``summary`` it is folded away under it."""

    text: str
    summary: str = ""


@dataclass(frozen=True)
class Tiles:
    """A row of (number, what it is)."""

    tiles: Sequence[tuple[str, str]]


Part = str | Figure | Table | Program | Tiles


@dataclass(frozen=True)
class Section:
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """``remade_by``: the command that writes this page again; it stands under every figure."""

    title: str
    lead: str
    sections: Sequence[Section]
    remade_by: str


DOCTYPE = "<!doctype html>"


def replaceable(file: Path) -> bool:
    """Whether nothing is lost where a page is written to ``file``: it is new, or a page."""
    if not file.exists():
        return True
    with file.open("rb") as known:
        return known.read(len(DOCTYPE)) == DOCTYPE.encode()


FORMATS = ("png", "pdf", "svg")
"""Of figures beside a page."""


def write(
    page: Page, file: Path, folder: Path | None = None, formats: Sequence[str] = FORMATS[:1]
) -> list[Path]:
    """``file`` and, in ``folder`` (``<file's stem>-figures/``), each figure in all ``formats``; the
    paths written.

    Raises RunError where they cannot be.
    """
    folder = folder or file.with_name(f"{file.stem}-figures")
    figures = [p for section in page.sections for p in section.parts if isinstance(p, Figure)]
    written = [file]
    for figure, kind in product(figures, formats):
        written.append(folder / f"{figure.name}.{kind}")
        drawn = io.BytesIO()
        figure.drawing.savefig(drawn, dpi=200, format=kind)
        with writable(written[-1]):
            if folder.is_symlink():
                raise RunError(f"{folder}: a link to elsewhere, expected a directory")
            folder.mkdir(exist_ok=True)
        save_bytes(written[-1], drawn.getvalue())
    save_text(file, html(page))
    return written


def html(page: Page) -> str:
    """The whole document."""
    body = "\n".join(_section(section, page.remade_by) for section in page.sections)
    title = _escaped(page.title)
    return (
        f'{DOCTYPE}\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{CSS}</style></head>\n<body><main>\n"
        f'<h1>{title}</h1>\n<p class="lead">{_text(page.lead)}</p>\n{body}\n'
        f"<footer>Written by <code>{_escaped(page.remade_by)}</code></footer>\n"
        "</main></body></html>\n"
    )


def _section(section: Section, command: str) -> str:
    """Consecutive figures share rows; everything else has the full width."""
    pieces, figures = [], []
    for part in section.parts:
        if isinstance(part, Figure):
            figures.append(_figure(part, command))
            continue
        pieces += _grid(figures)
        figures = []
        pieces.append(_RENDERERS[type(part)](part))
    pieces += _grid(figures)
    return f"<section><h2>{_escaped(section.title)}</h2>\n{''.join(pieces)}</section>"


def _grid(figures: list[str]) -> list[str]:
    return [f'<div class="figures">{"".join(figures)}</div>\n'] if figures else []


def _figure(figure: Figure, command: str) -> str:
    caption = f"{_text(figure.caption)} <code>{_escaped(command)}</code>"
    return f"<figure>{svg(figure)}<figcaption>{caption}</figcaption></figure>"


def _escaped(text: str) -> str:
    """Names may have characters that no document can hold; they are written out."""
    return escape(printable(text))


def _text(text: str) -> str:
    """Escaped; numbers stay on one line with their units and with what they are the values of."""
    return _escaped(re.sub(r"(?<=\d) (?=%)|(?<=\bn) (?==)|(?<=\bn =) (?=\d)", NO_BREAK, text))


def _table(table: Table) -> str:
    head = "".join(f"<th>{_cell(name)}</th>" for name in table.head)
    lines = ("".join(f"<td>{_cell(cell)}</td>" for cell in row) for row in table.rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    whole = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table>{whole}</table></div>'


def _cell(cell: str | Program) -> str:
    if isinstance(cell, Program):
        return _program(cell)
    text = _text(re.sub(r"\([^()]{1,24}\)", lambda m: m[0].replace(" ", NO_BREAK), cell))
    # Long names may be broken after their separators.
    return re.sub(r"([/_.(=-])(?=[A-Za-z_])", r"\1<wbr>", text) if len(cell) > 12 else text


def _program(program: Program) -> str:
    text = f"<pre>{_escaped(program.text)}</pre>"
    if not program.summary:
        return text
    return f"<details><summary>{_escaped(program.summary)}</summary>{text}</details>"


def _tiles(tiles: Tiles) -> str:
    each = (f"<div><b>{_text(n)}</b><span>{_text(what)}</span></div>" for n, what in tiles.tiles)
    return f'<div class="tiles">{"".join(each)}</div>'


_RENDERERS: dict[type, Callable[[Any], str]] = {
    str: lambda text: f"<p>{_text(text)}</p>\n",
    Table: _table,
    Program: _program,
    Tiles: _tiles,
}


CSS = """
:root { --ink: #1d1d1f; --soft: #5c5c61; --line: #dedee2; --tint: #f5f5f7; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 1.2rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .4rem 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid var(--line); }
p { max-width: 46rem; margin: .5rem 0; }
.lead { font-size: 1.1rem; }
.tiles { display: grid; gap: .6rem; margin: .8rem 0;
  grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
.tiles div { background: var(--tint); border-radius: .5rem; padding: .6rem .8rem; }
.tiles b { display: block; font-size: 1.2rem; font-variant-numeric: tabular-nums; }
.tiles span { display: block; color: var(--soft); font-size: .82rem; line-height: 1.35; }
.figures { display: grid; gap: 1rem 1.6rem; margin: .8rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; max-width: 36rem; break-inside: avoid; }
figure svg { width: 100%; height: auto; display: block; overflow: visible; }
figure svg text { font-family: system-ui, -apple-system, Roboto, Arial, sans-serif !important; }
figcaption { color: var(--soft); font-size: .82rem; line-height: 1.4; margin-top: .3rem; }
figcaption code { display: block; color: #8a8a8f; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
td { white-space: nowrap; }
td:has(details) { white-space: normal; }
@media (max-width: 40rem) { th, td { white-space: normal; padding-right: .6rem; }
  table { font-size: .82rem; } pre { white-space: pre-wrap; overflow-wrap: anywhere; } }
pre { background: var(--tint); border-radius: .5rem; padding: .7rem .9rem; overflow-x: auto;
  margin: .5rem 0; max-width: 46rem; }
code, pre { font: .82rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
summary { cursor: pointer; color: var(--accent); }
footer { margin-top: 2.5rem; color: var(--soft); font-size: .82rem; overflow-wrap: anywhere; }
@media print {
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  .figures { grid-template-columns: 1fr 1fr; } .wide { overflow: visible; }
  td { white-space: normal; } h2 { break-after: avoid; } tr, pre { break-inside: avoid; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
"""


def table(found: Sequence[Mapping[str, Any]]) -> Table:
    """Versions, machine and commit: a column for each environment that something was made in."""
    names = sorted({name for each in found for name, value in each.items() if value is not None})
    rows = [(name, *(_value(name, each.get(name)) for each in found)) for name in names]
    head = [""] if len(found) < 2 else [str(k) for k in range(1, len(found) + 1)]
    return Table(("environment", *head), rows)


def _value(name: str, value: str | None) -> str:
    if value is None:
        return "–"
    if name != "commit":
        return value
    return value[:12] + ("… and uncommitted changes" if value.endswith("+") else "…")
