"""The command ``l2o report``: which kind of thing it was given, and the page about it."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from l2o import meta_report, meta_run
from tasks import report as evaluations
from tasks.command import Arguments, parser
from tasks.page import Page, replaceable, write
from tasks.results import Results


def report(arguments: Arguments) -> int:
    """Write an HTML report of a run or of results, finished or not, and its figures as PNG.

    l2o report runs/first
    l2o report runs/learned
    l2o report results.sqlite --out report.html
    """
    options_of = parser(report)
    options_of.add_argument("source", type=Path, help="a run's directory, or a results file")
    options_of.add_argument("--out", type=Path | None, default=None, help="default: beside it")
    options_of.add_argument("--trust", action="store_true", help=TRUST)
    options = options_of.parse_args(list(arguments))
    source = options.source
    if not source.exists():
        raise ValueError(f"{source}: no such run or results file")
    beside = source / "report.html" if source.is_dir() else source.with_suffix(".html")
    out = options.out or beside
    if out.is_dir():
        raise ValueError(f"--out: {out} is a directory, expected a file")
    if out.absolute() == source.absolute():
        raise ValueError(f"--out: {out} is what is reported on; choose another name")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out: the directory {out.parent} does not exist")
    if not replaceable(out):
        raise ValueError(f"--out: {out} exists and is no report; choose another name")
    again = f"l2o report {quote(str(source))}{' --trust' if options.trust else ''}"
    paths = write(page(source, again, options.trust), out)
    print(f"wrote {paths[0]} and {len(paths) - 1} figures in {paths[-1].parent}")
    return 0


TRUST = "measure a meta-training on held-out tasks that are code which the run names"


def page(source: Path, remade_by: str, trusted: bool = False) -> Page:
    """The page about whatever ``source`` is. ``trusted``: what that names may be run for it."""
    if meta_run.is_run(source):
        return meta_report.page(source, remade_by, trusted)
    if source.is_dir():
        from search.archive import open_existing
        from search.report import page as search_page

        with open_existing(source, readonly=True) as archive:
            return search_page(archive, remade_by)
    with Results(source, readonly=True) as results:
        return evaluations.page(results, remade_by)
