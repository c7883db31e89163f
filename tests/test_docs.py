"""Generated documents agree with the stored results and with the code."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tune_hpc
from benchmarks.examples import rewritten
from benchmarks.reproduction_page import write_page
from tune_hpc import load_all

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_answers"), [("analysis", 10), ("scaling", 6)])
def test_outputs_of_examples_are_current(name, num_answers):
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert page.count("```text") >= num_answers
    assert rewritten(page) == page


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("```python\n1 + 1\n```\n", "```python\n1 + 1\n```\n\n```text\n2\n```\n"),
        ("```python\n1 + 1\n```\n\n```text\n3\n```\n", "```python\n1 + 1\n```\n\n```text\n2\n```\n"),
        ("```python\na = 1\n```\n```python\na\n```\n", "```python\na = 1\n```\n```python\na\n```\n\n```text\n1\n```\n"),
        ("no example\n", "no example\n"),
    ],
)  # fmt: skip
def test_outputs_are_written_below_examples(page, expected):
    assert rewritten(page) == expected


@pytest.mark.slow
def test_reproduction_page_is_current(tmp_path):
    write_page(ROOT / "docs" / "results", tmp_path)
    written, stored = ((folder / "reproduction.md").read_text(encoding="utf-8") for folder in (tmp_path, ROOT / "docs"))
    assert written == stored
    assert stored.count("agrees") > 20
    for figure in re.findall(r"\]\((figures/[\w-]+\.png)\)", stored):
        assert (ROOT / "docs" / figure).is_file()
        assert (tmp_path / figure).stat().st_size > 10_000


def test_stored_results_are_small_and_anonymous():
    files = [file for name in ("results", "scaling") for file in (ROOT / "docs" / name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 2_500_000
    for folder, command in (("results", "tune-hpc run exercise"), ("scaling", "tune-hpc scale ")):
        for results in load_all(ROOT / "docs" / folder):
            assert results.experiment["provenance"]["machine"]["host"] is None
            assert results.experiment["provenance"]["command"].startswith(command)
            assert "host" not in results.trials


def test_tree_of_the_architecture_page_has_every_module():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"```text\ntune_hpc/\n(.*?)```", text, flags=re.DOTALL)
    listed, folders = set(), ["tune_hpc"]
    for indent, name, words in re.findall(r"^( *)([\w.]+/?) +(.*)$", tree, flags=re.MULTILINE):
        depth = len(indent) // 2
        folders = [*folders[:depth], name.rstrip("/")]
        listed.add("/".join(folders))
        assert 3 <= len(words.split()) <= 9, f"{name}: {words}"
    package = ROOT / "tune_hpc"
    modules = {path for path in package.rglob("*.py") if path.name != "__init__.py"}
    packages = {path.parent for path in package.rglob("__init__.py")} - {package}
    assert listed == {path.relative_to(ROOT).as_posix() for path in modules | packages}


def test_reference_pages_have_every_public_name():
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    documented = set(re.findall(r"^::: tune_hpc\.(\w+)$", pages, flags=re.MULTILINE))
    assert documented == {*tune_hpc.__all__, "errors"} - {"TuneHpcError"}


def test_public_names_are_the_same_for_type_checkers():
    tree = ast.parse((ROOT / "tune_hpc" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {alias.name: node.module for node in block.body for alias in node.names}
    assert imported == tune_hpc._MODULES


@pytest.mark.slow
def test_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    page = (tmp_path / "site" / "reference" / "experiments" / "index.html").read_text(encoding="utf-8")
    assert 'id="tune_hpc.Experiment"' in page


def test_architecture_page_names_existing_definitions():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    references = re.findall(r"`([\w/]+\.py)(?:: ([\w, ]+))?`", text)
    assert len(references) > 40
    for path, names in references:
        source = (ROOT / "tune_hpc" / path).read_text(encoding="utf-8")
        defined = set(re.findall(r"^(?:def |async def |class |)(\w+)[(:]? ?", source, re.MULTILINE))
        assert defined.issuperset(names.split(", ") if names else []), f"{path}: {names}"
