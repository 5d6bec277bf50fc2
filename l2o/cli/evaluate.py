"""The command ``l2o evaluate``. What it runs on is imported when it begins: help does not wait for
torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tasks.commands.parser import Arguments, parser
from tasks.display.plain import Console
from tasks.evaluation.plan import Plan
from tasks.executors.named import PROCESSES, executors

REFERENCE = "adamw"
EXECUTOR = f"of the workers: {', '.join(executors())}"
WORKERS = "worker processes; 0: none, all in this one; default: one a core, none on a GPU"
TRUST = "import the architectures of your own that RULEs name"
Told = Callable[[str], object]
"""Is given a line after each rule and task."""


def evaluate(
    arguments: Arguments, console: Console | None = None, told: Told = lambda line: None
) -> int:
    """Judge update rules: all tuned alike on every task of a suite, then run on fresh seeds.

    A RULE is a zoo name, a program file, a run, a checkpoint, a file that defines a
    torch.optim.Optimizer, torch.optim.NAME, package.module:Class of somebody else's, or
    package.module:NAME of a program. A+B gives matrices to A and everything else to B. A checkpoint
    that was meta-trained in muP is run on the muP version of each task. Interrupt it at will: the
    same command goes on.

    The learning rate of RULE@schedule follows that one, of other rules that of --schedule; without
    it, the one that the rule is meant for (its card says; constant for what was meta-trained), or
    a cosine. NAME=RULE is called NAME in tables and reports. RULE@oracle is told of the loss by
    that one: perturbed makes SAM of any rule, gam GAM, two_point goes without gradients (MeZO).

    l2o evaluate lion runs/first --out results.sqlite
    l2o evaluate my_rule.txt torch.optim.NAdam "torch.optim.SGD(momentum=0.9)" --trials 32
    l2o evaluate mulo_small adamw@constant "ours=runs/first" --seeds 10
    l2o evaluate "pytorch_optimizer:Lion(betas=(0.9, 0.98))" schedulefree:AdamWScheduleFree@constant
    l2o evaluate lion "lion@perturbed(rho=0.1)" "mezo=torch.optim.SGD@two_point@constant"
    l2o evaluate "torch.optim.Muon(adjust_lr_fn='match_rms_adamw')+torch.optim.AdamW"
    """
    options_of = parser(evaluate)
    options_of.add_argument("rules", type=str, nargs="+", help="what to judge", metavar="RULE")
    options_of.add_class_arguments(Plan, None)
    options_of.add_argument("--reference", type=str, default=REFERENCE, help="to compare with")
    options_of.add_argument("--device", type=str, default="cpu", help="cpu or cuda")
    options_of.add_argument("--out", type=Path, default=Path("results.sqlite"), help="new or not")
    options_of.add_argument("--threads", type=int, default=1, help="of torch; 1 is often fastest")
    options_of.add_argument("--workers", type=int | None, default=None, help=WORKERS)
    options_of.add_argument("--executor", type=str, default=PROCESSES, help=EXECUTOR)
    options_of.add_argument("--trust", action="store_true", help=TRUST)
    given = options_of.parse_args(list(arguments))
    kept = options_of.dump(given, skip_unset=False)
    from l2o.cli.judging import judge

    return judge(given, kept, ["l2o", "evaluate", *arguments], console or Console(), told)
