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
MODULES = sorted(PACKAGE.rglob("*.py"))


def test_arrows_point_down_and_the_core_knows_neither_dagster_nor_mlflow() -> None:
    """The contract of the import linter, which sees imports inside functions too."""
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(program), "--no-cache"], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_definitions_load_without_models_and_plots() -> None:
    """Every command, code server and worker pays for what the definitions import."""
    heavy = ("sklearn", "scipy", "matplotlib", "pandas", "lightgbm", "mlflow")
    code = f"import sys, ltv_assets.definitions; print([n for n in {heavy!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_package_root_holds_folders_and_the_wiring_only() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "definitions.py", "online.py"}


@pytest.mark.contest
def test_core_really_runs_without_dagster_and_mlflow() -> None:
    code = (
        "import sys\n"
        "for name in ('dagster', 'mlflow'): sys.modules[name] = None\n"
        "import ltv_assets.modeling, ltv_assets.features.flatten, ltv_assets.plots, ltv_assets.simulator, ltv_assets.storage.catalog\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT_ROOT)


@pytest.mark.parametrize("words", ["import duckdb\n\nduckdb.connect()\n", "from duckdb import connect\n\nconnect()\n"])
@pytest.mark.parametrize("place", ["ltv_assets/monitoring/retraining.py", "ltv_assets/storage/catalog.py", "benchmarks/serving.py"])
def test_duckdb_is_opened_in_one_place(place: str, words: str) -> None:
    """Elsewhere the linter refuses it: DuckDB's own defaults are every core, 80 % of the memory and the machine's time zone."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251", "--stdin-filename", place, "-"]
    done = subprocess.run(command, input=words, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "open_duckdb" in done.stdout, done.stdout + done.stderr


def test_a_module_sends_its_reader_to_files_that_exist() -> None:
    """Beside the module, below the package, or below the project; whoever moves a file hears of it."""
    lost = []
    for path in MODULES:
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        named = set(re.findall(r"``([\w./-]+(?:\.py|/))``", text))
        named |= {words.split("``")[1] for words in re.findall(r"(?:Next\s+to\s+read|Read\s+next|Read\s+first):\s+``[^`]*``", text)}
        lost += [
            (str(path), name) for name in named if not any((folder / name).exists() for folder in (path.parent, PACKAGE, PROJECT_ROOT))
        ]
    assert lost == []


def test_folder_of_comparisons_is_named_in_one_place() -> None:
    named = {
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in ("comparisons", "_against_")
    }
    assert named == {"storage/warehouse.py"}


def test_asset_functions_are_thin() -> None:
    for path in sorted((PACKAGE / "defs" / "assets").glob("*.py")):
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
