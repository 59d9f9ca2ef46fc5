"""What a flattened row takes on disk under different encodings, and under xz for comparison: the table of benchmarks/RESULTS.md.

    python benchmarks/lake_bytes.py DATA [--hours 2]

DATA is a data root with train/. Everything is measured on the same flattened hours, and given in bytes a row and as a share
of the raw files. The comparison compresses each column with xz, which is stronger than what a column
format uses: all features; those that do not follow from other columns, as a mean follows from sum and number of keys; and
then only one statistic of each raw column, for as many raw columns as have any.
"""

from __future__ import annotations

import argparse
import json
import lzma
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ltv_assets.cli.flatten_benchmark import find_days
from ltv_assets.core.columns import BY_NAME
from ltv_assets.features.flatten import flatten_files
from ltv_assets.features.registry import load_registry
from ltv_assets.features.schema import feature_names

CONFIG = Path(__file__).parents[1] / "config" / "features.yaml"
ENCODINGS: dict[str, dict[str, Any]] = {
    "LZ4": {"compression": "lz4"},
    "zstd level 1": {"compression": "zstd", "compression_level": 1},
    "zstd level 9": {"compression": "zstd", "compression_level": 9},
    "zstd level 19": {"compression": "zstd", "compression_level": 19},
}
GROUP_ROWS = 131_072


def written(table: pa.Table, folder: Path, **options: Any) -> tuple[int, float]:
    """Bytes of the table as one parquet file, and processor seconds of writing it."""
    path = folder / "table.parquet"
    began = time.process_time()
    pq.write_table(table, path, row_group_size=GROUP_ROWS, **options)
    return path.stat().st_size, time.process_time() - began


def best_of_each(table: pa.Table, folder: Path) -> int:
    """Bytes of all columns, each written alone in the way that suits it best: plain, split bytes, or dictionary."""
    total = 0
    for name in table.column_names:
        column, kind = table.select([name]), table.schema.field(name).type
        ways: list[dict[str, Any]] = [{"use_dictionary": True}, {"use_dictionary": False}]
        if pa.types.is_floating(kind):
            ways.append({"use_dictionary": False, "use_byte_stream_split": [name]})
        sizes = []
        for way in ways:
            path = folder / "column.parquet"
            pq.write_table(column, path, row_group_size=GROUP_ROWS, compression="zstd", compression_level=3, **way)
            group = pq.read_metadata(path)
            sizes.append(sum(group.row_group(i).column(0).total_compressed_size for i in range(group.num_row_groups)))
        total += min(sizes)
    return total


def packed(columns: Iterable[pa.ChunkedArray]) -> int:
    """Bytes of columns after xz, each as it is or laid out by byte of its values, whichever is smaller."""
    total = 0
    for column in columns:
        array = column.combine_chunks()
        array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
        if pa.types.is_dictionary(array.type):
            values = array.indices.to_numpy(zero_copy_only=False).astype(np.float32)
        else:
            values = array.to_numpy(zero_copy_only=False).astype(np.float32)
        split = np.frombuffer(values.tobytes(), np.uint8).reshape(-1, 4).T.tobytes()
        total += min(len(lzma.compress(data, preset=6)) for data in (values.tobytes(), split))
    return total


def one_each(features: list[str]) -> list[str]:
    """For every raw column one of its statistics: a sum, a date, an entropy, the value itself."""
    wanted = ("sum", "days_ago_min", "days_ago", "total", "entropy", "n_unique", "")
    found: dict[str, str] = {}
    for rank in wanted:
        for name in features:
            raw, _, statistic = name.partition("__")
            if statistic == rank and raw in BY_NAME:
                found.setdefault(raw, name)
    return sorted(found.values())


FOLLOWS_FROM = {"mean": "sum", "own_share": "sum", "top1_share": "sum", "has_own": "own", "sin": "", "cos": "", "tier": ""}
"""Statistics that others of their raw column determine, where this one of them is stored too."""


def independent(features: list[str]) -> list[str]:
    """Features that no other columns determine: without means, shares of a stored sum, interactions and indicators of gaps."""
    stored = set(features)

    def follows(name: str) -> bool:
        raw, _, statistic = name.partition("__")
        needed = FOLLOWS_FROM.get(statistic)
        return raw not in BY_NAME or (needed is not None and (f"{raw}__{needed}" if needed else raw) in stored)

    return [name for name in features if not follows(name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--hours", type=int, default=2)
    options = parser.parse_args()
    files = next(members for (split, _), members in find_days(options.data).items() if split == "train")[: options.hours]
    registry = load_registry(CONFIG)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flatten_files(files, registry=registry, labelled=True, out=folder / "day.parquet")
        table = pq.read_table(folder / "day.parquet")
        raw = sum(file.path.stat().st_size for file in files)

        def say(what: str, size: int, **more: Any) -> None:
            line = {"what": what, "bytes_a_row": round(size / table.num_rows, 1), "share_of_raw": round(size / raw, 3), **more}
            print(json.dumps(line), flush=True)

        say("raw files", raw)
        say("flattened, as the lake writes it", (folder / "day.parquet").stat().st_size)
        for what, encoding in ENCODINGS.items():
            size, seconds = written(table, folder, **encoding)
            say(what, size, processor_seconds=round(seconds, 1))
        say("the best encoding of each column", best_of_each(table, folder))
        features = feature_names(registry)
        identifiers = packed_text(table["row_id"])
        say("row_id, xz", identifiers)
        say("row_id and all features, xz", identifiers + packed(table[f] for f in features))
        alone = independent(features)
        say(f"row_id and {len(alone)} features that do not follow from others, xz", identifiers + packed(table[f] for f in alone))
        single = one_each(features)
        say(f"row_id and {len(single)} features, one of each raw column, xz", identifiers + packed(table[f] for f in single))


def packed_text(column: pa.ChunkedArray) -> int:
    """Bytes of a text column after xz."""
    return len(lzma.compress("".join(column.to_pylist()).encode(), preset=6))


if __name__ == "__main__":
    main()
