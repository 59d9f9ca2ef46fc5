"""One impression: its score, what moved it, and impressions like it.

What belongs here: opening the served model of a window, taking its two main models apart for one row (TreeSHAP), looking for rows that
the models see alike. What does not: the models (``modeling/``), the page (``pages.py``).

Contributions of a booster add up to its raw score, so those of all features made from one column are added: that is what the column moved.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ltv_assets.core.contract import Contract, Scores
from ltv_assets.core.errors import DataError, StaleError
from ltv_assets.core.memory import release_memory
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.dashboard.reading import PublishedWarehouse
from ltv_assets.features.impressions import example_impression, read_impressions
from ltv_assets.features.schema import feature_names
from ltv_assets.state.project import Project

# The models bring LightGBM, scikit-learn and pandas with them: half the memory of the whole server, for one page.
if TYPE_CHECKING:
    from ltv_assets.features.rows import RowFlattener
    from ltv_assets.modeling.model_set import WindowModels

SAMPLE_ROWS = 800
"""Impressions of the holdout day among which similar ones are looked for."""
MAX_SCANNED_ROWS = 200_000
BATCH_ROWS, CHUNK_ROWS = 512, 100
BUFFER_BYTES, COLUMNS_AT_ONCE = 1 << 14, 32
"""Read ahead of each column, and columns read together: a column chunk is else read whole, of a day of millions a large one, and a reader
holds a decoded page of every column that it reads."""
NEAREST, SHOWN_NEIGHBOURS, SHOWN_TERMS = 50, 6, 8
OFFERED_TOP, OFFERED_SPREAD = 5, 7


@dataclass(frozen=True)
class Term:
    """A column and what it moved: ``push`` in raw score (log-odds, or log USD), ``factor`` its exponential, ``values`` what the row has."""

    column: str
    meaning: str
    values: str
    push: float

    @property
    def factor(self) -> float:
        return float(np.exp(self.push))


@dataclass(frozen=True)
class Neighbour:
    """A holdout impression that the models see alike; ``distance`` in raw score over all features."""

    row_id: str
    about: str
    distance: float
    expected_usd: float
    paid_usd: float


@dataclass(frozen=True)
class Explained:
    """A scored impression: the published columns, terms of who pays and of how much, and what alike impressions brought."""

    window: PartitionKey
    scores: Mapping[str, float]
    who: tuple[Term, ...]
    amount: tuple[Term, ...]
    neighbours: tuple[Neighbour, ...]
    nearest: int
    nearest_payers: int
    nearest_usd: float
    nearest_expected_usd: float
    sample_day: str
    sample_rows: int


class Explainer:
    """The served model of a window, opened once; call it from one thread at a time."""

    def __init__(self, project: Project, warehouse: PublishedWarehouse, window: PartitionKey) -> None:
        from ltv_assets.modeling.model_store import read_served

        self.project, self.warehouse, self.window = project, warehouse, window
        try:
            self.models: WindowModels = read_served(warehouse, window)
        except (KeyError, TypeError, ValueError) as error:  # fields that another version did not write
            found = f"{type(error).__name__}: {error}"
            raise StaleError(f"served_model {window}: written by another version of ltv-assets ({found:.120}); run `ltv run`") from None
        self.names = feature_names(project.registry)

    @cached_property
    def _flattener(self) -> RowFlattener:
        from ltv_assets.features.rows import RowFlattener

        return RowFlattener(self.project.registry)

    @cached_property
    def _described(self) -> dict[str, tuple[str, str]]:
        return {c.name: (c.description, c.unit or "") for c in self.project.flattened_columns}

    @property
    def _labels(self) -> tuple[str, ...]:
        return (self.project.contract.target,)

    @property
    def _about(self) -> tuple[str, ...]:
        """Columns by which a similar impression is introduced."""
        return self.project.contract.segments

    # ------------------------------------------------------------------------------------------------------------- input

    def pasted(self, text: str) -> pa.Table:
        """Features of an impression that was pasted as a JSON object in the contract's columns; raises DataError saying what is wrong."""
        try:
            found = json.loads(text)
        except ValueError as error:
            raise DataError(f"the text is not JSON ({error}); paste one object such as the example") from None
        if isinstance(found, list) and len(found) == 1:
            found = found[0]
        if not isinstance(found, dict):
            raise DataError(f"expected one JSON object with an impression's columns, found {type(found).__name__}; paste one impression")
        impressions = read_impressions({str(name): [value] for name, value in found.items()}, 1, self.project.contract)
        if impressions.problems:
            raise DataError(impressions.problems[0])
        return self._flattener.features(impressions.table)

    def picked(self, day: PartitionKey, row_id: str) -> pa.Table:
        """Features of a stored impression; raises StaleError if the day is not there, DataError if it has no such row."""
        return self.warehouse.read("flattened_features", day, lambda files: find_row(files, row_id, self.names, day))

    # ------------------------------------------------------------------------------------------------------------ scores

    def explain(self, features: pa.Table) -> Explained:
        """Score one row of features and take the score apart."""
        from ltv_assets.modeling.design_matrix import encode

        frame = features.to_pandas()
        scored = self.models.score(frame)
        matrix = encode(self.models.classifier.encoder, frame)
        pushes = self._pushes(matrix.values)[0]
        odds, head = np.split(pushes, [len(matrix.names)])
        row = {name: features.column(name)[0].as_py() for name in features.column_names}
        scores = {name: float(scored[name].iloc[0]) for name in scored.columns}
        return Explained(
            self.window, scores, self._terms(matrix.names, odds, row), self._terms(matrix.names, head, row), *self._alike(pushes)
        )

    def _pushes(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Contributions (n, 2 m): to the log-odds of paying, then to the log amount of a payer."""
        models = (self.models.classifier.model, self.models.regressor.head)
        return np.hstack([model.contributions(values).astype(np.float32) for model in models])

    def _terms(self, names: Sequence[str], pushes: NDArray[np.float32], row: Mapping[str, Any]) -> tuple[Term, ...]:
        sums: dict[str, float] = {}
        used: dict[str, list[tuple[float, str]]] = {}
        for name, push in zip(names, pushes, strict=True):
            column = _column_of(name)
            sums[column] = sums.get(column, 0.0) + float(push)
            used.setdefault(column, []).append((abs(float(push)), name))
        largest = sorted((c for c in sums if sums[c]), key=lambda c: (-abs(sums[c]), c))[:SHOWN_TERMS]
        return tuple(Term(c, self._meaning(c), self._values(c, sorted(used[c], reverse=True), row), sums[c]) for c in largest)

    def _meaning(self, column: str) -> str:
        if column in self.project.contract.by_name:
            return self.project.contract.by_name[column].description
        if "_x_" in column:
            return " and ".join(part.replace("_", " ") for part in column.split("_x_")) + " taken together"
        return self._described.get(column, ("", ""))[0]

    def _values(self, column: str, used: Sequence[tuple[float, str]], row: Mapping[str, Any]) -> str:
        """What the row has in a column: the value itself, or the features of it that moved most."""
        parts = column.split("_x_") if "_x_" in column else [column]
        plain = [f"{_shown(row[part])}" for part in parts if part in row]
        if plain:
            return ", ".join(plain)
        told = []
        for _, name in used:
            if name in row:
                unit = self._described.get(name, ("", ""))[1]
                unit = unit if unit not in ("", "1", "0 or 1", "share", "rank 0..1") else ""
                told.append(f"{name.split('__')[-1].replace('_', ' ')} {_shown(row[name])} {unit}".rstrip())
        return "; ".join(told[:2])

    # -------------------------------------------------------------------------------------------------------- neighbours

    @cached_property
    def _sample(self) -> tuple[pa.Table, NDArray[np.float32], NDArray[np.float64]]:
        """Rows of the holdout day (row_id, label, features), their contributions and expected revenue."""
        from ltv_assets.modeling.design_matrix import encode

        columns = ["row_id", *self._labels, *self.names]
        table = self.warehouse.read("flattened_features", self.window, lambda files: spread_rows(files, columns, SAMPLE_ROWS))
        frame = table.select(self.names).to_pandas()
        kept = table.select([name for name in ("row_id", *self._labels, *self._about) if name in table.column_names])
        expected, pushes = [], []
        for low in range(0, len(frame), CHUNK_ROWS):  # what the models need of a row beside its features is many times as large
            chunk = frame.iloc[low : low + CHUNK_ROWS]
            expected.append(self.models.score(chunk)[self.models.names.expected].to_numpy())
            pushes.append(self._pushes(encode(self.models.classifier.encoder, chunk).values))
        return kept, np.concatenate(pushes), np.concatenate(expected)

    def _alike(self, pushes: NDArray[np.float32]) -> tuple[tuple[Neighbour, ...], int, int, float, float, str, int]:
        try:
            table, others, expected = self._sample
        except StaleError:
            return (), 0, 0, 0.0, 0.0, self.window, 0
        distance = np.sqrt(((others - pushes) ** 2).sum(axis=1))
        nearest = np.lexsort((np.arange(len(distance)), distance))[: min(NEAREST, len(distance) // 10 or 1)]
        paid = np.nan_to_num(table[self._labels[0]].to_numpy().astype(np.float64))
        about = [name for name in self._about if name in table.column_names]
        shown = tuple(
            Neighbour(
                str(table["row_id"][int(i)].as_py()),
                ", ".join(_shown(table[name][int(i)].as_py()) for name in about),
                float(distance[i]),
                float(expected[i]),
                float(paid[i]),
            )
            for i in nearest[:SHOWN_NEIGHBOURS]
        )
        mean, mean_expected = float(paid[nearest].mean()), float(expected[nearest].mean())
        return shown, len(nearest), int((paid[nearest] > 0).sum()), mean, mean_expected, self.window, len(distance)


def _column_of(feature: str) -> str:
    """The column a feature was made from: ``bundle_x__sum`` is of ``bundle_x``, ``missing__source`` of its source."""
    first, _, rest = feature.partition("__")
    return rest or first if first == "missing" else first


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "missing"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------------------------ files


def find_row(files: Sequence[Path], row_id: str, columns: Sequence[str], day: PartitionKey) -> pa.Table:
    """Some columns of the row with this id; raises DataError if no file has it."""
    for path in files:
        with pq.ParquetFile(path, buffer_size=BUFFER_BYTES) as file:
            for group in range(file.num_row_groups):
                place = pc.index(file.read_row_group(group, columns=["row_id"])["row_id"], row_id).as_py()
                if place >= 0:
                    return _row_at(file, group, place, columns)
    raise DataError(f"day {day} has no impression with row_id {row_id!r:.80}; choose one of the list, or copy an id from `predictions`")


def _row_at(file: pq.ParquetFile, group: int, place: int, columns: Sequence[str]) -> pa.Table:
    return _side_by_side(columns, lambda names: _row_of(file, group, place, names))


def _row_of(file: pq.ParquetFile, group: int, place: int, columns: Sequence[str]) -> pa.Table:
    before = 0
    for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=list(columns), use_threads=False):
        if place < before + batch.num_rows:
            return pa.Table.from_batches([batch.take(pa.array([place - before]))])
        before += batch.num_rows
    raise DataError(f"row {place} of row group {group} is beyond its end; run `ltv status --verify`")


def _side_by_side(columns: Sequence[str], read: Callable[[Sequence[str]], pa.Table]) -> pa.Table:
    """The same rows of all columns, read some columns at a time."""
    found: dict[str, pa.ChunkedArray] = {}
    for low in range(0, len(columns), COLUMNS_AT_ONCE):
        part = read(columns[low : low + COLUMNS_AT_ONCE])
        found |= dict(zip(part.column_names, part.columns, strict=True))
        release_memory()
    return pa.table({name: found[name] for name in columns})


def spread_rows(files: Sequence[Path], columns: Sequence[str], most: int) -> pa.Table:
    """At most ``most`` rows, evenly spread over the files; of days beyond 200 000 rows, over evenly spread row groups."""
    groups = [(path, g, n) for path in files for g, n in enumerate(_group_rows(path))]
    kept = groups[:: max(1, -(-sum(n for *_, n in groups) // MAX_SCANNED_ROWS))]
    total = sum(n for *_, n in kept)
    if not total:
        raise StaleError("the day has no rows")
    wanted = np.unique(np.linspace(0, total - 1, min(most, total)).astype(np.int64))
    return _side_by_side(columns, lambda names: _taken(kept, names, wanted))


def _taken(groups: Sequence[tuple[Path, int, int]], columns: Sequence[str], wanted: NDArray[np.int64]) -> pa.Table:
    taken, before = [], 0
    for batch in _batches(groups, columns):
        here = wanted[(wanted >= before) & (wanted < before + batch.num_rows)] - before
        taken.append(pa.Table.from_batches([batch.take(pa.array(here))]))
        before += batch.num_rows
    return pa.concat_tables(taken, promote_options="permissive")


def _group_rows(path: Path) -> list[int]:
    metadata = pq.read_metadata(path)
    return [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]


def _batches(groups: Sequence[tuple[Path, int, int]], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for path, group, _ in groups:
        with pq.ParquetFile(path, buffer_size=BUFFER_BYTES) as file:
            yield from file.iter_batches(BATCH_ROWS, row_groups=[group], columns=list(columns), use_threads=False)


def offered_rows(warehouse: PublishedWarehouse, day: PartitionKey, names: Scores) -> list[dict[str, Any]]:
    """Some impressions of a scored day to pick from: those with the highest expected revenue, then some spread over the day."""

    def made(files: list[Path]) -> list[dict[str, Any]]:
        columns = ["row_id", names.expected, "buyer_probability"]
        top: list[dict[str, Any]] = []
        for batch in _batches([(f, g, n) for f in files for g, n in enumerate(_group_rows(f))], columns):
            best = pc.select_k_unstable(batch, OFFERED_TOP, [(names.expected, "descending")])
            rows = [*top, *batch.take(best).to_pylist()]
            top = sorted(rows, key=lambda r: (-r[names.expected], r["row_id"]))[:OFFERED_TOP]
        spread = spread_rows(files, columns, OFFERED_SPREAD).to_pylist() if top else []
        known = {row["row_id"] for row in top}
        return [*top, *(row for row in spread if row["row_id"] not in known)]

    return warehouse.remembered("offered rows", "predictions", day, lambda: warehouse.read("predictions", day, made))


def stored_score(warehouse: PublishedWarehouse, day: PartitionKey, row_id: str, names: Scores) -> dict[str, Any] | None:
    """The published prediction of one impression; None if its day is not scored or has no such row."""
    columns = ["row_id", "buyer_probability", names.expected, names.ltv[0], "predicted_zero"]
    try:
        table = warehouse.read("predictions", day, lambda files: find_row(files, row_id, columns, day))
    except (DataError, StaleError):
        return None
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows[0]


def example(contract: Contract) -> str:
    """An invented impression as JSON, in the columns of a contract."""
    return json.dumps(example_impression(contract), indent=1)
