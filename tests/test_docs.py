"""The pages whose numbers come from kept results say what these say."""

from pathlib import Path

import pytest

from benchmarks.examples import rewritten

ROOT = Path(__file__).parents[1]


def test_every_answer_is_what_its_line_gives():
    page = (ROOT / "docs" / "analysis.md").read_text(encoding="utf-8")
    assert page.count("```text") >= 10
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
