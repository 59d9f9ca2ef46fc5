"""Files that cannot be used are set aside with their reason; the good ones beside them are read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from ltv_assets.config import Config
from ltv_assets.horizon import discover
from ltv_assets.storage.inventory import DayInventory, files_problem, inspect_day
from ltv_assets_tests.faults.catalogue import Fault, fault
from ltv_assets_tests.faults.evidence import nothing_changes

DAY = date(2025, 10, 1)


@pytest.fixture
def data(tmp_path: Path, simulated_small: Path) -> Path:
    """Hours 0 to 3 of one real-looking day, free to be damaged."""
    for hour in range(4):
        name = f"datetime=2025-10-01-{hour:02d}-00"
        shutil.copytree(simulated_small / "train" / name, tmp_path / "data" / "train" / name)
    return tmp_path / "data"


def inspect(data: Path) -> DayInventory:
    config = Config()
    config = config.model_copy(update={"data": config.data.model_copy(update={"root": data})})
    return inspect_day(config, discover(config), DAY)


def part(data: Path, hour: int) -> Path:
    return next((data / "train" / f"datetime=2025-10-01-{hour:02d}-00").glob("*.parquet"))


# -------------------------------------------------------------------------------------------------------- ways to break


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def text(path: Path) -> None:
    path.write_text("row_id,iap_revenue_d7\n" * 20)


def temporary(path: Path) -> None:
    path.rename(path.with_name(path.name + ".tmp"))


def link_outside(path: Path) -> None:
    outside = path.parents[3] / "outside.parquet"
    shutil.move(path, outside)
    path.symlink_to(outside)


@fault("files", "zero bytes", answer="quarantine", message="<file>: quarantined: zero bytes; upload the file again", inject=empty)
@fault(
    "files", "truncated footer", answer="quarantine", message="<file>: quarantined: not a readable parquet file: <detail>", inject=truncate
)
@fault("files", "not parquet", answer="quarantine", message="<file>: quarantined: not a readable parquet file: <detail>", inject=text)
@fault(
    "files",
    "orphan temporary file",
    answer="quarantine",
    message="<file>: quarantined: expected a .parquet file, found .tmp (an unfinished upload?)",
    inject=temporary,
)
@fault(
    "files",
    "symbolic link that leaves the root",
    answer="quarantine",
    message="<file>: quarantined: symbolic link that leaves the data root; copy the file instead",
    inject=link_outside,
)
def test_broken_file_is_set_aside_with_its_reason(fault: Fault, data: Path) -> None:
    damage: Callable[[Path], None] = fault.inject
    damage(part(data, 2))
    with nothing_changes(data):
        inventory = inspect(data)
    (bad,) = inventory.quarantined
    assert bad.datetime == "2025-10-01-02-00"
    assert fault.told(inventory.warnings)["file"] == bad.path
    assert [f.datetime for f in inventory.good] == ["2025-10-01-00-00", "2025-10-01-01-00", "2025-10-01-03-00"]
    quarantined = [(f.path, f.reason or "") for f in inventory.quarantined]
    assert files_problem(DAY, len(inventory.good), quarantined, 0.5) is None
    assert "max_bad_file_share" in (files_problem(DAY, len(inventory.good), quarantined, 0.1) or "")
