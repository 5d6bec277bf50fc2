"""Statements as torch code, for three ways to hold the parameters of a model.

    loop     a variable is one tensor or number; the statements run once a parameter
    lists    a variable is a list, one entry a parameter; a statement is a comprehension
    foreach  the same lists; a statement is a ``torch._foreach_*`` call where there is one,
             in place where its operand is not needed any more

Numbers that do not depend on the parameter, such as constants, are plain floats in all three.
``expression`` is the meaning of a statement for one parameter; the other two are made of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from search.language.functions import OPS, Kind
from search.language.program import Statement

UNARY = {name: name for name in ("abs", "cos", "sin", "tan", "exp", "expm1", "sign")}
UNARY |= {"sinh": "sinh", "cosh": "cosh", "tanh": "tanh"}
UNARY |= {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}
AFTER_ABS = {"sqrt": "sqrt", "log": "log", "log2": "log2", "log10": "log10"}
POWERS = {"exp2": "2.0", "exp10": "10.0"}
WITH_NUMBERS = {"add": "add", "sub": "sub", "mul": "mul", "div": "div", "power": "pow"}
WITH_NUMBERS |= {"maximum": "maximum", "minimum": "minimum"}
COMMUTE = frozenset(name for name in WITH_NUMBERS if OPS[name].commutative)
PLAIN = frozenset({"add", "sub", "mul", "div", "square", "cube", "reciprocal", "interp"})
"""Functions that Python has for all numbers, divisors of zero apart."""
GLOBAL = frozenset({"global_norm", "dot", "cosine_sim", "clip_by_global_norm"})
"""Functions that look at the parameters of the whole model at once."""


@dataclass(frozen=True)
class Operand:
    """An argument or target as it appears in the code.

    ``varies``: it has a value for each parameter, so it is a list outside of the loop.
    ``spent``: nobody reads it after this statement, and its memory may be written over.
    ``unit``: a number known to lie in [0, 1]. ``positive``: known not to be negative, as long as
    whoever uses the file leaves a constant as it is. ``finite``: known not to be infinite.
    """

    text: str
    kind: Kind
    varies: bool = True
    spent: bool = False
    unit: bool = False
    positive: bool = False
    finite: bool = True


def expression(op: str, args: Sequence[Operand]) -> str:
    """The value of ``op`` for one parameter; operands are names of tensors and numbers."""
    texts = [arg.text for arg in args]
    if max(arg.kind for arg in args) == Kind.SCALAR:
        return _on_numbers(op, args, texts)
    if op == "sqrt" and args[0].positive:
        return f"torch.sqrt({texts[0]})"
    if op == "norm":
        return f"_norm({texts[0]})"
    if op in ("maximum", "minimum") and Kind.SCALAR in (args[0].kind, args[1].kind):
        tensor, number = texts if args[1].kind == Kind.SCALAR else texts[::-1]
        bound = "min" if op == "maximum" else "max"
        return f"{tensor}.clamp({bound}={number})"
    if _is_lerp(op, args):
        x, y, a = texts
        # 1 - beta is exact in Python and would not be in float32.
        return (
            f"torch.lerp({y}, {x}, 1 - {a})" if _is_beta(args[2]) else f"torch.lerp({x}, {y}, {a})"
        )
    return _formatted(op, texts)


def _on_numbers(op: str, args: Sequence[Operand], texts: list[str]) -> str:
    """Python's arithmetic where it cannot raise; else torch's, on a 0-dimensional tensor."""
    if op == "power" and not (args[0].unit and args[1].positive):
        return f"_power({texts[0].strip('()')}, {texts[1].strip('()')})"
    if op in ("div", "reciprocal") and not args[-1].positive:  # it may be -1e-8
        texts[-1] = _as_tensor(texts[-1])
    if op not in PLAIN and op != "power":
        texts = [_as_tensor(x) for x in texts]
    return _formatted(op, texts)


def _as_tensor(text: str) -> str:
    return f"_scalar{text}" if text.startswith("(") else f"_scalar({text})"


def _formatted(op: str, texts: list[str]) -> str:
    return re.sub(r"^([\w.]+) \*\* ([\w.]+)$", r"\1**\2", OPS[op].source.format(*texts))


def _is_lerp(op: str, args: Sequence[Operand]) -> bool:
    if op != "interp" or not (args[0].finite and args[1].finite):
        return False  # lerp makes NaN of infinities
    return args[0].kind == args[1].kind > Kind.SCALAR and not args[2].varies


def _is_beta(number: Operand) -> bool:
    return number.text.startswith("beta")


def loop(statement: Statement, target: Operand, args: Sequence[Operand]) -> list[str]:
    """One parameter. Functions in GLOBAL have no such form."""
    return [f"{target.text} = {expression(statement.op, args)}"]


def lists(statement: Statement, target: Operand, args: Sequence[Operand]) -> list[str]:
    """All parameters, a torch call each."""
    if statement.op in GLOBAL:
        columns = (a.text if a.varies else f"[{a.text}] * len(params)" for a in args)
        return [f"{target.text} = _{statement.op}({', '.join(columns)})"]
    return [f"{target.text} = {_comprehension(expression(statement.op, args), args)}"]


def _comprehension(value: str, args: Sequence[Operand]) -> str:
    names = list(dict.fromkeys(arg.text for arg in args if arg.varies))
    if not names:
        return f"[{value}] * len(params)"
    if len(names) == 1:
        return f"[{value} for {names[0]} in {names[0]}]"
    joined = ", ".join(names)
    return f"[{value} for {joined} in zip({joined}, strict=True)]"


def foreach(statement: Statement, target: Operand, args: Sequence[Operand]) -> list[str]:
    """All parameters in few calls. ``target.spent``: a state, to be written where it lies."""
    code = _Calls(target, args)
    if statement.op not in GLOBAL and target.kind != Kind.SCALAR and code.write(statement.op):
        return code.assigned()
    if not target.spent:
        return lists(statement, target, args)
    code.result = "value"
    return lists(statement, Operand("value", target.kind), args) + code.assigned()


class _Calls:
    """Foreach calls that compute one statement, ``result`` naming where its value is so far."""

    def __init__(self, target: Operand, args: Sequence[Operand]) -> None:
        self.target, self.args = target, list(args)
        self.lines: list[str] = []
        self.result = ""

    def write(self, op: str) -> bool:
        """False if foreach has no such function."""
        if op in UNARY:
            self.call(UNARY[op], 0)
        elif op == "sqrt" and self.args[0].positive:
            self.call("sqrt", 0)
        elif op in AFTER_ABS:
            self.call("abs", 0)
            self.then(AFTER_ABS[op])
        elif op == "log1p":
            self.call("add", 0, "1")
            self.then("abs")
            self.then("log")
        elif op == "reciprocal":
            self.call("add", 0, "1e-8")
            self.then("reciprocal")
        elif op == "square":
            self.call("mul", 0, self.args[0].text)
        elif op == "cube":
            self.call("pow", 0, "3")
        elif op in POWERS:
            self.result = f"torch._foreach_pow({POWERS[op]}, {self.args[0].text})"
        elif _is_lerp(op, self.args):
            self.lerp()
        elif op == "mul" and self.target.spent and self.copied():
            self.result = self.copied()
        elif op in WITH_NUMBERS and self.args[0].kind == self.target.kind:
            self.binary(op, self.args[0], self.args[1])
        elif op in COMMUTE:
            self.binary(op, self.args[1], self.args[0])
        else:
            return False
        return True

    def binary(self, op: str, left: Operand, right: Operand) -> None:
        if op in COMMUTE and self.prefers(right, left):
            left, right = right, left
        other = right.text
        if op == "div":
            other = self.denominator(left, right)
        self.args[0] = left
        self.call(WITH_NUMBERS[op], 0, other)

    def copied(self) -> str:
        """``x`` where a state becomes ``1.0 * x``; else nothing."""
        x, y = self.args if self.args[1].text == "1.0" else self.args[::-1]
        return x.text if y.text == "1.0" and x.kind == self.target.kind else ""

    def prefers(self, one: Operand, other: Operand) -> bool:
        """Whether ``one`` is the better place for the result: the target, or else any memory."""
        one_free, other_free = (x.spent and x.kind == self.target.kind for x in (one, other))
        return one_free and (one.text == self.target.text or not other_free)

    def denominator(self, left: Operand, right: Operand) -> str:
        """``right + 1e-8``, in place where that is allowed."""
        if not right.varies:
            return f"{right.text} + 1e-8"
        if right.kind == Kind.SCALAR:
            return f"[{right.text} + 1e-8 for {right.text} in {right.text}]"
        if right.spent and right.text != left.text:
            self.lines.append(f"torch._foreach_add_({right.text}, 1e-8)")
            return right.text
        self.lines.append(f"denominator = torch._foreach_add({right.text}, 1e-8)")
        return "denominator"

    def lerp(self) -> None:
        x, y, a = self.args
        if self.prefers(y, x) or (_is_beta(a) and not self.prefers(x, y)):
            self.args = [y]
            self.call("lerp", 0, x.text, f"1 - {a.text}")
        else:
            self.call("lerp", 0, y.text, a.text)

    def call(self, function: str, place: int, *rest: str) -> None:
        """``function(args[place], *rest)``, over the argument if it is spent."""
        first = self.args[place]
        arguments = ", ".join((first.text, *rest))
        if first.spent and first.kind == self.target.kind:
            self.lines.append(f"torch._foreach_{function}_({arguments})")
            self.result = first.text
        else:
            self.result = f"torch._foreach_{function}({arguments})"

    def then(self, function: str) -> None:
        """Apply ``function`` to the result, which is fresh, in place."""
        if self.result.startswith("torch."):
            name = "value" if self.target.spent else self.target.text
            self.lines.append(f"{name} = {self.result}")
            self.result = name
        self.lines.append(f"torch._foreach_{function}_({self.result})")

    def assigned(self) -> list[str]:
        """The lines, and one that gives the result to the target."""
        if self.result == self.target.text:
            return self.lines
        if self.target.spent:
            return [*self.lines, f"torch._foreach_copy_({self.target.text}, {self.result})"]
        return [*self.lines, f"{self.target.text} = {self.result}"]
