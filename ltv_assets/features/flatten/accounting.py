"""Accounting of a day's rows: written, sampled, quarantined, counted, warned of.

What belongs here: ``FlattenResult``, the split of flattened blocks into rows to write and rows to set aside, counts and
warnings. What does not: writing parquet (``row_group_writer.py``), damaged files (``files.py``). Next to read: ``files.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ltv_assets.core.errors import DataError
from ltv_assets.core.time_layout import HOUR_KEY
from ltv_assets.features.canonical import described, reads
from ltv_assets.features.flatten.blocks import FlatBlock
from ltv_assets.features.flatten.row_group_writer import RowGroupWriter
from ltv_assets.features.flatten.sources import Source
from ltv_assets.features.registry import Registry
from ltv_assets.features.schema import flattened_schema
from ltv_assets.sampling.draws import hash_uniform, row_hashes

SAMPLE_DRAW = 1_000_003
"""Number of the draw that samples rows, far from the copy numbers of the sampling plans."""

QUARANTINE_SCHEMA = pa.schema(
    [("row_id", pa.string()), ("file", pa.string()), ("row_number", pa.int64()), ("reason", pa.string()), ("value", pa.string())]
)


@dataclass(frozen=True, slots=True)
class FileAside:
    """A file whose footer promised ``rows`` rows that cannot be decoded."""

    path: Path
    rows: int
    reason: str


@dataclass(slots=True)
class FlattenResult:
    """Result of a day: where the rows went, and everything that was missing or unusable.

    ``rows_in`` = ``rows_out`` + ``rows_sampled_out`` + the rows of ``rows_quarantined`` + those of ``files_aside``.
    ``quarantine`` has the columns row_id, file, row_number (from 0), reason and value (the offending value as text);
    ``missing`` is the share of NULL cells by feature group; the counts by raw column are of single values, not rows.
    ``lost_values`` has what is there and cannot be read: {column: (values, the first of them and its file)};
    ``unlike_texts`` the same by feature of texts that have another form than the feature takes apart.
    """

    rows_in: int = 0
    rows_out: int = 0
    rows_sampled_out: int = 0
    rows_quarantined: dict[str, int] = field(default_factory=dict)
    quarantine: pa.Table = field(default_factory=QUARANTINE_SCHEMA.empty_table)
    files_aside: list[FileAside] = field(default_factory=list)
    missing: dict[str, float] = field(default_factory=dict)
    future_timestamps: dict[str, int] = field(default_factory=dict)
    ancient_timestamps: dict[str, int] = field(default_factory=dict)
    nonfinite_values: dict[str, int] = field(default_factory=dict)
    lost_values: dict[str, tuple[int, str]] = field(default_factory=dict)
    unlike_texts: dict[str, tuple[int, str]] = field(default_factory=dict)
    unreadable_text: dict[str, int] = field(default_factory=dict)
    rounded_labels: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def note_schema_findings(sources: Sequence[Source], registry: Registry, labelled: bool, result: FlattenResult) -> None:
    """Warn of columns whose type cannot be read, and of labels on a day without labels."""

    def note(columns: Mapping[str, list[Source]], text: str) -> None:
        for name, where in columns.items():
            result.warnings.append(f"{name}: {text} in {len(where)} of {len(sources)} files, first {where[0].file.path}")

    contract = registry.contract
    unusable: dict[str, list[Source]] = {}
    ignored: dict[str, list[Source]] = {}
    for source in sources:
        for name in (*registry.source_columns, *(contract.stored_labels if labelled else ())):
            kind = source.types.get(name)
            if kind is not None and not reads(contract.by_name[name], kind):
                unusable.setdefault(f"{name} ({kind})", []).append(source)
        if not labelled:
            for name in contract.label_names:
                if name in source.types and not pa.types.is_null(source.types[name]):
                    ignored.setdefault(name, []).append(source)
    note(unusable, "type cannot be read, taken as missing,")
    note(ignored, "label column on a day without labels, ignored,")


def _hour_keys(hours: np.ndarray) -> pa.DictionaryArray:
    """The keys of hours given as unix seconds; NULL where there is none."""
    known, codes = np.unique(hours, return_inverse=True)
    words = [datetime.fromtimestamp(int(h), UTC).strftime(HOUR_KEY) if h >= 0 else None for h in known]
    return pa.array(words, pa.string()).dictionary_encode().take(pa.array(codes, pa.int32()))


@dataclass(frozen=True, slots=True)
class Sample:
    """Which rows of a split are used at all: those whose hash of (seed, row_id) falls below ``fraction``."""

    fraction: float
    seed: int

    def chosen(self, row_id: pa.ChunkedArray) -> np.ndarray:
        """Boolean array (n,), the same for a row in whatever file or batch it comes."""
        return hash_uniform(row_hashes(row_id.to_numpy()), self.seed, SAMPLE_DRAW) < self.fraction


class Seen:
    """Hashes of the identifiers that came so far: a fraction of the identifiers' own memory."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def again(self, hashes: np.ndarray) -> bool:
        """Whether any of the hashes came before or comes twice; they count as seen from here on."""
        run = np.sort(hashes)
        if (run[1:] == run[:-1]).any() or any(_has_any(earlier, run) for earlier in self._runs):
            return True
        # Runs of similar length are merged, so there are never more than a few.
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        self._runs.append(run)
        return False


