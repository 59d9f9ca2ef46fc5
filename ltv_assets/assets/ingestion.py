"""From hourly folders to flattened days: ``raw_partitions`` (what is there) and ``flattened_features`` (what it says)."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq

from ltv_assets.assets.publishing import (
    OWNERS,
    Publication,
    column_schema,
    definition_metadata,
    markdown_table,
    readable_failures,
)
from ltv_assets.features.schema import feature_names
from ltv_assets.lineage import CODE_VERSIONS, hash_cache_path
from ltv_assets.project import Project
from ltv_assets.resources import CatalogueResource, ProjectResource
from ltv_assets.storage.files import write_atomic
from ltv_assets.storage.inventory import DayInventory, HashCache, inspect_day

GROUP = "ingestion"
CALENDAR_COLUMNS = ("weekday", "hour")
"""Columns that differ from one day to the next by their nature; they say nothing about drift."""


def build(project: Project, days: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    """The two assets of this room on the given clock."""

    @dg.asset(
        name="raw_partitions",
        partitions_def=days,
        group_name=GROUP,
        owners=OWNERS,
        kinds={"parquet"},
        code_version=CODE_VERSIONS["raw_partitions"],
        description="Inventory of one day's raw files: rows, schema fingerprint, hash and verdict per file. Nothing is copied.",
        metadata=definition_metadata("raw_partitions"),
    )
    def raw_partitions(
        context: dg.AssetExecutionContext, project_resource: ProjectResource, catalogue: CatalogueResource
    ) -> dg.MaterializeResult:
        with readable_failures():
            work = Publication.begin(project_resource, catalogue, "raw_partitions", context.partition_key)
            day = context.partition_time_window.start.date()
            cache = HashCache.load(hash_cache_path(work.project.warehouse, day))
            inventory = inspect_day(work.project.config, work.project.horizon, day, cache)
            manifest = work.publish(lambda folder: _write_inventory(inventory, folder), inventory_facts(inventory))
            for warning in inventory.warnings:
                context.log.warning(warning)
            return work.result(manifest, _inventory_metadata(inventory))

    @dg.asset(
        name="flattened_features",
        partitions_def=days,
        deps=[raw_partitions],
        group_name=GROUP,
        owners=OWNERS,
        kinds={"duckdb", "parquet"},
        code_version=CODE_VERSIONS["flattened_features"],
        description=(
            "One row per impression: keys, labels and flat features of every nested column. "
            "Rows without key or label are set aside with their reason and counted."
        ),
        metadata={
            "dagster/column_schema": column_schema(project.flattened_columns),
            "dagster/table_name": "ltv.main.flattened_features",
        },
    )
    def flattened_features(
        context: dg.AssetExecutionContext, project_resource: ProjectResource, catalogue: CatalogueResource
    ) -> dg.MaterializeResult:
        from ltv_assets.features.flatten import FlattenResult, flatten_files

        with readable_failures():
            work = Publication.begin(project_resource, catalogue, "flattened_features", context.partition_key)
            config, results = work.project.config, list[FlattenResult]()
            raw = raw_files(work.project, context.partition_key)

            def fill(folder: Path) -> dict[str, int | None]:
                results.append(
                    flatten_files(
                        raw.files,
                        registry=work.project.registry,
                        labelled=raw.labelled,
                        out=folder / "part-00000.parquet",
                        threads=config.compute.threads,
                        memory_limit=f"{config.compute.duckdb_memory_gb}GB",
                        sampling_fraction=raw.sampling_fraction,
                        seed=config.seed,
                    )
                )
                set_rows_aside(work.project, context.partition_key, results[0])
                return {"part-00000.parquet": results[0].rows_out}

            manifest = work.publish(fill, lambda: flatten_facts(results[0]))
            for warning in results[0].warnings if results else ():
                context.log.warning(warning)
            return work.result(manifest, flatten_metadata(work.project, context.partition_key, work.started))

    return [raw_partitions, flattened_features]


# ------------------------------------------------------------------------------------------------------- raw_partitions


def _write_inventory(inventory: DayInventory, folder: Path) -> dict[str, int | None]:
    table = inventory.table()
    pq.write_table(table, folder / "inventory.parquet")
    return {"inventory.parquet": table.num_rows}


def inventory_facts(inventory: DayInventory) -> dict[str, Any]:
    """Figures of a day's inventory that checks and downstream assets read from the manifest."""
    return {
        "split": inventory.split,
        "rows": inventory.rows,
        "files_good": len(inventory.good),
        "files_quarantined": [[f.path, f.reason] for f in inventory.quarantined],
        "missing_hours": list(inventory.missing_hours),
        "empty_hours": list(inventory.empty_hours),
        "columns_missing": list(inventory.columns_missing),
        "columns_unexpected": list(inventory.columns_unexpected),
        "schema_errors": list(inventory.schema_errors),
    }


