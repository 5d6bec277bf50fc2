"""Text that no program can have the shape of, refused before Python's parser sees it.

That parser calls itself for whatever is inside of something. A few kilobytes of brackets, signs or
``elif`` exhaust the stack of a thread, which ends the whole process. A program has none of that:
a statement is one operation, and the only keywords are ``def`` and ``return``.
"""

from __future__ import annotations

import io
import keyword
import re
import tokenize

from search.language.functions import ProgramError

MOST_MARKS = 24
"""Operators and brackets of a statement, commas left out. ``x = f(-1.0, -2.0, -3.0)`` has six."""
MOST_KEYWORDS = 32
"""Of a text, which needs two."""
DEEPEST = 4
"""Levels of indentation, of which a program needs one."""
NUMBER = r"-?\w[\w.]{0,40}(?:[eE][-+]?\d{1,4})?"
PLAIN = re.compile(
    r"def \w{1,40}\([\w, ]*\):\n"
    rf"(?:    \w{{1,80}} = (?:\w{{1,40}}\((?:{NUMBER}(?:, {NUMBER}){{0,8}})?\)"
    rf"|{NUMBER} [-+*/] {NUMBER})\n)*"
    r"    return [\w, ]+\n"
)
"""The shape of what is printed, by which nearly all text is known at once."""


class ProgramSyntaxError(ProgramError):
    """Text, or rows, that are no program. ``line`` and ``column`` count from 1 (0: no text)."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.message, self.line, self.column, self.filename = message, line, column, ""

    def __str__(self) -> str:
        if not self.line:
            return self.message
        return f"{self.filename}:{self.line}:{self.column}: {self.message}"


def refuse_nesting(text: str) -> None:
    """Raise ProgramSyntaxError for text that may nest deeper than any program."""
    if PLAIN.fullmatch(text):
        return
    marks = keywords = level = 0
    start = (1, 0)  # of the statement
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            level += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
            keywords += token.type == tokenize.NAME and keyword.iskeyword(token.string)
            if token.type == tokenize.NEWLINE or token.string == ";":
                marks = 0
            elif not marks and token.type == tokenize.NAME:
                start = token.start
            marks += token.type == tokenize.OP and token.string not in (",", ")", "]", "}")
            formatted = token.type == tokenize.STRING and "f" in token.string[:2].lower()
            if marks > MOST_MARKS or keywords > MOST_KEYWORDS or level > DEEPEST or formatted:
                said = "not Python: nested too deeply: a statement is one operation"
                raise ProgramSyntaxError(said, start[0], start[1] + 1)
    except (tokenize.TokenError, SyntaxError):
        return  # what is wrong is said by the parser, which stops there, too
