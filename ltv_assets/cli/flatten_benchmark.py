"""How fast flattening is, measured against the fastest possible reader of the same files.

What belongs here: the measurement behind ``ltv bench flatten``. What does not: the comparison of engines
(``benchmarks/flatten_engines.py``). Next to read: ``features/flatten/``.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path

import psutil

from ltv_assets.core.contract import Contract, load_contract
from ltv_assets.core.database import open_duckdb
from ltv_assets.core.errors import DataError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.features.flatten import RawFile, flatten_files
from ltv_assets.features.registry import Registry
from ltv_assets.ingestion.footers import end_reader
from ltv_assets.ingestion.inventory import inspect_hours
from ltv_assets.ingestion.raw_days import Split, data_files, scan_hours

SPLITS: tuple[Split, Split] = ("train", "test")


def bench_flatten(data: Path, *, registry: Registry, threads: int, memory_limit: str) -> dict[str, float]:
    """Flatten every day under ``data`` into a temporary folder and compare with DuckDB decoding every column.

    Args:
        data: a data root with ``train/`` and ``test/``, or one split's folder of ``datetime=...`` folders.
        threads: threads for both sides.
        memory_limit: DuckDB's, for both sides.

    Returns:
        ``rows``; ``seconds`` and ``rows_per_second`` of flattening, writing included; ``scan_rows_per_second`` of
        DuckDB counting the values of every column, which decodes every nested leaf; ``ratio`` of the two speeds;
        ``peak_rss_mb`` of this process and its children while flattening; ``days`` and ``features``.

    Raises:
        DataError: there are no hourly parquet files under ``data``.
    """
    days = find_days(data, registry.contract)
    if not days:
        example = registry.contract.layout.example if registry.contract.layout else ""
        raise DataError(f"{data}: expected train/{example}/*.parquet or test/..., found none")
    rows, flatten_seconds, scan_seconds = 0, 0.0, 0.0
    peak = 0.0
    with tempfile.TemporaryDirectory(prefix="ltv-bench-") as folder:
        for (split, day), files in days.items():
            # In a process of its own: what DuckDB keeps after a scan is no memory of flattening.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
                scan_seconds += other.submit(timed_scan, files, threads, memory_limit).result()
            with peak_memory() as memory:
                began = time.perf_counter()
                result = flatten_files(
                    files,
                    registry=registry,
                    labelled=split == "train",
                    out=Path(folder) / f"{split}-{day}.parquet",
                    threads=threads,
                    memory_limit=memory_limit,
                )
                flatten_seconds += time.perf_counter() - began
            peak = max(peak, memory[0])
            rows += result.rows_in
    return {
        "rows": rows,
        "days": len(days),
        "features": len(registry.features),
        "seconds": round(flatten_seconds, 3),
        "rows_per_second": round(rows / flatten_seconds, 1),
        "scan_rows_per_second": round(rows / scan_seconds, 1),
        "ratio": round(scan_seconds / flatten_seconds, 3),
        "peak_rss_mb": round(peak / 2**20, 1),
    }


def find_days(data: Path, contract: Contract | None = None) -> dict[tuple[str, PartitionKey], list[RawFile]]:
    """Return the usable hourly files under a data root or one split's folder by (split, day), in order of hour and name."""
    data, contract = Path(data), contract or load_contract()
    layout = contract.layout
    if layout is None:
        raise DataError(f"{data}: the contract has no folders of hours (time.layout is null); measure on data in folders")
    splits: dict[Split, Path] = {name: data / name for name in SPLITS if (data / name).is_dir()} or {
        "test" if data.name == "test" else "train": data
    }
    days: dict[tuple[str, PartitionKey], list[RawFile]] = {}
    for split, folder in splits.items():
        for key, hours in groupby(scan_hours(folder, layout)[0].items(), key=lambda hour: PartitionKey(hour[0][:10])):
            files = [(hour, data_files(path)) for hour, path in hours]
            inventory = inspect_hours(folder, split, key.day, files, contract=contract)
            if inventory.good:
                days[split, PartitionKey(key)] = [RawFile(folder / f.path, f.datetime) for f in inventory.good]
    end_reader()
    return days


def scan(files: list[RawFile], threads: int, memory_limit: str) -> None:
    """Decode every column of the files, all nested leaves included, and throw the values away."""
    with open_duckdb(threads=threads, memory_limit=memory_limit) as connection:
        for file in files:
            path = str(file.path).replace("'", "''")
            connection.execute(f"SELECT count(COLUMNS(*)) FROM read_parquet('{path}', hive_partitioning = false)").fetchall()


def timed_scan(files: list[RawFile], threads: int, memory_limit: str) -> float:
    """Seconds of a scan. One before it fills the page cache, so that neither side pays for the disk."""
    scan(files, threads, memory_limit)
    began = time.perf_counter()
    scan(files, threads, memory_limit)
    return time.perf_counter() - began


LISTED_SECONDS = 0.5
"""Children are looked for so often: it reads the state of every process of the machine, an eighth of a processor at every sample."""


@contextmanager
def peak_memory(interval: float = 0.02, *, own: bool = True) -> Iterator[list[float]]:
    """Sample resident memory; yields the peaks in bytes, of this process and its children together and of the largest of them.

    Setting an item to zero starts its peak anew. ``own=False``: without this process.
    """
    process = psutil.Process()
    peak = [0.0, 0.0]
    stop = threading.Event()

    def sample() -> None:
        children, listed = [], 0.0
        while not stop.is_set():
            if time.monotonic() - listed > LISTED_SECONDS:
                children, listed = process.children(recursive=True), time.monotonic()
            resident = [float(process.memory_info().rss) if own else 0.0]
            for child in children:
                try:
                    resident.append(child.memory_info().rss)
                except psutil.Error:
                    continue
            peak[:] = max(peak[0], sum(resident)), max(peak[1], *resident)
            stop.wait(interval)

    thread = threading.Thread(target=sample, name="peak-memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
