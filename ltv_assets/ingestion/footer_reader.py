"""Read footers of parquet files in a process of its own, one path a line, so that an abort in a library ends only this process.

``footers.py`` starts it and sends requests. It is run as a script and imports nothing of this package, because every file
that ends it costs a restart. Each answer is one line of JSON: ``rows`` and ``schema`` (the Arrow schema, serialized, base64), or
``problem``. Every operation that a later reader applies to the footer is tried here first.
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
"""Seconds without a request after which the process ends and frees its memory; the next file starts it again."""

SMALL_PAGE = 64 << 20
"""Size in bytes that is accepted for any page."""

FIXED = {1: 0, 2: 0, 3: 1, 7: 8}
VARINTS, BINARY, STRUCT = (4, 5, 6), 8, 12
"""Thrift's types: true, false, byte and double with their bytes; whole numbers; text; struct."""

PAGE_TYPE, UNCOMPRESSED, COMPRESSED = 1, 2, 3
DATA_PAGES = {0: 5, 3: 8}
VALUES = 1
"""Fields of a page header; which field describes a page of data, by its type; the number of its values there."""

ENCRYPTED_FOOTER = b"PARE"


def judge(path: str) -> dict[str, int | str]:
    """Answer for one file: the content of its footer, or the problem."""
    try:
        return _footer(path)
    except Exception as error:  # any error belongs to this file
        return {"problem": f"not a readable parquet file: {(str(error) or type(error).__name__).splitlines()[0]:.160}"}


def _footer(path: str) -> dict[str, int | str]:
    with open(path, "rb") as handle:  # noqa: PTH123 - a path given as text may contain bytes that are not UTF-8
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
    """Contradiction between column chunks and file: chunks outside the file, or another number of rows; None if there is none.

    Contradictory properties of a chunk end the process when they are read, which is an answer too.
    """
    end = size - metadata.serialized_size - FOOTER_END_BYTES
    columns = [metadata.schema.column(index) for index in range(metadata.num_columns)]
    leaves = [(column.max_repetition_level, column.path, column.physical_type, column.logical_type.type) for column in columns]
    rows = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        rows += row_group.num_rows
        if row_group.num_columns != len(leaves) or row_group.num_rows < 0:
            found = f"row group {group} has {row_group.num_columns} columns and {row_group.num_rows} rows"
            return f"{found}, the file {len(leaves)} columns; deliver the file again"
        for index, (repeated, *_) in enumerate(leaves):
            chunk = row_group.column(index)
            start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
            if start is not None and not 0 <= start <= start + chunk.total_compressed_size <= end:
                return f"column chunk {chunk.path_in_schema} lies beyond the data of the file; it was cut or pasted together"
            if chunk.num_values < row_group.num_rows or (chunk.num_values > row_group.num_rows and not repeated):
                found = f"holds {chunk.num_values} values, its row group {row_group.num_rows} rows"
                return f"column chunk {chunk.path_in_schema} {found}; deliver the file again"
            _ = chunk.encodings, chunk.total_uncompressed_size
    return (
        None
        if rows == metadata.num_rows
        else f"its footer promises {metadata.num_rows} rows, its row groups hold {rows}; deliver the file again"
    )


def _page_problem(path: str, metadata: pq.FileMetaData) -> str | None:
    """Contradiction between pages and column chunk: a page with more bytes than the chunk, or another number of values in all.

    The first makes a reader allocate that much memory, the second gives a column of another length. Other damage to pages is
    found when rows are read.
    """
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:  # noqa: PTH123
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            for index in range(row_group.num_columns):
                chunk = row_group.column(index)
                size, values = chunk.total_uncompressed_size, chunk.num_values
                at = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
                stop = at + chunk.total_compressed_size
                held = 0
                # After a damaged header no page can be located.
                with suppress(IndexError):
                    while at < stop and held < values:
                        at, page = _struct(data, at)
                        claim = _number(page, UNCOMPRESSED)
                        if claim > max(size, SMALL_PAGE):
                            problem = f"a page of column chunk {chunk.path_in_schema} claims {claim} bytes, the chunk {size}"
                            return f"{problem}; deliver the file again"
                        kind = DATA_PAGES.get(_number(page, PAGE_TYPE))
                        header = page.get(kind, {}) if kind is not None else {}
                        held += _number(header, VALUES) if isinstance(header, dict) else 0
                        at += max(0, _number(page, COMPRESSED))
                if held != values:
                    return (
                        f"the pages of column chunk {chunk.path_in_schema} hold {held} values, the chunk {values}; deliver the file again"
                    )
    return None


Struct = dict[int, "int | Struct"]


def _number(struct: Struct, field: int) -> int:
    number = struct.get(field, 0)
    return number if isinstance(number, int) else 0


def _struct(data: mmap.mmap, at: int) -> tuple[int, Struct]:
    """(where the struct at ``at`` ends, its whole numbers and structs by field) of Thrift's compact protocol.

    Raises IndexError if it is not a struct.
    """
    found: Struct = {}
    field = 0
    while (head := data[at]) != 0:
        at += 1
        if head >> 4:
            field += head >> 4
        else:
            at, number = _varint(data, at)
            field = _signed(number)
        kind = head & 15
        if kind in VARINTS:
            at, number = _varint(data, at)
            found[field] = _signed(number)
        elif kind == STRUCT:
            at, found[field] = _struct(data, at)
        else:
            at = _skip(data, at, kind)
    return at + 1, found


def _skip(data: mmap.mmap, at: int, kind: int) -> int:
    """End of the value at ``at``, which is neither a whole number nor a struct."""
    if kind == BINARY:
        at, size = _varint(data, at)
        return at + size
    if kind not in FIXED:
        raise IndexError(f"type {kind} does not stand in a page header")
    return at + FIXED[kind]


def _signed(number: int) -> int:
    return (number >> 1) ^ -(number & 1)


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
    """Problem of a file with more rows than bytes, whose rows are read to see; None if there is none."""
    rows = 0
    for batch in parquet.iter_batches(columns=[parquet.schema_arrow.names[0]], use_threads=False):
        rows += batch.num_rows
    return (
        None
        if rows == parquet.metadata.num_rows
        else f"its footer promises {parquet.metadata.num_rows} rows, {rows} are there; deliver the file again"
    )


def _limit_memory(most: int) -> None:
    """Limit the address space in bytes, where the system has such a limit."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _address_space() -> int:
    """Bytes of address space in use; 0 where the system does not report it."""
    with suppress(OSError), open("/proc/self/statm") as handle:  # noqa: PTH123
        return int(handle.read().split()[0]) * resource.getpagesize()
    return 0


def _limit_time(seconds: int) -> None:
    """Limit the processor time in seconds, counted from now."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + 1 + seconds, resource.RLIM_INFINITY))


def main(seconds: int, memory: int) -> None:
    """Answer paths (JSON text, one a line) until the input ends or no request comes for a while."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Output of a library must not be read as an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    limit = _address_space() + memory
    print("{}", file=answers, flush=True)
    while select.select([sys.stdin], [], [], IDLE_SECONDS)[0] and (line := sys.stdin.readline()):
        path = json.loads(line)
        with suppress(OSError):
            # The file itself is mapped, so its size is added to the limit.
            _limit_memory(limit + os.stat(path).st_size)  # noqa: PTH116
        _limit_time(seconds)
        print(json.dumps(judge(path)), file=answers, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
