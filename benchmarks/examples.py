"""Run the Python examples of a page and write their outputs below them.

    python benchmarks/examples.py docs/analysis.md          # rewrites the page
    python benchmarks/examples.py docs/analysis.md --check  # exits with 1 if the page would change

An example is a block of Python. If its last line is an expression, the block of text after it has its value. The
examples of a page share one namespace and run in the root of the repository.
"""

import argparse
import ast
import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).parents[1]
_EXAMPLE = re.compile(r"```python\n(?P<code>.*?)```\n(?P<output>\n```text\n.*?```\n)?", re.DOTALL)


def rewritten(text: str) -> str:
    """Return a page with the current outputs of its examples.

    Args:
        text: The page, in Markdown.
    """
    names: dict[str, Any] = {}

    def with_output(match: re.Match[str]) -> str:
        code = match["code"]
        given = _run(code, names)
        output = f"\n```text\n{given}\n```\n" if given is not None else ""
        return f"```python\n{code}```\n{output}"

    with _in_root(), pd.option_context("display.width", 116, "display.max_columns", 20, "display.precision", 4):
        return _EXAMPLE.sub(with_output, text)


def _run(code: str, names: dict[str, Any]) -> str | None:
    """Run a block; return the value of its last line as text, ``None`` if that is no expression."""
    *before, last = ast.parse(code).body
    exec(compile(ast.Module(before, []), "example", "exec"), names)
    if not isinstance(last, ast.Expr):
        exec(compile(ast.Module([last], []), "example", "exec"), names)
        return None
    value = eval(compile(ast.Expression(last.value), "example", "eval"), names)
    text = value.to_string() if isinstance(value, pd.DataFrame) and len(value) <= 20 else str(value)
    return "\n".join(line.rstrip() for line in text.splitlines())


@contextlib.contextmanager
def _in_root() -> Iterator[None]:
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(before)


def main() -> int:
    """Rewrite a page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing")
    flags = parser.parse_args()
    text = flags.page.read_text(encoding="utf-8")
    new = rewritten(text)
    if flags.check:
        print("unchanged" if new == text else "would change")
        return int(new != text)
    flags.page.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
