"""Shared pieces of the tests: a project in a folder of its own, simulated data and one whole run made once per session."""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, settings
from psutil import virtual_memory

from ltv_assets.defs import asset_checks as asset_checks

# How long an example takes is no property of the code under test.
settings.register_profile("whatever the machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("whatever the machine")

os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "yes")
os.environ.setdefault("MPLBACKEND", "Agg")
# Test processes share the processors: threads that wait must not spin, in whichever order libraries are imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def temporary_root(memory: Path = Path("/dev/shm"), needed_bytes: int = 6 << 30) -> str:
    """Where folders of tests lie: Linux's file system in memory, where it has several times the room a session needs, else on the disk.

    A run of the graph commits to SQLite some 1,500 times, and a disk takes milliseconds for each.
    """
    usable = memory.is_mount() and os.access(memory, os.W_OK)
    roomy = usable and min(shutil.disk_usage(memory).free, virtual_memory().available) > needed_bytes
    return str(memory) if roomy else tempfile.gettempdir()


os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", temporary_root())

PROJECT = Path(__file__).resolve().parent.parent
HANGS = 3600.0
"""Seconds after which a child process is taken to hang, on however slow a machine."""
CACHES = {".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".coverage", "__pycache__"}
TINY_MODEL = "{num_leaves: 5, learning_rate: 0.1, min_data_in_leaf: 20, max_rounds: 20, patience: 5}"
TINY_MODELS = f"""
evaluation: {{bootstrap_repeats: 50}}
models:
  folds: 2
  buyer_classifier: &tiny {TINY_MODEL}
  whale_classifier: *tiny
  revenue_head: *tiny
  increments: *tiny
  boosting: *tiny
  forest: {{trees: 5, num_leaves: 8}}
  linear: {{penalties: [0.01]}}
  stacker: {{booster: *tiny}}
"""
"""Every part of the model, none of it large."""
SMALL_RUN = (PROJECT / "config" / "config_test.yaml").read_text() + TINY_MODELS
"""The configuration of the run that tests share; the bounds of its checks are the usual ones."""
VARIABLES = ("LTV_CONFIG", "LTV_DATA_ROOT", "LTV_WAREHOUSE", "LTV_TODAY", "MLFLOW_TRACKING_URI", "DAGSTER_HOME")


CONTESTS_FOLDERS = ("faults", "graph", "live", "oracle", "statistical")
"""Folders whose tests are about the contest's contract: they write its columns, or the simulator does. See ``other_contract.py``."""
CONTESTS_FIXTURES = {"simulated_small", "ran", "copied"}
CONTESTS_FILE = "\npytestmark = pytest.mark.contest\n"


@cache
def other_contract() -> str | None:
    """Name of the contract in the place of the contest's; None where the contest's is in its place."""
    from ltv_assets.core.contract import load_contract

    return None if load_contract().is_shipped else load_contract().name


def pytest_report_header() -> str | None:
    """Which contract is in place, where it is not the contest's."""
    name = other_contract()
    return name and f"contract: {name}; tests of the contest's are left out (folders {', '.join(CONTESTS_FOLDERS)}, marker contest)"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Files and folders about the contest's contract cannot always be imported under another."""
    if other_contract() is None:
        return None
    if collection_path.is_dir():
        return True if collection_path.name in CONTESTS_FOLDERS and collection_path.parent.name == "ltv_assets_tests" else None
    return True if collection_path.name.startswith("test_") and CONTESTS_FILE in collection_path.read_text() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out single tests about the contest's contract where another is in its place."""
    name = other_contract()
    skipped = pytest.mark.skip(reason=f"about the contest's contract; config/contract.yaml is that of {name}")
    for item in items if name is not None else ():
        if item.get_closest_marker("contest") is not None or CONTESTS_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(skipped)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the variables of the shell it was started from."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first of the session's processes makes and the others wait for; its name says what is in it.

    Sessions that are given one folder in ``LTV_TESTS_SHARED``, as those of `make test` are, share it too.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = Path(os.environ.get("LTV_TESTS_SHARED", base)) / name
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder.with_suffix(".done")
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def simulated_small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training days and one test day, 120 rows an hour: enough for the graph and the bounds of its checks. Read only."""
    from ltv_assets.simulator import simulate

    return made_once(tmp_path_factory, "simulated", lambda root: simulate(root, train_days=3, test_days=1, rows_per_hour=120, seed=3))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Point the project at a data root and an own warehouse: ``place(data_root, config_text)``; returns the warehouse."""

    def point(data_root: Path | None = None, config: str | None = None) -> Path:
        warehouse = tmp_path / "warehouse"
        monkeypatch.setenv("LTV_WAREHOUSE", str(warehouse))
        if data_root is not None:
            monkeypatch.setenv("LTV_DATA_ROOT", str(data_root))
        if config is not None:
            file = tmp_path / "config.yaml"
            file.write_text(config)
            monkeypatch.setenv("LTV_CONFIG", str(file))
        return warehouse

    yield point


@dataclass(frozen=True)
class Ran:
    """A finished run: its data, its warehouse, and what it printed."""

    data: Path
    warehouse: Path
    config: Path
    output: str
    exit_code: int
    touched: tuple[str, ...] = ()
    """What the run made, changed or removed in the project's own warehouse, or beside it; it was given folders elsewhere."""

    def environment(self) -> dict[str, str]:
        return environment(self.data, self.warehouse, LTV_CONFIG=str(self.config))

    def ltv(self, *words: str, **more: str) -> Result:
        """A command of `ltv` in this process, which spares the imports of another; with further variables."""
        from ltv_assets.cli.app import main

        return CliRunner().invoke(main, list(words), env=self.environment() | more, catch_exceptions=False)


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


@cache
def stand_in() -> Path:
    """A folder that is the project's root to Dagster, and whose warehouse is its own: another test watches the project's."""
    folder = Path(tempfile.mkdtemp(prefix="ltv-root-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for path in PROJECT.iterdir():
        if path.name != "warehouse" and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    return folder


def command(*words: str, env: dict[str, str], cwd: Path | None = None, timeout: float = HANGS) -> subprocess.CompletedProcess[str]:
    """Run one installed command of the environment the tests run in, at the project's root unless told otherwise."""
    program = Path(sys.executable).parent / words[0]
    root = stand_in() if words[0] in ("dagster", "dg") else PROJECT
    arguments = [str(program), *words[1:]]
    return subprocess.run(arguments, env=env, cwd=cwd or root, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory, simulated_small: Path) -> Ran:
    """`ltv run` on the small simulated data into an empty warehouse, once for all processes: tests that write take ``copied``."""

    def make(folder: Path) -> None:
        (folder / "config.yaml").write_text(SMALL_RUN)
        before = files_of_the_project()
        env = environment(simulated_small, folder / "warehouse", LTV_CONFIG=str(folder / "config.yaml"))
        done = command("ltv", "run", env=env)
        touched = sorted(name for name, *_ in before ^ files_of_the_project())
        (folder / "told.json").write_text(json.dumps([done.stdout + done.stderr, done.returncode, touched]))

    folder = made_once(tmp_path_factory, "ran", make)
    output, exit_code, touched = json.loads((folder / "told.json").read_text())
    return Ran(simulated_small, folder / "warehouse", folder / "config.yaml", output, exit_code, tuple(touched))


def files_of_the_project() -> set[tuple[str, int, int]]:
    """(path, size, time of change) of everything in the project's own warehouse, and what lies beside it, by name only."""
    warehouse = PROJECT / "warehouse"
    found = {(path.name, 0, 0) for path in PROJECT.iterdir() if path.name not in CACHES}
    for path in warehouse.rglob("*"):
        stat = path.lstat()
        found.add((str(path.relative_to(PROJECT)), stat.st_size, stat.st_mtime_ns))
    return found


@pytest.fixture
def copied(ran: Ran, tmp_path: Path) -> Callable[[], Ran]:
    """A private copy of the run's data and warehouse."""

    def copy() -> Ran:
        shutil.copytree(ran.data, tmp_path / "data")
        shutil.copytree(ran.warehouse, tmp_path / "warehouse")
        return Ran(tmp_path / "data", tmp_path / "warehouse", ran.config, ran.output, ran.exit_code)

    return copy
