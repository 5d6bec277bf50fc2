"""Reports of several runs or results files, figures in other formats, and names for sources."""

import shutil
from pathlib import Path

import pytest

from l2o.cli.main import main
from tests.search.test_report import finished, importable_suites  # noqa: F401


def test_several_searches_are_one_report(finished: Path, tmp_path: Path, capsys) -> None:  # noqa: F811
    other = shutil.copytree(finished, tmp_path / "other")
    out = tmp_path / "both.html"
    asked = ["report", str(finished), f"twin={other}", "--out", str(out)]
    figures = ["--figures", str(tmp_path / "paper"), "--format", "pdf", "svg"]
    assert main([*asked, *figures]) == 0
    text = out.read_text()
    assert "2 searches, 0 of 2 judged ones with a discovery" in text
    assert "95 % interval 0 to 84 %" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "twin" in text
    assert {path.name for path in (tmp_path / "paper").iterdir()} == {"best.pdf", "best.svg"}
    assert (tmp_path / "paper" / "best.pdf").read_bytes().startswith(b"%PDF")


REFUSED = {
    "no place": (["{run}", "b={run}"], "--out: got none"),
    "one name twice": (["{run}", "{run}", "--out", "x.html"], "twice"),
    "nothing there": (["a=nowhere"], "a=nowhere: no such run or results file"),
    "a mixture": (
        ["{run}", "{file}", "--out", "x.html"],
        "several searches, several",
    ),
    "another format": (["{run}", "--format", "bmp"], "--format: got bmp"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_joined_is_refused(finished: Path, tmp_path, capsys, what) -> None:  # noqa: F811
    (tmp_path / "file.sqlite").write_text("")
    given, said = REFUSED[what]
    words = [word.format(run=finished, file=tmp_path / "file.sqlite") for word in given]
    words = [str(tmp_path / word) if word == "x.html" else word for word in words]
    assert main(["report", *words]) == 2
    assert said in capsys.readouterr().err
