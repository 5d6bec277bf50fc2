"""Report pages: whole in one file, no way out to the network, and what is put in is escaped."""

import errno
import io
import math
import os
import re
from html.parser import HTMLParser

import pytest

from tasks.display.page import Page, Program, Section, Table, Tiles, html, write
from tasks.display.plots import Figure, drawing, label
from tasks.evaluation import wording
from tasks.evaluation.intervals import Interval
from tasks.runs.files import DiskFull

NASTY = '<script>alert("&")</script>'


def figure(name: str) -> Figure:
    with drawing() as (drawn, axes):
        axes.plot([0, 1, 2], [3, 1, 2], "o", gid="dots")
        axes.fill_between([0, 1], [1, 2])
    return Figure(name, drawn, f"a caption {NASTY}", {"dots": f"three\n{NASTY}"})


def page() -> Page:
    parts = [
        NASTY,
        figure("one"),
        figure("two"),
        Table(("a", NASTY), [(NASTY, Program(NASTY, "open"))]),
        Program(NASTY),
        Tiles([("1", NASTY)]),
    ]
    return Page(f"title {NASTY}", NASTY, [Section(NASTY, parts)], f"l2o report {NASTY}")


class Reader(HTMLParser):
    """Balances tags and collects what a browser would load."""

    VOID = {"meta", "wbr", "br", "use", "path", "rect", "line", "image"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("href", "src", "xlink:href"):
                self.links.append(str(value))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def read() -> tuple[str, Reader]:
    text = html(page())
    reader = Reader()
    reader.feed(text)
    return text, reader


def test_the_document_is_well_formed(read):
    assert read[1].open == []
    assert read[1].seen.count("svg") == read[1].seen.count("figure") == 2
    assert len(set(read[1].ids)) == len(read[1].ids) > 0


def test_nothing_is_loaded_from_anywhere(read):
    text, reader = read
    assert all(link.startswith(("#", "data:")) for link in reader.links)
    assert not re.search(r"@import|url\((?!#)", text)
    assert {link[1:] for link in reader.links if link[0] == "#"} <= set(reader.ids)


def test_content_is_escaped(read):
    text, reader = read
    assert "script" not in reader.seen
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 10


def test_pointing_at_a_dot_tells_more(read):
    assert len(re.findall(r'<g id="(?:one|two)-dots">\s*<title>three\n&lt;script', read[0])) == 2


def test_every_figure_names_its_command(read):
    assert len(re.findall(r"<figcaption>[^\0]*?<code>l2o report", read[0])) == 2


def test_the_same_page_is_the_same_text():
    assert html(page()) == html(page())


def test_files(tmp_path):
    written = write(page(), tmp_path / "r.html")
    assert [path.name for path in written] == ["r.html", "one.png", "two.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in written[1:])


INF = float("inf")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (wording.per_cent(0.01), "+1.0\N{NO-BREAK SPACE}%"),
        (wording.per_cent(-0.1), "−9.5\N{NO-BREAK SPACE}%"),
        (wording.per_cent(INF), "diverged"),
        (wording.per_cent(-INF), "reference diverged"),
        (wording.interval(Interval(-0.1, -INF, INF, 1)), "n = 1"),
        (wording.interval(Interval(-0.1, -INF, -0.05, 5)), "reference diverged to −4.9"),
        (wording.distance(-0.1), "9.5 % below"),
        (wording.distance(0.1), "10.5 % above"),
        (wording.distance(90.0), "10^39 times"),
        (wording.interval(Interval(85.0, -1000.0, 1066.0, 2)), "−100.0 to ×10^463"),
        (wording.interval(Interval(0.0, -0.1, 0.1, 5)), "−9.5 to +10.5"),
        (wording.interval(Interval(0.0, -0.1, INF, 5)), "−9.5 to diverged"),
        (wording.interval(Interval(0.0, -INF, INF, 1)), "n = 1"),
        (wording.change(Interval(0.01, 0.0, 0.02, 3)), "+1.0\N{NO-BREAK SPACE}% (+0.0 to +2.0)"),
        (wording.change(Interval(INF, INF, INF, 3)), "diverged"),
        (wording.change(Interval(math.nan, math.nan, math.nan, 0)), "–"),
        (wording.portion(Interval(0.25, 0.1, 0.5, 8)), "25\N{NO-BREAK SPACE}% (10 to 50)"),
        (wording.change(Interval(4.6, -0.1, 7.0, 3)), "×99 (−9.5 to ×1,097)"),
        (wording.distance(4.6), "99 times"),
        (wording.interval(Interval(0.0, -0.1, 0.1, 5), " %"), "−9.5 to +10.5 %"),
        (wording.interval(Interval(0.0, -0.1, 4.6, 5), " %"), "−9.5 to ×99"),
        (wording.factor(Interval(1.5, 0.0, 2.0, 3)), "1.50x (never to 2.00)"),
        (wording.factor(Interval(0.0, 0.0, 0.0, 3)), "never"),
        (wording.interval(Interval(INF, INF, INF, 5)), ""),
        (wording.times([2.0, 1.0, 3.0]), "2.00x"),
        (wording.times([0.0, 2.0]), "never"),
        (wording.duration(30), "30 s"),
        (wording.duration(600), "10.0 min"),
        (wording.duration(9000), "2.5 h"),
    ],
)
def test_wording(said, expected):
    assert said == expected


def test_labels_are_shown_letter_by_letter():
    with drawing() as (drawn, axes):
        for name in ("_draft.txt", "a$b_{$.txt", "$x$"):
            axes.plot([0, 1], label=label(name))
        axes.legend()
    drawn.savefig(io.BytesIO(), format="svg")
    shown = [text.get_text().strip("\N{ZERO WIDTH SPACE}") for text in axes.get_legend().texts]
    assert shown == ["_draft.txt", r"a\$b_{\$.txt", r"\$x\$"]


def test_a_page_that_cannot_be_finished_leaves_the_one_before(tmp_path, monkeypatch):
    file = tmp_path / "page.html"
    write(page(), file)
    before = file.read_bytes()

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DiskFull):
        write(page(), file)
    assert file.read_bytes() == before


STEERING = ("\0", "\x07", "\x1b[2J", "\x9b", "\udc80", "\u202e")


@pytest.mark.parametrize("character", STEERING)
def test_names_may_have_any_character(character, tmp_path):
    """Of rules and tasks that somebody else named; no document can hold some of them."""
    name = f"my{character}rule"
    with drawing() as (drawn, axes):
        axes.plot([0, 1], [3, 1], "o", gid="dots", label=label(name))
        axes.set_title(label(name))
        axes.legend()
    shown = Figure("one", drawn, f"of {name}", {"dots": name})
    parts = [name, shown, Table((name,), [(name,)]), Program(name, name), Tiles([("1", name)])]
    written = write(Page(name, name, [Section(name, parts)], name), tmp_path / "r.html")
    text = written[0].read_text(encoding="utf-8")
    assert character not in text
    assert text.count("rule") >= 9
