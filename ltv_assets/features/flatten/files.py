"""Flattening of one day's files into one parquet file.

What belongs here: ``flatten_files``, isolation of files that cannot be decoded, repeated row_ids. What does not: the parts it
puts together (``sources.py``, ``engine.py``, ``accounting.py``, ``row_group_writer.py``). Next to read: ``sources.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ltv_assets.core.contract import Column
from ltv_assets.core.database import open_duckdb
from ltv_assets.core.memory import release_memory
from ltv_assets.core.parallel import Workers, in_order
from ltv_assets.features.canonical import Query, read_column
from ltv_assets.features.flatten.accounting import FileAside, FlattenResult, RowAccounting, Sample, note_schema_findings
from ltv_assets.features.flatten.blocks import BLOCK_ROWS, SMALL_BLOCK, FileBlock, file_blocks
from ltv_assets.features.flatten.decoding import UndecodableError, decoding, one_line
from ltv_assets.features.flatten.engine import FlattenEngine, flatten_block
from ltv_assets.features.flatten.row_group_writer import RowGroupWriter
from ltv_assets.features.flatten.sources import RawFile, Source, divided_by_row_groups, inspect_file, read_columns
from ltv_assets.features.registry import Registry


def flatten_files(
    files: Sequence[RawFile],
    *,
    registry: Registry,
    labelled: bool,
    out: Path,
    threads: int = 2,
    memory_limit: str = "1GB",
    progress: Callable[[int, int], None] | None = None,
    sampling_fraction: float = 1.0,
    seed: int = 0,
    workers: Workers | None = None,
) -> FlattenResult:
    """Flatten the files of one day into one parquet file with exactly ``flattened_schema(registry)``.

    The output depends on the files' contents and order only: same input, same bytes. Set aside, never silently dropped,
    are rows without a readable row_id, later occurrences of a row_id in the day, and, on labelled days, rows whose D7
    revenue or payer flag is missing or impossible or whose longer horizons contradict the shorter; and whole files whose
    rows cannot be decoded although their footer can.

    Args:
        files: the day's files in the order their rows shall have.
        labelled: whether label columns are expected; if not, they are written as NULL whatever the files hold.
        out: the file to write; its folder must exist. A failure leaves no file behind.
        threads: DuckDB threads. memory_limit: DuckDB's limit, e.g. ``"1GB"``.
        progress: called with (rows done, rows in all) as rows come out of the engine.
        sampling_fraction: share of the good rows that is written, chosen by a hash of (seed, row_id); the rest is counted.
        workers: other processes that flatten the blocks of files, which they must be able to read; this one writes them.

    Raises:
        DataError: a file has no readable footer, lacks a key or label column, or its hour cannot be told from its key.
        TransientError: the memory limit or the disk does not suffice.
    """
    sources = [inspect_file(file, labelled, registry.contract) for file in files]
    aside: list[FileAside] = []
    sample = Sample(sampling_fraction, seed)
    while True:
        try:
            result = _flatten_sources(sources, registry, labelled, Path(out), threads, memory_limit, progress, sample, workers)
            break
        except UndecodableError:
            # Only now is each file tried alone: whole days cost too much to decode twice.
            broken = _undecodable(sources, registry, labelled, memory_limit)
            if not broken:
                raise
            aside += [FileAside(source.file.path, source.rows, broken[source]) for source in broken]
            sources = [source for source in sources if source not in broken]
    result.files_aside = aside
    result.rows_in += sum(file.rows for file in aside)
    return result


def _undecodable(sources: Sequence[Source], registry: Registry, labelled: bool, memory_limit: str) -> dict[Source, str]:
    """The reason of every file that cannot be flattened even when it is alone."""
    found: dict[Source, str] = {}
    with closing(open_duckdb(threads=1, memory_limit=memory_limit)) as connection:
        engine = FlattenEngine(connection, registry, labelled)
        for source in sources:
            try:
                if source.rows:
                    engine.flatten(FileBlock((source,)))
            except UndecodableError as error:
                found[source] = f"its rows cannot be decoded ({one_line(error.__cause__ or error)}); deliver the file again"
    return found


def _flatten_sources(
    sources: Sequence[Source],
    registry: Registry,
    labelled: bool,
    out: Path,
    threads: int,
    memory_limit: str,
    progress: Callable[[int, int], None] | None,
    sample: Sample,
    workers: Workers | None,
) -> FlattenResult:
    result = FlattenResult()
    note_schema_findings(sources, registry, labelled, result)
    result.rows_in = sum(source.rows for source in sources)
    # Whole blocks side by side keep every core busy.
    lanes = threads if workers is None else workers.lanes
    largest = min(BLOCK_ROWS, max(SMALL_BLOCK, -(-result.rows_in // lanes)))
    blocks = list(file_blocks(divided_by_row_groups(sources, BLOCK_ROWS), largest=largest))
    # Threads without a block of their own would only wait, which DuckDB does busily.
    threads = max(1, min(threads, len(blocks)))
    try:
        with (
            closing(open_duckdb(threads=threads, memory_limit=memory_limit, spill=out.with_name(f".{out.name}.spill"))) as connection,
            ThreadPoolExecutor(threads) as pool,
            RowGroupWriter(out, registry) as writer,
        ):
            engine = FlattenEngine(connection, registry, labelled)
            identifier = registry.contract.by_name[registry.contract.identifier]
            sink = RowAccounting(registry, sources, lambda: _repeated_rows(engine.query, sources, identifier), result, writer, sample)
            if workers is None:
                flattened = in_order(lambda block: pool.submit(engine.flatten, block), blocks, ahead=threads)
            else:
                flattened = workers.map(flatten_block, blocks, registry=registry, labelled=labelled, memory_limit=memory_limit)
            for flat in flattened:
                sink.take(flat)
                release_memory()
                if progress is not None:
                    progress(sink.position, result.rows_in)
            sink.finish()
    except BaseException:
        out.unlink(missing_ok=True)
        raise
    return result


def _repeated_rows(query: Query, sources: Sequence[Source], identifier: Column) -> np.ndarray:
    """Return the positions (in the day's order) of rows whose row_id occurred before, ascending."""

    def identifiers(source: Source) -> pa.Array:
        with decoding(f"{source.file.path}: {identifier.in_files}"):
            (column,) = read_columns(source, [identifier.name]).columns
            return pa.concat_arrays([read_column(identifier, chunk, query)[0] for chunk in column.chunks])

    # Hashes first: they are a fraction of the ids' memory, and a day without repetitions needs nothing more.
    hashes = [
        query("SELECT CASE WHEN t <> '' THEN hash(t) END AS h FROM cells", pa.table({"t": identifiers(s)})) for s in sources if s.rows
    ]
    if not hashes:
        return np.empty(0, np.int64)
    column = pa.concat_tables(hashes).column("h")
    known = np.flatnonzero(pc.is_valid(column).to_numpy())
    values = column.drop_null().to_numpy()
    ordered = np.sort(values)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(twice) == 0:
        return np.empty(0, np.int64)
    suspects = known[np.isin(values, twice)]
    starts = np.concatenate([[0], np.cumsum([source.rows for source in sources])])
    texts = []
    for source, start, stop in zip(sources, starts[:-1], starts[1:], strict=True):
        rows = suspects[(suspects >= start) & (suspects < stop)] - start
        if len(rows):
            texts.append(identifiers(source).take(pa.array(rows)))
    _, first = np.unique(pa.concat_arrays(texts).to_numpy(zero_copy_only=False).astype(str), return_index=True)
    return np.delete(suspects, first)
