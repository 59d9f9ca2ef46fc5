"""From hourly folders to flattened days: ``raw_partitions`` (what is there) and ``flattened_features`` (what it says)."""

import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow.parquet as pq

from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.defs.publication import Publication, markdown_table
from ltv_assets.features.schema import feature_names
from ltv_assets.ingestion.calendar import uncovered_hours
from ltv_assets.ingestion.inventory import DayInventory, HashCache, inspect_day, refuse_unsound
from ltv_assets.state.freshness import hash_cache_path
from ltv_assets.state.project import Project
from ltv_assets.storage import quarantine
from ltv_assets.storage.manifest import Manifest
from ltv_assets.storage.quarantine import FileAside

if TYPE_CHECKING:
    from ltv_assets.features.flatten import FlattenResult

FLATTENED_FILE = "part-00000.parquet"


def raw_partitions(work: Publication) -> dg.MaterializeResult:
    """Look at every file of a day and say what it is good for."""
    cache = HashCache.load(hash_cache_path(work.project.warehouse, work.key, work.project.contract))
    inventory = inspect_day(work.project.config, work.project.horizon, work.key.day, cache)
    set_files_aside(work.project, inventory)
    uncovered = uncovered_hours(work.project.config, work.project.horizon, work.key.day)
    facts = {**inventory_facts(inventory), "hours_uncovered": list(uncovered)}
    manifest = work.publish(lambda folder: _write_inventory(inventory, folder), facts)
    for warning in (*inventory.warnings, *uncovered):
        work.log.warning(warning)
    return work.result(manifest, {**_inventory_metadata(inventory), "hours_uncovered": "; ".join(uncovered) or "none"})


def flattened_features(work: Publication) -> dg.MaterializeResult:
    """Turn a day's impressions into one flat row each."""
    day = FlattenedDay(work.project, work.key)
    manifest = work.publish(day.write, day.facts)
    for warning in manifest.facts["warnings"]:
        work.log.warning(warning)
    return work.result(manifest, flatten_metadata(work, manifest))


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
        "schema_errors": [str(error) for error in inventory.schema_errors],
    }


def _hours_picture(inventory: DayInventory) -> bytes:
    from ltv_assets.plots import rows_by_hour

    counts = {verdict: [0] * 24 for verdict in ("good", "quarantined")}
    for f in inventory.files:
        counts[f.verdict][int(f.datetime[-5:-3])] += f.rows or 0
    missing = [int(hour[-5:-3]) for hour in inventory.missing_hours]
    return rows_by_hour(counts, missing=missing, title=f"Raw rows by hour, {inventory.day}")


def _inventory_metadata(inventory: DayInventory) -> dict[str, Any]:
    from ltv_assets.plots import to_markdown_image

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
        "rows_by_hour": dg.MetadataValue.md(to_markdown_image(_hours_picture(inventory), "rows by hour")),
        "raw_rows": inventory.rows,
        "raw_bytes": sum(f.bytes for f in inventory.files),
        "files_good": len(inventory.good),
        "files_quarantined": len(inventory.quarantined),
        "hours_missing": len(inventory.missing_hours),
        "split": inventory.split,
        "files": markdown_table(listed[:200]),
    }


# --------------------------------------------------------------------------------------------------- flattened_features


class FlattenedDay:
    """One day being flattened: reads what the inventory calls good, writes the day's file, sets unusable rows aside."""

    def __init__(self, project: Project, key: PartitionKey) -> None:
        self.project = project
        self.key = key
        self.result: FlattenResult | None = None

    def write(self, folder: Path) -> dict[str, int | None]:
        """Flatten into ``folder``; returns what `Warehouse.write` wants to know."""
        from ltv_assets.core.memory import flatten_threads
        from ltv_assets.features.flatten import RawFile, flatten_files
        from ltv_assets.training.dask_cluster import workers_of

        config, warehouse = self.project.config, self.project.warehouse
        listed = [row for f in warehouse.files("raw_partitions", self.key) for row in pq.read_table(f).to_pylist()]
        labelled = warehouse.require("raw_partitions", self.key, "materialize it first").facts["split"] == "train"
        good = [row for row in listed if row["verdict"] == "good"]
        cache = HashCache.load(hash_cache_path(warehouse, self.key, self.project.contract))
        refuse_unsound([(config.data.root / row["path"], row["sha256"]) for row in good], cache)
        self.result = flatten_files(
            [RawFile(config.data.root / row["path"], row["datetime"]) for row in good],
            registry=self.project.registry,
            labelled=labelled,
            out=folder / FLATTENED_FILE,
            threads=flatten_threads(config.compute),
            memory_limit=config.compute.duckdb_limit,
            sampling_fraction=(config.data.train if labelled else config.data.test).sampling_fraction,
            seed=config.seed,
            workers=workers_of(config),
        )
        set_rows_aside(self.project, self.key, self.result, listed)
        return {FLATTENED_FILE: self.result.rows_out}

    def facts(self) -> dict[str, Any]:
        """Figures of the flattened day that checks and the UI read from the manifest."""
        result = self.result
        assert result is not None, "write comes first"
        root = self.project.config.data.root
        return {
            "rows_in": result.rows_in,
            "rows_out": result.rows_out,
            "rows_sampled_out": result.rows_sampled_out,
            "rows_quarantined": dict(result.rows_quarantined),
            "rows_in_files_quarantined": sum(file.rows for file in result.files_aside),
            "files_quarantined": [[str(file.path.relative_to(root)), file.reason] for file in result.files_aside],
            "missing": {k: round(float(v), 6) for k, v in result.missing.items()},
            "future_timestamps": dict(result.future_timestamps),
            "nonfinite_values": dict(result.nonfinite_values),
            "rounded_labels": dict(result.rounded_labels),
            "lost_values": {name: [count, first.replace(f"{root}/", "")] for name, (count, first) in result.lost_values.items()},
            "warnings": [w.replace(f"{root}/", "") for w in result.warnings],
        }


