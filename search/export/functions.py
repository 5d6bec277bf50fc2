"""The two functions of an exported optimizer that hold the rule: ``_loop`` and ``_foreach``.

Each reads its inputs, runs the statements, keeps the states and moves the parameters. Where a
program looks at the whole model (a global norm, an inner product), parameters cannot be visited
one after the other: ``_loop`` then runs a statement for all before the next, and hyper-parameters
are lists, for groups may differ in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from search.export import statements
from search.export.signs import non_negative
from search.export.statements import GLOBAL, Operand
from search.ops import OPS, Kind
from search.program import Argument, Program, Statement, input_kinds, kinds

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

    def reads(self, name: str) -> bool:
        return any(name in statement.args for statement in self.program.statements)

    def loop(self) -> str:
        lines = self._lists() if self.is_global else list(self._one_by_one())
        if any("copy=copy" in line for line in lines):
            lines.insert(0, COPY)
        doc = "One statement" if self.is_global else "One parameter"
        return self._define("_loop", f"{doc} after the other.", lines)

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

    def _define(self, name: str, doc: str, lines: list[str]) -> str:
        columns = [
            *(f"{key}s" for key in self.keys.values()),
            *(["hessians"] if self.reads("h") else []),
            *(["steps"] if self.reads("t") else []),
        ]
        number = "list" if self.is_global else "float"
        rate = "list" if self.is_global else "float | Tensor"
        signature = [f"{column}: list[Any]," for column in ("params", "grads", *columns)]
        signature += ["*,", f"lr: {rate},", *(f"{name}: {number}," for name in self.hyper)]
        text = [f"def {name}("]
        text += [f"    {line}" for line in signature]
        text += [") -> None:", f'    """{doc}"""', *(f"    {line}" for line in lines)]
        return "\n".join(text)

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

    def _one_by_one(self) -> Iterator[str]:
        yield "for i, p in enumerate(params):"
        for name, source, convert in self._inputs():
            value = f"{source}[i].to(grads[i].dtype, copy=copy)" if convert else f"{source}[i]"
            yield f"    {name} = {value.replace('params[i]', 'p')}"
        for row in range(self.program.length):
            for line in statements.loop(*self._operands(row, in_lists=False)):
                yield f"    {line}"
        for name, key in self._kept():
            yield f"    {key}s[i].copy_({name})"
        move = "lr * (update + weight_decay * p)" if self._is_direction else "update"
        yield f"    p.sub_({move})"

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

    def _operands(
        self, row: int, in_lists: bool, reuse: bool = False
    ) -> tuple[Statement, Operand, list[Operand]]:
        """A statement with its target and arguments as the code has them."""
        statement = self.program.statements[row]
        args = [self._operand(arg, row, in_lists, reuse) for arg in statement.args]
        kept = reuse and statement.target in self.program.states
        kind = self._kinds[row + 1][statement.target]
        return statement, Operand(statement.target, kind, spent=kept), args

    def _operand(self, arg: Argument, row: int, in_lists: bool, reuse: bool) -> Operand:
        if not isinstance(arg, str):
            unit = 0 <= arg <= 1
            if arg in self.constants:
                name = self.constants[arg]
                unit = name.startswith(("beta", "alpha"))
                return Operand(name, Kind.SCALAR, varies=self.is_global, unit=unit)
            text = repr(arg) if arg >= 0 else f"({arg!r})"
            return Operand(text, Kind.SCALAR, varies=False, unit=unit)
        kind = self._kinds[row][arg]
        spent = reuse and kind > Kind.SCALAR and self._is_last_read(arg, row)
        text = "rates" if arg == "lr" and in_lists and not self.is_global else arg
        return Operand(text, kind, spent=spent, positive=arg in self._positive[row])

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
