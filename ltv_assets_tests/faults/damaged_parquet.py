"""Damage to parquet files of many writers, footers and pages alike, answered as a day of files is answered.

Mutation number n is the same bytes on every machine with the same libraries. Many mutated files make one day, beside a good file
that must be read whole whatever its neighbours are. As a program it tries the mutations FIRST to STOP - 1
and prints how they were answered:

    python -m ltv_assets_tests.faults.damaged_parquet FOLDER FIRST STOP FILES_A_DAY
"""

from __future__ import annotations

import base64
import json
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe

from ltv_assets.core.database import open_duckdb
from ltv_assets.core.errors import DataError
from ltv_assets.features.flatten import RawFile, flatten_files
from ltv_assets.features.registry import Registry, load_registry
from ltv_assets_tests.faults.fuzz import hour_table
from ltv_assets_tests.faults.world import FEATURES, World

BATCH = 96
"""Mutated files that make one day."""

MAGIC = 4
TAIL = 8
COLUMNS = (
    "row_id",
    "iap_revenue_d7",
    "buyer_d7",
    "carrier",
    "weekday",
    "wifi_ratio",
    "last_buy",
    "bundles_ins",
    "iap_revenue_usd_bundle",
    "num_buys_bundle",
    "user_actions_bundles_action_count",
)
"""One column of every logical type: small files let thousands be tried."""


@cache
def registry() -> Registry:
    """The shipped statistics of these columns alone."""
    groups: dict[str, Any] = load_registry(FEATURES).model_dump()["groups"]
    for group in groups.values():
        group["columns"] = {name: statistics for name, statistics in group["columns"].items() if name in COLUMNS}
        group["overlaps"], group["indicators"], group["expressions"] = (), {}, {}
    return Registry(price_tiers=(100.0,), groups=groups)


# -------------------------------------------------------------------------------------------------------------- writers


class _NoKeyServer(pe.KmsClient):
    """Keys that are not wrapped at all: only the form of the file matters here."""

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        return base64.b64decode(wrapped_key)


def write_encrypted(table: pa.Table, path: Path, columns: list[str], *, plaintext_footer: bool) -> None:
    """Write a file with some encrypted columns."""
    factory = pe.CryptoFactory(lambda _: _NoKeyServer())
    settings = pe.EncryptionConfiguration(footer_key="footer", column_keys={"columns": columns}, plaintext_footer=plaintext_footer)
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), settings)
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)


def _pyarrow(**options: Any) -> Callable[[pa.Table, Path], None]:
    return lambda table, path: pq.write_table(table, path, **options)


def _duckdb(options: str) -> Callable[[pa.Table, Path], None]:
    def write(table: pa.Table, path: Path) -> None:
        with open_duckdb(threads=1, memory_limit="500MB") as connection:
            connection.register("rows", table)
            connection.execute(f"COPY (SELECT * FROM rows) TO '{path}' (FORMAT parquet, {options})")

    return write


DELTA = {
    "row_id": "DELTA_BYTE_ARRAY",
    "carrier": "DELTA_LENGTH_BYTE_ARRAY",
    "weekday": "DELTA_BINARY_PACKED",
    "wifi_ratio": "BYTE_STREAM_SPLIT",
    "bundles_ins.list.element": "DELTA_BYTE_ARRAY",
}
WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    "v1, dictionaries, snappy": _pyarrow(),
    "v2, dictionaries, zstd": _pyarrow(data_page_version="2.0", compression="zstd"),
    "v1, plain, uncompressed": _pyarrow(use_dictionary=False, compression="none"),
    "v2, plain, gzip": _pyarrow(data_page_version="2.0", use_dictionary=False, compression="gzip"),
    "v1, dictionaries, uncompressed": _pyarrow(compression="none", store_schema=False),
    "v2, dictionaries, uncompressed, several row groups": _pyarrow(data_page_version="2.0", compression="none", row_group_size=4),
    "delta encodings, v1, snappy": _pyarrow(use_dictionary=False, column_encoding=DELTA),
    "delta encodings, v2, uncompressed": _pyarrow(use_dictionary=False, column_encoding=DELTA, data_page_version="2.0", compression="none"),
    "no statistics, small pages": _pyarrow(write_statistics=False, data_page_size=32, write_batch_size=2, compression="none"),
    "page index, small pages, checksums": _pyarrow(
        write_page_index=True, write_page_checksum=True, data_page_size=32, write_batch_size=2, compression="zstd"
    ),
    "page index, v2, lz4": _pyarrow(write_page_index=True, data_page_version="2.0", compression="lz4"),
    "DuckDB, V1, snappy": _duckdb("PARQUET_VERSION V1"),
    "DuckDB, V2, zstd": _duckdb("PARQUET_VERSION V2, COMPRESSION zstd"),
    "DuckDB, V2, uncompressed": _duckdb("PARQUET_VERSION V2, COMPRESSION uncompressed"),
    "encrypted column, plaintext footer": lambda table, path: write_encrypted(table, path, ["wifi_ratio"], plaintext_footer=True),
    "encrypted footer": lambda table, path: write_encrypted(table, path, ["wifi_ratio"], plaintext_footer=False),
}


