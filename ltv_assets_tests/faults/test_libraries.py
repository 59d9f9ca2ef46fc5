"""Habits of the libraries underneath that would bring a fault back if somebody took them up again."""

from __future__ import annotations

import re
import tomllib

import pytest

from ltv_assets.config import PROJECT_ROOT
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
        if pattern.search(line) and "train/*/*.parquet" not in line  # what `ltv explain-sql` prints for a person
    ]
    assert found == [], why


def test_nothing_that_holds_pandas_below_3_is_required() -> None:
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    assert [name for name in required if name.startswith(("dagster-mlflow", "dagster-pandera"))] == []
    locked = (PROJECT_ROOT / "requirements.lock").read_text()
    assert "dagster-mlflow" not in locked
    assert "dagster-pandera" not in locked
