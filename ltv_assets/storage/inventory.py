"""The inventory of raw files: what is there, what can be read, and what is set aside with which reason.

Nothing is copied and no row is decoded here; footers, sizes and hashes decide. Row-level damage is found when the day is
flattened (``features/flatten.py``). A file that cannot be used is *quarantined*: listed with its reason, never read, never
silently dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ltv_assets.config import Config
from ltv_assets.contract import BY_NAME, LABEL_NAMES, REQUIRED_TEST_COLUMNS, REQUIRED_TRAIN_COLUMNS
from ltv_assets.horizon import Horizon, Split, hour_of_folder, split_folder
from ltv_assets.storage.files import sha256_file, write_atomic

IGNORED_SUFFIXES = (".crc",)
ENGINE_COLUMNS = ("file_index", "file_row_number")
"""Columns DuckDB adds to every file it reads, unless the file has its own."""

FOOTER_END_BYTES = 8
"""The footer's length and the magic bytes, which end every parquet file."""

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
class DayInventory:
    """All files of one day with what was noticed about the day as a whole.

    ``schema_errors`` break the contract and reject the day; ``warnings`` do not. ``columns_missing`` and
    ``columns_unexpected`` compare the good files with the contract.
    """

    day: date
    split: Split
    files: tuple[FileRecord, ...]
    missing_hours: tuple[str, ...]
    empty_hours: tuple[str, ...]
    columns_missing: tuple[str, ...]
    columns_unexpected: tuple[str, ...]
    schema_errors: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def good(self) -> tuple[FileRecord, ...]:
        """Files to be read, in order of hour and name."""
        return tuple(f for f in self.files if f.is_good)

    @property
    def quarantined(self) -> tuple[FileRecord, ...]:
        """Files set aside."""
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
    """Hashes of files already read once, keyed by path and trusted while size and modification time stay the same."""

    path: Path | None = None
    entries: dict[str, tuple[int, int, str]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> HashCache:
        """Read a cache; a missing or damaged one is empty, because it only saves time."""
        try:
            raw = json.loads(path.read_bytes())
            return cls(path, {k: (int(a), int(b), str(c)) for k, (a, b, c) in raw.items()})
        except (OSError, ValueError, TypeError, AttributeError):
            return cls(path)

    def digest(self, file: Path) -> str:
        """SHA-256 of a file, remembered."""
        stat = file.stat()
        known = self.entries.get(str(file))
        if known is not None and known[:2] == (stat.st_size, stat.st_mtime_ns):
            return known[2]
        digest = sha256_file(file)
        self.entries[str(file)] = (stat.st_size, stat.st_mtime_ns, digest)
        return digest

    def save(self) -> None:
        """Write the cache back beside its partition."""
        if self.path is not None:
            write_atomic(self.path, json.dumps(self.entries, sort_keys=True).encode())


def hourly_folders(config: Config, split: Split) -> dict[str, Path]:
    """{hour key YYYY-MM-DD-HH-00: folder} of one split, in order of time, cut to ``max_partitions`` if it is set."""
    base = split_folder(config, split)
    if not base.is_dir():
        return {}
    found = {e.name.removeprefix("datetime="): Path(e.path) for e in os.scandir(base) if e.is_dir() and hour_of_folder(e.name) is not None}
    limit = (config.data.train if split == "train" else config.data.test).max_partitions
    return dict(sorted(found.items())[:limit])


def unknown_entries(config: Config, split: Split) -> tuple[str, ...]:
    """A message for each entry beside the hourly folders that is neither hidden, nor a marker, nor readable as an hour."""
    base = split_folder(config, split)
    if not base.is_dir():
        return ()
    odd = (e for e in os.scandir(base) if not e.name.startswith((".", "_")))
    names = sorted(e.name for e in odd if not (e.is_dir() and hour_of_folder(e.name) is not None))
    return tuple(f"{base / name}: not an hourly folder; expected a name such as datetime=2025-10-01-00-00" for name in names)


def inspect_day(config: Config, horizon: Horizon, day: date, cache: HashCache | None = None) -> DayInventory:
    """List, open and hash every file of one day.

    Raises DataError if the day belongs to no split.
    """
    split = horizon.split_of(day)
    cache = cache if cache is not None else HashCache()
    folders = _folders_of(config, split, day)
    records: list[FileRecord] = []
    empty: list[str] = []
    schemas: dict[str, pa.Schema] = {}
    for key, folder in folders.items():
        candidates = _candidates(folder)
        if not candidates:
            empty.append(key)
        records += [_inspect_file(config, split, str(day), key, path, cache, schemas) for path in candidates]
    records = _mark_duplicates(records)
    cache.save()
    expected = [f"{day:%Y-%m-%d}-{hour:02d}-00" for hour in range(24)]
    missing_hours = tuple(h for h in expected if h not in folders)
    good = [r for r in records if r.is_good]
    missing, unexpected, errors, warnings = _compare_schemas(split, good, schemas)
    if missing_hours:
        warnings.append(f"day {day}: {len(missing_hours)} of 24 hours are missing: {_shorten(missing_hours)}")
    if empty:
        warnings.append(f"day {day}: {len(empty)} hours hold no file: {_shorten(empty)}")
    warnings += [f"{r.path}: quarantined: {r.reason}" for r in records if not r.is_good]
    return DayInventory(day, split, tuple(records), missing_hours, tuple(empty), missing, unexpected, tuple(errors), tuple(warnings))


def _folders_of(config: Config, split: Split, day: date) -> dict[str, Path]:
    prefix = f"{day:%Y-%m-%d}-"
    return {key: path for key, path in hourly_folders(config, split).items() if key.startswith(prefix)}


def candidate_files(config: Config, horizon: Horizon, day: date) -> list[Path]:
    """Every entry of a day's hourly folders that is data or pretends to be, in order, unopened."""
    return [path for folder in _folders_of(config, horizon.split_of(day), day).values() for path in _candidates(folder)]


def _candidates(folder: Path) -> list[Path]:
    entries = (Path(e.path) for e in os.scandir(folder) if not e.name.startswith((".", "_")) and not e.name.endswith(IGNORED_SUFFIXES))
    return sorted(entries)


def _inspect_file(
    config: Config, split: Split, day: str, key: str, path: Path, cache: HashCache, schemas: dict[str, pa.Schema]
) -> FileRecord:
    relative = str(path.relative_to(config.data.root))
    size = path.lstat().st_size

    def quarantined(reason: str, sha256: str | None = None) -> FileRecord:
        return FileRecord(day, split, key, relative, None, size, None, sha256, "quarantined", reason)

    if not path.resolve().is_relative_to(config.data.root.resolve()):
        return quarantined("symbolic link that leaves the data root; copy the file instead")
    if path.is_dir():
        return quarantined("folder where a parquet file was expected")
    if path.suffix != ".parquet":
        return quarantined(f"expected a .parquet file, found {path.suffix or 'no suffix'} (an unfinished upload?)")
    if size == 0:
        return quarantined("zero bytes; upload the file again")
    try:
        metadata = pq.read_metadata(path)
        _refuse_contradictions(path, metadata)
        schema = metadata.schema.to_arrow_schema()
        digest = cache.digest(path)
    except PermissionError:
        return quarantined(NO_PERMISSION)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, ValueError) as error:
        # The hash makes a repair visible even when it changes neither size nor anything else of the folder.
        return quarantined(f"not a readable parquet file: {str(error).splitlines()[0]:.160}", _digest_or_none(path, cache))
    problem = _ambiguous_column(schema) or _chunk_problem(metadata, size)
    if problem is not None:
        return quarantined(problem, digest)
    schemas[relative] = schema
    return FileRecord(day, split, key, relative, metadata.num_rows, size, schema_fingerprint(schema), digest, "good")


