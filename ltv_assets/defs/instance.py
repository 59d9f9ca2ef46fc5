"""Dagster's instance for a warehouse: the project's ``dagster.yaml`` with its folder moved below the warehouse."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ltv_assets.core.config import PROJECT_ROOT
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


def end_orphaned_runs(warehouse_root: Path) -> list[str]:
    """Mark runs as failed whose code server is gone, as after a power cut; returns their ids.

    A code server watches the runs it started, so a run that is killed together with it would count as running for good, and
    hold its place among the concurrent runs. To be called before a new server starts; its daemon then retries them.
    """
    if not (dagster_home(warehouse_root) / "history").is_dir():
        return []
    from dagster import DagsterRunStatus, RunsFilter
    from dagster._core.storage.tags import GRPC_INFO_TAG

    ended = []
    begun = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
    with open_instance(warehouse_root) as instance:
        for run in instance.get_runs(RunsFilter(statuses=begun)):
            path = json.loads(run.tags.get(GRPC_INFO_TAG, "{}")).get("socket")
            if path is not None and not _listens(path):
                instance.report_run_failed(run, "the code server that had started this run ended before it did; what it left is made again")
                ended.append(run.run_id)
    return ended


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0
