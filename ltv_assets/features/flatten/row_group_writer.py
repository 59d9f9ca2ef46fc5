"""Deterministic row groups: the same rows give the same bytes, in whatever batches they arrive.

What belongs here: collecting rows, encoding, compression in a thread. What does not: the schema (``../schema.py``). Next to
read: ``accounting.py``, which hands over the rows.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ltv_assets.features.registry import Registry
from ltv_assets.features.schema import categorical_names, flattened_schema

ROW_GROUP = 65_536


class RowGroupWriter:
    """Write row groups of exactly ``ROW_GROUP`` rows (the last may be shorter), however the rows arrive.

    Compression runs in a thread of its own, one row group at a time, while the engine works on the next.
    """

    def __init__(self, out: Path, registry: Registry) -> None:
        self.rows = 0
        self._schema = flattened_schema(registry)
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        # Dictionaries only where values repeat: on float32 they cost time and save nothing.
        dictionaries = ["datetime", *categorical_names(registry)]
        # The lowest level of zstd needs a third less disk than LZ4; higher levels save three per cent more and write at half
        # the speed. Days are read whole, so minima and maxima of the columns would never be used.
        self._writer = pq.ParquetWriter(
            out, self._schema, compression="zstd", compression_level=1, use_dictionary=dictionaries, write_statistics=["datetime"]
        )
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="row-group")
        self._writing: Future[None] | None = None

    def __enter__(self) -> RowGroupWriter:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self._flush(everything=True)
                self._wait()
        finally:
            self._executor.shutdown(wait=True)
            self._writer.close()

    def add(self, table: pa.Table) -> None:
        self.rows += table.num_rows
        self._pending.append(table)
        self._pending_rows += table.num_rows
        if self._pending_rows >= ROW_GROUP:
            self._flush(everything=False)

    def _flush(self, *, everything: bool) -> None:
        if not self._pending_rows:
            return
        table = pa.concat_tables(self._pending)
        whole = table.num_rows if everything else table.num_rows - table.num_rows % ROW_GROUP
        rest = table.slice(whole)
        # A slice would keep the whole block in memory until the next one has come.
        rest = pa.Table.from_arrays([_copied(column) for column in rest.columns], schema=rest.schema)
        self._pending, self._pending_rows = [rest], rest.num_rows
        self._wait()
        self._writing = self._executor.submit(self._write, table.slice(0, whole))

    def _write(self, table: pa.Table) -> None:
        for start in range(0, table.num_rows, ROW_GROUP):
            # Encoding each row group from its own rows alone makes the bytes independent of how batches arrived.
            part = table.slice(start, ROW_GROUP)
            columns = [_encode(part.column(field.name), field.type) for field in self._schema]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema), row_group_size=ROW_GROUP)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()


def _copied(column: pa.ChunkedArray) -> pa.Array:
    """The column in memory of its own; joining does not copy a single array, and `take` needs several times as long."""
    if not column.num_chunks:
        return pa.array([], column.type)
    return pa.concat_arrays([*column.chunks, column.chunk(0).slice(0, 0)])


def _encode(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """Return a column as one array; dictionaries are renumbered by first appearance, whatever files their values came from."""
    if not pa.types.is_dictionary(kind):
        return column.cast(kind)
    encoded = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], kind)
    # Equal words must share a code: parquet pages of a dictionary with repetitions end in uninitialised bytes.
    words = encoded.dictionary.cast(kind.value_type).dictionary_encode()
    order = words.indices.take(encoded.indices).dictionary_encode()
    return pa.DictionaryArray.from_arrays(order.indices.cast(kind.index_type), words.dictionary.take(order.dictionary))
