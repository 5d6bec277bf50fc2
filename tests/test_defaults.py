"""Torch's process-wide default dtype and device change nothing: subjects x defaults.

A program may set ``torch.set_default_dtype`` or ``torch.set_default_device`` for its own tensors.
What is made here without naming either would follow, be rounded, or land where nobody looks for it:
the device is played by ``meta``, on which whoever lands there is noticed. Two tests hold the
sources to naming both; the table holds what they do to the very same numbers.
"""

import ast
import functools
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad

from l2o.architectures.l2o_pa import L2OPA
from l2o.architectures.small_fc import SmallFC
from l2o.architectures.tuned_adam import TunedAdam
from l2o.architectures.velo import Velo
from l2o.loading import Placed
from l2o.meta.config import Config as MetaConfig
from l2o.meta.config import Estimation, Evaluation, Outer
from l2o.meta.distribution import Distribution
from l2o.meta.loop import Training
from search.behaviour.degree import homogeneity
from search.behaviour.kind import kind_of
from search.behaviour.signature import signatures
from search.evolution.settings import Settings
from search.export import to_source
from search.fitness.settings import Funnel, Verdict
from search.interpreter.population import Population
from search.interpreter.reference import reference
from search.language.program import parse, to_text
from search.record.archive import open_existing
from search.run.config import Budget, Config
from search.run.stages import begin, proceed
from search.run.view import View
from search.zoo import NAMED, ZOO
from tasks.cards import digest, fingerprint
from tasks.data.loaders import breast_cancer, diabetes, digits, help_text
from tasks.display.plain import Console
from tasks.evaluation.bench import Entrant
from tasks.evaluation.evaluate import evaluate
from tasks.evaluation.plan import Plan
from tasks.evaluation.results import Results, Study
from tasks.families.autoencoder import Autoencoder
from tasks.families.composite import Lasso, SparseLogistic
from tasks.families.conv import Conv
from tasks.families.linear import Linear, Logistic
from tasks.families.mlp import MLP
from tasks.families.module import ModuleTask
from tasks.families.named import families
from tasks.families.quadratic import Quadratic
from tasks.families.transformer import Transformer
from tasks.inner.schedules import SCHEDULES
from tasks.inner.unroll import unroll
from tasks.mup.groups import param_groups
from tasks.mup.scaling import mup
from tasks.optim.rule_optimizer import RuleOptimizer
from tasks.optim.torch_rule import torch_optimizer
from tasks.suites import Entry
from tasks.types import Task

ROOT = Path(__file__).resolve().parent.parent
OURS = ("tasks", "search", "l2o")
SOURCES = sorted(path for room in OURS for path in (ROOT / room).rglob("*.py"))
VALUES = {"tensor", "as_tensor", "asarray", "scalar_tensor", "zeros", "ones", "empty", "full"}
VALUES |= {"empty_strided", "eye", "rand", "randn", "linspace", "logspace", "range"}
WHOLE = {"arange", "randint", "randperm", "tril_indices", "triu_indices"}
"""These give integers here, whatever the default dtype."""


def unnamed(source: str) -> list[str]:
    """Calls of torch's factories that leave dtype or device to the process."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=name)) if (
                name in VALUES | WHOLE
            ):
                given = {keyword.arg for keyword in node.keywords}
                wanted = {"device"} if name in WHOLE else {"dtype", "device"}
                if None not in given and not wanted <= given:  # None: ``**HOST``
                    found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sources_name_dtype_and_device(path: Path) -> None:
    assert unnamed(path.read_text(encoding="utf-8")) == []


HARD = """
def update(w, g, m, t):
    a = sqrt(t)
    b = cos(a)
    c = arctan(b)
    s = reciprocal(c)
    m = interp(g, m, 0.9)
    update = m * s
    return update, m
"""
PROGRAMS = {name: entry.program for name, entry in NAMED.items()} | {"hard": parse(HARD)}


def source(name: str) -> str:
    return to_source(PROGRAMS[name], name, "Written for a test.", 0.05, 0.0)


def test_exported_sources_name_dtype_and_device() -> None:
    assert {name: found for name in PROGRAMS if (found := unnamed(source(name)))} == {}


# The table ------------------------------------------------------------------------------------

DEFAULTS = ("bfloat16", "float64", "meta")


@contextmanager
def default(name: str) -> Iterator[None]:
    """One of torch's defaults; ``float32`` is its own."""
    before = torch.get_default_dtype()
    try:
        if name == "meta":
            with torch.device("meta"):
                yield
        else:
            torch.set_default_dtype(getattr(torch, name))
            yield
    finally:
        torch.set_default_dtype(before)


