"""The pages whose numbers come from kept results say what these say."""

import re
from pathlib import Path

import pytest

from benchmarks.examples import rewritten
from benchmarks.reproduction_page import write_page
from tune_hpc import load_all

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("name", "num_answers"), [("analysis", 10), ("scaling", 6)])
def test_every_answer_is_what_its_line_gives(name, num_answers):
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


def test_the_reproduction_s_page_is_made_from_the_kept_results(tmp_path):
    write_page(ROOT / "docs" / "results", tmp_path)
    made, kept = ((folder / "reproduction.md").read_text(encoding="utf-8") for folder in (tmp_path, ROOT / "docs"))
    assert made == kept
    assert made.count("agrees") > 20
    for figure in re.findall(r"\]\((figures/[\w-]+\.png)\)", kept):
        assert (ROOT / "docs" / figure).is_file()
        assert (tmp_path / figure).stat().st_size > 10_000


def test_kept_results_are_small_and_tell_nothing_of_where_they_were_made():
    files = [file for name in ("results", "scaling") for file in (ROOT / "docs" / name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 2_000_000
    for folder, command in (("results", "tune-hpc run exercise"), ("scaling", "tune-hpc scale ")):
        for results in load_all(ROOT / "docs" / folder):
            assert results.experiment["provenance"]["machine"]["host"] is None
            assert results.experiment["provenance"]["command"].startswith(command)
            assert "host" not in results.trials
