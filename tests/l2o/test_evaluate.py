"""``l2o evaluate``, ``suites`` and ``report`` as a user meets them."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from l2o import checkpoint
from l2o.architectures.tuned_adam import TunedAdam
from l2o.cli.entrants import entrant, entrants
from l2o.cli.main import main
from tasks.evaluation.evaluate import evaluate as run_plan
from tasks.evaluation.plan import Plan
from tasks.evaluation.results import Results, Study
from tasks.evaluation.spaces import LEARNED
from tasks.families.autoencoder import Autoencoder
from tasks.families.mlp import MLP
from tasks.inner.schedules import constant
from tasks.inner.unroll import unroll
from tasks.mup.scaling import mup, update_multiplier
from tasks.suites import Entry

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--trials", "3", "--seeds", "2", "--length", "0.1"]
SUITE = """
from tasks.families.mlp import MLP
from tasks.suites import Entry
pair = [Entry(MLP(width=w, batch_size=16), 40) for w in (4, 8)]
"""
WITHOUT_WIDTH = """
from tasks.families.linear import Logistic
pair.append(Entry(Logistic(batch_size=8), 40))
"""
PROGRAM = "def update(w, g):\n    update = sign(g)\n    return update\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory of the user's own, with a suite, a program and a checkpoint in it."""
    (tmp_path / "a_suite.py").write_text(SUITE)
    (tmp_path / "sign.txt").write_text(PROGRAM)
    optimizer = TunedAdam()
    checkpoint.save(tmp_path / "learned", optimizer, optimizer.initial())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name in ("a_suite", "my_tasks"):
        sys.modules.pop(name, None)


def evaluate(*rules: str) -> int:
    return main(["evaluate", *rules, "--suite", "a_suite:pair", *QUICK, "--out", "r.sqlite"])


def test_rules_of_every_kind_end_in_one_table_and_a_report(here, capsys):
    rules = ["lion", "sign.txt", "learned", "torch.optim.SGD(momentum=0.9)"]
    assert evaluate(*rules) == 0
    shown = capsys.readouterr().out
    for word in ("lion", "sign.txt", "learned", "reference", "rank", "interval", "diverged"):
        assert word in shown
    assert "everything is a tie" in " ".join(shown.split())
    found = json.loads((here / "r.json").read_text())
    assert {s["rule"] for s in found["standings"]} == {"adamw", *rules}
    assert found["command"][:2] == ["l2o", "evaluate"]
    assert [made_in["threads"] for made_in in found["environments"]] == ["1"]
    assert found["rules"]["sign.txt"] == PROGRAM
    (adamw,) = [s for s in found["standings"] if s["rule"] == "adamw"]
    assert (adamw["gap"]["mean"], adamw["verdict"], adamw["gap"]["n"]) == (0, "reference", 4)

    for name in ("gap", "gap_tasks", "test", "area", "profile", "seconds", "diverged"):
        assert set(adamw[name]) == {"mean", "low", "high", "n"}
    assert set(adamw["tuning"]) == {"budget", "near", "good", "diverged"}
    assert [x["faster"]["mean"] for x in adamw["reached"].values()] == [1, 1]
    assert all(x["seconds"] > 0 and x["steps"]["n"] == 2 for x in adamw["reached"].values())
    assert [*found["targets"]] == [*adamw["reached"]] == [*found["tasks"]]
    assert len(found["profiles"]["share of tasks"]["adamw"]) == 61

    assert evaluate(*rules) == 0
    assert ": adamw: " not in capsys.readouterr().out  # nothing was run again
    assert json.loads((here / "r.json").read_text()) == found

    fields = (here / "r.yaml").read_text()
    assert main(["evaluate", "--config", "r.yaml"]) == 0
    said = capsys.readouterr().out
    assert ": adamw: " not in said
    assert "the same again: l2o evaluate --config r.yaml" in said
    again = json.loads((here / "r.json").read_text())
    assert again | {"command": 0} == found | {"command": 0}
    assert (here / "r.yaml").read_text() == fields

    assert main(["report", "r.sqlite"]) == 0
    text = (here / "r.html").read_text()
    assert "l2o evaluate --config r.yaml" in text
    for word in ("AlgoPerf score", "less time", "near the best rate", "fresh runs diverged"):
        assert word in text
    assert "everything is a tie" in text  # 2 tasks of 2 seeds cannot tell rules apart
    assert "Transfer" in text  # the tasks of this suite differ in their width
    assert len(list((here / "r-figures").glob("*.png"))) == text.count("<figure>") >= 6


