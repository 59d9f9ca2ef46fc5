"""Load test of `ltv serve` on loopback, beside `mlflow models serve` with the same model and an empty route of the same application.

    python benchmarks/serve_load.py [--data DATA --warehouse WAREHOUSE] [--seconds 60] [--workers 2]

Needs the load generator hey (`apt-get install hey`). WAREHOUSE has a champion and DATA the test days of its run; without them both are
made on small simulated data, which takes a minute or two. Prints one JSON object, and on standard error a table of the promises with
what was found; exit code 1 if one was not kept. Promises are for two cores that do nothing else, client and server on both of them.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from serving import impressions, make, serving

from ltv_assets.core.config import load_config
from ltv_assets.scoring.mlflow_model import write_model
from ltv_assets.storage.champion import read_champion
from ltv_assets.storage.warehouse import Warehouse

START_SECONDS = 300.0
CALLERS = 4
"""Callers that ask at a steady rate, each with an impression of its own."""
RATE = 40
"""Requests a second of all of them."""
LIST_ROWS = 1000
PROMISES = (
    ("single_p50_ms", "at most", 8.0),
    ("single_p99_ms", "at most", 25.0),
    ("times_faster_than_mlflow", "at least", 5.0),
    ("times_the_empty_route", "at most", 6.0),
    ("sustained_requests_per_second", "at least", 200.0),
    ("sustained_errors", "at most", 0.0),
    ("list_rows_per_second", "at least", 12_000.0),
    ("list_errors", "at most", 0.0),
)


@contextlib.contextmanager
def ltv_serve(warehouse: Path, workers: int, log: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The address of `ltv serve` for a warehouse, and its first process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    words = ["-m", "ltv_assets.cli.app", "serve", "--port", str(port), "--workers", str(workers)]
    with log.open("wb") as out:
        environment = {**os.environ, "LTV_WAREHOUSE": str(warehouse)}
        started = subprocess.Popen([sys.executable, *words], env=environment, stdout=out, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        ends = time.monotonic() + START_SECONDS
        while log.read_text().count("serving window") < workers:
            if started.poll() is not None or time.monotonic() > ends:
                raise SystemExit(f"ltv serve did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield address, psutil.Process(started.pid)
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(60)


def hey(address: str, seconds: int, callers: int, *, body: Path | None = None, rate: float | None = None, raw: bool = False) -> Any:
    """hey against an address, started: a process that is to be waited for."""
    words = ["hey", "-z", f"{seconds}s", "-c", str(callers), "-t", "60"]
    words += ["-q", str(rate)] if rate is not None else []
    words += ["-m", "POST", "-T", "application/json", "-D", str(body)] if body is not None else []
    words += ["-o", "csv"] if raw else []
    return subprocess.Popen([*words, address], stdout=subprocess.PIPE, text=True)


def latencies(processes: Sequence[Any]) -> np.ndarray:
    """Milliseconds of every answer to steady callers; all have to be answered with 200."""
    found: list[float] = []
    for process in processes:
        for row in csv.DictReader(process.communicate()[0].splitlines()):
            if row["status-code"] != "200":
                raise SystemExit(f"a request was answered with {row['status-code']}")
            found.append(1000.0 * float(row["response-time"]))
    if not found:
        raise SystemExit("nothing was answered")
    return np.array(found)


def throughput(process: Any) -> tuple[float, int]:
    """Answers a second, and the number of errors and of answers other than 200."""
    told = process.communicate()[0]
    statuses = {int(code): int(count) for code, count in re.findall(r"\[(\d+)\]\s+(\d+) responses", told)}
    errors = sum(int(count) for count in re.findall(r"\[(\d+)\]\s+", told.partition("Error distribution:")[2]))
    found = re.search(r"Requests/sec:\s+([0-9.]+)", told)
    if found is None:
        raise SystemExit(f"hey said nothing of requests:\n{told}")
    return float(found.group(1)), errors + sum(count for code, count in statuses.items() if code != 200)


def steady(address: str, seconds: int, bodies: Sequence[Path] | None, rate: float) -> np.ndarray:
    """Latencies of callers that ask at a steady rate together."""
    each = rate / CALLERS
    return latencies([hey(address, seconds, 1, body=bodies[i] if bodies else None, rate=each, raw=True) for i in range(CALLERS)])


def measure(warehouse: Path, data: Path, folder: Path, seconds: int, workers: int) -> dict[str, Any]:
    """All figures of one run."""
    config, opened = load_config(), Warehouse(warehouse)
    champion = read_champion(opened)
    if champion is None:
        raise SystemExit(f"{warehouse}: there is no champion to serve; run `ltv run`")
    write_model(config, opened, champion.window, folder / "model")
    rows = impressions(data, LIST_ROWS)
    singles = [folder / f"one-{i}.json" for i in range(CALLERS)]
    for path, row in zip(singles, rows, strict=False):
        path.write_text(json.dumps(row))
    records = [folder / f"records-{i}.json" for i in range(CALLERS)]
    for path, row in zip(records, rows, strict=False):
        path.write_text(json.dumps({"dataframe_records": [row]}))
    many = folder / "list.json"
    many.write_text(json.dumps(rows))
    short = max(10, seconds // 3)
    with (
        ltv_serve(warehouse, workers, folder / "serve.log") as (address, process),
        serving(folder / "model", folder / "log") as (client, _),
    ):
        score, theirs = f"{address}/v1/score", f"http://127.0.0.1:{client.port}/invocations"
        for target, body in ((score, singles[0]), (score, many), (theirs, records[0])):
            throughput(hey(target, 3, 2, body=body))
        # One after the other, twice: other programs of the machine disturb both alike.
        empty, single, mlflow = [], [], []
        for _ in range(2):
            empty.append(steady(f"{address}/healthz", short // 2, None, RATE))
            single.append(steady(score, short // 2, singles, RATE))
            mlflow.append(steady(theirs, short // 2, records, RATE / 8))
        sustained, sustained_errors = throughput(hey(score, seconds, CALLERS, body=singles[0]))
        lists, list_errors = throughput(hey(score, short, 2 * workers, body=many))
        memory = sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))
        with urllib.request.urlopen(f"{address}/metrics") as answer:
            engine = re.search(r"^ltv_serve_engine_rows_total (\S+)", answer.read().decode(), re.MULTILINE)
    one, none, other = (np.concatenate(parts) for parts in (single, empty, mlflow))
    return {
        "cores": os.cpu_count(),
        "workers": workers,
        "body_bytes": singles[0].stat().st_size,
        "single_p50_ms": round(float(np.median(one)), 2),
        "single_p99_ms": round(float(np.quantile(one, 0.99)), 2),
        "empty_p50_ms": round(float(np.median(none)), 2),
        "empty_p99_ms": round(float(np.quantile(none, 0.99)), 2),
        "mlflow_p50_ms": round(float(np.median(other)), 2),
        "mlflow_p99_ms": round(float(np.quantile(other, 0.99)), 2),
        "times_faster_than_mlflow": round(float(np.median(other) / np.median(one)), 2),
        "times_the_empty_route": round(float(np.median(one) / np.median(none)), 2),
        "sustained_requests_per_second": round(sustained, 1),
        "sustained_seconds": seconds,
        "sustained_errors": sustained_errors,
        "list_rows": LIST_ROWS,
        "list_rows_per_second": round(lists * LIST_ROWS, 1),
        "list_errors": list_errors,
        "engine_rows": float(engine.group(1)) if engine else None,
        "rss_mb": round(memory / 2**20, 1),
    }


def kept(figures: dict[str, Any]) -> bool:
    """Whether every promise is kept; says of each what was found."""
    right = True
    for name, side, bound in PROMISES:
        good = figures[name] <= bound if side == "at most" else figures[name] >= bound
        right &= good
        print(f"{'kept  ' if good else 'BROKEN'}  {name:32} {figures[name]:>10}  {side} {bound:g}", file=sys.stderr)
    return right


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="data root with test/")
    parser.add_argument("--warehouse", type=Path, default=None, help="a warehouse with a champion")
    parser.add_argument("--seconds", type=int, default=60, help="length of the sustained load; the other parts take a third of it")
    parser.add_argument("--workers", type=int, default=2, help="processes of ltv serve")
    options = parser.parse_args()
    if (options.data is None) != (options.warehouse is None):
        parser.error("--data and --warehouse belong together: give both, or neither")
    if shutil.which("hey") is None:
        raise SystemExit("the load generator hey is not installed; `apt-get install hey`")
    with tempfile.TemporaryDirectory(prefix="ltv-bench-serve-") as temporary:
        folder = Path(temporary)
        data, root = (options.data, options.warehouse) if options.data is not None else make(folder)
        figures = measure(root.absolute(), data.absolute(), folder, options.seconds, options.workers)
    print(json.dumps(figures, indent=1))
    sys.exit(0 if kept(figures) else 1)


if __name__ == "__main__":
    main()
