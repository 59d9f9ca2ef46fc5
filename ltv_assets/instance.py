"""Dagster's instance for a warehouse: the project's ``dagster.yaml`` with its folder moved below the warehouse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ltv_assets.config import PROJECT_ROOT
from ltv_assets.storage.files import write_atomic

if TYPE_CHECKING:
    from dagster import DagsterInstance

STATIC_FOLDER = "warehouse/dagster"


def dagster_home(warehouse_root: Path) -> Path:
    """Folder of Dagster's state in a warehouse."""
    return warehouse_root / "dagster"


def write_instance_config(warehouse_root: Path) -> Path:
    """Write ``dagster.yaml`` for a warehouse and return its folder, usable as DAGSTER_HOME."""
    home = dagster_home(warehouse_root)
    home.mkdir(parents=True, exist_ok=True)
    settings = yaml.safe_load((PROJECT_ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    text = yaml.safe_dump(_moved(settings, str(home)), sort_keys=True)
    path = home / "dagster.yaml"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text.encode())
    return home


def _moved(value: Any, home: str) -> Any:
    if isinstance(value, dict):
        return {k: _moved(v, home) for k, v in value.items()}
    if isinstance(value, str) and value.startswith(STATIC_FOLDER):
        return home + value[len(STATIC_FOLDER) :]
    return value


def open_instance(warehouse_root: Path) -> DagsterInstance:
    """The instance of a warehouse, the same one `dagster dev` shows for it."""
    from dagster import DagsterInstance

    return DagsterInstance.from_config(str(write_instance_config(warehouse_root)))