def test_results_name_every_environment_that_made_some(here, monkeypatch):
    """One that only looked at what was there already made nothing."""
    for commit, rules in (("1" * 40, ["lion"]), ("2" * 40, ["lion"]), ("3" * 40, ["sgd"])):
        known = {"commit": commit, "torch": "2"}
        monkeypatch.setattr("l2o.cli.judging.environment", lambda device, known=known: known)
        assert evaluate(*rules) == 0
    found = json.loads((here / "r.json").read_text())["environments"]
    assert [made_in["commit"][0] for made_in in found] == ["1", "3"]
    assert main(["report", "r.sqlite"]) == 0
    cells = re.findall(r"<td>(\d{12})…</td>", (here / "r.html").read_text())
    assert cells == ["1" * 12, "3" * 12]


def test_the_report_has_the_sizes_of_splits_in_their_order(here):
    assert evaluate("lion") == 0
    card = next(iter(json.loads((here / "r.json").read_text())["tasks"].values()))
    assert main(["report", "r.sqlite"]) == 0
    sizes = " / ".join(f"{card['examples'][s]:,}" for s in ("train", "validation", "test"))
    assert sizes in (here / "r.html").read_text()


def test_seeds_that_agree_are_not_a_tie_and_itself_is_one(here):
    """AdamW under another name is AdamW."""
    (here / "same.txt").write_text(entrant("adamw").source)
    assert evaluate("same.txt") == 0
    found = json.loads((here / "r.json").read_text())
    assert [(s["rank"], s["gap"]["mean"]) for s in found["standings"]] == [(1, 0), (1, 0)]
    assert {s["verdict"] for s in found["standings"]} == {"reference", "tie"}


IN_MUP = Entry(MLP(width=12, depth=2, batch_size=16), 6)


@pytest.mark.parametrize("in_mup", [True, False])
def test_a_checkpoint_is_judged_in_the_parametrisation_it_was_meta_trained_in(tmp_path, in_mup):
    optimizer, name = TunedAdam(lr=0.01), str(tmp_path / "learned")
    checkpoint.save(name, optimizer, optimizer.initial(), {"mup": in_mup})
    plan = Plan(suite=f"{__name__}:IN_MUP", trials=2, seeds=1)
    with Results(tmp_path / "r.sqlite") as results:
        run_plan(plan, [rule := entrant(name)], results)
        (task_id, _), settings = results.tasks()[IN_MUP.task.name], LEARNED.settings(2)
        runs = results.runs(Study(rule.identity, task_id, IN_MUP.steps, "constant"))
    expected = unroll(
        mup(IN_MUP.task) if in_mup else IN_MUP.task,
        optimizer.rule(optimizer.initial(), update_multiplier if in_mup else None),
        instances=2,
        steps=IN_MUP.steps,
        lr=torch.tensor([s.lr for s in settings]),
        weight_decay=torch.tensor([s.weight_decay for s in settings]),
        schedule=constant,
        seed=0,
    ).validation[-1]
    assert [runs[0, *s].loss for s in settings] == pytest.approx(expected.tolist(), rel=1e-6)
    assert ("muP" in rule.source) == in_mup


def test_what_has_no_mup_version_is_refused_before_anything_is_run(here, capsys):
    optimizer = TunedAdam()
    checkpoint.save("in_mup", optimizer, optimizer.initial(), {"mup": True})
    (here / "a_suite.py").write_text(SUITE + WITHOUT_WIDTH)
    assert evaluate("in_mup") == 2
    out, error = capsys.readouterr()
    assert "in_mup: logistic-breast_cancer: " in error
    assert "muP" in error
    assert "no field width" in error
    assert out == ""
    assert evaluate("learned") == 0
    with Results(Path("r.sqlite")) as results:
        before = results.facts()
    assert evaluate("in_mup", "--reference", "sgd") == 2
    with Results(Path("r.sqlite")) as results:
        assert results.facts() == before


