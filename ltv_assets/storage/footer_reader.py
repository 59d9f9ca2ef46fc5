"""The program that opens footers of parquet files, one path a line, so that a file on which a library aborts ends only it.

``footers.py`` starts it and asks it. Run as a script, it imports nothing of this package: it is started anew for every
file that ends it. Each answer is one line of JSON: ``rows`` and ``schema`` (the Arrow schema, serialized, base64), or
``problem``. Everything that a reader of the same file asks of its footer later is asked here first.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import resource
import select
import signal
import sys
from contextlib import suppress

import pyarrow.parquet as pq

FOOTER_END_BYTES = 8
"""The footer's length and the magic bytes, which end every parquet file."""

SIGNATURE_BYTES = 28
"""Nonce and tag that follow a footer in plain text when columns of the file are encrypted."""

IDLE_SECONDS = 10
"""Its memory is given back while days are flattened and models trained; the next file starts it again."""

SMALL_PAGE = 64 << 20
"""Bytes that a page may claim in any case."""

VARINTS = (4, 5, 6)
"""Thrift's types of whole numbers."""

UNCOMPRESSED, COMPRESSED = 2, 3
"""Fields of a page header."""

ENCRYPTED_FOOTER = b"PARE"


def judge(path: str) -> dict[str, int | str]:
    """Answer for one file: what its footer says, or why it is not believed."""
    try:
        return _footer(path)
    except Exception as error:  # whatever it is, it is this file's
        return {"problem": f"not a readable parquet file: {(str(error) or type(error).__name__).splitlines()[0]:.160}"}


def _footer(path: str) -> dict[str, int | str]:
    with open(path, "rb") as handle:  # noqa: PTH123 - a path given as text may hold bytes that are no text
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, size - FOOTER_END_BYTES))
        end = handle.read()
    if end[4:] == ENCRYPTED_FOOTER:
        return {"problem": "its footer is encrypted; deliver the file unencrypted"}
    with pq.ParquetFile(path) as parquet:
        metadata = parquet.metadata
        if int.from_bytes(end[:4], "little") == metadata.serialized_size + SIGNATURE_BYTES:
            return {"problem": "encrypted columns cannot be read; deliver the file unencrypted"}
        problem = _chunk_problem(metadata, size) or _page_problem(path, metadata)
        if problem is None and metadata.num_rows > size:
            problem = _missing_rows(parquet)
        if problem is not None:
            return {"problem": problem}
        schema = parquet.schema_arrow.serialize().to_pybytes()
        return {"rows": metadata.num_rows, "schema": base64.b64encode(schema).decode()}


def _chunk_problem(metadata: pq.FileMetaData, size: int) -> str | None:
    """Why the column chunks cannot be those of this file: they lie outside it, or hold another number of rows.

    Reading the properties of a chunk ends the process where they contradict one another, which is the other answer.
    """
    end = size - metadata.serialized_size - FOOTER_END_BYTES
    columns = [metadata.schema.column(index) for index in range(metadata.num_columns)]
    leaves = [(column.path, column.physical_type, column.max_repetition_level) for column in columns]
    rows = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        rows += row_group.num_rows
        if row_group.num_columns != len(leaves) or row_group.num_rows < 0:
            return f"row group {group} has {row_group.num_columns} columns and {row_group.num_rows} rows, the file {len(leaves)} columns"
        for index, (_, _, repeated) in enumerate(leaves):
            chunk = row_group.column(index)
            start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
            if start is not None and not 0 <= start <= start + chunk.total_compressed_size <= end:
                return f"column chunk {chunk.path_in_schema} lies beyond the data of the file; it was cut or pasted together"
            if chunk.num_values < row_group.num_rows or (chunk.num_values > row_group.num_rows and not repeated):
                return f"column chunk {chunk.path_in_schema} holds {chunk.num_values} values, its row group {row_group.num_rows} rows"
            _ = chunk.total_uncompressed_size
    return None if rows == metadata.num_rows else f"its footer promises {metadata.num_rows} rows, its row groups hold {rows}"


