"""The record of what was set aside: which files and rows, for which reason, and where they came from.

    quarantine/raw_partitions/day=D/files.json          files the inventory could not use
    quarantine/flattened_features/day=D/files.json      files whose rows could not be decoded
    quarantine/flattened_features/day=D/rows.parquet    rows without key or usable label: row_id, file, row_number, reason, value
    quarantine/flattened_features/day=D/summary.json    rows by reason

Raw data belongs to whoever delivers it: nothing is moved or copied. A file is repaired where it lies, and `ltv quarantine
replay` then makes its day again. A record exists only as long as something of the day is set aside.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.storage.files import STAGING_FOLDER, publish_folder, staging, write_atomic
from ltv_assets.storage.warehouse import Warehouse

FOLDER = "quarantine"
ROWS_FILE = "rows.parquet"
FILES_FILE = "files.json"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True, slots=True)
class FileAside:
    """A file set aside: ``path`` relative to the data root ``root``, the reason, and what was known of its content."""

    path: str
    root: str
    reason: str
    bytes: int | None = None
    rows: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class DayAside:
    """Everything of one day that one asset set aside."""

    asset: str
    day: PartitionKey
    files: tuple[FileAside, ...]
    rows: Mapping[str, int]


def record(
    warehouse: Warehouse,
    asset: str,
    day: PartitionKey,
    *,
    files: Sequence[FileAside] = (),
    rows: pa.Table | None = None,
    reasons: Mapping[str, int] | None = None,
) -> None:
    """Replace the record of one day by what was set aside now, or remove it if that is nothing."""
    final = warehouse.root / FOLDER / asset / f"day={day}"
    if not files and not reasons:
        shutil.rmtree(final, ignore_errors=True)
        return
    with staging(warehouse.root, f"quarantine-{asset}-{day}") as folder:
        content = folder / "content"
        content.mkdir()
        if files:
            write_atomic(content / FILES_FILE, json.dumps([asdict(f) for f in files], sort_keys=True, indent=1).encode())
        if reasons and rows is not None:
            pq.write_table(rows, content / ROWS_FILE)
            write_atomic(content / SUMMARY_FILE, json.dumps(dict(reasons), sort_keys=True, indent=1).encode())
        publish_folder(content, final)


def recorded(warehouse: Warehouse) -> tuple[DayAside, ...]:
    """What is set aside at present, in order of day and asset."""
    found = []
    for folder in sorted((warehouse.root / FOLDER).glob("*/day=*")):
        files = tuple(FileAside(**f) for f in _read_json(folder / FILES_FILE) or [])
        reasons = _read_json(folder / SUMMARY_FILE) or {}
        found.append(DayAside(folder.parent.name, PartitionKey(folder.name.partition("=")[2]), files, reasons))
    return tuple(sorted(found, key=lambda d: (d.day, d.asset)))


def superseded(warehouse: Warehouse) -> tuple[Path, ...]:
    """Folders of records that are not of their day's present publication, and whose day nobody is making now.

    The publication says in its manifest what it set aside. A process that died after it had recorded that and before it
    published leaves such a record, and so does a partition that was deleted.
    """
    found = []
    for entry in recorded(warehouse):
        manifest = warehouse.manifest(entry.asset, entry.day)
        facts = manifest.facts if manifest is not None else {}
        published = (sorted(map(tuple, facts.get("files_quarantined", []))), facts.get("rows_quarantined", {}))
        at_work = any((warehouse.root / STAGING_FOLDER).glob(f"{entry.asset}-{entry.day}-*"))
        if not at_work and (sorted((f.path, f.reason) for f in entry.files), entry.rows) != published:
            found.append(warehouse.root / FOLDER / entry.asset / f"day={entry.day}")
    return tuple(found)


def _read_json(path: Path) -> Any:
    """Content of a file of the record; None if there is none. It is written by one rename, so it is whole."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