def _once(value: Any) -> Any:
    """A map with each key once, which not every writer can do without."""
    return [(key, _once(inner)) for key, inner in dict(value).items()] if isinstance(value, list) else value


@cache
def sound_files() -> tuple[tuple[str, bytes], ...]:
    """(writer, bytes) of the same good rows by every writer."""
    import tempfile

    table = hour_table().select(COLUMNS)
    for index, field in enumerate(table.schema):
        if pa.types.is_map(field.type):
            table = table.set_column(index, field.name, pa.array(map(_once, table.column(index).to_pylist()), field.type))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hour.parquet"
        found = []
        for name, write in WRITERS.items():
            write(table, path)
            found.append((name, path.read_bytes()))
            path.unlink()
    return tuple(found)


# ------------------------------------------------------------------------------------------------------------ mutations

ODD_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFF, 0x0C, 0x15, 0x16, 0x19, 0x1C)
LONG_VARINTS = tuple(bytes.fromhex(digits) for digits in ("ffffffff0f", "feffffff0f", "ffffffffffffffffff01", "8080808008", "00", "02"))


def _flip_bits(part: bytes, rng: random.Random) -> bytes:
    out = bytearray(part)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _set_bytes(part: bytes, rng: random.Random) -> bytes:
    out = bytearray(part)
    for _ in range(rng.choice((1, 1, 2, 4))):
        out[rng.randrange(len(out))] = rng.choice(ODD_BYTES)
    return bytes(out)


def _truncate(part: bytes, rng: random.Random) -> bytes:
    return part[: rng.randrange(len(part))] if rng.random() < 0.5 else part[rng.randrange(1, len(part)) :]


def _splice(part: bytes, rng: random.Random) -> bytes:
    """Copy a stretch over another place, or between two bytes."""
    size = min(len(part), rng.choice((1, 4, 16, 64, 256)))
    source, target = rng.randrange(len(part) - size + 1), rng.randrange(len(part) - size + 1)
    return part[:target] + part[source : source + size] + part[target + rng.choice((0, size)) :]


def _edit_length(part: bytes, rng: random.Random) -> bytes:
    """Put a number where another stood, in the two ways parquet writes lengths."""
    at = rng.randrange(len(part))
    if rng.random() < 0.6:
        return part[:at] + rng.choice(LONG_VARINTS) + part[at + 1 :]
    number = rng.choice((0, 1, 255, 65_535, 2**24, 2**31 - 1, 2**31, 2**32 - 1))
    return part[:at] + number.to_bytes(4, "little") + part[at + 4 :]


MUTATIONS = (_flip_bits, _flip_bits, _set_bytes, _truncate, _splice, _edit_length, _edit_length)


def _page_starts(data: bytes) -> list[int]:
    """Offsets of the first page of every column chunk, which the sound footer names."""
    metadata = pq.read_metadata(pa.BufferReader(data))
    starts = []
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            chunk = row_group.column(index)
            starts += [chunk.data_page_offset, *([chunk.dictionary_page_offset] if chunk.has_dictionary_page else [])]
    return starts


@cache
def _heads(index: int) -> tuple[int, ...]:
    name, data = sound_files()[index]
    return () if name.startswith("encrypted") else tuple(_page_starts(data))


def mutate(number: int) -> tuple[str, bytes]:
    """(writer and place, bytes) of one mutated file."""
    rng = random.Random(number)
    index = rng.randrange(len(WRITERS))
    name, data = sound_files()[index]
    size = int.from_bytes(data[-TAIL : -TAIL + 4], "little")
    pages, footer, tail = data[: -TAIL - size], data[-TAIL - size : -TAIL], data[-TAIL:]
    place = rng.choices(("footer", "page header", "pages", "tail", "whole"), (45, 25, 22, 4, 4))[0]
    change = rng.choice(MUTATIONS)
    if place == "footer":
        footer = change(footer, rng)
        # Most damage keeps the length true, so that the reader gets beyond the first check.
        tail = len(footer).to_bytes(4, "little") + tail[4:] if rng.random() < 0.95 else tail
    elif place == "tail":
        tail = change(tail, rng)
    elif place == "whole":
        return f"{name}: {place}", change(data, rng)
    else:
        start = rng.choice(_heads(index) or (MAGIC,)) if place == "page header" else MAGIC
        stop = min(start + 40, len(pages)) if place == "page header" else len(pages)
        part = change(pages[start:stop], rng)
        # Offsets in the footer stay true unless the damage is a cut.
        if change is not _truncate:
            part = part[: stop - start].ljust(stop - start, b"\0")
        pages = pages[:start] + part + pages[stop:]
    return f"{name}: {place}", pages + footer + tail


# -------------------------------------------------------------------------------------------------------------- answers