def set_files_aside(project: Project, inventory: DayInventory) -> None:
    """Record the day's files that the inventory could not use, or remove the record of an earlier run if there are none."""
    root = str(project.config.data.root)
    files = [FileAside(f.path, root, f.reason or "", f.bytes, f.rows, f.sha256) for f in inventory.quarantined]
    quarantine.record(project.warehouse, "raw_partitions", PartitionKey(inventory.day), files=files)


def set_rows_aside(project: Project, key: PartitionKey, result: "FlattenResult", listed: list[dict[str, Any]]) -> None:
    """Record a day's unusable rows and undecodable files with their reasons; ``listed`` is the day's inventory."""
    root = project.config.data.root
    known = {row["path"]: row for row in listed}
    paths = [(str(file.path.relative_to(root)), file) for file in result.files_aside]
    files = [FileAside(path, str(root), file.reason, known[path]["bytes"], file.rows, known[path]["sha256"]) for path, file in paths]
    quarantine.record(
        project.warehouse, "flattened_features", key, files=files, rows=result.quarantine, reasons=dict(result.rows_quarantined)
    )


def flatten_metadata(work: Publication, manifest: Manifest) -> dict[str, Any]:
    """What the asset page shows of a flattened day: speed, gaps, rows set aside, and the features that moved most."""
    from ltv_assets.plots import missing_shares, to_markdown_image

    facts = manifest.facts
    picture = missing_shares(facts["missing"], title=f"Missing values by group, {work.key}")
    return {
        "rows_per_second": round(facts["rows_in"] / max(time.perf_counter() - work.started, 1e-9)),
        "rows_in": facts["rows_in"],
        "rows_quarantined": sum(facts["rows_quarantined"].values()),
        "future_timestamps": sum(facts["future_timestamps"].values()),
        "values_lost": sum(count for count, _ in facts["lost_values"].values()),
        "lost_values": markdown_table([{"column": c, "values": n, "first": first} for c, (n, first) in facts["lost_values"].items()]),
        "rows_set_aside": markdown_table([{"reason": r, "rows": n} for r, n in sorted(facts["rows_quarantined"].items())]),
        "missing_by_group": dg.MetadataValue.md(to_markdown_image(picture, "missing values by group")),
        **_drift_metadata(work.project, work.key),
    }


def _drift_metadata(project: Project, key: PartitionKey) -> dict[str, Any]:
    shifted = shifted_features(project, key)
    if shifted is None:
        return {}
    from ltv_assets.plots import psi_bars, to_markdown_image

    title = f"Most shifted features, {key} against {shifted[0]['compared with']}" if shifted else "Most shifted features"
    picture = psi_bars([row["feature"] for row in shifted], [row["psi"] for row in shifted], title=title)
    return {
        "largest_psi": float(shifted[0]["psi"]) if shifted else 0.0,
        "most_shifted_features": dg.MetadataValue.md(to_markdown_image(picture, "most shifted features")),
    }


def shifted_features(project: Project, key: PartitionKey) -> list[dict[str, Any]] | None:
    """Features by PSI against the newest earlier flattened day, largest first; None if there is no earlier day."""
    earlier = [k for k in project.warehouse.keys("flattened_features") if k < key]
    if not earlier:
        return None
    reference = project.warehouse.files("flattened_features", earlier[-1], verify=False)
    current = project.warehouse.files("flattened_features", key, verify=False)
    compute = project.config.compute
    from ltv_assets.monitoring.psi import without_calendar

    shifts = _shifts(
        reference, current, without_calendar(feature_names(project.registry), project.contract), compute.threads, compute.duckdb_limit
    )
    return [{**row, "compared with": earlier[-1]} for row in shifts]


@lru_cache(maxsize=4)
def _shifts(
    reference: tuple[Path, ...], current: tuple[Path, ...], features: tuple[str, ...], threads: int, memory_limit: str
) -> tuple[dict[str, Any], ...]:
    """PSI by feature, largest first; remembered because the asset page and the drift check ask for the same days.

    File names carry hashes, so other content is another key.
    """
    from ltv_assets.monitoring.psi import population_stability

    frame = population_stability(reference, current, features, threads=threads, memory_limit=memory_limit)
    return tuple({"feature": str(r.feature), "psi": float(r.psi)} for r in frame.itertuples())
