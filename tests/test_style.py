"""Style check: plain technical English and standard names.

``python -m tests.test_style [PATH ...]`` prints the findings below the paths, or all of them, by file. The rules:

- ``opening``: a docstring begins with a noun phrase or an imperative.
- ``word``: docstrings, comments, strings and documents use the field's words.
- ``identifier``: names are neither participles nor pronouns. A comprehension may use ``one`` and ``own``.
- ``test name``: the name of a test states a fact.

A line, or a string of several lines, that quotes another text is exempt if it carries the comment ``# quotation``.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTED = ("tune_hpc", "search_spaces", "scripts", "benchmarks")
PYTHON = (*DOCUMENTED, "tests")
DOCUMENTS = (
    "README.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "mkdocs.yml", "docs/*.md", "docs/reference/*.md",
    "tune_hpc/**/*.html", "tune_hpc/**/*.js", "tune_hpc/**/*.css", "tune_hpc/**/*.sbatch",
    "scripts/**/*.sh", "scripts/**/*.sbatch", "deploy/**/*",
)  # fmt: skip
OPENINGS = {"what", "who", "whom", "whose", "how", "where", "which", "whether", "when", "that"}
IDENTIFIERS = {"told", "asked", "home", "place", "chosen", "kept", "said", "held", "one", "own"}
PHRASES = (
    "nobody", "whoever", "somebody", "everybody", "anew", "one's own", "of ours", "of theirs",
    "go on", "goes on", "going on", "went on", "gone on", "come to", "comes to", "came to",
    "tell", "tells", "told", "ask", "asks", "asked", "say", "says", "said", "held", "kept",
    "is to be", "are to be", "was to be", "were to be", "for to", "as it stands", "as they stand", "for sure",
    "whatever becomes", "whatever became", "what becomes", "what became", "what comes of", "what came of",
)  # fmt: skip
# A hyphen makes a term of its own (held-out, ask-and-tell), and a dot or a parenthesis makes it code (study.ask()).
WORDS = re.compile(
    r"(?<![\w.\-/])(" + "|".join(phrase.replace(" ", r"\s+(?:#\s*)?") for phrase in PHRASES) + r")(?![\w\-(=/])",
    re.IGNORECASE,
)
TEST_NAME = re.compile(r"test_(what|who|whom|whose|how|where|which|whether|when)(_|$)")
QUOTATION = "# quotation"


class Finding(NamedTuple):
    path: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.text}"


def findings(paths: Iterable[str] = ()) -> list[Finding]:
    """All findings, or those below ``paths`` (relative to the repository)."""
    roots = [Path(path).resolve() for path in paths] or [ROOT]
    found = []
    for path in sorted({*_python_files(), *_documents()}):
        if path != Path(__file__).resolve() and any(root == path or root in path.parents for root in roots):
            name, text = path.relative_to(ROOT).as_posix(), path.read_text()
            found += _in_python(name, text) if path.suffix == ".py" else _in_text(name, text)
    return found


def _python_files() -> Iterator[Path]:
    for folder in PYTHON:
        yield from (ROOT / folder).rglob("*.py")


def _documents() -> Iterator[Path]:
    for pattern in DOCUMENTS:
        paths = (path for path in ROOT.glob(pattern) if path.is_file())
        yield from (path for path in paths if not path.name.endswith((".py", ".min.js")))


def _in_text(name: str, text: str, first_line: int = 1) -> list[Finding]:
    return [
        Finding(name, first_line + text.count("\n", 0, match.start()), "word", " ".join(match[0].split()))
        for match in WORDS.finditer(text)
    ]


def _in_python(name: str, text: str) -> list[Finding]:
    nodes = list(ast.walk(ast.parse(text, name)))
    quoted = {number for number, line in enumerate(text.splitlines(), 1) if QUOTATION in line}
    found = set()
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and quoted.isdisjoint(_lines(node)):
            found |= set(_in_text(name, node.value, node.lineno))
        found |= set(_names(name, node))
    found |= {
        Finding(name, line, "identifier", identifier) for line, identifier in _identifiers(nodes) if line not in quoted
    }
    for first_line, comment in _comments(text) if WORDS.search(text) else ():
        found |= {finding for finding in _in_text(name, comment, first_line) if finding.line not in quoted}
    return sorted(found)


def _names(name: str, node: ast.AST) -> Iterator[Finding]:
    """Findings in the first line of a docstring and in the name of a test."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        line = 1 if isinstance(node, ast.Module) else node.lineno
        docstring = ast.get_docstring(node)
        word = re.match(r"[A-Za-z]*", docstring or "")
        if name.startswith(DOCUMENTED) and docstring and word and word[0].lower() in OPENINGS:
            yield Finding(name, line, "opening", docstring.splitlines()[0])
    if name.startswith("tests") and isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
        is_question = TEST_NAME.match(node.name) or WORDS.search(node.name.replace("_", " "))
        if is_question:
            yield Finding(name, node.lineno, "test name", node.name)


def _lines(node: ast.expr) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _comprehension_targets(nodes: Iterable[ast.AST]) -> set[int]:
    """Identities of the names that comprehensions bind."""
    targets = [node.target for node in nodes if isinstance(node, ast.comprehension)]
    return {id(name) for target in targets for name in ast.walk(target)}


def _identifiers(nodes: Sequence[ast.AST]) -> Iterator[tuple[int, str]]:
    """Line and name of every definition of a name in ``IDENTIFIERS``."""
    bound = _comprehension_targets(nodes)
    for node in nodes:
        match node:
            case ast.Name(id=name, ctx=ast.Store()) if not (id(node) in bound and name in {"one", "own"}):
                pass
            case ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                pass
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                pass
            case ast.alias(asname=str(name)):
                pass
            case _:
                continue
        if name.strip("_").lower() in IDENTIFIERS:
            yield getattr(node, "lineno", 1), name


def _comments(text: str) -> Iterator[tuple[int, str]]:
    """First line and text of every block of comments on successive lines."""
    block: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if block and token.start[0] != max(block) + 1:
                yield min(block), "\n".join(block.values())
                block = {}
            block[token.start[0]] = token.string
    if block:
        yield min(block), "\n".join(block.values())


@pytest.mark.slow
def test_names_and_sentences_follow_the_style():
    found = findings()
    assert not found, f"{len(found)} findings:\n" + "\n".join(map(str, found))


def test_each_rule_finds_its_example():
    source = (
        '"""What is left."""\n\ntold = [one for one in "ab"]  # nobody\n# goes\n# on\nx = "they go on"  # quotation\n'
    )
    found = [(finding.line, finding.rule, finding.text) for finding in _in_python("tune_hpc/example.py", source)]
    assert sorted(found) == [
        (1, "opening", "What is left."), (3, "identifier", "told"), (3, "word", "nobody"), (4, "word", "goes # on"),
    ]  # fmt: skip
    assert [finding.rule for finding in _in_python("tests/test_x.py", "def test_what_is_left(): ...")] == ["test name"]
    assert _in_text("README.md", "a held-out set; study.ask() of ask-and-tell") == []


def _main(paths: list[str]) -> int:
    found = findings(paths)
    previous = ""
    for finding in found:
        if finding.path != previous:
            print(f"{finding.path} ({sum(other.path == finding.path for other in found)})")
            previous = finding.path
        print(f"  {finding.line}: {finding.rule}: {finding.text}")
    print(f"{len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
