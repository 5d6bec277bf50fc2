"""Text that would exhaust a stack is refused in the smallest of threads."""

import subprocess
import sys

import pytest

from search.language.flat import PLAIN, ProgramSyntaxError, refuse_nesting
from search.language.program import parse, to_text
from search.zoo import ZOO

HEAD = "def update(w, g):\n    update = "
END = "\n    return update\n"
DEEP = {
    "brackets": HEAD + "(" * 300 + "g" + ")" * 300 + END,
    "many brackets": HEAD + "(" * 49_000 + "g" + ")" * 49_000 + END,
    "open brackets": HEAD + "[" * 90_000,
    "braces": HEAD + "{" * 190 + END,
    "calls": HEAD + "neg(" * 20_000 + "g" + ")" * 20_000 + END,
    "calls of calls": HEAD + "g" + "()" * 40_000 + END,
    "indices": HEAD + "g" + "[0]" * 30_000 + END,
    "attributes": HEAD + "g" + ".g" * 40_000 + END,
    "minus": HEAD + "-" * 90_000 + "g" + END,
    "not": HEAD + "not " * 20_000 + "g" + END,
    "await": HEAD + "await " * 15_000 + "g" + END,
    "lambda": HEAD + "lambda: " * 11_000 + "g" + END,
    "sums": HEAD + "g" + " + g" * 20_000 + END,
    "powers": HEAD + "g" + " ** g" * 18_000 + END,
    "choices": HEAD + "g if g else " * 8_000 + "g" + END,
    "assignments": HEAD + "update = " * 10_000 + "g" + END,
    "walrus": HEAD + "(u := " * 15_000 + "g" + ")" * 15_000 + END,
    "elif": "def update(w, g):\n    if g: w\n" + "    elif g: w\n" * 6_000 + END,
    "blocks": "".join(" " * n + "if g:\n" for n in range(95)) + " " * 95 + "g\n",
    "strings": HEAD + 'f"{' * 149 + "g" + '}"' * 149 + END,
    "a string": HEAD + 'f"{' + "(" * 150 + "g" + ")" * 150 + '}"' + END,
    "decorators": "@g\n" * 30_000 + HEAD + "g" + END,
    "lines": HEAD + "(\n" * 40_000 + "g" + ")" * 40_000 + END,
    "comments": HEAD + "(  # (\n" * 10_000 + END,
    "continued": HEAD + "-\\\n" * 30_000 + "g" + END,
    "matches": "".join(" " * n + "match g:\n" for n in range(95)) + END,
    "semicolons": HEAD + "g;" * 40_000 + END,
    "one long name": HEAD + "g" * 90_000 + END,
    "one long number": HEAD + "9" * 90_000 + END,
    "null": HEAD + "g\0" + END,
}
IN_A_THREAD = """
import sys, threading
from search.language.program import ProgramSyntaxError, parse
from tests.search.test_flat import DEEP
found = []
def run():
    for name, text in DEEP.items():
        try:
            parse(text)
        except ProgramSyntaxError as error:
            found.append(name)
threading.stack_size(256 * 1024)
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(len(found))
"""


def test_no_text_ends_a_thread_of_256_kilobytes() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IN_A_THREAD], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"{len(DEEP)}\n"), done.stderr[-2000:]


@pytest.mark.parametrize("name", ZOO)
def test_what_is_printed_is_known_at_once(name: str) -> None:
    text = to_text(ZOO[name].program)
    assert PLAIN.fullmatch(text)
    refuse_nesting(text.replace("    ", "        ").replace("def", "# (((\ndef"))


def test_prose_may_say_anything() -> None:
    prose = '"""Not (not (not ' + "(" * 500 + '"""\n'
    assert parse(prose + HEAD + "sign(g)  # " + "(" * 500 + END).length == 1


def test_the_place_is_told() -> None:
    with pytest.raises(ProgramSyntaxError, match="<program>:2:5: not Python: nested too deeply"):
        parse(HEAD + "(" * 300 + END)
