"""How much code there is: lines without blanks, comments and docstrings, by room.

python scripts/lines.py
python scripts/lines.py --files     the longest files, too
"""

import argparse
import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tasks", "search", "l2o", "scripts", "tests")
SKIPPED = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(text: str) -> int:
    """Lines that hold a token which is no comment and in no docstring."""
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in SKIPPED
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(lines - docstring_lines(ast.parse(text)))


def docstring_lines(tree: ast.Module) -> set[int]:
    """Of strings that are statements: docstrings, those of attributes included."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def main() -> None:
    given = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    given.add_argument("--files", action="store_true", help="the ten longest files, too")
    files = {
        path.relative_to(ROOT): code_lines(path.read_text(encoding="utf-8"))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    rooms = Counter[str]()
    for path, count in files.items():
        parent = path.parent.as_posix().split("/")
        rooms["/".join(parent[:2])] += count
    for package in PACKAGES:
        inside = {room: n for room, n in rooms.items() if room.split("/")[0] == package}
        print(f"{package:28}{sum(inside.values()):7,}")
        for room, count in sorted(inside.items()):
            if room != package:
                print(f"  {room:26}{count:7,}")
    source = sum(n for path, n in files.items() if path.parts[0] != "tests")
    print(f"{'source, tests apart':28}{source:7,}")
    if given.parse_args().files:
        for path, count in sorted(files.items(), key=lambda item: -item[1])[:10]:
            print(f"  {path.as_posix():40}{count:7,}")


if __name__ == "__main__":
    main()
