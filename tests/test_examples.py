"""Examples in the docstrings of the public names."""

import ast
import doctest
import re
import shutil
from pathlib import Path

import pytest

import tune_hpc

ROOT = Path(__file__).parents[1]
NEEDS_RAY = re.compile(r"(?<![.\w])(run|run_all|resume|extend|compare)\(|Client\(")


def docstrings(name):
    """Yield the qualified names and docstrings of a public name and its methods, without importing its module."""
    path = ROOT / f"{tune_hpc._MODULES[name].replace('.', '/')}.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            yield name, ast.get_docstring(node)
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    yield f"{name}.{method.name}", ast.get_docstring(method)


EXAMPLES = {
    qualified_name: docstring.partition("Example:\n")[2]
    for name in tune_hpc.__all__
    for qualified_name, docstring in docstrings(name)
    if docstring and "Example:\n" in docstring
}


def case(name):
    if NEEDS_RAY.search(EXAMPLES[name]):
        return pytest.param(name, marks=pytest.mark.ray)
    return pytest.param(name, marks=pytest.mark.slow if name == "write_report" else ())


@pytest.mark.parametrize("name", [case(name) for name in EXAMPLES])
def test_example_runs(name, request, tmp_path, monkeypatch):
    if NEEDS_RAY.search(EXAMPLES[name]):
        request.getfixturevalue("ray_session")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "docs" / "results")
    example = doctest.DocTestParser().get_doctest(EXAMPLES[name], {"__name__": "__main__"}, name, name, 0)
    output = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    result = runner.run(example, out=output.append)
    assert result.attempted
    assert not result.failed, "".join(output)


def test_public_names_have_examples():
    assert EXAMPLES.keys() >= {
        "Experiment", "LocalClient", "Results", "Results.best", "Results.compare", "Results.curve", "Results.top",
        "Space", "budget_curve", "check_boundaries", "compare", "compare_to_published", "export_search", "extend",
        "importance", "load", "resume", "run", "when", "write_report",
    }  # fmt: skip