def _has_any(ordered: np.ndarray, values: np.ndarray) -> bool:
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return bool(len(ordered)) and bool((ordered[places] == values).any())


class RowAccounting:
    """Split flattened blocks into rows to write and rows to set aside, and count both.

    ``repeated`` returns the positions (in the day's order) of rows whose row_id occurred before, ascending; it reads every
    identifier of the day once more, and is called only when two identifiers have the same hash.
    """

    def __init__(
        self,
        registry: Registry,
        sources: Sequence[Source],
        repeated: Callable[[], np.ndarray],
        result: FlattenResult,
        writer: RowGroupWriter,
        sample: Sample,
    ) -> None:
        self.position = 0
        self._sample = sample
        self._sources = [source for source in sources if source.rows]
        self._ends = np.cumsum([source.rows for source in self._sources])
        self._find_repeated = repeated
        self._repeated: np.ndarray | None = None
        self._seen = Seen()
        self._result = result
        self._writer = writer
        self._registry = registry
        self._keys = pa.array([source.file.datetime_key for source in self._sources], pa.string())
        self._names = flattened_schema(registry).names
        self._counts: Counter[str] = Counter()
        self._nulls: Counter[str] = Counter()
        self._lost: dict[str, tuple[int, str]] = {}
        self._aside: list[pa.Table] = []

    def take(self, flat: FlatBlock) -> None:
        first, self.position = self.position, self.position + flat.rows
        files = np.searchsorted(self._ends, np.arange(first, self.position), side="right").astype(np.int32)
        self._counts.update(flat.counts)
        row_id, reason, value, hashes = (flat.columns[name] for name in ("row_id", "_reason", "_value", "_row_hash"))
        if self._repeated is None and self._seen.again(hashes.drop_null().to_numpy()):
            self._repeated = self._find_repeated()
        again = self._again(first, flat.rows)
        if again.any():
            newly = pc.and_(pa.chunked_array([again]), pc.is_null(reason))
            reason = pc.if_else(newly, f"{self._registry.contract.identifier} repeated", reason)
            value = pc.if_else(newly, row_id, value)
        for name, (count, example) in flat.lost.items():
            before, earlier = self._lost.get(name, (0, example))
            self._lost[name] = before + count, earlier
        if flat.illegible:
            keys = pa.array([flat.illegible.get(row) for row in range(flat.rows)], pa.string())
            reason = pc.if_else(pc.is_valid(keys), f"{self._registry.contract.identifier} is not UTF-8", reason)
            value = pc.coalesce(keys, value)
        datetimes = pa.DictionaryArray.from_arrays(files, self._keys) if flat.hours is None else _hour_keys(flat.hours)
        table = pa.table({name: datetimes if name == "datetime" else flat.columns[name] for name in self._names})
        flat.columns.clear()
        if reason.null_count < len(reason):
            self._set_aside(row_id, files, first, reason, value)
            table = table.filter(pc.is_null(reason))
        if self._sample.fraction < 1.0 and table.num_rows:
            chosen = self._sample.chosen(table.column("row_id"))
            self._result.rows_sampled_out += table.num_rows - int(np.count_nonzero(chosen))
            table = table.filter(pa.array(chosen))
        for feature in self._registry.features:
            self._nulls[feature.group] += table.column(feature.name).null_count
        self._writer.add(table)

    def _again(self, first: int, rows: int) -> np.ndarray:
        """Which of the day's ``rows`` rows from ``first`` on have an identifier that occurred before."""
        again = np.zeros(rows, bool)
        if self._repeated is not None:
            low, high = np.searchsorted(self._repeated, [first, first + rows])
            again[self._repeated[low:high] - first] = True
        return again

    def finish(self) -> None:
        result, registry = self._result, self._registry
        if self.position != result.rows_in:
            raise DataError(
                f"{self._sources[0].file.path.parent.parent}: {self.position} rows were read, the files' footers say {result.rows_in}"
            )
        result.rows_out = self._writer.rows
        for name, counts in (
            ("_future_", result.future_timestamps),
            ("_ancient_", result.ancient_timestamps),
            ("_nonfinite_", result.nonfinite_values),
            ("_unreadable_", result.unreadable_text),
            ("_rounded_", result.rounded_labels),
        ):
            counts.update({key.removeprefix(name): int(n) for key, n in sorted(self._counts.items()) if key.startswith(name) and n})
        for name, lost in sorted(self._lost.items()):
            (result.lost_values if name in registry.contract.by_name else result.unlike_texts)[name] = lost
        sizes = Counter(feature.group for feature in registry.features)
        result.missing = {group: self._nulls[group] / max(1, size * result.rows_out) for group, size in sizes.items()}
        if self._aside:
            result.quarantine = pa.concat_tables(self._aside)
            reasons = result.quarantine.column("reason").value_counts().to_pylist()
            result.rows_quarantined = {item["values"]: item["counts"] for item in sorted(reasons, key=lambda item: item["values"])}
        self._add_warnings()

    def _add_warnings(self) -> None:
        result, contract = self._result, self._registry.contract
        for counts, text in (
            (result.future_timestamps, "timestamps after the impression's hour began, taken as missing"),
            (result.ancient_timestamps, "timestamps before 2000, taken as missing"),
            (result.nonfinite_values, "NaN, infinite or too large values, taken as missing"),
            (result.unreadable_text, "values that are not UTF-8, their unreadable bytes replaced by U+FFFD"),
            (result.rounded_labels, "values differ from a shorter horizon by rounding, taken as equal to it"),
        ):
            result.warnings += [f"{name}: {count} {text}" for name, count in counts.items()]
        result.warnings += [
            f"{key.removeprefix('_distant_')}: {int(n)} of these timestamps are too large for seconds;"
            " deliver unix seconds, not milliseconds"
            for key, n in sorted(self._counts.items())
            if key.startswith("_distant_") and n
        ]
        result.warnings += [
            f"{name}: {count} values cannot be read as {described(contract.by_name[name])}, taken as missing; first {example}"
            for name, (count, example) in result.lost_values.items()
        ]
        result.warnings += [
            f"{name}: {count} texts have another form than it is made from, taken as missing; first {example}"
            for name, (count, example) in result.unlike_texts.items()
        ]
        if unlike := int(self._counts["_no_flag"]):
            result.warnings.append(f"{contract.payer}: {unlike} rows are neither 0 nor 1; the revenue decides who is a payer")
        if disagree := int(self._counts["_disagree"]):
            result.warnings.append(f"{contract.payer}: {disagree} rows say 0 although {contract.target} is positive")

    def _set_aside(self, row_id: pa.ChunkedArray, files: np.ndarray, first: int, reason: pa.ChunkedArray, value: pa.ChunkedArray) -> None:
        rows = np.flatnonzero(pc.is_valid(reason).to_numpy())
        files = files[rows]
        begins = np.concatenate([[0], self._ends[:-1]])
        numbers = first + rows - begins[files]
        for file in np.unique(files):
            numbers[files == file] = self._sources[file].row_numbers(numbers[files == file])
        paths = pa.array([str(source.file.path) for source in self._sources], pa.string())
        columns = [
            row_id.take(rows),
            paths.take(files),
            pa.array(numbers, pa.int64()),
            reason.take(rows),
            value.take(rows),
        ]
        self._aside.append(pa.table(columns, names=QUARANTINE_SCHEMA.names).cast(QUARANTINE_SCHEMA))