def _inventory_metadata(inventory: DayInventory) -> dict[str, Any]:
    listed = [
        {
            "hour": f.datetime[-5:-3],
            "file": f.path,
            "rows": f.rows if f.rows is not None else "",
            "verdict": f.verdict,
            "reason": f.reason or "",
        }
        for f in inventory.files
    ]
    return {
        "raw_rows": inventory.rows,
        "raw_bytes": sum(f.bytes for f in inventory.files),
        "files_good": len(inventory.good),
        "files_quarantined": len(inventory.quarantined),
        "hours_missing": len(inventory.missing_hours),
        "split": inventory.split,
        "files": markdown_table(listed[:200]),
    }


# --------------------------------------------------------------------------------------------------- flattened_features


class RawFiles:
    """The good files of one day as the inventory lists them, and how the day's split is read."""

    def __init__(self, project: Project, key: str) -> None:
        from ltv_assets.features.flatten import RawFile

        config = project.config
        manifest = project.warehouse.require("raw_partitions", key, "materialize it first")
        rows = [r for f in project.warehouse.files("raw_partitions", key) for r in pq.read_table(f).to_pylist()]
        good = [r for r in rows if r["verdict"] == "good"]
        self.files = [RawFile(config.data.root / r["path"], r["datetime"]) for r in good]
        self.labelled = manifest.facts["split"] == "train"
        self.sampling_fraction = (config.data.train if self.labelled else config.data.test).sampling_fraction


def raw_files(project: Project, key: str) -> RawFiles:
    """The files to flatten for one day."""
    return RawFiles(project, key)


def set_rows_aside(project: Project, key: str, result: Any) -> None:
    """Publish a day's quarantined rows with their reasons, or remove the record of an earlier run if there are none."""
    folder = project.warehouse.root / "quarantine" / "flattened_features" / f"day={key}"
    if result.quarantine.num_rows == 0:
        for name in ("rows.parquet", "summary.json"):
            (folder / name).unlink(missing_ok=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".rows.parquet.tmp"
    pq.write_table(result.quarantine, temporary)
    temporary.replace(folder / "rows.parquet")
    write_atomic(folder / "summary.json", json.dumps(dict(result.rows_quarantined), sort_keys=True, indent=1).encode())


def flatten_facts(result: Any) -> dict[str, Any]:
    """Figures of a flattened day that checks and the UI read from the manifest."""
    return {
        "rows_in": result.rows_in,
        "rows_out": result.rows_out,
        "rows_sampled_out": result.rows_sampled_out,
        "rows_quarantined": dict(result.rows_quarantined),
        "missing": {k: round(float(v), 6) for k, v in result.missing.items()},
        "future_timestamps": dict(result.future_timestamps),
        "warnings": list(result.warnings),
    }


def flatten_metadata(project: Project, key: str, started: float) -> dict[str, Any]:
    """What the asset page shows of a flattened day: speed, gaps, rows set aside, and the features that moved most."""
    import time

    facts = project.warehouse.require("flattened_features", key, "materialize it first").facts
    seconds = max(time.perf_counter() - started, 1e-9)
    missing = [{"group": name, "missing share": share} for name, share in facts["missing"].items()]
    return {
        "rows_per_second": round(facts["rows_in"] / seconds),
        "rows_in": facts["rows_in"],
        "rows_quarantined": sum(facts["rows_quarantined"].values()),
        "future_timestamps": sum(facts["future_timestamps"].values()),
        "missing_by_group": markdown_table(missing),
        **_drift_metadata(project, key),
    }


def _drift_metadata(project: Project, key: str) -> dict[str, Any]:
    shifted = shifted_features(project, key)
    if shifted is None:
        return {}
    return {"largest_psi": float(shifted[0]["psi"]) if shifted else 0.0, "most_shifted_features": markdown_table(shifted[:10])}


def shifted_features(project: Project, key: str) -> list[dict[str, Any]] | None:
    """Features by PSI against the newest earlier flattened day, largest first; None if there is no earlier day."""
    earlier = [k for k in project.warehouse.keys("flattened_features") if k < key]
    if not earlier:
        return None
    reference = project.warehouse.files("flattened_features", earlier[-1], verify=False)
    current = project.warehouse.files("flattened_features", key, verify=False)
    compared = tuple(name for name in feature_names(project.registry) if name.split("__")[0] not in CALENDAR_COLUMNS)
    return [{**row, "compared with": earlier[-1]} for row in _shifts(reference, current, compared)]


@lru_cache(maxsize=4)
def _shifts(reference: tuple[Path, ...], current: tuple[Path, ...], features: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
    """PSI by feature; remembered because the asset page and the drift check ask for the same pair of days (file names carry hashes)."""
    from ltv_assets.features.drift import population_stability

    frame = population_stability(list(reference), list(current), list(features)).sort_values("psi", ascending=False)
    return tuple({"feature": str(r.feature), "psi": float(r.psi)} for r in frame.itertuples())
