"""Computation of the flattened columns of one block.

What belongs here: canonical columns of a block, SQL for scalars, array reductions for maps and lists, interactions. What does
not: the SQL itself (``../sql.py``), the reductions (``../arrays.py``), what happens to the rows afterwards
(``accounting.py``). Next to read: ``accounting.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ltv_assets.core.contract import Column
from ltv_assets.core.database import open_duckdb
from ltv_assets.features.arrays import Entries, OwnKey, Sparse, column_statistics, shared_elements
from ltv_assets.features.canonical import TEXT, Findings, UnreadableTypeError, canonical_type, read_column
from ltv_assets.features.flatten.blocks import Block, FlatBlock
from ltv_assets.features.flatten.decoding import UndecodableError, decoding, one_line
from ltv_assets.features.registry import Registry, feature_name
from ltv_assets.features.sql import interaction_inputs, interaction_sql, own_keys, row_columns, row_sql
from ltv_assets.features.statistics import STATISTICS

DECODED_AT_ONCE = 32 << 20
"""Bytes of nested columns, as the files' footers state them, that a block decodes at once."""

COUNTED = ("_future_", "_distant_", "_ancient_", "_rounded_", "_disagree", "_no_flag")


class FlattenEngine:
    """Compute the flattened columns of a block: SQL for scalars, array reductions for maps and lists."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, registry: Registry, labelled: bool) -> None:
        self._connection = connection
        self._registry = registry
        self._contract = contract = registry.contract
        self._inputs = frozenset(interaction_inputs(registry))
        self._overlaps = [overlap for group in registry.groups.values() if group.enabled for overlap in group.overlaps]
        self._wanted = frozenset(feature.name for feature in registry.features)
        self._scalars = row_columns(registry, labelled)
        self._texts = tuple(
            name for name in self._scalars if not self._column(name).is_label and canonical_type(self._column(name)) == TEXT
        )
        # A feature that is made by taking a text apart is missing where the text has another form.
        self._taken_apart = {feature_name(c, s): c for c in self._texts for s in STATISTICS["text"] if s != "value"}
        self._nested = [name for name in registry.source_columns if contract.by_name[name].is_nested]
        self._row_sql = row_sql(registry, source="SELECT * FROM cells", labelled=labelled)
        self._interaction_sql = interaction_sql(registry, "cells") if self._inputs else ""

    def _column(self, name: str) -> Column:
        return self._contract.by_name[name]

    def query(self, sql: str, cells: pa.Table) -> pa.Table:
        """Run SQL over a table that the SQL calls ``cells``; rows keep their order."""
        with self._connection.cursor() as cursor:
            cursor.register("cells", cells)
            return self._fetch(cursor, sql)

    def _fetch(self, cursor: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
        return cursor.sql(sql).to_arrow_table()

    def flatten(self, block: Block) -> FlatBlock:
        """Return every feature of the block with row_id, labels, the reasons to set rows aside, and counts."""
        flat = FlatBlock(block.rows)
        if self._contract.layout is None:
            flat.hours = block.hour_start()
        with decoding(block.name):
            shares = self._shares(block)
            # Small files are opened once; of large ones only a share is decoded at a time.
            whole = len(shares) <= 1
            columns = self._read(block, [*self._scalars, *(shares[0] if whole and shares else ())], flat)
            own = self._rows(block, {name: columns.pop(name) for name in self._scalars}, flat)
            for names in shares:
                self._reduce(block, columns if whole else self._read(block, names, flat), own, flat)
            self._finish(flat)
        return flat

    def _read(self, block: Block, names: Sequence[str], flat: FlatBlock) -> dict[str, pa.Array]:
        """The named columns of a block in their canonical types; what they lose is added to the block's findings."""
        # A table searches its schema at every question, so each is asked once.
        pieces = [(file, table.num_rows, dict(zip(table.column_names, table.columns, strict=True))) for file, table in block.read(names)]
        columns = {}
        for name in names:
            parts: list[pa.Array] = []
            start = 0
            # Pieces that share their type are converted at once; no file's type decides another's.
            for _, run in groupby(_chunks(pieces, name), key=lambda piece: piece[1].type):
                files, chunks = zip(*run, strict=True)
                array = _joined(chunks)
                values, findings = self._canonical(name, array, files[0])
                if findings.lost:
                    flat.lose(name, findings, self._first_to_lose(name, files, chunks))
                flat.note(name, findings, start)
                parts.append(values)
                start += len(array)
            columns[name] = _together(parts or [pa.nulls(0, canonical_type(self._column(name)))])
        return columns

    def _canonical(self, name: str, array: pa.Array, file: str) -> tuple[pa.Array, Findings]:
        column = self._column(name)
        try:
            return read_column(column, array, self.query)
        except UnreadableTypeError:
            # Every value that is there is lost.
            findings = Findings()
            findings.lose(array.is_valid().to_numpy(zero_copy_only=False), lambda i: array[i])
            return pa.nulls(len(array), canonical_type(column)), findings
        except (pa.ArrowException, duckdb.DataError, ValueError) as error:
            raise UndecodableError(f"{file}: column {name} ({array.type}): {one_line(error)}") from error

    def _first_to_lose(self, name: str, files: Sequence[str], chunks: Sequence[pa.Array]) -> str:
        return next(file for file, chunk in zip(files, chunks, strict=True) if self._canonical(name, chunk, file)[1].lost)

    def _shares(self, block: Block) -> list[list[str]]:
        """Divide the nested columns into shares of similar size, small enough that what is decoded at once stays small."""
        sizes = block.sizes()
        weight = {name: sizes.get(name, 0) for name in sorted(self._nested)}
        # Lists that are compared with one another stay together.
        units = [[overlap.of, overlap.within] for overlap in self._overlaps]
        units += [[name] for name in weight if not any(name in unit for unit in units)]
        weights = [sum(weight[name] for name in unit) for unit in units]
        shares: list[list[str]] = [[] for _ in range(max(1, -(-sum(weight.values()) // DECODED_AT_ONCE)))]
        filled = [0] * len(shares)
        for index in sorted(range(len(units)), key=lambda i: -weights[i]):
            lightest = filled.index(min(filled))
            shares[lightest] += units[index]
            filled[lightest] += weights[index]
        return [share for share in shares if share]

    def _rows(self, block: Block, columns: Mapping[str, pa.Array], flat: FlatBlock) -> dict[str, OwnKey]:
        """Add everything about the rows but their nested columns, and return the impressions' own keys."""
        for name, column in columns.items():
            flat.absent[name] = column.is_null().to_numpy(zero_copy_only=False)
        table = self.query(self._row_sql, pa.table({**columns, "hour_start": pa.array(block.hour_start())}))
        for name in table.column_names:
            column = table.column(name)
            if name.startswith(COUNTED):
                flat.counts[name] = pc.sum(column).as_py() or 0
            elif name.startswith("_input_"):
                flat.inputs[name.removeprefix("_input_")] = column
            else:
                flat.columns[name] = column
        self._lose_texts(block, columns, flat)
        flat.columns |= {name: columns[name] for name in self._texts if name in self._wanted}
        own = {name: OwnKey.of(columns[name]) for name in own_keys(self._contract) if name != self._contract.hour_key}
        if self._contract.hour_key is not None:
            own[self._contract.hour_key] = OwnKey.of(flat.columns.pop("_own_hour").combine_chunks().dictionary_encode())
        return own

    def _lose_texts(self, block: Block, columns: Mapping[str, pa.Array], flat: FlatBlock) -> None:
        """Count the texts that have another form than a feature takes apart, and are missing in it."""
        for feature in self._wanted & self._taken_apart.keys():
            source = self._taken_apart[feature]
            rows = np.flatnonzero(flat.columns[feature].is_null().to_numpy() & ~flat.absent[source])
            texts = columns[source].take(pa.array(rows)).cast(pa.string())
            unlike, findings = pc.not_equal(texts, "").to_numpy(zero_copy_only=False), Findings()
            findings.lose(unlike, texts.__getitem__)
            if findings.lost:
                names, sizes = zip(*((name, table.num_rows) for name, table in block.read([source])), strict=True)
                flat.lose(feature, findings, names[np.searchsorted(np.cumsum(sizes), rows[np.argmax(unlike)], side="right")])

    def _reduce(self, block: Block, columns: Mapping[str, pa.Array], own: Mapping[str, OwnKey], flat: FlatBlock) -> None:
        """Add the statistics of nested columns and of the lists among them that are compared."""
        hour_start = block.hour_start()
        entries: dict[str, Entries] = {}
        distinct: dict[str, np.ndarray] = {}
        compared = {name for overlap in self._overlaps for name in (overlap.of, overlap.within)}
        for name, array in columns.items():
            column = self._column(name)
            statistics, found = column_statistics(column, array, own.get(column.own_key or ""), hour_start, flat.counts)
            flat.absent[name] = ~found.present
            for statistic, sparse in statistics.items():
                flat.put(feature_name(name, statistic), sparse, self._wanted, self._inputs)
            if name in compared:
                entries[name], distinct[name] = found, statistics["n_unique"].dense(block.rows)
        for overlap in self._overlaps:
            if overlap.of in entries and overlap.within in entries:
                shared = shared_elements(entries[overlap.of], entries[overlap.within])
                with np.errstate(all="ignore"):
                    share = Sparse(shared.rows, shared.values / distinct[overlap.of][shared.rows])
                flat.put(overlap.name, shared, self._wanted, self._inputs)
                flat.put(f"{overlap.name}_share", share, self._wanted, self._inputs)

    def _finish(self, flat: FlatBlock) -> None:
        """Add what combines several columns: missing indicators and interactions."""
        for group in self._registry.groups.values():
            if group.enabled:
                for indicator, columns in group.indicators.items():
                    missing = np.logical_and.reduce([flat.absent[name] for name in columns])
                    flat.columns[f"missing__{indicator}"] = pa.array(missing.astype(np.float32))
        if self._inputs:
            result = self.query(self._interaction_sql, pa.table({name: flat.inputs[name] for name in sorted(self._inputs)}))
            flat.columns |= {name: result.column(name) for name in result.column_names}
        # Finished blocks wait in a queue; their intermediate arrays are freed first.
        flat.inputs.clear()
        flat.absent.clear()


def _joined(chunks: Sequence[pa.Array]) -> pa.Array:
    """The chunks as one array; ArrowInvalid if a dictionary code of them is damaged, which joining would follow unseen."""
    if len(chunks) > 1 and "dictionary" in str(chunks[0].type):
        for chunk in chunks:
            _check_codes(chunk)
    return _together(chunks)


def _check_codes(array: pa.Array) -> None:
    """Raise ArrowInvalid if a dictionary code in the array, at whatever depth, has no word."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        if array.null_count < len(array):
            bounds = pc.min_max(array.indices).as_py()
            if bounds["min"] < 0 or bounds["max"] >= len(array.dictionary):
                found = f"from {bounds['min']} to {bounds['max']}"
                raise pa.ArrowInvalid(f"dictionary codes: expected 0 to {len(array.dictionary) - 1}, found {found}")
    elif pa.types.is_map(kind):
        _check_codes(array.keys)
        _check_codes(array.items)
    elif pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            _check_codes(array.field(index))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        _check_codes(array.values)


def _together(arrays: Sequence[pa.Array]) -> pa.Array:
    """The arrays as one; a single one is not copied."""
    return arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)


def _chunks(pieces: Sequence[tuple[str, int, Mapping[str, pa.ChunkedArray]]], name: str) -> Iterator[tuple[str, pa.Array]]:
    for file, rows, columns in pieces:
        for chunk in columns[name].chunks if name in columns else [pa.nulls(rows)]:
            yield file, chunk


def flatten_block(block: Block, *, registry: Registry, labelled: bool, memory_limit: str) -> FlatBlock:
    """One block on its own, for another process: the same columns and counts whoever computes them."""
    with closing(open_duckdb(threads=1, memory_limit=memory_limit)) as connection:
        return FlattenEngine(connection, registry, labelled).flatten(block)
