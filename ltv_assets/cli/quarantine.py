"""``ltv quarantine``: what is set aside, what of it was repaired since, and taking that in.

A file counts as repaired when it differs from the one that was set aside. Its day is then made again by the ordinary jobs,
so everything that holds for a first ingestion holds for a replay.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ltv_assets.cli.runner import Progress, Report, replay_days
from ltv_assets.core.errors import StaleError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.ingestion.inventory import NO_PERMISSION
from ltv_assets.state.project import Project
from ltv_assets.storage.files import sha256_file
from ltv_assets.storage.quarantine import FOLDER, ROWS_FILE, FileAside, recorded


def listing(project: Project) -> list[dict[str, Any]]:
    """One dictionary per file set aside, and per reason for rows: day, asset, what, reason, origin, count, repaired.

    ``repaired`` says of a file that it differs from the one set aside, of rows that some file of their day does.
    """
    lineage = project.lineage()
    lines: list[dict[str, Any]] = []
    for entry in recorded(project.warehouse):
        common = {"day": entry.day, "asset": entry.asset}
        for file in entry.files:
            origin = Path(file.root) / file.path
            about = {"what": file.path, "reason": file.reason, "origin": str(origin), "count": 1, "repaired": _differs(file)}
            lines.append({**common, **about})
        changed = lineage.status("raw_partitions", entry.day).state != "fresh"
        origin = project.warehouse.root / FOLDER / entry.asset / f"day={entry.day}" / ROWS_FILE
        for reason, count in sorted(entry.rows.items()):
            lines.append({**common, "what": f"{count} rows", "reason": reason, "origin": str(origin), "count": count, "repaired": changed})
    return lines


def _differs(file: FileAside) -> bool:
    origin = Path(file.root) / file.path
    try:
        if origin.lstat().st_size != file.bytes:
            return True
        return (sha256_file(origin) != file.sha256) if file.sha256 else (file.reason == NO_PERMISSION and os.access(origin, os.R_OK))
    except OSError:
        return not origin.exists()


def _set_aside(project: Project, day: PartitionKey) -> tuple[set[str], int]:
    """Files of a day that are set aside, and the number of its rows that are."""
    entries = [e for e in recorded(project.warehouse) if e.day == day]
    return {f.path for e in entries for f in e.files}, sum(sum(e.rows.values()) for e in entries)


def replay(project: Project, day: PartitionKey | None, *, advance: Progress) -> tuple[Report, list[str]]:
    """Make every day (or one) again of which something is set aside and something changed since; returns what came of it, a line a day.

    Raises StaleError if nothing of the given day is set aside, DataError if the data root does not know it.
    """
    known = {e.day for e in recorded(project.warehouse)}
    if day is not None and day not in known:
        raise StaleError(f"day {day}: nothing of it is set aside; `ltv quarantine list` shows what is")
    there = {PartitionKey(d) for d in (*project.horizon.train_days, *project.horizon.test_days)}
    days = [day] if day is not None else sorted(known & there)
    before = {d: _set_aside(project, d) for d in days}
    report = replay_days(project, days, advance=advance)
    lines = []
    for d in days:
        (files, rows), (files_left, rows_left) = before[d], _set_aside(project, d)
        back = f"{len(files - files_left)} files and {max(rows - rows_left, 0)} rows put back"
        lines.append(f"day {d}: {back}, {len(files_left)} files and {rows_left} rows still set aside")
    return report, lines