def forget() -> None:
    """Empty our caches, but those of compiled functions: nothing may be left of another default."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in OURS and "kernels" not in name:
            for thing in vars(module).values():
                if isinstance(thing, functools._lru_cache_wrapper):
                    thing.cache_clear()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 10))


FAMILIES: dict[str, Callable[[], Task]] = {
    "quadratic": Quadratic,
    "spectrum": lambda: Quadratic(dimension=3, spectrum=(0.1, 1.0, 2.0), noise=0.0),
    "linear": Linear,
    "logistic": Logistic,
    "mlp": lambda: MLP(8, 2, "tanh", breast_cancer()),
    "regression": lambda: MLP(8, 1, "gelu", diabetes(), 32),
    "conv": lambda: Conv(4, 1),
    "autoencoder": lambda: Autoencoder(8, 1, 4),
    "transformer": lambda: Transformer(8, 1, 2, help_text(8), 8),
    "module": lambda: ModuleTask(network, nn.functional.cross_entropy, digits(), 16, "module"),
    "lasso": lambda: Lasso(rows=10, columns=20, nonzeros=2),
    "sparse": lambda: SparseLogistic(rows=20, columns=5, nonzeros=2),
    "mup": lambda: mup(MLP(8, 2), base_width=4),
}

FAMILIES |= {name: kind for name, kind in families().items() if name not in FAMILIES}


def family(make: Callable[[], Task]) -> list[Any]:
    """Data, initial values, the loss and its gradient, and what the task is known by."""
    task = make()
    params = task.init(generator())
    batch = task.data.batch("train", torch.arange(4, device="cpu"))
    grads = grad(task.loss)(params, batch)
    return [batch, params, task.loss(params, batch), grads, task.layout, fingerprint(task)]


RULES = {
    "adam": lambda: Population.of(
        [ZOO["adam"].program], torch.zeros(2, dtype=torch.int64, device="cpu")
    ),
    "in torch": lambda: Population.of(
        [ZOO["adam"].program, ZOO["lion"].program], torch.arange(2, device="cpu"), reference
    ),
    "hessian": lambda: Population.of(
        [NAMED["sophia"].program], torch.zeros(2, dtype=torch.int64, device="cpu")
    ),
    "torch.optim": lambda: torch_optimizer("torch.optim.NAdam"),
    "tuned": lambda: learned(TunedAdam()),
    "small": lambda: learned(SmallFC()),
    "velo": lambda: learned(Velo(lstm_size=8, hidden_size=4, bank_size=4)),
}


def learned(architecture: Any) -> Any:
    return architecture.rule(architecture.initial())


def engine(make: Callable[[], Any]) -> list[Any]:
    losses = []
    for name in SCHEDULES:
        run = unroll(
            MLP(width=6),
            make(),
            instances=2,
            steps=5,
            lr=torch.tensor([1e-3, 1e-2], dtype=torch.float32, device="cpu"),
            schedule=SCHEDULES[name],
            device="cpu",
        )
        losses += [run.validation, run.training, run.inner.params]
    return losses


def composite() -> list[Any]:
    """``L2OPA`` reads the smooth part of a composite problem."""
    task = Lasso(2, 10, 20, 2)
    optimizer = L2OPA().on(task)
    rule = optimizer.rule(optimizer.initial())
    return [unroll(task, rule, instances=2, steps=5, lr=1.0).validation]


def imported(path: Path) -> Any:
    """The one optimizer class of an exported file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    classes = (x for x in vars(module).values() if isinstance(x, type))
    return next(x for x in classes if x.__module__ == path.stem)


def stepped(make: Callable[[Any], torch.optim.Optimizer]) -> list[Any]:
    """300 steps, at which a counter in half precision is stuck; what is kept, and its precision."""
    host = {"dtype": torch.float32, "device": "cpu"}
    params = [nn.Parameter(torch.linspace(-1, 1, 6, **host).reshape(2, 3))]
    params.append(nn.Parameter(torch.ones((), **host)))
    optimizer = make(params)
    for k in range(300):
        for p in params:
            p.grad = torch.full_like(p, 0.1 if k % 3 else -0.05)
        optimizer.step()
    return [params, [dict(optimizer.state[p]) for p in params]]


def exported(name: str) -> Callable[[Path], list[Any]]:
    def run(folder: Path) -> list[Any]:
        path = folder / f"defaults_{name}.py"
        path.write_text(source(name))
        kind = imported(path)
        return [stepped(lambda ps, f=f: kind(ps, lr=1e-2, foreach=f)) for f in (True, False)]

    return run


def as_optimizer(make: Callable[[], Any]) -> list[Any]:
    def one(params: list[Tensor]) -> RuleOptimizer:
        return RuleOptimizer(params, make(), 1e-3, capturable=True)

    return stepped(one)


def single() -> Population:
    return Population.of([ZOO["adam"].program], torch.arange(1, device="cpu"), reference)


def placed() -> list[Any]:
    architecture = SmallFC()
    return stepped(lambda ps: RuleOptimizer(ps, Placed(architecture, architecture.initial())))


def groups() -> list[Any]:
    def net(width: int) -> nn.Module:
        with torch.device("cpu"):
            return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2)).float()

    x = torch.ones(1, 3, dtype=torch.float32, device="cpu")
    found = param_groups(net(8), net(4), (x,), lr=1e-3)
    return [[(g["lr"], g["weight_decay"], len(g["params"])) for g in found]]


