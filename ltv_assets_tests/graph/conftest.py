"""One whole run of the graph, made once per session and copied for tests that damage it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ltv_assets_tests.conftest import PROJECT, VARIABLES


@dataclass(frozen=True)
class Ran:
    """A finished run: its data, its warehouse, and what it printed."""

    data: Path
    warehouse: Path
    output: str
    exit_code: int

    def environment(self) -> dict[str, str]:
        return environment(self.data, self.warehouse)


def environment(data: Path | None, warehouse: Path, **more: str) -> dict[str, str]:
    """The shell's environment without the project's variables, then with the given ones."""
    kept = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    kept |= {
        "LTV_WAREHOUSE": str(warehouse),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
    }
    if data is not None:
        kept["LTV_DATA_ROOT"] = str(data)
    return kept | more


def command(*words: str, env: dict[str, str], cwd: Path = PROJECT, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Run one installed command of the environment the tests run in."""
    program = Path(sys.executable).parent / words[0]
    return subprocess.run([str(program), *words[1:]], env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory, simulated_small: Path) -> Ran:
    """`ltv run` on the small simulated data into an empty warehouse."""
    warehouse = tmp_path_factory.mktemp("ran") / "warehouse"
    done = command("ltv", "run", env=environment(simulated_small, warehouse))
    return Ran(simulated_small, warehouse, done.stdout + done.stderr, done.returncode)


@pytest.fixture
def copied(ran: Ran, tmp_path: Path) -> Callable[[], Ran]:
    """A private copy of the run's data and warehouse."""

    def copy() -> Ran:
        shutil.copytree(ran.data, tmp_path / "data")
        shutil.copytree(ran.warehouse, tmp_path / "warehouse")
        return Ran(tmp_path / "data", tmp_path / "warehouse", ran.output, ran.exit_code)

    return copy