def test_a_meta_training_run_is_its_best(here):
    (here / "run").mkdir()
    (here / "run" / "run.json").write_text("{}")
    optimizer = TunedAdam()
    checkpoint.save("run/best", optimizer, optimizer.initial(), {"mup": True})
    found, best = entrant("run"), entrant("run/best")
    assert (found.name, found.identity, found.source) == ("run", best.identity, best.source)


def test_autoencoders_have_a_mup_version(here):
    task = Autoencoder(width=8, depth=1, latent=2, batch_size=8)
    optimizer = TunedAdam()
    checkpoint.save("in_mup", optimizer, optimizer.initial(), {"mup": True})
    assert entrant("in_mup").parametrise(task).name == f"{task.name}-mup"
    assert entrant("learned").parametrise(task) is task


def test_identities_follow_behaviour(here):
    first = entrant("sign.txt").identity
    assert first == entrant("sign_sgd").identity
    (here / "sign.txt").write_text(PROGRAM.replace("sign(g)", "tanh(g)"))
    assert entrant("sign.txt").identity != first
    assert [rule.name for rule in entrants(["lion", "adam", "lion"])] == ["lion", "adam"]
    (here / "helper.py").write_text("SCALE = 1.0\n")
    (here / "mine.py").write_text(
        "import torch\nfrom helper import SCALE\nclass Mine(torch.optim.AdamW):\n    pass\n"
    )
    first = entrant("mine.py").identity
    assert entrant("mine.py").identity == first
    (here / "helper.py").write_text("SCALE = -5.0\n")
    assert entrant("mine.py").identity != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "nobody"], "no rule 'nobody': expected torch.optim.NAME, a run"),
        (["evaluate", "lion", "--trials", "0"], "trials: got 0"),
        (["evaluate", "lion", "--trials", "many"], "trials"),
        (["evaluate", "lion", "--seeds", "-1"], "seeds: got -1"),
        (["evaluate", "lion", "--suite", "nothing"], "suite: got 'nothing'"),
        (["evaluate", "lion", "--suite", "a_suite:none"], "cannot be imported"),
        (["evaluate", "lion", "--device", "abacus"], "device: got 'abacus'"),
        (["evaluate", "lion", "--threads", "0"], "--threads: got 0"),
        (["evaluate", "lion", "--reference", "nobody"], "no rule 'nobody'"),
        (["evaluate", "lion", "--out", "no/where.sqlite"], "does not exist"),
        (["evaluate", "lion", "--out", "sign.txt"], "sign.txt: not a results file"),
        (["evaluate", "lion", "--out", "."], "--out: got ., a directory; expected a file"),
        (["coord-check", "--out", "sign.txt"], "--out: got sign.txt, a file; expected a directory"),
        (["show", "nowhere"], "nowhere: no such run"),
        (["search", "--run-dir", "r", "--funnel.seeds", "0"], "--funnel.seeds: got 0, expected"),
        (["search", "--run-dir", "r", "--verdict.seeds", "0"], "--verdict.seeds: got 0, expected"),
        (["evaluate", "lion", "--out", "r.json"], "--out: r.json is where the summary goes"),
        (["evaluate", "begun"], "begun: a meta-training that has saved nothing yet"),
        (["report", "sign.txt", "--out", "sign.txt"], "--out: sign.txt is what is reported on"),
        (["report", "begun", "--out", "empty"], "--out: empty is a directory"),
        (["evaluate", "torch.optim.SparseAdam"], "SparseAdam: cannot be used here"),
        (["evaluate"], "required: RULE"),
        (["evaluate", "broken.txt"], "broken.txt"),
        (["evaluate", "empty"], "empty"),
        (["suites", "nothing"], "suite: got 'nothing'"),
        (["report", "nothing"], "nothing: no such run or results file"),
        (["report", "none.sqlite"], "none.sqlite: an empty file"),
        (["report", "begun", "--out", "sign.txt"], "--out: sign.txt exists and is no report"),
        (["report", "begun", "--out", "begun/run.json"], "run.json exists and is no report"),
        (["evaluate", "lion", "--out", "r.yaml"], "--out: r.yaml is where the configuration goes"),
        (["evaluate", "lion", "--out", "package"], "the summary would go to package.json, which"),
        (["show", "begun"], "begun: a meta-training, expected a search: it has no archive"),
        (["report", "empty"], "empty: not a run directory: it has neither run.json nor archive"),
        (
            ["evaluate", "lion", "--trials", "9" * 11],
            "--trials: got 99999999999, expected 1 to 100,000",
        ),
        (
            ["evaluate", "lion", "--length", "1e300"],
            "--length: got 1e+300, expected above 0, at most",
        ),
        (["evaluate", "/dev/null"], "/dev/null: got a device or the like, expected a file"),
        (
            ["export", "lion", "--out", "torch.py"],
            "--out: torch.py would hide a module of that name",
        ),
        (["report", "sign.txt"], "not a database"),
        (
            ["resume", "begun", "--workers", "2"],
            "--workers: got it beside a meta-training, expected",
        ),
        (["reproduce", "begun", "--workers=2"], "--workers: got it beside a meta-training"),
    ],
)
def test_mistakes_are_one_line(here, capsys, arguments, message):
    (here / "broken.txt").write_text("def update(w, g:")
    (here / "empty").mkdir()
    (here / "begun").mkdir()
    (here / "begun" / "run.json").write_text("{}")
    (here / "package.json").write_text("{}")
    (here / "none.sqlite").touch()
    before = {file: file.read_bytes() for file in here.rglob("*.*") if file.is_file()}
    assert main(arguments) == 2
    assert {file: file.read_bytes() for file in before} == before
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("width", [70, 80, 100])
def test_a_ranking_keeps_its_words_on_a_narrow_terminal(here, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert evaluate("lion", "sign.txt") == 0
    shown = "".join(capsys.readouterr().out.split())
    assert "thosethattheruletakes,medianovertasks.Diverged:shareofthetrials,andof" in shown
    assert "speeddiverged" in shown


def test_suites(here, capsys):
    assert main(["suites"]) == 0
    assert "held_out" in capsys.readouterr().out
    assert main(["suites", "a_suite:pair", "--json"]) == 0
    cards = json.loads(capsys.readouterr().out)["a_suite:pair"]
    assert [found["width"] for found in cards.values()] == [4, 8]
    assert main(["suites", "a_suite:pair"]) == 0
    assert "mlp-digits-w4-d1" in capsys.readouterr().out


def test_the_suite_of_the_readme_can_be_evaluated(here):
    """An ``nn.Module`` and arrays, 15 lines: as it stands in the README."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(# my_tasks\.py\n.*?)```", readme, re.DOTALL)
    assert example is not None
    (here / "my_tasks.py").write_text(example[1])
    command = ["evaluate", "sign_sgd", "--suite", "my_tasks:suite", *QUICK]
    assert main(command) == 0
    found = json.loads((here / "results.json").read_text())
    assert [*found["tasks"]] == ["mine"]


def test_what_is_shipped_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any directory; a folder of that name there comes first."""
    monkeypatch.chdir(tmp_path)
    assert entrant("mulo_small").source.endswith("in muP")
    assert entrant("normalised_momentum").source.startswith("def update")
    (tmp_path / "mulo_small").mkdir()
    with pytest.raises(ValueError):
        entrant("mulo_small")


def test_a_rule_carries_its_schedule(here, capsys):
    assert entrant("lo_small").schedule == "constant"
    assert entrant("learned").schedule == "constant"  # no card says so
    checkpoint.save("linear", TunedAdam(), TunedAdam().initial(), {"schedule": "linear"})
    assert entrant("linear").schedule == "linear"
    assert (entrant("linear@cosine").schedule, entrant("lion").schedule) == ("cosine", None)
    checkpoint.save("steep", TunedAdam(), TunedAdam().initial(), {"schedule": "steep"})
    for rule in ("steep", "lion@steep"):
        with pytest.raises(ValueError, match=f"{rule}: .*'steep', expected one of constant"):
            entrant(rule)
    (here / "a@b.txt").write_text(PROGRAM)
    assert entrant("a@b.txt").identity == entrant("a@b.txt@linear").identity
    assert evaluate("learned", "adamw@constant") == 0
    shown = capsys.readouterr().out
    assert "schedule" in shown
    assert "constant" in shown
    found = json.loads((here / "r.json").read_text())
    expected = {"adamw": "cosine", "learned": "constant", "adamw@constant": "constant"}
    assert found["schedules"] == expected
    assert found["failed"] == {}


ODD = """
import torch
class Odd(torch.optim.SGD):
    def __init__(self, params, lr=0.1, after=99):
        super().__init__(params, lr)
        self.after, self.past = after, []

    def step(self, closure=None):
        self.past.append(1)
        if len(self.past) > self.after:
            raise RuntimeError("no more")
        return super().step(closure)

class Flat(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        params = list(params)
        if any(p.ndim != 2 for p in params):
            raise ValueError("only matrices")
        super().__init__(params, lr)
"""


def test_somebody_elses_optimizer_is_refused_at_once_or_becomes_a_row(here, capsys):
    (here / "odd.py").write_text(ODD)
    for rule, said in (
        ("odd:Flat", "odd:Flat: mlp-digits-w4-d1: Flat: cannot be used here: only matrices"),
        ("odd:Missing", "rule: got 'odd:Missing', which cannot be imported: AttributeError"),
        ("nowhere:Any", "rule: got 'nowhere:Any', which cannot be imported: ModuleNotFoundError"),
        ("odd:Odd(after=print())", "the values are literals"),
        ("odd:torch", "got a module, expected a class of torch.optim.Optimizer"),
        ("odd:Odd+odd:Odd+odd:Odd", "expected one optimizer, or two"),
    ):
        assert evaluate(rule) == 2
        out, error = capsys.readouterr()
        assert said in error
        assert (out, error.count("\n")) == ("", 1)
    names = ["odd:Odd(after=3)", "odd:Flat+torch.optim.AdamW", "odd:Odd"]
    assert evaluate(*names) == 0
    assert "odd:Odd(after=3)" in "".join(capsys.readouterr().out.split())
    found = json.loads((here / "r.json").read_text())
    assert {s["rule"] for s in found["standings"]} == {"adamw", *names[1:]}
    assert found["failed"][names[0]].endswith("Odd: cannot be used here: no more")


NEITHER = {
    "some.json": (b"{}", "holds no program and no optimizer"),
    "some.py": (b"import torch\nx = 1\n", "holds no program and no optimizer"),
    "some.png": (b"\x89PNG\xff", "holds no program and no optimizer"),
    "empty.txt": (b"", "holds no program and no optimizer"),
}


@pytest.mark.parametrize("name", NEITHER)
@pytest.mark.parametrize("command", [["evaluate"], ["export"], ["simplify"]])
def test_a_file_that_holds_neither_is_told_so(here, capsys, name, command):
    content, said = NEITHER[name]
    (here / name).write_bytes(content)
    out = ["--out", "new.py"] if command == ["export"] else []
    assert main([*command, name, *out]) == 2
    error = capsys.readouterr().err
    assert f"{name}: {said}" in error
    assert error.count("\n") == 1


def test_a_rule_may_have_a_name_of_its_own(here, capsys):
    """In the table, the summary, and as the reference; several files are one report."""
    assert evaluate("ours=sign.txt", "sgd=torch.optim.SGD(momentum=0.9)@constant") == 2
    assert "sgd is a known optimizer" in capsys.readouterr().err
    rules = ["ours=sign.txt", "plain=torch.optim.SGD(momentum=0.9)@constant"]
    assert evaluate(*rules, "--reference", "ours") == 0
    found = json.loads((here / "r.json").read_text())
    assert {s["rule"] for s in found["standings"]} == {"ours", "plain"}
    assert found["reference"] == "ours"
    assert found["rules"]["ours"] == PROGRAM
    assert found["schedules"] == {"ours": "cosine", "plain": "constant"}
    assert evaluate("ours=sign.txt", "ours=lion") == 2
    assert "two rules of that name" in capsys.readouterr().err
    (here / "s.sqlite").write_bytes((here / "r.sqlite").read_bytes())
    asked = ["report", "--format", "svg", "png", "a=r.sqlite", "b=s.sqlite", "--out", "both.html"]
    assert main(asked) == 0
    text = (here / "both.html").read_text()
    assert "2 evaluations" in text
    rows = re.findall(r"<tr><td>(\w)</td><td>(\w+)</td>.*?</tr>", text)
    assert sorted(rows) == [("a", "ours"), ("a", "plain"), ("b", "ours"), ("b", "plain")]


def test_a_file_beside_older_results_is_not_overwritten(here, capsys):
    with Results(Path("r.sqlite")) as results:  # as from before fields were kept
        run_plan(Plan("a_suite:pair", 1, 1, 0.1), [entrant("lion")], results)
    (here / "r.yaml").write_text("mine: 1\n")
    assert evaluate("lion") == 2
    assert "would go to r.yaml, which is there already" in capsys.readouterr().err
    assert (here / "r.yaml").read_text() == "mine: 1\n"
    (here / "r.yaml").unlink()
    assert evaluate("lion") == evaluate("sign.txt") == 0


def test_any_rule_may_be_told_by_an_oracle(here, capsys):
    (here / "mine.py").write_text(
        "from tasks import Oracle\n"
        "class Shrunk(Oracle):\n"
        "    def __call__(self, point): return point.gradient(point.flat * 0.9)\n"
    )
    rules = ["lion", "lion@perturbed", "mezo=torch.optim.SGD@two_point@linear", "lion@mine:Shrunk"]
    assert evaluate(*rules, "adahessian@perturbed") == 0, capsys.readouterr().err
    found = json.loads((here / "r.json").read_text())
    losses = {s["rule"]: s["gap"]["mean"] for s in found["standings"]}
    assert (
        len({losses[rule] for rule in ("lion", "lion@perturbed", "mezo", "lion@mine:Shrunk")}) == 4
    )
    assert entrant("lion@perturbed").identity != entrant("lion").identity
    assert entrant("lion@linear@gam").identity == entrant("lion@gam@linear").identity


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("lion@nobody", "got the schedule 'nobody', expected one of constant, .*gam, gradient"),
        ("lion@gam@gam", "one of each"),
        ("lion@perturbed(rho=-1)", "rho: got -1, expected a positive number"),
        ("lion@perturbed(roh=1)", "oracle: got 'perturbed.roh=1.': .*'roh'"),
        ("lion@perturbed(rho=x)", "the values are literals"),
        ("lion@json:JSONDecoder", "expected a class of tasks.oracles.base.Oracle"),
        ("lion@json:Nothing", "oracle: got 'json:Nothing', which cannot be imported"),
    ],
)
def test_oracles_that_cannot_be(here, capsys, rule, said):
    assert evaluate(rule) == 2
    assert re.search(said, " ".join(capsys.readouterr().err.split()))


