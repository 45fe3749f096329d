"""FAULTS.md: at least thirty rows, and each names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_each_row_of_the_fault_table_is_a_test():
    lines = (
        (REPOSITORY / "prism_lite" / "runs" / "FAULTS.md").read_text(encoding="utf-8").splitlines()
    )
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| **")][1:]
    assert len(rows) >= 30
    tests = []
    for row in rows:
        done, happens, test = (cell.strip() for cell in row.strip("|").split("|"))
        assert done and happens, row
        file, _, name = test.strip("`").partition("::")
        tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test
        assert re.match(r"tests/[\w/]+\.py$", file)
        tests.append(test)
    assert len(set(tests)) == len(tests)