def _refuse_contradictions(path: Path, metadata: pq.FileMetaData) -> None:
    """Raise OSError for a column chunk whose level histograms contradict its type.

    Asking the metadata for such a chunk would end the process; reading a row of it is refused with an exception. Pages that
    cannot be decoded are left to whoever reads the rows.
    """
    with pq.ParquetFile(path, metadata=metadata) as parquet:
        for group in range(metadata.num_row_groups):
            try:
                next(parquet.iter_batches(batch_size=1, row_groups=[group], use_threads=False), None)
            except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
                if "histogram" in str(error):
                    raise


def _digest_or_none(path: Path, cache: HashCache) -> str | None:
    try:
        return cache.digest(path)
    except OSError:
        return None


def _ambiguous_column(schema: pa.Schema) -> str | None:
    """A column of the contract that stands twice, or one that hides a column of the engine: nobody can say which is meant."""
    reserved = sorted(name for name in schema.names if name.casefold() in ENGINE_COLUMNS)
    if reserved:
        return f"column {reserved[0]} has a name that is reserved; deliver the file without it"
    # SQL does not tell upper from lower case.
    counts = Counter(name.casefold() for name in schema.names)
    repeated = sorted(name for name in BY_NAME if counts[name.casefold()] > 1)
    return f"column {repeated[0]} stands {counts[repeated[0].casefold()]} times; deliver the file again" if repeated else None


def _chunk_problem(metadata: pq.FileMetaData, size: int) -> str | None:
    """A column chunk that lies outside the file betrays a footer that belongs to other bytes."""
    end = size - metadata.serialized_size - FOOTER_END_BYTES
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            chunk = row_group.column(index)
            start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
            if start is not None and start + chunk.total_compressed_size > end:
                return f"column chunk {chunk.path_in_schema} lies beyond the data of the file; it was cut or pasted together"
    return None


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
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _compare_schemas(
    split: Split, good: list[FileRecord], schemas: Mapping[str, pa.Schema]
) -> tuple[tuple[str, ...], tuple[str, ...], list[str], list[str]]:
    required = REQUIRED_TRAIN_COLUMNS if split == "train" else REQUIRED_TEST_COLUMNS
    present: set[str] = set()
    errors: list[str] = []
    warnings: list[str] = []
    missing_in: dict[str, list[str]] = {}
    for record in good:
        names = set(schemas[record.path].names)
        present |= names
        for name in required:
            if name not in names:
                errors.append(
                    f"{record.path}: required column {name} is missing; expected it in every file of {split}/; deliver the file again"
                )
        for name in BY_NAME:
            if name not in names and name != "datetime" and name not in required and not (split == "test" and name in LABEL_NAMES):
                missing_in.setdefault(name, []).append(record.path)
    for name, files in sorted(missing_in.items()):
        where = "every file" if len(files) == len(good) else f"{len(files)} of {len(good)} files, first {files[0]}"
        warnings.append(f"column {name} is missing in {where}: read as NULL")
    unexpected = tuple(sorted(present - set(BY_NAME)))
    if unexpected:
        warnings.append(f"unexpected columns are ignored: {_shorten(unexpected)}")
    if split == "test" and present & set(LABEL_NAMES):
        warnings.append(f"label columns in test/ are ignored: {_shorten(sorted(present & set(LABEL_NAMES)))}")
    return tuple(sorted(missing_in)), unexpected, errors, warnings


def _shorten(names: Iterable[str], most: int = 6) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def files_problem(day: object, good: int, quarantined: Sequence[tuple[str, str]], max_bad_file_share: float) -> str | None:
    """Why a day's files are too few or too broken to be used; None if they are not.

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
