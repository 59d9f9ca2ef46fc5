"""Headline figures, and the state of every partition, for the command line and the reports.

What belongs here: the choice and order of figures and partitions. What does not: evaluation (``modeling/evaluation/``),
freshness (``freshness.py``), output (``cli/``, ``plots/``).
"""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from ltv_assets.core.asset_specs import ASSET_NAMES
from ltv_assets.core.errors import LtvError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.ingestion.raw_days import listed_once
from ltv_assets.state.freshness import Lineage
from ltv_assets.state.plan import plan, standing
from ltv_assets.state.project import Project


def headline_figures(project: Project, key: PartitionKey) -> dict[str, dict[str, Any]]:
    """{metric: {value, low, high}} of a stored evaluation as a whole; empty if the window was never evaluated."""
    if project.warehouse.manifest("holdout_metrics", key) is None:
        return {}
    # Not `read_table`, which imports pyarrow.dataset and pandas: half a second of a command that has nothing to do.
    rows = [r for f in project.warehouse.files("holdout_metrics", key) for r in pq.ParquetFile(f).read().to_pylist()]
    return {r["metric"]: {k: r[k] for k in ("value", "low", "high")} for r in rows if r["segment"] == "all"}


def verify_everything(project: Project) -> list[str]:
    """Compare every file of the warehouse with its hash; mark files that differ as stale and return them."""
    found = (project.warehouse.verify(asset, key) for asset in ASSET_NAMES for key in project.warehouse.keys(asset))
    return [problem for problem in found if problem is not None]


def partition_states(project: Project) -> list[dict[str, Any]]:
    """One dictionary per partition: asset, partition, state, rows, quarantined (rows and files), why."""
    lineage = project.lineage()
    with listed_once():
        planned = plan(lineage, standing(lineage))
    rows = []
    for status in planned:
        asset, key = status.asset, status.partition
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


def _remarks(lineage: Lineage, asset: str, key: PartitionKey) -> str:
    """Warnings of non-blocking checks, so that a fresh partition does not hide them."""
    remarks = [v.remark for v in lineage.warehouse.verdicts(asset, key)]
    return "; ".join(f"warning: {remark}" for remark in remarks if remark)
