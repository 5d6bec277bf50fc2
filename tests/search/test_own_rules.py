"""A known optimizer of a user's own: a text, or a name in a module, wherever the zoo's names go."""

import pytest
import torch

import search
from l2o.cli.entrants import entrant
from l2o.cli.main import main
from search.commands.search import asked
from search.commands.zoo import TEXTS, known, row
from search.language.program import to_text
from search.zoo import NAMED, with_states
from search.zoo.entry import from_text

LION = NAMED["lion"].program
SAID = "# origin: a notebook\n# Weight decay = 0.2\n#lr: 3e-4\n# Note: for readers.\n"
MODULE = f'''
import search
TEXT = """{SAID}{LION}"""
MADE = search.parse(TEXT)
TAKEN = search.load("lion")
class Mine:
    pass
ODD = "def update(w, g):\\n    update = 2.0 - 1.0\\n    return update\\n"
'''
SUITE = "from tasks import MLP, Entry\ndef suite():\n    return Entry(MLP(width=4), steps=4)\n"
FORMS = {
    "my_rule.txt": ("my_rule", 3e-4, 0.2, "a notebook"),
    "./mine": ("mine", 3e-4, 0.2, "a notebook"),
    "my_rules:TEXT": ("TEXT", 3e-4, 0.2, "a notebook"),
    "my_rules:MADE": ("MADE", 1e-3, 0.0, "my_rules:MADE"),
    "my_rules:TAKEN": ("lion", 1e-4, 0.1, "Chen et al. 2023"),
}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rules.py").write_text(MODULE)
    (tmp_path / "my_rule.txt").write_text(SAID + to_text(LION))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/rule.txt").write_text("\ufeff\n" + SAID + to_text(LION))
    return tmp_path


@pytest.mark.parametrize("word", FORMS)
def test_goes_wherever_a_name_does(word, place, capsys):
    mine = search.load(word)
    assert (mine.name, mine.lr, mine.weight_decay, mine.origin) == FORMS[word]
    assert mine.program == LION
    judged, usual = entrant(word), entrant("lion")
    assert (judged.identity, judged.source) == (usual.identity, usual.source)
    assert (judged.name, judged.lr, judged.schedule) == (word, mine.lr, None)
    config = asked(["--run-dir", "new", "--start", word, "--workers", "0"]).config
    assert config.start == (to_text(with_states(LION, 2)),)
    for command in (
        ["zoo", word],
        ["simplify", word, "--exact"],
        ["export", word, "--out", "o.py"],
    ):
        assert main(command) == 0, command
    assert to_text(LION) in capsys.readouterr().out
    weight = torch.ones(2, 2, requires_grad=True)
    optimizer = search.load(word).optimizer([weight])
    assert optimizer.param_groups[0]["weight_decay"] == mine.weight_decay


def test_is_judged_and_checked_at_its_own_rate(place):
    (place / "brief.py").write_text(SUITE)
    given = ["--suite", "brief:suite", "--trials", "2", "--seeds", "2", "--workers", "0"]
    assert main(["evaluate", "ours=my_rules:TEXT@constant", "my_rule.txt", *given]) == 0
    widths = ["--widths", "[8,16]", "--steps", "1", "--seeds", "1"]
    assert main(["coord-check", "--rule", "my_rules:TEXT", "--out", "own", *widths]) in (0, 1)
    assert main(["coord-check", "--rule", "lion", "--lr", "3e-4", "--out", "lion", *widths]) in (
        0,
        1,
    )
    same = [(place / name / "coordinates.csv").read_text() for name in ("own", "lion")]
    assert same[0] == same[1]


WRONG = {
    "my_rules:Mine": "rule: got 'my_rules:Mine', which is no program",
    "my_rules:ODD": r"my_rules:ODD: .*update",
    "my_rules:none": "rule: got 'my_rules:none', which cannot be imported",
    "nowhere:none": "rule: got 'nowhere:none', which cannot be imported",
}


@pytest.mark.parametrize("word", WRONG)
def test_what_is_no_rule_is_said(word):
    with pytest.raises(ValueError, match=WRONG[word]):
        search.load(word)


COMMENTS = {
    "# lr: fast": "lr: got 'fast', expected a number",
    "# lr: -1": "lr: got '-1', expected a number",
    "# lr: 0": "lr: got 0, expected a number above 0",
    "# lr: inf": "lr: got 'inf', expected a number",
    "# weight_decay: nan": "weight_decay: got 'nan', expected a number",
    "# weigth decay: 0.1": "'weigth decay'; did you mean weight_decay",
    "# orgin: me": "'orgin'; did you mean origin",
    "# lr: 1\n# lr: 2": "lr: got '1' and '2', expected one",
}


@pytest.mark.parametrize("comment", COMMENTS)
def test_what_is_said_wrongly_is_refused(comment, place):
    (place / "odd.txt").write_text(f"{comment}\n{LION}")
    with pytest.raises(ValueError, match=f"^odd.txt: .*{COMMENTS[comment]}"):
        search.load("odd.txt")


@pytest.mark.parametrize(
    "comment", ["# lr schedule: any", "# TODO: tune", "# Original: me", "#", ""]
)
def test_other_comments_are_for_readers(comment):
    said = from_text(f"{comment}\n{LION}# lr: 7\n", "mine", "here", "mine.txt")
    assert (said.lr, said.weight_decay, said.origin) == (1e-3, 0.0, "here")


def test_a_file_in_the_folder_is_in_the_list(place):
    """What ``l2o zoo`` shows of it is measured, until that is recorded."""
    folder = place / "rules"
    folder.mkdir()
    for path in [*TEXTS.glob("lion*.txt"), place / "my_rule.txt"]:
        (folder / path.name).write_text(path.read_text())
    rows = [row(rule) for rule in known(folder)["rules"]]
    assert [name for name, *_ in rows] == sorted(path.stem for path in folder.iterdir())
    assert rows[-1] == ("my_rule", "1", "3", "Lion form", "invariant", "Adam-like", "a notebook")


def test_every_text_says_its_origin():
    assert {name for name, entry in NAMED.items() if entry.origin.startswith("the file")} == set()
    assert {path.stem for path in TEXTS.iterdir()} == {*NAMED}
