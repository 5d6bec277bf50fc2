"""The commands of the engine of learned optimizers: meta-train, and resume of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple, cast

import torch
from rich.table import Table
from torch import Tensor

from l2o import checkpoint
from l2o.architectures.small_fc import SmallFC
from l2o.base import LearnedOptimizer
from l2o.checkpoint import Checkpoint
from l2o.cli.architecture import Choice
from l2o.meta import run as meta_run
from l2o.meta.config import PARTS, Config
from l2o.meta.ranks import Ranks, joined
from l2o.meta.view import View
from tasks.checks import inside
from tasks.commands.parser import KEPT, Arguments, made, parser, preset
from tasks.display.plain import Console
from tasks.mup.scaling import has_width
from tasks.runs import files
from tasks.runs.environment import check_device
from tasks.runs.files import or_shipped, resuming
from tasks.runs.interrupt import Interrupted
from tasks.user_code.imports import Trusted, agreed


def _small_fc(hidden_size: int, step_mult: float, weight_decay: float = 0.0) -> dict[str, Any]:
    sizes = {"hidden_size": hidden_size, "step_mult": step_mult, "weight_decay": weight_decay}
    return {"class_path": "l2o.architectures.small_fc.SmallFC", "init_args": sizes}


SMALL: dict[str, Any] = {
    "train.widths": (16, 32, 64),
    "train.depths": (3,),
    "train.data": ("digits", "mnist5k"),
    "held_out.widths": (24, 128),
    "held_out.depths": (4,),
    "held_out.data": ("digits", "mnist5k"),
    "estimation.particles": 2,
    "estimation.truncation": 40,
    "estimation.horizon": (100, 1000),
    "outer.steps": 800,
    "outer.final_lr": 3e-4,
    "evaluation.every": 80,
    "evaluation.steps": 600,
}
PRESETS: dict[str, dict[str, Any]] = {
    # Ends within a minute or two on a core.
    "quick": {
        "optimizer": _small_fc(4, 0.01),
        "train.widths": (8, 16, 32),
        "train.depths": (2,),
        "held_out.widths": (64,),
        "held_out.depths": (3,),
        "held_out.data": ("digits", "breast_cancer"),
        "evaluation.steps": 400,
    },
    # The same recipe in muP and in the standard parametrisation; a quarter of an hour on one core.
    # Steps are multiplied by what suits each at the start of meta-training, as in the muLO paper;
    # the weight decay lets them run 25 times longer than the longest run of meta-training.
    "mulo_small": SMALL | {"mup": True, "optimizer": _small_fc(8, 0.01, weight_decay=1e-3)},
    "lo_small": SMALL | {"mup": False, "optimizer": _small_fc(8, 0.001, weight_decay=1e-3)},
}


def meta_train(arguments: Arguments) -> int:
    """Meta-train a learned optimizer.

    A preset fixes the size of the run; every field of it can be overridden by name:

    l2o meta-train --preset quick --run-dir runs/mulo
    l2o meta-train --run-dir runs/wide --train.widths "[32,128]" --estimation.method reuse
    l2o meta-train --run-dir runs/velo --optimizer velo --optimizer.param_scale false
    l2o meta-train --run-dir runs/more --start runs/mulo
    l2o meta-train --run-dir runs/mine --optimizer my_module:Mine --optimizer.size 4

    A process uses one thread. For two of them, each with half the particles (a process a core):

    torchrun --nproc-per-node 2 -m l2o.cli meta-train --run-dir runs/two
    """
    beginning = asked(arguments)
    with joined() as ranks:
        begin(beginning, ranks)
        return _proceed(beginning.run_dir, ranks)


class Asked(NamedTuple):
    """What a meta-training is begun with; ``kept``: all fields, as a configuration file has
    them."""

    run_dir: Path
    config: Config
    optimizer: LearnedOptimizer
    theta: Tensor
    command: list[str]
    kept: str


def begin(asked: Asked, ranks: Ranks) -> None:
    """A new run. Raises RunExists if it is there, ValueError for what cannot be run."""
    run_dir, config, optimizer, theta, command, kept = asked
    ranks.own(config.estimation.particles)
    ranks.once(lambda: meta_run.begin(run_dir, config, optimizer, theta, command))
    ranks.once(lambda: files.save_text(run_dir / KEPT, kept))


def asked(arguments: Arguments) -> Asked:
    """What the ``arguments`` of ``l2o meta-train`` say. Raises ValueError or ArgumentError."""
    options_of = parser(meta_train)
    options_of.add_argument("--run-dir", type=Path, required=True, help="a new directory")
    options_of.add_argument("--preset", type=str, default="quick", help=" or ".join(PRESETS))
    options_of.add_argument(
        "--start", type=Path | None, default=None, help="a checkpoint or a run, no --optimizer then"
    )
    options_of.add_argument(
        "--trust", action="store_true", help="import the architecture that --start names"
    )
    options_of.add_argument("--seed", type=int, default=0, help="of everything random")
    options_of.add_argument(
        "--mup",
        type=bool | None,
        default=None,
        help="all tasks in the maximal update parametrisation; default: as --start, else where all "
        "have a width",
    )
    options_of.add_argument("--device", type=str, default="cpu", help="where inner runs live")
    choice = Choice(arguments)
    choice.add_to(options_of)
    for name, kind in PARTS.items():
        options_of.add_class_arguments(kind, name, instantiate=False)
    defaults = preset(arguments, PRESETS)
    if choice.own:
        defaults = {name: value for name, value in defaults.items() if name != "optimizer"}
    options_of.set_defaults(defaults)
    given = options_of.parse_args(choice.arguments)
    kept = choice.kept(options_of.dump(given, skip_unset=False))
    options = cast(Any, options_of.instantiate(given))
    check_device(options.device)
    parts = {name: made(kind, name, options) for name, kind in PARTS.items()}
    start = None if options.start is None else _start(options.start, options.trust)
    in_mup = _in_mup(start, parts) if options.mup is None else options.mup
    config = Config(seed=options.seed, mup=in_mup, device=options.device, **parts)
    if options.start and any(word.startswith("--optimizer") for word in arguments):
        raise ValueError("--start: got it beside --optimizer, expected one of the two")
    optimizer, theta = _beginning(
        start, choice.made(options), options.seed, config.mup, options.start
    )
    command = ["l2o", "meta-train", *arguments]
    return Asked(options.run_dir, config, optimizer, theta, command, kept)


def _in_mup(start: Checkpoint | None, parts: Mapping[str, Any]) -> bool:
    """What is meant where ``--mup`` is left out."""
    if start and "mup" in start.card:
        return bool(start.card["mup"])
    tasks = []
    for name in ("train", "held_out"):
        with inside(f"--{name}"):
            tasks += parts[name].tasks()
    return all(map(has_width, tasks))


def _beginning(
    start: Checkpoint | None,
    optimizer: LearnedOptimizer | None,
    seed: int,
    mup: bool,
    place: Path | None = None,
) -> tuple[LearnedOptimizer, Tensor]:
    """The optimizer to train and its first theta; ``place``: where ``start`` is from."""
    if start is not None:
        if start.card.get("mup", mup) != mup:
            kind = "not for muP" if mup else "for muP"
            raise ValueError(
                f"--mup: got {str(mup).lower()}, but {place} is {kind}; expected "
                f"--mup {str(not mup).lower()}"
            )
        return start.optimizer, start.theta
    optimizer = optimizer or SmallFC()
    return optimizer, optimizer.initial(seed)


def _start(start: Path, trusted: bool) -> Checkpoint:
    """What ``--start`` names. Raises ValueError where it is neither a checkpoint nor a run."""
    folder = or_shipped(start)
    if not folder.exists():
        raise ValueError(
            f"--start: got {start}, where nothing is; expected the folder of a checkpoint, a "
            "run, or lo_small or mulo_small"
        )
    is_run = meta_run.is_run(folder)
    if not (folder / (checkpoint.BEST if is_run else "") / checkpoint.TENSORS).is_file():
        raise ValueError(
            f"--start: got {start}, which has no {checkpoint.TENSORS}; expected a checkpoint, "
            "or a meta-training that has saved one"
        )
    return (checkpoint.load_best if is_run else checkpoint.load)(folder, trusted)


def resume(run_dir: Path, trusted: Trusted = False) -> int:
    """Continue a meta-training from its last save; see ``l2o.cli.runs.resume``.

    It ends with the very numbers it would have had; on another number of processes, with the same
    numbers to rounding. Raises ValueError for one that names code, unless that is ``trusted``.
    """
    with joined() as ranks:
        ranks.once(lambda: agreed(meta_run.imports(run_dir), trusted, run_dir))
        return _proceed(run_dir, ranks)


def _proceed(run_dir: Path, ranks: Ranks) -> int:
    torch.set_num_threads(1)  # one process a core; see ranks.py for more
    with View(silent=not ranks.first) as view:
        try:
            meta_run.proceed(run_dir, ranks, view)
        except Interrupted:
            view.say(f"stopped, nothing is lost; go on with: {_resuming(run_dir)}")
            return 130
    if ranks.first:
        Console().print(_verdict(checkpoint.read_card(run_dir / meta_run.BEST)))
        print(f"wrote {run_dir / meta_run.BEST}")
        print(_next(run_dir, meta_run.facts(run_dir)["config"]))
    return 0


def _next(run_dir: Path, config: Mapping[str, Any]) -> str:
    """What to do with it."""
    run, more = quote(str(run_dir)), ", base=narrower, inputs=(x,)" if config["mup"] else ""
    suite = config["held_out"]["suite"]
    other = f" --suite {quote(suite)}" if suite else ""
    lines = {
        f"l2o.load({str(run_dir)!r}).optimizer(model{more})": "in a training script: docs/guide.md",
        f"l2o evaluate {run} adamw{other}": "against AdamW, tuned",
        f"l2o report {run}": "a page with all curves",
    }
    width = max(map(len, lines))
    said = "" if config["mup"] else "Not in muP: widths far from those of training are a risk.\n"
    return f"\n{said}Next:\n" + "\n".join(f"  {c:{width}}  {what}" for c, what in lines.items())


def _resuming(run_dir: Path) -> str:
    return resuming(run_dir, bool(meta_run.imports(run_dir)))


def _verdict(card: dict[str, Any]) -> Table:
    """The kept optimizer against where it came from and against Adam."""
    rows, loss, asked = card["held_out"], card["meta_loss"], card["config"]["evaluation"]
    shown = Table(
        title=f"held-out objective after {card['outer_steps']} outer steps "
        f"(meta-loss of the first tenth {loss['first']:.4f}, of the last {loss['last']:.4f})",
        caption=f"Mean training loss of runs of {asked['steps']} steps, bounded, "
        f"n = {asked['seeds']} seeds; 2/3: as good as predicting nothing, 1: diverged. "
        "Lower is better; l2o report has the intervals.",
    )
    shown.add_column("task")
    for name in rows:
        shown.add_column(name, justify="right")
    for task in rows["kept"]:
        shown.add_row(task, *(f"{objectives[task]:.4f}" for objectives in rows.values()))
    return shown
