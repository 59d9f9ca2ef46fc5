"""Habits of the libraries underneath that would bring a fault back if somebody took them up again."""

from __future__ import annotations

import ast
import re
import tomllib

import duckdb
import pytest

from ltv_assets.core.config import PROJECT_ROOT
from ltv_assets_tests.faults.catalogue import unreachable

SOURCES = sorted((PROJECT_ROOT / "ltv_assets").rglob("*.py"))

unreachable(
    "files",
    "a file cut short in the very moment it is read",
    why="the moment cannot be met on purpose; files are read without memory maps, so the worst is an answer like that to a cut file",
)


@pytest.mark.parametrize(
    ("habit", "why"),
    [
        (r"\.to_parquet\(", "killed half-way it replaces a good file by a torn one"),
        (r"memory_map\s*=\s*True", "a mapped file that is cut short ends the process"),
        (r"\bautolog\(", "declared for older LightGBM only"),
        (r"union_by_name", "a missing column becomes NULL without a word"),
        (r"read_parquet\([^)]*\*", "a pattern takes the types of the first file, and temporary files too"),
    ],
)
def test_no_module_takes_up_a_habit_that_loses_data(habit: str, why: str) -> None:
    pattern = re.compile(habit)
    found = [
        f"{path.relative_to(PROJECT_ROOT)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line) and "read_parquet('train/" not in line  # what `ltv explain-sql` prints for a person
    ]
    assert found == [], why


def test_nothing_that_holds_pandas_below_3_is_required() -> None:
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    assert [name for name in required if name.startswith(("dagster-mlflow", "dagster-pandera"))] == []
    locked = (PROJECT_ROOT / "requirements.lock").read_text()
    assert "dagster-mlflow" not in locked
    assert "dagster-pandera" not in locked


ROW_BY_ROW = ("fetchone", "fetchmany")
ASKED_OF_A_CONNECTION = ("sql", "query", "table", "view", "from_arrow", "from_df", "from_parquet", "read_parquet", "read_csv", "read_json")


def rows_of_relations(source: str) -> list[int]:
    """Lines of a module that take single rows from a DuckDB relation, through whatever calls or name it came there."""
    tree = ast.parse(source)

    def is_relation(node: ast.AST) -> bool:
        while isinstance(node, ast.Call | ast.Attribute | ast.Subscript):
            if isinstance(node, ast.Attribute) and node.attr == "execute":
                return False
            if isinstance(node, ast.Attribute) and node.attr in ASKED_OF_A_CONNECTION:
                return True
            node = node.func if isinstance(node, ast.Call) else node.value
        return isinstance(node, ast.Name) and node.id in named

    named: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and is_relation(node.value):
            named |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return [c.lineno for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr in ROW_BY_ROW and is_relation(c.func.value)]


def test_single_rows_are_taken_from_a_cursor_never_from_a_relation() -> None:
    """DuckDB 2 took them from relations, which keep no result between calls; what ``execute`` returns has them in every version."""
    with duckdb.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        if int(duckdb.__version__.split(".")[0]) >= 2:
            for taken in ROW_BY_ROW:
                with pytest.raises(AttributeError, match="a relation keeps no result between calls"):
                    getattr(connection.sql("SELECT 1"), taken)()
    bad = 'found = connection.sql("SELECT 1").limit(1)\nfound.fetchone()\nduckdb.sql("SELECT 2").fetchmany(2)\n'
    assert rows_of_relations(bad) == [2, 3]
    assert rows_of_relations('connection.execute("SELECT 1").fetchone()\nwith connection.cursor() as c:\n    c.fetchone()') == []
    scripts = [path for folder in ("benchmarks", "docs", "ltv_assets_tests") for path in sorted((PROJECT_ROOT / folder).rglob("*.py"))]
    found = {str(path.relative_to(PROJECT_ROOT)): rows_of_relations(path.read_text()) for path in (*SOURCES, *scripts)}
    assert {path: lines for path, lines in found.items() if lines} == {}
