"""Inventory of raw files: which exist, which are readable, and which are quarantined with which reason.

Nothing is copied and no row is decoded here; footers, sizes and hashes are read. Row-level damage is found when the day is
flattened (``features/flatten/``). An unusable file is *quarantined*: listed with its reason, never read, never silently
dropped. Every raw file is inspected here before this process opens it, because a footer can end the process that reads it
(``footers.py``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from ltv_assets.core.config import Config
from ltv_assets.core.contract import Contract, contract_of, load_contract
from ltv_assets.core.errors import DataError
from ltv_assets.core.hashing import short_hash
from ltv_assets.core.time_layout import TimeLayout, hour_key
from ltv_assets.features.naming import contract_names, similar_name
from ltv_assets.ingestion.calendar import Horizon, hours_per_day
from ltv_assets.ingestion.footers import read_footer
from ltv_assets.ingestion.raw_days import (
    DOCUMENTS,
    HIDDEN,
    Memory,
    RawHour,
    Split,
    hour_of_folders,
    hourly_folders,
    scan_hours,
    split_folder,
)
from ltv_assets.storage.files import sha256_file, write_atomic

ENGINE_COLUMNS = ("file_index", "file_row_number")
"""Columns DuckDB adds to every file it reads, unless the file has its own."""

HOURS = tuple(range(24))
_DECLARED_IN_VAIN = "if no file will have it, correct its name or source there, or remove it there and in the features"
"""How messages about a column end that no file of a day has."""

NO_PERMISSION = "no permission to read it"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One raw file. ``path`` is relative to the data root; ``reason`` is set when ``verdict`` is quarantined."""

    day: str
    split: str
    datetime: str
    path: str
    rows: int | None
    bytes: int
    schema_fingerprint: str | None
    sha256: str | None
    verdict: str
    reason: str | None = None

    @property
    def is_good(self) -> bool:
        """True for a file that is read."""
        return self.verdict == "good"


@dataclass(frozen=True, slots=True)
class SchemaError:
    """A file that breaks the contract. ``is_contracts``: no file of the day has the column, so the contract may be what is wrong."""

    path: str
    text: str
    is_contracts: bool

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


@dataclass(frozen=True, slots=True)
class DayInventory:
    """All files of one day, below ``root``, with findings about the whole day.

    ``schema_errors`` break the contract and reject the day; ``warnings`` do not. ``columns_missing`` and
    ``columns_unexpected`` compare the good files with the contract.
    """

    root: Path
    day: date
    split: Split
    files: tuple[FileRecord, ...]
    missing_hours: tuple[str, ...]
    empty_hours: tuple[str, ...]
    columns_missing: tuple[str, ...]
    columns_unexpected: tuple[str, ...]
    schema_errors: tuple[SchemaError, ...]
    warnings: tuple[str, ...]

    @property
    def good(self) -> tuple[FileRecord, ...]:
        """Files to be read, in order of hour and name."""
        return tuple(f for f in self.files if f.is_good)

    @property
    def quarantined(self) -> tuple[FileRecord, ...]:
        """Quarantined files."""
        return tuple(f for f in self.files if not f.is_good)

    @property
    def rows(self) -> int:
        """Rows the good files declare."""
        return sum(f.rows or 0 for f in self.good)

    def table(self) -> pa.Table:
        """The relation ``raw_partitions`` for this day."""
        schema = pa.schema(
            [
                ("day", pa.string()),
                ("split", pa.string()),
                ("datetime", pa.string()),
                ("path", pa.string()),
                ("rows", pa.int64()),
                ("bytes", pa.int64()),
                ("schema_fingerprint", pa.string()),
                ("sha256", pa.string()),
                ("verdict", pa.string()),
                ("reason", pa.string()),
            ]
        )
        return pa.Table.from_pylist([asdict(f) for f in self.files], schema=schema)