def test_the_same_numbers_from_any_number_of_workers(here, capsys):
    """Times apart; what fails on the way is left out by any."""

    def numbers(workers: int) -> object:
        out = ["--workers", str(workers), "--out", f"{workers}.sqlite"]
        rules = ("lion", "sign.txt", "learned", "torch.optim.SGD(momentum=0.9)")
        assert main(["evaluate", *rules, "--suite", "a_suite:pair", *QUICK, *out]) == 0
        with Results(Path(f"{workers}.sqlite"), readonly=True) as results:
            facts = {name: results.facts()[name] for name in ("plan", "failed", "reference")}
            studies = [
                Study(results.rules()[rule][0], results.tasks()[task][0], steps, schedule)
                for task, steps in facts["plan"]["tasks"]
                for rule, schedule in facts["plan"]["schedules"].items()
            ]
            runs = [
                {key: run._replace(seconds=0) for key, run in results.runs(study).items()}
                for study in studies
            ]
        assert all(runs)
        return facts, runs

    alone = numbers(0)
    assert numbers(1) == alone
    assert numbers(2) == alone


def test_workers_find_a_class_of_the_users_by_themselves(here, capsys):
    (here / "own_suite.py").write_text(
        "from tasks.families.mlp import MLP\n"
        "class Own(MLP): name = 'own'\n"
        "suite = [Own(width=w, batch_size=16) for w in (4, 8)]\n"
    )
    own = ["evaluate", "lion", "--suite", "own_suite:suite", *QUICK, "--out", "own.sqlite"]
    assert main([*own, "--workers", "2"]) == 0, capsys.readouterr().err


def test_workers_that_nobody_can_have(here, capsys):
    assert main(["evaluate", "lion", "--suite", "a_suite:pair", *QUICK, "--workers", "-1"]) == 2
    assert "--workers: got -1, expected at least 0" in capsys.readouterr().err
