"""``ltv gc``: what may be deleted from the warehouse by the retention rule of the configuration, and its deletion.

`plan` only reads; `collect` deletes what a plan lists, each folder by one rename out of sight first, so that a crash leaves
whole partitions or none. Never in a plan: the newest windows, the champion and the champion before it, the days any of
these was made from, the test days, the configured submission, the record of what a published day set aside. Raw data lies
outside the warehouse and is never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ltv_assets.core.asset_specs import DAY_ASSETS, WINDOW_ASSETS
from ltv_assets.core.errors import LtvError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.state.project import Project
from ltv_assets.storage.champion import champion_in_use, read_history
from ltv_assets.storage.files import staging
from ltv_assets.storage.quarantine import superseded
from ltv_assets.storage.warehouse import DOCUMENT_FOLDERS, Warehouse
from ltv_assets.tracking.client import Tracker


@dataclass(frozen=True, slots=True)
class Doomed:
    """One thing to delete: ``kind`` (window, day, submission, orphan), its key, its paths, their bytes, and why."""

    kind: str
    key: str
    paths: tuple[Path, ...]
    bytes: int
    why: str


def plan(project: Project) -> tuple[Doomed, ...]:
    """Everything the retention rule lets go, windows first. Raises ModelFileError if the champion's record is damaged."""
    warehouse, rule = project.warehouse, project.config.retention
    kept_windows = kept(project)
    doomed: list[Doomed] = []
    for key in sorted(_window_keys(warehouse) - kept_windows):
        doomed.append(_doomed("window", key, _window_paths(warehouse, key), f"not among the newest {rule.windows} windows and no champion"))
    needed = needed_days(warehouse, kept_windows) | {*map(PartitionKey, project.horizon.test_days)}
    days = {key for asset in DAY_ASSETS for key in warehouse.keys(asset)}
    if days:
        newest = max(max(days).day, project.horizon.last_day if not project.horizon.is_empty else max(days).day)
        oldest = str(newest - timedelta(days=rule.days - 1))
        for key in sorted(d for d in days if d < oldest and d not in needed):
            doomed.append(
                _doomed("day", key, _day_paths(warehouse, key), f"more than {rule.days} days before {newest}, and no kept window needs it")
            )
    submissions = warehouse.keys("submission")
    configured = project.submission_key if project.horizon.test_days else None
    for key in sorted(set(submissions) - set(submissions[-rule.submissions :]) - {configured}):
        paths = [warehouse.folder("submission", key), warehouse.root / "verdicts" / "submission" / key]
        doomed.append(_doomed("submission", key, paths, f"not among the newest {rule.submissions} submissions"))
    taken = {path for item in doomed for path in item.paths}
    orphans = dict.fromkeys(_orphans(warehouse), "its partition is gone")
    orphans |= dict.fromkeys(superseded(warehouse), "a record of rows or files that the day's present publication did not set aside")
    doomed += [_doomed("orphan", str(path.relative_to(warehouse.root)), [path], why) for path, why in orphans.items() if path not in taken]
    return tuple(item for item in doomed if item.paths)


def kept(project: Project) -> set[PartitionKey]:
    """Windows that stay: the newest ones, the champion, and the champion before it, to which `ltv rollback` returns."""
    warehouse = project.warehouse
    windows = sorted(_window_keys(warehouse))
    champion = champion_in_use(warehouse)
    reigns: list[PartitionKey] = []
    for reign in reversed(read_history(warehouse)):
        if reign.window not in reigns:
            reigns.append(reign.window)
    return {*windows[-project.config.retention.windows :], *reigns[:2], *([champion.window] if champion else [])}


def needed_days(warehouse: Warehouse, windows: Iterable[PartitionKey]) -> set[PartitionKey]:
    """Days the given windows were made from, as their manifests say, and their holdout days."""
    days: set[PartitionKey] = set()
    for window in windows:
        days.add(window)
        for asset in WINDOW_ASSETS:
            try:
                manifest = warehouse.manifest(asset, window)
            except LtvError:
                continue
            days.update(manifest.made_from("flattened_features") if manifest is not None else ())
    return days


def collect(project: Project, doomed: Sequence[Doomed]) -> list[str]:
    """Delete what a plan lists, forget its MLflow runs, sweep staging leftovers, and bring the catalogue in line.

    Returns problems that did not stop it: a tracking server that could not be reached, a file that could not be removed.
    """
    problems: list[str] = []
    tracker = Tracker(project.config, project.warehouse)
    for item in doomed:
        if item.kind == "window":
            problem = tracker.forget(PartitionKey(item.key))
            if problem is not None:
                problems.append(problem)
        for path in item.paths:
            try:
                _remove(project.warehouse, path)
            except OSError as error:
                problems.append(f"{path}: {error.strerror}; delete it by hand")
    project.warehouse.sweep()
    return [*problems, *project.refresh_catalogue()]


def _remove(warehouse: Warehouse, path: Path) -> None:
    """Move a file or folder out of sight in one step, then delete it."""
    with staging(warehouse.root, "gc") as folder:
        try:
            path.rename(folder / "doomed")
        except FileNotFoundError:
            return
    for parent in (path.parent, path.parent.parent):
        if parent != warehouse.root and parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def _doomed(kind: str, key: str, paths: Iterable[Path], why: str) -> Doomed:
    present = tuple(path for path in paths if path.exists())
    return Doomed(kind, key, present, sum(_size(path) for path in present), why)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else iter([path])
    return sum(f.lstat().st_size for f in files if f.is_file())


def _window_keys(warehouse: Warehouse) -> set[PartitionKey]:
    return {key for asset in WINDOW_ASSETS for key in warehouse.keys(asset)}


def _window_paths(warehouse: Warehouse, key: PartitionKey) -> list[Path]:
    # The served model goes first: without it the window cannot be champion, whatever else is still there.
    root = warehouse.root
    folders = [warehouse.folder(asset, key) for asset in (*reversed(WINDOW_ASSETS), *DOCUMENT_FOLDERS)]
    verdicts = [root / "verdicts" / asset / key for asset in WINDOW_ASSETS]
    comparisons = [*warehouse.comparisons_of(challenger=key), *warehouse.comparisons_of(champion=key)]
    return [*folders, *verdicts, *comparisons, root / "tracking" / f"window={key}"]


def _day_paths(warehouse: Warehouse, key: PartitionKey) -> list[Path]:
    root = warehouse.root
    folders = [warehouse.folder(asset, key) for asset in reversed(DAY_ASSETS)]
    verdicts = [root / "verdicts" / asset / key for asset in DAY_ASSETS]
    quarantine = [root / "quarantine" / asset / f"day={key}" for asset in DAY_ASSETS]
    return [*folders, *verdicts, *quarantine, root / "cache" / "raw_hashes" / f"{key}.json"]


def _orphans(warehouse: Warehouse) -> list[Path]:
    """Verdicts, tracking records and documents of partitions that are not there any more."""
    found = []
    for folder in sorted((warehouse.root / "verdicts").glob("*/*")):
        if folder.parent.name in (*DAY_ASSETS, *WINDOW_ASSETS, "submission") and folder.name not in warehouse.keys(folder.parent.name):
            found.append(folder)
    windows = _window_keys(warehouse)
    for name in ("tracking", *DOCUMENT_FOLDERS.values()):
        for folder in sorted((warehouse.root / name).glob("window=*")):
            if folder.name.partition("=")[2] not in windows:
                found.append(folder)
    return found
