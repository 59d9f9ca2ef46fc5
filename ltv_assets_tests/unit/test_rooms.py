"""The house keeps its rooms apart: a pure core, thin assets, no pickle, nothing of this machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ltv_assets.core.config import PROJECT_ROOT

PACKAGE = PROJECT_ROOT / "ltv_assets"
PURE = ("features", "sampling", "modeling", "simulator", "storage", "pictures")
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module a file imports anywhere, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return names


def reachable(path: Path, seen: set[Path]) -> set[str]:
    """Modules a file imports, directly or through modules of the project."""
    if path in seen:
        return set()
    seen.add(path)
    found = imports(path)
    for name in list(found):
        if name.startswith("ltv_assets"):
            below = PROJECT_ROOT.joinpath(*name.split("."))
            for file in (below.with_suffix(".py"), below / "__init__.py"):
                if file.is_file():
                    found |= reachable(file, seen)
    return found


@pytest.mark.parametrize("room", PURE)
def test_core_reaches_neither_dagster_nor_mlflow(room: str) -> None:
    for path in sorted((PACKAGE / room).rglob("*.py")):
        roots = {name.split(".")[0] for name in reachable(path, set())}
        assert not roots & {"dagster", "dagster_duckdb", "mlflow"}, path


def test_core_really_runs_without_dagster_and_mlflow() -> None:
    code = (
        "import sys\n"
        "for name in ('dagster', 'mlflow'): sys.modules[name] = None\n"
        "import ltv_assets.modeling, ltv_assets.features.flatten, ltv_assets.plots, ltv_assets.simulator, ltv_assets.storage.catalog\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT_ROOT)


def test_arrows_point_down_only() -> None:
    for path in MODULES:
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room in PURE:
            upward = {
                n
                for n in imports(path)
                if re.match(r"ltv_assets\.(assets|checks|jobs|definitions|resources|cli|running|project|lineage)\b", n)
            }
            assert not upward, f"{path.name} imports {upward}"


@pytest.mark.parametrize("words", ["import duckdb\n\nduckdb.connect()\n", "from duckdb import connect\n\nconnect()\n"])
@pytest.mark.parametrize("place", ["ltv_assets/monitoring/retraining.py", "ltv_assets/storage/catalog.py", "benchmarks/serving.py"])
def test_duckdb_is_opened_in_one_place(place: str, words: str) -> None:
    """Elsewhere the linter refuses it: DuckDB's own defaults are every core, 80 % of the memory and the machine's time zone."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251", "--stdin-filename", place, "-"]
    done = subprocess.run(command, input=words, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "open_duckdb" in done.stdout, done.stdout + done.stderr


def test_folder_of_comparisons_is_named_in_one_place() -> None:
    named = {
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in ("comparisons", "_against_")
    }
    assert named == {"storage/warehouse.py"}


def test_asset_functions_are_thin() -> None:
    for path in sorted((PACKAGE / "assets").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any("dg.asset" in ast.unparse(d) for d in node.decorator_list):
                first = node.body[0].lineno
                assert (node.end_lineno or first) - first + 1 <= 25, f"{path.name}: {node.name}"


def test_nothing_loads_pickles() -> None:
    pattern = re.compile(
        r"\b(pickle|joblib|cloudpickle|dill|shelve)\.\w|import (pickle|joblib|cloudpickle|dill|shelve)|torch\.load|allow_pickle=True"
    )
    for path in MODULES:
        assert not pattern.search(path.read_text()), path


def test_every_module_says_what_it_is() -> None:
    for path in MODULES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_public_functions_have_docstrings() -> None:
    missing = []
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
                missing.append(f"{path.relative_to(PROJECT_ROOT)}: {node.name}")
    assert missing == []


def test_lock_has_names_and_versions_only() -> None:
    lines = (PROJECT_ROOT / "requirements.lock").read_text().splitlines()
    assert len(lines) > 50
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []
