"""The command ``l2o report``: which kind of thing it was given, and the page about it."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path
from shlex import quote

from l2o.cli.run import run_at, together
from tasks.commands.parser import Arguments, named, parser
from tasks.display.page import FORMATS, Page, replaceable, write
from tasks.evaluation import report as evaluations
from tasks.evaluation.results import Results


def report(arguments: Arguments) -> int:
    """Write an HTML report of a run or of results, finished or not, and its figures beside it.

    Several searches, such as seeds of one, several meta-trainings or several results files become
    one report; NAME=PATH says what one is called there.

    l2o report runs/first
    l2o report runs/learned --format png pdf --figures paper
    l2o report results.sqlite --out report.html
    l2o report runs/seed0 runs/seed1 "ours=runs/seed2" --out seeds.html
    """
    options_of = parser(report)
    options_of.add_argument("sources", type=str, nargs="+", help="runs, or results files")
    options_of.add_argument("--out", type=Path | None, default=None, help="default: beside it")
    options_of.add_argument(
        "--figures", type=Path | None, default=None, help="a directory; default: beside the report"
    )
    options_of.add_argument(
        "--format",
        type=str | list[str],
        default=FORMATS[0],
        help=f"of the figures, some of {', '.join(FORMATS)}",
    )
    options_of.add_argument("--trust", action="store_true", help=TRUST)
    options = options_of.parse_args(_together(arguments))
    formats = [options.format] if isinstance(options.format, str) else options.format
    if not formats or not {*formats} <= {*FORMATS}:
        raise ValueError(f"--format: got {options.format}, expected some of {', '.join(FORMATS)}")
    sources = _named(options.sources)
    out = _out(options.out, [*sources.values()])
    again = f"l2o report {' '.join(map(quote, options.sources))}"
    again += " --trust" if options.trust else ""
    if len(sources) > 1:
        content = joined(sources, again)
    else:
        content = page(next(iter(sources.values())), again, options.trust)
    paths = write(content, out, options.figures, formats)
    print(f"wrote {paths[0]} and {len(paths) - 1} figures in {paths[-1].parent}")
    return 0


def _together(arguments: Arguments) -> list[str]:
    """``--format pdf svg`` as ``--format [pdf,svg]``; what comes after may be a source again."""
    words = list(arguments)
    start = words.index("--format") + 1 if "--format" in words else len(words)
    names = list(takewhile(lambda word: word in FORMATS, words[start:]))
    if names:
        words[start : start + len(names)] = [f"[{','.join(names)}]"]
    return words


def _named(given: list[str]) -> dict[str, Path]:
    """Sources by what they are called: NAME=PATH, or the path itself."""
    found: dict[str, Path] = {}
    for word in given:
        name, path = named(word)
        if not path.exists():
            raise ValueError(f"{word}: no such run or results file")
        if name in found:
            raise ValueError(f"sources: got {name} twice, expected different names")
        found[name] = path
    return found


def _out(asked: Path | None, sources: list[Path]) -> Path:
    """Where the report goes. Raises ValueError for a place where it must not."""
    source = sources[0]
    if asked is None and len(sources) > 1:
        raise ValueError("--out: got none, expected a file for the report of several")
    beside = source / "report.html" if source.is_dir() else source.with_suffix(".html")
    out = asked or beside
    if out.is_dir():
        raise ValueError(f"--out: {out} is a directory, expected a file")
    if any(out.absolute() == one.absolute() for one in sources):
        raise ValueError(f"--out: {out} is what is reported on; choose another name")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out: the directory {out.parent} does not exist")
    if not replaceable(out):
        raise ValueError(f"--out: {out} exists and is no report; choose another name")
    return out


def joined(sources: dict[str, Path], remade_by: str) -> Page:
    """The page about several searches, several meta-trainings, or several results files."""
    if not any(path.is_dir() for path in sources.values()):
        with ExitStack() as stack:
            files = {
                name: stack.enter_context(Results(path, readonly=True))
                for name, path in sources.items()
            }
            return evaluations.joined(files, remade_by)
    runs = {name: run_at(path) for name, path in sources.items() if path.is_dir()}
    found = together(runs, remade_by) if len(runs) == len(sources) else None
    if found is None:
        raise ValueError(
            f"sources: got {', '.join(sources)}, expected several searches, several "
            "meta-trainings or several results files; mixtures are reported on one by one"
        )
    return found


TRUST = "measure a meta-training on held-out tasks that are code which the run names"


def page(source: Path, remade_by: str, trusted: bool = False) -> Page:
    """The page about whatever ``source`` is. ``trusted``: what that names may be run for it."""
    if source.is_dir():
        return run_at(source).page(remade_by, trusted)
    with Results(source, readonly=True) as results:
        return evaluations.page(results, remade_by)
