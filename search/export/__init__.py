"""A program as a file of its own: one ``torch.optim.Optimizer`` that imports nothing but torch.

The file is torch's contract for optimizers (``skeleton.py``, ``parts.py``) around two functions
that hold the rule (``functions.py``), for one parameter at a time and for all at once, made of
statements as torch code (``statements.py``). Names are chosen in ``naming.py``.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import getsource
from textwrap import fill, indent

from search.export import parts, skeleton
from search.export.functions import Functions
from search.export.naming import TAKEN, digest, fold, hyper_parameters, single_names, state_keys
from search.export.start import Start, start
from search.language.functions import OPS
from search.language.program import Program
from search.language.validity import check, live

WIDTH = 100
FORMS = {"direction": "w <- w - lr * (update + weight_decay * w)", "full": "w <- w - update"}


def to_source(
    program: Program,
    name: str,
    provenance: str,
    lr: float | None = None,
    weight_decay: float = 0.0,
) -> str:
    """The text of a Python file with one optimizer class, called after ``name``.

    ``provenance`` says where the rule comes from. ``lr`` and ``weight_decay`` are the defaults
    (``lr`` None: one that is safe for the kind of rule, see ``start.py``); a full program has a
    decay only if it holds its own. Raises ProgramError for a program that is no
    valid rule, ValueError if ``name`` does not begin with a letter or is needed by the file.
    """
    check(program)
    return _Export(program, class_name(name), provenance, lr, weight_decay).source


def class_name(name: str) -> str:
    """``sign_momentum`` to ``SignMomentum``; capitals that are there stay."""
    joined = "".join(word[:1].upper() + word[1:] for word in re.findall(r"[A-Za-z0-9]+", name))
    if not joined[:1].isalpha():
        raise ValueError(f"name: got {name!r}, expected one that begins with a letter, a to z")
    if keyword.iskeyword(joined) or joined in TAKEN:
        raise ValueError(f"name: got {name!r}, expected another: the file needs {joined} itself")
    return joined


@dataclass(frozen=True)
class _Export:
    original: Program
    name: str
    provenance: str
    lr: float | None
    weight_decay: float

    @cached_property
    def start(self) -> Start:
        return start(self.original, self.lr)

    @cached_property
    def program(self) -> Program:
        """What is left to compute, under names that the file can use."""
        program = single_names(fold(live(self.original)))
        used = {name for s in program.statements for name in (s.target, *s.args)}
        kept = (name for name in program.inputs if name in ("w", "g") or name in used)
        return replace(program, inputs=tuple(kept))

    @cached_property
    def constants(self) -> dict[float, str]:
        return hyper_parameters(self.program)

    @cached_property
    def hyper(self) -> dict[str, float]:
        """Defaults of the hyper-parameters besides ``lr``."""
        named = {name: value for value, name in self.constants.items() if name != "weight_decay"}
        for value, name in self.constants.items():
            if name == "weight_decay":
                return named | {name: value}
        return named | ({"weight_decay": self.weight_decay} if self.is_direction else {})

    @cached_property
    def keys(self) -> dict[str, str]:
        return state_keys(self.program)

    @cached_property
    def is_direction(self) -> bool:
        return self.program.form == "direction"

    @cached_property
    def functions(self) -> Functions:
        return Functions(self.program, self.constants, self.keys, tuple(self.hyper))

    @property
    def source(self) -> str:
        curved = self.functions.reads("h")
        columns = [*self.keys.values(), *(["hessian"] if curved else [])]
        columns += ["step"] if self.functions.reads("t") else []
        missing = parts.MISSING.rstrip() if curved else self.create
        in_groups = self.create.replace("group[", "groups[p][")
        loop, foreach = self.functions.loop(), self.functions.foreach()
        number = 'group[name] if name != "lr" else _number(group[name])'
        number = number if self.functions.reads("lr") else "group[name]"
        update = parts.UPDATE_MODEL if self.functions.is_global else parts.UPDATE_GROUPS
        slots = {
            "NAME": self.name,
            "DIGEST": digest(self.program, self.constants, self.keys),
            "PROVENANCE": _docstring(self.provenance),
            "FORM": FORMS[self.program.form],
            "PROGRAM": str(self.original),
            "STATES": _tuple(self.keys.values()),
            "COLUMNS": _tuple(columns),
            "HYPER": _tuple(["lr", *self.hyper]),
            "NOTE": parts.MODEL_NOTE.rstrip() if self.functions.is_global else "",
            "RATE": repr(self.start.lr),
            "START": fill(self.start.advice, WIDTH),
            "ARGUMENTS": "\n".join(f"{n}: float = {value!r}," for n, value in self.hyper.items()),
            "CHECKS": "\n".join(self.checks()),
            "DEFAULTS": "\n".join(f'"{name}": {name},' for name in self.hyper),
            "UPDATE": update.replace("{number}", number),
            "COLLECT": parts.COLLECT.format(create=missing) if columns else parts.COLLECT_NOTHING,
            "BEGINS": parts.BEGINS,
            "CURVATURE": "\n".join(
                (
                    parts.CURVATURE.replace("{create}", indent(in_groups, 8 * " ")),
                    parts.ONLY_BEGINS.replace("{create}", indent(in_groups, 4 * " ")),
                )
            ),
            "FLIP": parts.FLIP,
            "TICK": parts.TICK if self.functions.reads("t") else "",
            "LOCAL": "" if self.functions.reduces else parts.LOCAL,
            "SHARDED": parts.SHARDED if self.functions.reduces else "",
            "STEPS": ", steps" if self.functions.reads("t") else "",
            "PIECES": self.pieces,
            "BLOCK": "" if self.functions.is_global else parts.BLOCK,
            "TOGETHER": "" if self.functions.is_global else parts.TOGETHER,
            "ABC": "Callable, Iterable" + ("" if self.functions.is_global else ", Iterator"),
            "HELPERS": self.helpers(loop + foreach),
            "LOOP": loop,
            "FUSED": self.fused,
            "FOREACH": foreach,
        }
        if not curved:
            slots |= {"CURVATURE": "", "FLIP": "", "BEGINS": ""}
        text = skeleton.fill(skeleton.SKELETON, slots)
        lines = (f"{x}  # noqa: E501" if len(x) > WIDTH else x for x in text.splitlines())
        return "\n".join(lines) + "\n"

    @property
    def pieces(self) -> str:
        """How the work is cut up for a CPU; norms need whole tensors, others the whole model."""
        if self.functions.is_global:
            return ""
        if self.functions.reduces:
            return parts.PIECES.format(rows=parts.ROWS)
        return parts.PIECES.format(rows=parts.CUT_ROWS) + parts.CUT

    @property
    def fused(self) -> str:
        """What is compiled: a few parameters' statements, unless they look at the whole model."""
        is_global = self.functions.is_global
        shaped, flat = (parts.SHAPED, ""), (parts.FLAT, parts.FLATTEN)
        args, function = shaped if self.functions.matrices else flat
        text = parts.FUSED.replace("{args}", args) + function
        text = parts.FUSED_MODEL if is_global else text
        return text + parts.COMPILED.format(dynamic=None if is_global else True)

    @property
    def create(self) -> str:
        """The code that makes the state of a parameter ``p``."""
        code = parts.CREATE_STATES if self.keys else ""
        code += parts.CREATE_STEP if self.functions.reads("t") else ""
        return (code or "    pass").rstrip()

    def checks(self) -> Iterator[str]:
        """Averages have to stay averages: the foreach code relies on nothing else."""
        for name in self.hyper:
            if name == "weight_decay":
                yield "if not weight_decay >= 0:"
                yield _refusal(name, "a number >= 0")
            elif name.startswith(("beta", "alpha")):
                yield f"if not 0 <= {name} <= 1:"
                yield _refusal(name, "a number in [0, 1]")

    def helpers(self, code: str) -> str:
        """The functions that the file calls and torch does not have, each once."""
        reduces = [name for name in parts.HELPERS if self.functions.calls(name)]
        text = parts.NUMBER if self.functions.reads("lr") else ""
        text += parts.SCALAR if "_scalar(" in code or "_power(" in code else ""
        text += parts.POWER if "_power(" in code else ""
        text += "".join(dict.fromkeys(p for op in sorted(reduces) for p in parts.HELPERS[op]))
        wide = parts.WIDE if text or self.functions.reads("t") else ""
        return wide + text + self.matrices

    @property
    def matrices(self) -> str:
        """The functions of matrices that the file calls, as they stand in their own."""
        called = self.functions.matrices
        texts = (getsource(OPS[n].torch).replace(f"def {n}(", f"def _{n}(", 1) for n in called)
        return "\n\n".join([parts.BY_MATRIX, *texts]) if called else ""


def _refusal(name: str, accepted: str) -> str:
    return f'    raise ValueError(f"{name}: got {{{name}}}, expected {accepted}")'


def _tuple(names: Iterable[str]) -> str:
    quoted = [f'"{name}"' for name in names]
    return f"{quoted[0]}," if len(quoted) == 1 else ", ".join(quoted)


def _docstring(text: str) -> str:
    """Wrapped, and unable to end the docstring that it stands in."""
    plain = text.replace("\\", "/").replace('"', "'")
    return "\n\n".join(fill(paragraph, WIDTH) for paragraph in plain.split("\n\n"))
