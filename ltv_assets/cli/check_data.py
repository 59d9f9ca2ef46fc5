"""``ltv check-data``: what is wrong with a folder of raw impressions, without touching the warehouse."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ltv_assets.core.config import Config
from ltv_assets.core.contract import Contract, contract_of
from ltv_assets.core.errors import DataError, LtvError
from ltv_assets.core.memory import flatten_threads
from ltv_assets.ingestion.calendar import discover, nothing_found, uncovered_hours
from ltv_assets.ingestion.inventory import DayInventory, inspect_day, unknown_entries
from ltv_assets.ingestion.raw_days import Split, shares_root


@dataclass
class Findings:
    """Problems (they exit 2), warnings, and how much was looked at."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    days: int = 0
    files: int = 0
    rows: int = 0


def _as_data_root(config: Config, folder: Path) -> Config:
    """The configuration with ``folder`` as its data root; a split's own folder is recognised by its hourly folders."""
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise DataError(f"{folder}: folder not found; give a data root with train/ and test/, or one split's folder")
    data = config.data.model_copy(update={"root": folder, "dates": "auto"})
    if not (folder / data.train_folder).is_dir() and not (folder / data.test_folder).is_dir():
        name = "test_folder" if folder.name == data.test_folder else "train_folder"
        other = "train_folder" if name == "test_folder" else "test_folder"
        data = data.model_copy(update={"root": folder.parent, name: folder.name, other: f"{folder.name}.absent"})
    return config.model_copy(update={"data": data})


def check_folder(config: Config, folder: Path, *, rows: bool, progress: Callable[[int, int], None]) -> Findings:
    """Inspect every day below ``folder``; with ``rows`` also decode every row.

    Raises DataError if the folder does not exist.
    """
    config = _as_data_root(config, folder)
    horizon = discover(config)
    findings = Findings()
    splits: tuple[Split, ...] = ("train",) if shares_root(config) else ("train", "test")
    for split in splits:
        findings.problems += unknown_entries(config, split)
    findings.problems += uncovered_hours(config, horizon)
    days = (*horizon.train_days, *horizon.test_days)
    if not days:
        findings.problems.append(f"{folder}: {nothing_found(config)}")
    said: set[str] = set()
    for number, day in enumerate(days):
        progress(number, len(days))
        inventory = inspect_day(config, horizon, day)
        findings.days += 1
        findings.files += len(inventory.files)
        findings.rows += inventory.rows
        for error in inventory.schema_errors:
            # What is wrong with the contract is said of one file only.
            if not error.is_contracts or error.text not in said:
                findings.problems.append(str(error))
                said.add(error.text)
        findings.problems += [f"{f.path}: {f.reason}" for f in inventory.quarantined]
        findings.warnings += [w for w in inventory.warnings if ": quarantined: " not in w]
        if rows:
            _check_rows(config, inventory, findings)
    progress(len(days), len(days))
    if shares_root(config) and days and not horizon.train_days:
        findings.warnings.append(_no_label(contract_of(config)))
    findings.warnings = list(dict.fromkeys(findings.warnings))
    return findings


def _no_label(contract: Contract) -> str:
    """What is said where no day of a folder is a training day, and labels decide which days are."""
    written = contract.by_name[contract.target].in_files
    return (
        f"no row of any day has a label: {contract.place(contract.target)} expects {written} in training days; "
        "correct its name or source there, or deliver days with labels"
    )


def _check_rows(config: Config, inventory: DayInventory, findings: Findings) -> None:
    from ltv_assets.features.flatten import RawFile, flatten_files
    from ltv_assets.features.registry import load_registry

    refused = {error.path for error in inventory.schema_errors}
    usable = [f for f in inventory.good if f.path not in refused]
    if not usable:
        return
    folder = Path(tempfile.mkdtemp(prefix="ltv-check-"))
    try:
        result = flatten_files(
            [RawFile(config.data.root / f.path, f.datetime) for f in usable],
            registry=load_registry(config.features, contract_of(config)),
            labelled=inventory.split == "train",
            out=folder / "day.parquet",
            threads=flatten_threads(config.compute),
            memory_limit=config.compute.duckdb_limit,
        )
        findings.problems += [f"{f.path.relative_to(config.data.root)}: {f.reason}" for f in result.files_aside]
        for reason, count in result.rows_quarantined.items():
            findings.problems.append(f"day {inventory.day} ({inventory.split}): {count} rows: {reason}")
        findings.warnings += list(result.warnings)
    except LtvError as error:
        findings.problems.append(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
