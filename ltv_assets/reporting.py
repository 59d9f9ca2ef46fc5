"""What `ltv status` shows: the state of every partition that the configuration asks for or the warehouse holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ltv_assets.errors import LtvError
from ltv_assets.lineage import Lineage, has_raw_data
from ltv_assets.project import Project
from ltv_assets.storage.warehouse import WINDOW_ASSETS


def wanted_partitions(project: Project) -> Iterator[tuple[str, str]]:
    """(asset, partition) pairs in the order of the graph."""
    horizon = project.horizon
    days = [d for d in (*horizon.train_days, *horizon.test_days) if has_raw_data(project.config, horizon, d)]
    for asset in ("raw_partitions", "flattened_features"):
        yield from ((asset, str(day)) for day in days)
    windows = {str(d) for d in (horizon.last_window,) if d is not None}
    for asset in WINDOW_ASSETS:
        yield from ((asset, key) for key in sorted(windows | set(project.warehouse.keys(asset))))
    scored = {str(d) for d in horizon.test_days} | set(project.warehouse.keys("predictions"))
    yield from (("predictions", key) for key in sorted(scored))
    if horizon.test_days:
        yield ("submission", project.submission_key)


def partition_states(project: Project) -> list[dict[str, Any]]:
    """One dictionary per partition: asset, partition, state, rows, quarantined (rows and files), why."""
    lineage = project.lineage()
    rows = []
    for asset, key in wanted_partitions(project):
        status = lineage.status(asset, key)
        try:
            manifest = project.warehouse.manifest(asset, key)
        except LtvError:
            manifest = None
        facts = manifest.facts if manifest else {}
        quarantined = sum(facts.get("rows_quarantined", {}).values()) + len(facts.get("files_quarantined", []))
        rows.append(
            {
                "asset": asset,
                "partition": key,
                "state": status.state,
                "rows": manifest.rows if manifest else None,
                "quarantined": quarantined,
                "why": status.why or _remarks(lineage, asset, key),
            }
        )
    return rows


def _remarks(lineage: Lineage, asset: str, key: str) -> str:
    """Failed checks that do not block, so that a fresh partition does not hide them."""
    failed = [v for v in lineage.warehouse.verdicts(asset, key) if not v.passed]
    return "; ".join(f"warning: {v.message}" for v in failed)