def _page_problem(path: str, metadata: pq.FileMetaData) -> str | None:
    """A page that claims more bytes than its column chunk has: a reader that believes it needs that much memory.

    Other damage to pages is left to whoever reads the rows.
    """
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:  # noqa: PTH123
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            for index in range(row_group.num_columns):
                chunk = row_group.column(index)
                most = max(chunk.total_uncompressed_size, SMALL_PAGE)
                at = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
                stop = at + chunk.total_compressed_size
                # A damaged header cannot be read any further.
                with suppress(IndexError):
                    while at < stop:
                        at, sizes = _page_header(data, at)
                        if sizes.get(UNCOMPRESSED, 0) > most:
                            claim = f"claims {sizes[UNCOMPRESSED]} bytes, the chunk {chunk.total_uncompressed_size}"
                            return f"a page of column chunk {chunk.path_in_schema} {claim}; deliver the file again"
                        at += max(0, sizes.get(COMPRESSED, stop))
    return None


def _page_header(data: mmap.mmap, at: int) -> tuple[int, dict[int, int]]:
    """(where the page header at ``at`` ends, its whole numbers by field) of Thrift's compact protocol.

    Raises IndexError if it is none.
    """
    numbers: dict[int, int] = {}
    field = 0
    while (head := data[at]) != 0:
        at += 1
        field += head >> 4
        if head & 15 in VARINTS:
            at, number = _varint(data, at)
            numbers[field] = (number >> 1) ^ -(number & 1)
        else:
            at = _skip(data, at, head & 15)
    return at + 1, numbers


def _skip(data: mmap.mmap, at: int, kind: int) -> int:
    """Where a value ends that stands at ``at``."""
    if kind in (1, 2):
        return at
    if kind in VARINTS:
        return _varint(data, at)[0]
    if kind in (3, 7):
        return at + (1 if kind == 3 else 8)
    if kind == 8:
        at, size = _varint(data, at)
        return at + size
    if kind == 12:
        return _page_header(data, at)[0]
    raise IndexError(f"type {kind} does not stand in a page header")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return at, number
        shift += 7
        if shift > 63:
            raise IndexError("a number of more than 64 bits")


def _missing_rows(parquet: pq.ParquetFile) -> str | None:
    """Why the rows are not there, looked up where they are more than the file has bytes: impressions take far more."""
    rows = 0
    for batch in parquet.iter_batches(columns=[parquet.schema_arrow.names[0]], use_threads=False):
        rows += batch.num_rows
    return None if rows == parquet.metadata.num_rows else f"its footer promises {parquet.metadata.num_rows} rows, {rows} are there"


def _limit_memory(most: int) -> None:
    """Allow so many bytes of address space; a system that knows no such limit goes without."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _address_space() -> int:
    """Bytes of address space taken already, 0 where the system does not tell."""
    with suppress(OSError), open("/proc/self/statm") as handle:  # noqa: PTH123
        return int(handle.read().split()[0]) * resource.getpagesize()
    return 0


def _limit_time(seconds: int) -> None:
    """Allow so many seconds of the processor from now on."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + 1 + seconds, resource.RLIM_INFINITY))


def main(seconds: int, memory: int) -> None:
    """Answer paths (JSON text, one a line) until the asker is gone, or has asked nothing for a while."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever a library prints must not pass for an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    limit = _address_space() + memory
    print("{}", file=answers, flush=True)
    while select.select([sys.stdin], [], [], IDLE_SECONDS)[0] and (line := sys.stdin.readline()):
        path = json.loads(line)
        with suppress(OSError):
            # The file itself is mapped, however large it is.
            _limit_memory(limit + os.stat(path).st_size)  # noqa: PTH116
        _limit_time(seconds)
        print(json.dumps(judge(path)), file=answers, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
