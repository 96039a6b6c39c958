"""The threat model names, for each threat, tests that are there."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "threat-model.md").read_text()
NAMED = re.findall(r"([\w/]+\.py)::(\w+)", PAGE)
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
BY_OTHERS = {"by the broker"}


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_test_that_the_threat_model_names_is_there(file: str, name: str) -> None:
    tree = ast.parse((TESTS / file).read_text())
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert name in functions


def test_every_threat_has_a_test_or_says_who_keeps_it_away() -> None:
    assert len(ROWS) > 15
    assert [row[0] for row in ROWS[1:] if "::" not in row[2] and row[2] not in BY_OTHERS] == []