def behaviour() -> list[Any]:
    """What a program is known by."""
    found: list[Any] = [signatures([ZOO["adam"].program, ZOO["lion"].program])]
    found += [homogeneity(ZOO[name].program) for name in ("adam", "sgd")]
    return [*found, str(kind_of(to_text(ZOO["lion"].program)))]


def meta_trained(estimator: str) -> Callable[[], list[Any]]:
    def run() -> list[Any]:
        small = Distribution(widths=(4,), batch_size=8)
        config = MetaConfig(
            seed=3,
            train=small,
            held_out=replace(small, widths=(8,)),
            estimation=Estimation(estimator, particles=2, truncation=2, horizon=(4, 6)),
            outer=Outer(steps=3, warmup=1, save_every=3),
            evaluation=Evaluation(every=3, steps=3, seeds=1),
        )
        optimizer = TunedAdam(lr=0.01)
        training = Training(config, optimizer, optimizer.initial(3))
        training.advance()
        training.restore(training.tensors())
        training.advance()
        return [training.tensors(), training.losses]

    return run


def suite() -> tuple[Entry, ...]:
    return (
        Entry(Logistic(data=digits(), batch_size=16), steps=8),
        Entry(MLP(width=4, depth=1, batch_size=16), steps=8),
    )


def unseen() -> tuple[Entry, ...]:
    return (Entry(Logistic(data=breast_cancer(), batch_size=16), steps=8),)


def wider() -> tuple[Entry, ...]:
    return (Entry(MLP(width=6, depth=1, batch_size=16), steps=8),)


def searched(folder: Path) -> list[Any]:
    """A whole search: all rows but what tells when and where they were made."""
    held_out, larger = f"{__name__}:unseen", f"{__name__}:wider"
    verdict = Verdict(1, 2, 2, held_out=held_out, meta_validation=larger)
    config = Config(
        start=(str(ZOO["adam_no_correction"].program),),
        seed=3,
        budget=Budget(candidates=24, minutes=30),
        funnel=Funnel(suite=f"{__name__}:suite"),
        evolution=Settings(population=6, tournament=2, batch=6, ahead=1, islands=1),
        verdict=verdict,
    )
    begin(folder / "run", config).close()
    silent = View(Console(file=io.StringIO()))
    with open_existing(folder / "run") as archive, silent as view:
        proceed(archive, 0, view)
    with open_existing(folder / "run", readonly=True) as archive:
        return [row for row in archive.dump() if row[:2] != ("run", "environment")]


def evaluated(folder: Path) -> list[Any]:
    plan = Plan(suite=f"{__name__}:suite", trials=2, seeds=2)
    rule = Entrant(
        "Adam",
        digest("Adam"),
        "Adam",
        lambda task, instances, device: torch_optimizer("torch.optim.Adam"),
    )
    with Results(folder / "r.sqlite") as results:
        evaluate(plan, [rule], results)
        ids = [(of, about["steps"]) for of, about in results.tasks().values()]
        studies = [Study(digest("Adam"), of, steps, "cosine") for of, steps in ids]
        return [
            (key, run.loss, run.test)
            for study in studies
            for key, run in results.runs(study).items()
        ]


TABLE: dict[str, Callable[..., list[Any]]] = {
    **{f"family {name}": functools.partial(family, make) for name, make in FAMILIES.items()},
    **{f"engine {name}": functools.partial(engine, make) for name, make in RULES.items()},
    **{
        f"optimizer {name}": functools.partial(as_optimizer, RULES[name])
        for name in ("tuned", "small")
    },
    **{f"exported {name}": exported(name) for name in ("adam", "lion", "hard")},
    "engine composite": composite,
    "optimizer program": functools.partial(as_optimizer, single),
    "optimizer placed": placed,
    "parameter groups": groups,
    "behaviour": behaviour,
    **{f"meta-training by {name}": meta_trained(name) for name in ("es", "backprop")},
    "search": searched,
    "evaluation": evaluated,
}


def plain(value: Any) -> Any:
    """Tensors as dtype and values, whatever they are in."""
    match value:
        case Tensor():
            return str(value.dtype), value.detach().tolist()
        case dict():
            return {key: plain(each) for key, each in value.items()}
        case list() | tuple():
            return [plain(each) for each in value]
        case _:
            return value if isinstance(value, int | float | str) else str(value)


Usual = Callable[[str], Any]


@pytest.mark.parametrize("what", TABLE)
def test_defaults_change_nothing(what: str, changed: str, usual: Usual, tmp_path: Path) -> None:
    expected = usual(what)
    with default(changed):
        found = plain(run(what, tmp_path))
    assert found == expected


@pytest.fixture(scope="module", params=DEFAULTS)
def changed(request: pytest.FixtureRequest) -> Iterator[str]:
    forget()
    yield request.param
    forget()


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Usual:
    """What a subject gives under torch's own defaults."""

    @functools.cache
    def of(what: str) -> Any:
        forget()
        with default("float32"):
            found = plain(run(what, tmp_path_factory.mktemp("usual")))
        forget()
        return found

    return of


def run(what: str, folder: Path) -> list[Any]:
    subject = TABLE[what]
    needs_folder = what in ("search", "evaluation") or what.startswith("exported")
    return subject(folder) if needs_folder else subject()