@dataclass(slots=True)
class HashCache:
    """Hashes of files that were read once, keyed by path; valid while size and modification time are unchanged."""

    path: Path | None = None
    entries: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    changed: bool = False

    @classmethod
    def load(cls, path: Path) -> HashCache:
        """Read a cache; a missing or damaged one is empty, because it only saves time."""
        try:
            raw = json.loads(path.read_bytes())
            return cls(path, {k: (int(a), int(b), str(c)) for k, (a, b, c) in raw.items()})
        except (OSError, ValueError, TypeError, AttributeError):
            return cls(path)

    def digest(self, file: Path) -> str:
        """SHA-256 of a file, cached."""
        stat = file.stat()
        known = self.entries.get(str(file))
        if known is not None and known[:2] == (stat.st_size, stat.st_mtime_ns):
            return known[2]
        digest = _digest(file, (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
        self.entries[str(file)] = (stat.st_size, stat.st_mtime_ns, digest)
        self.changed = True
        return digest

    def knows(self, file: Path, digest: str | None) -> bool:
        """Whether a file is still the one that had this hash, judged by its size and modification time."""
        stat = file.stat()
        return self.entries.get(str(file)) == (stat.st_size, stat.st_mtime_ns, digest)

    def save(self) -> None:
        """Write the cache to its file if there is anything new, with what others wrote meanwhile and without files that are gone."""
        if self.path is not None and (self.changed or not self.path.exists()):
            known = {**HashCache.load(self.path).entries, **self.entries}
            present = {name: entry for name, entry in known.items() if Path(name).exists()}
            write_atomic(self.path, json.dumps(present, sort_keys=True).encode())
            self.changed = False


@lru_cache(maxsize=4096)
def _digest(file: Path, identity: tuple[int, ...]) -> str:
    """SHA-256 of a file as long as it is the same: a file with rows of many days is asked about once for each of them."""
    return sha256_file(file)


def key_of_folder(folder: Path, layout: TimeLayout) -> str | None:
    """Hour key of a folder, by its own name and as many above it as the layout has levels; None if it is no hour."""
    names = folder.absolute().parts[-layout.depth :]
    found = hour_of_folders(names, layout)
    return hour_key(*found) if found is not None else None


def find_hours(source: Path, contract: Contract | None = None) -> tuple[list[tuple[str, Path]], list[Path]]:
    """([(hour key, its folder)], ignored entries) of any folder, in order of path.

    The folder may be an hourly one itself. In a folder with hourly folders, other entries are ignored. Folders above them are
    searched unless they are hidden or begin with an underscore, as folders of running jobs do. Without a contract, folders are
    named as the shipped one says. Raises DataError where the contract has no folders of hours.
    """
    layout = (contract or load_contract()).layout
    if layout is None:
        raise DataError(f"{source}: the contract has no folders of hours (time.layout is null)")
    key = key_of_folder(source, layout)
    if key is not None:
        return [(key, source)], []
    found: list[tuple[str, Path]] = []
    left_out: list[Path] = []
    seen: set[Path] = set()
    waiting = [source]
    while waiting:
        folder = waiting.pop(0)
        entries = [Path(entry) for entry in os.scandir(folder)] if folder.is_dir() else []
        hours = {key: path for path in entries if path.is_dir() and (key := key_of_folder(path, layout)) is not None}
        others = sorted(path for path in entries if path not in hours.values() and not path.name.startswith(HIDDEN))
        found += sorted(hours.items())
        within = [] if hours else [other for other in others if other.is_dir() and other.resolve() not in seen]
        seen |= {other.resolve() for other in within}
        waiting += within
        left_out += [other for other in others if hours or (other.suffix.lower() == ".parquet" and other not in within)]
    return found, left_out


def not_an_hour(path: Path, contract: Contract | None = None) -> str:
    """Message for an entry among hourly folders that is not an hour."""
    layout = (contract or load_contract()).layout
    if layout is None:
        return f"{_as_text(path)}: expected a .parquet file"
    kind = "an hourly folder" if layout.has_hours else "a folder of a day"
    return f"{_as_text(path)}: not {kind}; expected a name such as {layout.example}"


def _as_text(path: Path) -> str:
    """A path as text; of a name that is not UTF-8 the bytes, escaped, because tables and messages cannot hold it."""
    return os.fsencode(path).decode(errors="backslashreplace")


def name_below(root: Path, path: Path) -> str:
    """Name of a raw file in the inventory: its path below the root."""
    return _as_text(path.relative_to(root))


def unknown_entries(config: Config, split: Split) -> tuple[str, ...]:
    """A message for each entry among the raw files of a split that is neither hidden, nor a marker, nor of an hour or a day."""
    contract, folder = contract_of(config), split_folder(config, split)
    if contract.layout is not None:
        return tuple(not_an_hour(path, contract) for path in scan_hours(folder, contract.layout)[1])
    memory, messages = Memory.of(config), []
    for above, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(HIDDEN))
        for path in (Path(above, name) for name in sorted(names) if not name.startswith(HIDDEN) and not name.endswith(DOCUMENTS)):
            problem = memory.problem(path, contract) if path.suffix == ".parquet" else None
            if path.suffix != ".parquet":
                messages.append(not_an_hour(path, contract))
            elif problem is not None:
                messages.append(f"{_as_text(path)}: {problem}")
    memory.save()
    return tuple(messages)


def inspect_day(config: Config, horizon: Horizon, day: date, cache: HashCache | None = None) -> DayInventory:
    """List, open and hash every file of one day.

    Raises DataError if the day belongs to no split.
    """
    split = horizon.split_of(day)
    found = _hours_of(config, split, day)
    return inspect_hours(
        config.data.root,
        split,
        day,
        [(key, hour.files()) for key, hour in found.items()],
        cache,
        expected=HOURS if hours_per_day(config) > 1 else (),
        contract=contract_of(config),
        rows={path: rows for hour in found.values() for path, rows in hour.rows.items()},
    )


def inspect_hours(
    root: Path,
    split: Split,
    day: date,
    hours: Sequence[tuple[str, Sequence[Path]]],
    cache: HashCache | None = None,
    *,
    expected: Sequence[int] = HOURS,
    contract: Contract | None = None,
    rows: Mapping[Path, int] | None = None,
) -> DayInventory:
    """Open and hash the files of one day, given as (hour key, files) in their order, anywhere below ``root``.

    Args:
        split: ``train`` if the files must have labels.
        expected: hours of the day that are reported as missing if they are not given.
        contract: the columns that are expected; by default those of the shipped contract.
        rows: rows of the day in files that have rows of other days as well.
    """
    contract = contract or load_contract()
    cache = cache if cache is not None else HashCache()
    records: list[FileRecord] = []
    schemas: dict[str, pa.Schema] = {}
    for key, candidates in hours:
        records += [_inspect_file(root, split, str(day), key, path, cache, schemas, contract) for path in candidates]
    if rows:
        own = {name_below(root, path): count for path, count in rows.items()}
        records = [replace(r, rows=own.get(r.path, r.rows)) if r.rows is not None else r for r in records]
    records = _mark_duplicates(records)
    cache.save()
    given = {key for key, _ in hours}
    missing_hours = tuple(h for h in (f"{day:%Y-%m-%d}-{hour:02d}-00" for hour in expected) if h not in given)
    empty = tuple(key for key, candidates in hours if not candidates)
    good = [r for r in records if r.is_good]
    missing, unexpected, errors, warnings = _compare_schemas(contract, split, good, schemas)
    if missing_hours:
        warnings.append(f"day {day}: {len(missing_hours)} of 24 hours are missing: {_shorten(missing_hours)}")
    if empty:
        warnings.append(f"day {day}: {len(empty)} hours hold no file: {_shorten(empty)}")
    warnings += [f"{r.path}: quarantined: {r.reason}" for r in records if not r.is_good]
    return DayInventory(root, day, split, tuple(records), missing_hours, empty, missing, unexpected, tuple(errors), tuple(warnings))


def _hours_of(config: Config, split: Split, day: date) -> dict[str, RawHour]:
    prefix = f"{day:%Y-%m-%d}-"
    return {key: hour for key, hour in hourly_folders(config, split).items() if key.startswith(prefix)}


def candidate_files(config: Config, horizon: Horizon, day: date) -> list[Path]:
    """Every entry of a day's hourly folders that could be data, in order, unopened."""
    return [path for hour in _hours_of(config, horizon.split_of(day), day).values() for path in hour.files()]


def _inspect_file(
    root: Path, split: Split, day: str, key: str, path: Path, cache: HashCache, schemas: dict[str, pa.Schema], contract: Contract
) -> FileRecord:
    relative = name_below(root, path)
    size = path.lstat().st_size

    def quarantined(reason: str, sha256: str | None = None) -> FileRecord:
        return FileRecord(day, split, key, relative, None, size, None, sha256, "quarantined", reason)

    if relative != str(path.relative_to(root)):
        return quarantined("its name is not UTF-8; rename the file")
    if path.is_symlink() and not path.exists():
        return quarantined("symbolic link to nothing; copy the file instead")
    if not path.resolve().is_relative_to(root.resolve()):
        return quarantined("symbolic link that leaves the data root; copy the file instead")
    if path.is_dir():
        return quarantined("folder where a parquet file was expected")
    if not path.is_file():
        return quarantined("pipe, socket or device where a parquet file was expected")
    if path.suffix != ".parquet":
        return quarantined(f"expected a .parquet file, found {path.suffix or 'no suffix'} (an unfinished upload?)")
    if size == 0:
        return quarantined("zero bytes; upload the file again")
    try:
        footer = read_footer(path)
        digest = cache.digest(path)
    except PermissionError:
        return quarantined(NO_PERMISSION)
    except OSError as error:
        # The hash detects a repair that does not change the size.
        return quarantined(f"not a readable parquet file: {str(error).splitlines()[0]:.160}", _digest_or_none(path, cache))
    problem = footer if isinstance(footer, str) else _naming_problem(footer.schema, contract)
    if isinstance(footer, str) or problem is not None:
        return quarantined(str(problem), digest)
    schemas[relative] = footer.schema
    return FileRecord(day, split, key, relative, footer.rows, size, schema_fingerprint(footer.schema), digest, "good")


def refuse_unsound(files: Iterable[tuple[Path, str | None]], cache: HashCache) -> None:
    """Raise DataError if a file that was replaced since the inventory would now be quarantined by it.

    ``files`` are (path, hash in the inventory), ``cache`` the hashes of that inventory. A missing file is left to its reader.
    """
    for path, digest in files:
        with suppress(OSError):
            footer = None if cache.knows(path, digest) else read_footer(path)
            if isinstance(footer, str):
                raise DataError(f"{path}: {footer}; it was exchanged after the inventory of its day, run `ltv run` for a new one")


def _digest_or_none(path: Path, cache: HashCache) -> str | None:
    try:
        return cache.digest(path)
    except OSError:
        return None


def _naming_problem(schema: pa.Schema, contract: Contract) -> str | None:
    """Problem of an ambiguous column: a duplicate column of the contract, or one with the name of an engine column; else None."""
    reserved = sorted(name for name in schema.names if name.casefold() in ENGINE_COLUMNS)
    if reserved:
        return f"column {reserved[0]} has a name that is reserved; deliver the file without it"
    problems = contract_names(schema.names, contract)[1]
    return problems[0] if problems else None


def _mark_duplicates(records: Iterable[FileRecord]) -> list[FileRecord]:
    seen: dict[str, str] = {}
    result = []
    for record in records:
        if record.is_good and record.sha256 is not None and record.rows:
            first = seen.setdefault(record.sha256, record.path)
            if first != record.path:
                fields = {**asdict(record), "verdict": "quarantined", "reason": f"same content as {first}"}
                record = FileRecord(**fields)
        result.append(record)
    return result


def schema_fingerprint(schema: pa.Schema) -> str:
    """Hash of column names and physical types, independent of their order."""
    text = "\n".join(sorted(f"{f.name} {f.type}" for f in schema))
    return short_hash(text)


def _compare_schemas(
    contract: Contract, split: Split, good: list[FileRecord], schemas: Mapping[str, pa.Schema]
) -> tuple[tuple[str, ...], tuple[str, ...], list[SchemaError], list[str]]:
    required = contract.required(split == "train")
    # With folders that say the hour, a column of it is not needed, nor read.
    moment = contract.time.column if contract.layout is not None else None
    wanted = set(contract.by_name) - {moment, *required, *(contract.label_names if split == "test" else ())}
    present: set[str] = set()
    unknown: set[str] = set()
    lacking: list[tuple[str, str]] = []
    missing_in: dict[str, list[str]] = {}
    renamed_in: dict[tuple[str, str], list[str]] = {}
    for record in good:
        names = schemas[record.path].names
        found, _ = contract_names(names, contract)
        present |= found.keys()
        unknown |= set(names) - set(found.values())
        for name in required:
            if name not in found:
                lacking.append((record.path, name))
        for name in wanted - found.keys():
            missing_in.setdefault(name, []).append(record.path)
        for name, written in found.items():
            if written != contract.by_name[name].in_files:
                renamed_in.setdefault((name, written), []).append(record.path)

    def where(files: list[str]) -> str:
        return "every file" if len(files) == len(good) else f"{len(files)} of {len(good)} files, first {files[0]}"

    def nowhere(name: str) -> str:
        """Where a column that no file has is declared, and what to do; empty where some file has it."""
        return "" if name in present else f"; {contract.place(name)} expects {contract.by_name[name].in_files}: {_DECLARED_IN_VAIN}"

    errors = [
        SchemaError(
            path,
            f"required column {contract.by_name[name].in_files} is missing; "
            f"expected it in every file of {split}/; deliver the file again{nowhere(name)}",
            name not in present,
        )
        for path, name in lacking
    ]
    warnings = [f"column {written} is read as {name} in {where(files)}" for (name, written), files in sorted(renamed_in.items())]
    for name, files in sorted(missing_in.items()):
        similar = similar_name(contract.by_name[name].in_files, unknown)
        hint = f"; {similar} has a similar name, and is ignored" if similar is not None else ""
        warnings.append(f"column {name} is missing in {where(files)}: read as NULL{hint}{nowhere(name)}")
    if moment in present:
        warnings.append(f"column {moment} is ignored: the hour of an impression is that of its folder's name")
    if unknown:
        warnings.append(f"unexpected columns are ignored: {_shorten(sorted(unknown))}")
    if split == "test" and present & set(contract.label_names):
        warnings.append(f"label columns in test/ are ignored: {_shorten(sorted(present & set(contract.label_names)))}")
    return tuple(sorted(missing_in)), tuple(sorted(unknown)), errors, warnings


def _shorten(names: Iterable[str], most: int = 6) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def files_problem(day: object, good: int, quarantined: Sequence[tuple[str, str]], max_bad_file_share: float) -> str | None:
    """Reason why a day has too few usable files; None if it has enough.

    ``good`` is the number of readable files, ``quarantined`` the (path, reason) of the others.
    """
    if good == 0:
        first = f"; first: {quarantined[0][0]}: {quarantined[0][1]}" if quarantined else ""
        return f"day {day}: no readable file, {len(quarantined)} quarantined{first}; deliver the hours again"
    share = len(quarantined) / (len(quarantined) + good)
    if share > max_bad_file_share:
        path, reason = quarantined[0]
        bound = f"max_bad_file_share = {max_bad_file_share:.0%}"
        return f"day {day}: {share:.0%} of the files are unreadable, more than {bound}; first: {path}: {reason}"
    return None


def rows_problem(day: object, rows: int, quarantined: Mapping[str, int], max_bad_row_share: float) -> str | None:
    """Reason why a day has too many quarantined rows; None if it has not. ``quarantined`` is {reason: rows}."""
    aside = sum(quarantined.values())
    if aside <= max_bad_row_share * rows:
        return None
    worst = max(quarantined, key=lambda reason: quarantined[reason])
    bound = f"max_bad_row_share = {max_bad_row_share:.1%}"
    return f"day {day}: {aside} of {rows} rows quarantined, more than {bound}; most: {worst}"