def answer(world: World, numbers: range) -> dict[int, str]:
    """How a day answers the mutations: "read", "set aside" or "refused" each.

    Raises AssertionError if the good file beside them is not read whole or a row is lost; anything else is the library's.
    """
    shutil.rmtree(world.data, ignore_errors=True)
    control = world.put(0)
    rows = pq.read_metadata(control).num_rows
    files = {}
    for number in numbers:
        path = world.file(number % 24, name=f"m{number}.parquet")
        path.write_bytes(mutate(number)[1])
        files[str(path.relative_to(world.data))] = number
    inventory = world.inspect()
    answers = {files[f.path]: "set aside" for f in inventory.quarantined}
    refused = {error.path for error in inventory.schema_errors}
    usable = [f for f in inventory.good if f.path not in refused]
    answers |= {files[path]: "refused" for path in refused}
    while True:
        raw = [RawFile(world.data / f.path, f.datetime) for f in usable]
        try:
            result = flatten_files(raw, registry=registry(), labelled=True, out=world.root / "day.parquet")
            break
        except DataError as error:
            # A key or a label of another type refuses the day and names the file; the others are looked at without it.
            named = [f for f in usable if str(error).startswith(f"{world.data / f.path}: column ")]
            assert named, str(error)
            answers[files[named[0].path]] = "refused"
            usable.remove(named[0])
    assert result.rows_in == result.rows_out + sum(result.rows_quarantined.values()) + sum(f.rows for f in result.files_aside)
    assert not any(f.path == control for f in result.files_aside)
    table = pq.read_table(world.root / "day.parquet", columns=["row_id"])
    own = set(pq.read_table(control, partitioning=None, columns=["row_id"])["row_id"].to_pylist())
    assert len(own & set(table["row_id"].to_pylist())) == rows, "the good file was not read whole"
    answers |= {files[str(f.path.relative_to(world.data))]: "set aside" for f in result.files_aside}
    return {number: answers.get(number, "read") for number in numbers}


def run(folder: Path, numbers: range, batch: int) -> None:
    """Try mutations, so many a day, and print the answers of each day as one line of JSON.

    The numbers at hand stand in ``FOLDER/case``, should they end the process. A day that ends in an exception is tried again,
    one file a day, to find the one that is at fault.
    """
    world = World(folder)
    for start in range(numbers.start, numbers.stop, batch):
        at_hand = range(start, min(start + batch, numbers.stop))
        (folder / "case").write_text(f"{at_hand.start} {at_hand.stop}")
        try:
            counts = Counter(answer(world, at_hand).values())
        except Exception as error:
            counts = Counter({"tracebacks": 1})
            print(f"mutations {at_hand.start} to {at_hand.stop - 1}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            if len(at_hand) > 1:
                run(folder, at_hand, 1)
                counts = Counter()
        print(json.dumps(counts), flush=True)


def soak(folder: Path, numbers: range, seconds: float = 120.0) -> tuple[Counter[str], list[str]]:
    """Try mutations in processes of their own; returns how often each answer came, and what the failures said.

    Answers beside those of `answer` are "aborts" (the process ended), "hangs" (a day took more than ``seconds``) and "tracebacks".
    """
    counts: Counter[str] = Counter()
    failures: list[str] = []
    waiting = [(numbers, BATCH)]
    while waiting:
        left, batch = waiting.pop()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        words = [sys.executable, "-m", "ltv_assets_tests.faults.damaged_parquet", str(folder), str(left.start), str(left.stop), str(batch)]
        with (folder / "errors").open("w+") as errors, subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True) as child:
            watch = Watchdog(child, seconds)
            assert child.stdout is not None
            for line in child.stdout:
                watch.rest()
                counts.update(json.loads(line))
            code = child.wait()
            watch.end()
            errors.seek(0)
            said = [line.rstrip() for line in errors]
        failures += [line for line in said if line.startswith("mutations ")]
        if code == 0:
            continue
        first, stop = (int(word) for word in (folder / "case").read_text().split())
        if stop - first > 1:
            waiting += [(range(stop, left.stop), batch), (range(first, stop), 1)]
            continue
        counts["hangs" if watch.barked else "aborts"] += 1
        failures.append(f"mutation {first}, {mutate(first)[0]}: {'no answer' if watch.barked else f'exit {code}'}: {said[-2:]}")
        waiting.append((range(stop, left.stop), batch))
    return counts, failures


class Watchdog:
    """Kills a process that says nothing for some seconds."""

    def __init__(self, child: subprocess.Popen[str], seconds: float) -> None:
        self.barked = False
        self._child, self._seconds = child, seconds
        self.rest()

    def rest(self) -> None:
        """Begin to wait anew."""
        self.end()
        self._timer = threading.Timer(self._seconds, self._bark)
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """Wait no more."""
        if (timer := getattr(self, "_timer", None)) is not None:
            timer.cancel()

    def _bark(self) -> None:
        self.barked = True
        self._child.kill()


if __name__ == "__main__":
    run(Path(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[3])), int(sys.argv[4]))
