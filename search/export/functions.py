"""The functions of an exported optimizer that hold the rule: ``_loop`` and ``_foreach``.

Each reads its inputs, runs the statements, keeps the states and moves the parameters. ``_loop``
visits one parameter after the other: it computes the numbers, such as bias corrections, and leaves
what is done to tensors to ``_move``, which can be compiled and then knows no number of a step.

Where a program looks at the whole model (a global norm, an inner product), parameters cannot be
visited so: ``_loop`` then runs a statement for all before the next, and hyper-parameters are lists,
for groups may differ in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from search.export import statements
from search.export.finite import finite
from search.export.signs import non_negative
from search.export.statements import GLOBAL, Operand
from search.language.functions import OPS, Kind
from search.language.program import Argument, Program, Statement, input_kinds, kinds

WIDTH = 100
COPY = "copy = torch.is_grad_enabled()  # what autograd has read must not be overwritten"


@dataclass(frozen=True)
class Functions:
    """``constants``: what they are called; ``keys``: what states are called in ``state``."""

    program: Program
    constants: dict[float, str]
    keys: dict[str, str]
    hyper: tuple[str, ...]

    @cached_property
    def is_global(self) -> bool:
        return any(statement.op in GLOBAL for statement in self.program.statements)

    @cached_property
    def reduces(self) -> bool:
        """Whether some statement needs whole tensors."""
        return any(OPS[statement.op].reduces for statement in self.program.statements)

    @cached_property
    def matrices(self) -> list[str]:
        """The functions of matrices that it calls; they want to know the shapes of tensors."""
        called = dict.fromkeys(statement.op for statement in self.program.statements)
        return [name for name in called if OPS[name].per_tensor]

    def calls(self, op: str) -> bool:
        return any(statement.op == op for statement in self.program.statements)

    def reads(self, name: str) -> bool:
        return any(name in statement.args for statement in self.program.statements)

    def loop(self) -> str:
        if self.is_global:
            return self._define("_loop", "One statement after the other.", _copying(self._lists()))
        loop = self._define("_loop", "One parameter after the other.", [*self._one_by_one()], True)
        return f"{self._move()}\n\n\n{loop}"

    def foreach(self) -> str:
        lines = [*self._foreach_inputs()]
        rows = iter(range(self.program.length))
        for row in rows:
            fused = self._average_of_square(row)
            lines += fused or statements.foreach(*self._operands(row, in_lists=True, reuse=True))
            if fused:
                next(rows)
        lines += self._move_lists() if self.is_global else self._move_foreach()
        return self._define("_foreach", "All parameters at once; the same numbers.", lines)

    def _average_of_square(self, row: int) -> list[str]:
        """``x2 = square(x)``, ``v = interp(x2, v, beta)`` without memory for ``x2``; or nothing."""
        pair = self.program.statements[row : row + 2]
        if [statement.op for statement in pair] != ["square", "interp"]:
            return []
        square = pair[0]
        reads = sum(statement.args.count(square.target) for statement in self.program.statements)
        _, _, (x,) = self._operands(row, in_lists=True, reuse=True)
        _, v, (x2, before, beta) = self._operands(row + 1, in_lists=True, reuse=True)
        in_place = before.text == v.text != x.text and before.spent and v.spent
        once = reads == 1 and x2.text == square.target and square.target not in self.program.states
        if not (in_place and once and x.kind == v.kind and not beta.varies):
            return []
        return [
            f"torch._foreach_mul_({v.text}, {beta.text})",
            f"torch._foreach_addcmul_({v.text}, {x.text}, {x.text}, value=1 - {beta.text})",
        ]

    def _define(self, name: str, doc: str, lines: list[str], visits: bool = False) -> str:
        """``visits``: whether it calls ``move``."""
        columns = [
            *(f"{key}s" for key in self.keys.values()),
            *(["hessians"] if self.reads("h") else []),
            *(["steps"] if self.reads("t") else []),
        ]
        number = "list" if self.is_global else "float"
        rate = "list" if self.is_global else "float | Tensor"
        signature = [f"{column}: list[Any]," for column in ("params", "grads", *columns)]
        signature += ["*,", f"lr: {rate},", *(f"{name}: {number}," for name in self.hyper)]
        signature += ["move: Callable[..., None] = _move,"] if visits else []
        return _function(name, signature, doc, lines)

    # Inputs -----------------------------------------------------------------------------------

    def _inputs(self) -> Iterator[tuple[str, str, bool]]:
        """Variable, the list it comes from, and whether it may need another precision."""
        w, g = self.program.inputs[:2]
        yield g, "grads", False
        if self.reads(w):
            yield w, "params", True
        for name, key in self.keys.items():
            yield name, f"{key}s", True
        if self.reads("h"):
            yield "h", "hessians", False
        if self.reads("t"):
            yield "t", "steps", False

    def _foreach_inputs(self) -> Iterator[str]:
        plain = [(name, source) for name, source, _ in self._inputs() if source != "params"]
        yield f"{', '.join(n for n, _ in plain)} = {', '.join(s for _, s in plain)}"
        w = self.program.inputs[0]
        if self.reads(w):
            yield f"{w} = [p.to(x.dtype) for p, x in zip(params, grads, strict=True)]"
        if self.reads("lr") and not self.is_global:
            yield "rates = [lr] * len(params)"
        for number in [n for n in ("t", "lr") if self.is_global and self.reads(n)]:
            yield f"if len({{isinstance(x, Tensor) for x in {number}}}) > 1:  # foreach wants one"
            yield f"    {number} = [_tensor(x) for x in {number}]"

    def _lists(self) -> list[str]:
        lines = []
        for name, source, convert in self._inputs():
            cast = "[x.to(y.dtype, copy=copy) for x, y in zip({}, grads, strict=True)]"
            lines.append(f"{name} = {cast.format(source) if convert else source}")
        for row in range(self.program.length):
            lines += statements.lists(*self._operands(row, in_lists=True))
        for name, key in self._kept():
            lines.append(f"for x, value in zip({key}s, {name}, strict=True):")
            lines.append("    x.copy_(value)")
        return lines + self._move_lists()

    def _kept(self) -> list[tuple[str, str]]:
        """States that a step changes, and what they are called outside."""
        written = {statement.target for statement in self.program.statements}
        return [(name, key) for name, key in self.keys.items() if name in written]

    @property
    def _is_direction(self) -> bool:
        return self.program.form == "direction"

    def _move_lists(self) -> list[str]:
        if not self._is_direction:
            return ["for p, x in zip(params, update, strict=True):", "    p.sub_(x)"]
        return [
            "rows = zip(params, update, lr, weight_decay, strict=True)",
            "for p, x, rate, decay in rows:",
            "    p.sub_(rate * (x + decay * p))",
        ]

    def _move_foreach(self) -> list[str]:
        if not self._is_direction:
            return ["torch._foreach_sub_(params, update)"]
        return [
            "if weight_decay != 0:",
            "    torch._foreach_add_(update, params, alpha=weight_decay)",
            "if isinstance(lr, Tensor):",
            "    torch._foreach_mul_(update, [lr] * len(update))",
            "    torch._foreach_sub_(params, update)",
            "else:",
            "    torch._foreach_add_(params, update, alpha=-lr)",
        ]

    # One parameter ----------------------------------------------------------------------------

    def _one_by_one(self) -> Iterator[str]:
        """The body of ``_loop``."""
        yield "for i, p in enumerate(params):"
        if self.reads("t"):
            yield "    t = steps[i]"
        for row in sorted(self._numbers):
            yield from (f"    {x}" for x in statements.loop(*self._operands(row, in_lists=False)))
        columns = [*self.keys.values(), *(["hessian"] if self.reads("h") else [])]
        args = ["p", "grads[i]", *(f"{column}s[i]" for column in columns), *self._given]
        args += [f"{name}={name}" for name in self._fixed]
        call, margin = ", ".join(args), 4  # within the function; as ruff would have it
        if margin + len(f"    move({call})") <= WIDTH:
            yield f"    move({call})"
        elif margin + len(f"        {call}") <= WIDTH:
            yield from ["    move(", f"        {call}", "    )"]
        else:
            yield from _spread("    move(", args, "    )")

    def _move(self) -> str:
        """What ``_loop`` calls."""
        w, g = self.program.inputs[:2]
        kept = {name: _kept(name, key) for name, key in self.keys.items()}
        tensors = ["p", g, *kept.values(), *(["h"] if self.reads("h") else [])]
        signature = [f"{name}: Tensor," for name in tensors]
        signature += [f"{name}: float | Tensor," for name in self._given]
        signature += ["*,", *(f"{name}: float," for name in self._fixed)] if self._fixed else []
        sources = ({w: "p"} if self.reads(w) else {}) | kept
        lines = [f"{name} = {x}.to({g}.dtype, copy=copy)" for name, x in sources.items()]
        for row in range(self.program.length):
            if row not in self._numbers:
                lines += statements.loop(*self._operands(row, in_lists=False))
        lines += [f"{kept[name]}.copy_({name})" for name, _ in self._kept()]
        change = "lr * (update + weight_decay * p)" if self._is_direction else "update"
        doc = "One parameter, in place."
        return _function("_move", signature, doc, _copying([*lines, f"p.sub_({change})"]))

    @cached_property
    def _numbers(self) -> frozenset[int]:
        """The statements that no tensor enters, such as bias corrections."""
        rows = set()
        is_number = {name: name in ("t", "lr") for name in self.program.inputs}
        for row, statement in enumerate(self.program.statements):
            known = all(is_number[arg] for arg in statement.args if isinstance(arg, str))
            # Run before all others, it must not give a name another meaning.
            is_number[statement.target] = known and statement.target not in is_number
            rows |= {row} if is_number[statement.target] else set()
        return frozenset(rows)

    @cached_property
    def _given(self) -> list[str]:
        """The numbers that ``_move`` reads and that may differ from step to step."""
        made = dict.fromkeys(self.program.statements[row].target for row in sorted(self._numbers))
        return [x for x in ("t", *made, "lr", "weight_decay") if x in self._read_by_move]

    @cached_property
    def _fixed(self) -> list[str]:
        """Other hyper-parameters that it reads."""
        return [x for x in self.hyper if x in self._read_by_move and x != "weight_decay"]

    @cached_property
    def _read_by_move(self) -> set[str]:
        rows = (s for k, s in enumerate(self.program.statements) if k not in self._numbers)
        args = {arg for statement in rows for arg in statement.args}
        read = {arg if isinstance(arg, str) else self.constants.get(arg, "") for arg in args}
        return read | ({"lr", "weight_decay"} if self._is_direction else set())

    # Statements -------------------------------------------------------------------------------

    @cached_property
    def _kinds(self) -> list[dict[str, Kind]]:
        """What every variable holds before each statement, and at the end."""
        scopes = [input_kinds(self.program)]
        for statement, kind in zip(self.program.statements, kinds(self.program), strict=True):
            scopes.append({**scopes[-1], statement.target: kind})
        return scopes

    @cached_property
    def _positive(self) -> list[frozenset[str]]:
        return non_negative(self.program, self.constants)

    @cached_property
    def _finite(self) -> list[frozenset[str]]:
        return finite(self.program, self._positive)

    def _operands(
        self, row: int, in_lists: bool, reuse: bool = False
    ) -> tuple[Statement, Operand, list[Operand]]:
        """A statement with its target and arguments as the code has them."""
        statement = self.program.statements[row]
        args = [self._operand(arg, row, in_lists, reuse) for arg in statement.args]
        kind = self._kinds[row + 1][statement.target]
        # Who ends as a number is a state that no step reads.
        kept = reuse and statement.target in self.program.states and kind > Kind.SCALAR
        return statement, Operand(statement.target, kind, spent=kept), args

    def _operand(self, arg: Argument, row: int, in_lists: bool, reuse: bool) -> Operand:
        if not isinstance(arg, str):
            unit, positive = 0 <= arg <= 1, arg >= 0
            if arg in self.constants:
                name, varies = self.constants[arg], self.is_global
                unit = name.startswith(("beta", "alpha"))
                return Operand(name, Kind.SCALAR, varies, unit=unit, positive=positive)
            text = repr(arg) if positive else f"({arg!r})"
            return Operand(text, Kind.SCALAR, varies=False, unit=unit, positive=positive)
        kind = self._kinds[row][arg]
        spent = reuse and kind > Kind.SCALAR and self._is_last_read(arg, row)
        text = "rates" if arg == "lr" and in_lists and not self.is_global else arg
        positive = arg in self._positive[row] or arg == "lr"  # __init__ refuses others
        stays = arg in self._finite[row]
        return Operand(text, kind, spent=spent, positive=positive, finite=stays)

    def _is_last_read(self, name: str, row: int) -> bool:
        """Whether nobody reads the value of ``name`` after statement ``row``. Inputs are not ours
        to write over, except for a state by its own successor."""
        if name == self.program.statements[row].target:
            return True
        if name in self.program.inputs or name == "update":
            return False
        for later in self.program.statements[row + 1 :]:
            if name in later.args:
                return False
            if name == later.target:
                return True
        return True


def _function(name: str, signature: list[str], doc: str, lines: list[str]) -> str:
    body = [f'    """{doc}"""', *(f"    {line}" for line in lines)]
    return "\n".join([*_spread(f"def {name}(", signature, ") -> None:"), *body])


def _spread(head: str, args: list[str], tail: str) -> list[str]:
    """A call or a signature, an argument a line."""
    margin = " " * (len(head) - len(head.lstrip()) + 4)
    return [head, *(f"{margin}{arg.rstrip(',')}," for arg in args), tail]


def _copying(lines: list[str]) -> list[str]:
    return [COPY, *lines] if any("copy=copy" in line for line in lines) else lines


def _kept(name: str, key: str) -> str:
    """What the memory of a state is called beside its value."""
    return f"{name}_kept" if key == name else key
