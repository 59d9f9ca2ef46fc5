"""Measure a scoring server against itself: `mlflow models serve` with a window's served model, over loopback.

    python benchmarks/serving.py [--data DATA --warehouse WAREHOUSE] [--requests 100] [--rows 1000] [--rounds 5]

Example, with what `make demo` left:

    python benchmarks/serving.py --data warehouse/simulated --warehouse warehouse

WAREHOUSE has a champion and DATA the test days of its run; without them both are made on small simulated data, which takes
a minute or two. Prints one JSON object. Ratios compare two speeds of one run:

    single_row_ratio   latency of the empty /ping route by that of a request with one row; 1 = scoring costs nothing
    batch_ratio        rows per second of requests with many rows by those of the same model called in this process
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq

from ltv_assets.cli.flatten_benchmark import find_days
from ltv_assets.core.config import Config, load_config
from ltv_assets.scoring.mlflow_model import write_files, write_model
from ltv_assets.scoring.online import OnlineModel
from ltv_assets.storage.champion import read_champion
from ltv_assets.storage.warehouse import Warehouse

PROJECT = Path(__file__).resolve().parents[1]
START_SECONDS = 600.0
"""After which a server that does not answer is taken to hang."""


def make(folder: Path) -> tuple[Path, Path]:
    """Small simulated data and a warehouse with a champion."""
    data, warehouse = folder / "data", folder / "warehouse"
    environment = {**os.environ, "LTV_CONFIG": str(PROJECT / "config" / "config_test.yaml"), "LTV_WAREHOUSE": str(warehouse)}
    environment |= {"LTV_DATA_ROOT": str(data)}
    size = ("--train-days", "3", "--test-days", "1", "--rows-per-hour", "120")
    for words in (("simulate", "--out", str(data), *size), ("run",)):
        command = [sys.executable, "-m", "ltv_assets.cli.app", *words]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return data, warehouse


def impressions(data: Path, rows: int) -> list[dict[str, Any]]:
    """Raw impressions of the test days without labels, as a caller would write them; some occur twice if there are fewer."""
    found: list[dict[str, Any]] = []
    for (split, _), files in find_days(data).items():
        for file in files if split == "test" else ():
            table = pq.read_table(file.path, partitioning=None)
            found += [{**row, "datetime": file.datetime_key} for row in table.to_pylist(maps_as_pydicts="strict")]
    if not found:
        raise SystemExit(f"{data}: expected test/datetime=YYYY-MM-DD-HH-00/*.parquet, found none")
    chosen = np.random.default_rng(0).permutation(max(rows, len(found)))[:rows] % len(found)
    loaded: list[dict[str, Any]] = json.loads(json.dumps([found[i] for i in chosen]))
    return loaded


class Client:
    """Requests to a server, each over a connection of its own, as from a load balancer."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ping(self) -> None:
        self._ask("GET", "/ping", None)

    def score(self, rows: list[dict[str, Any]]) -> None:
        answer = json.loads(self._ask("POST", "/invocations", json.dumps({"dataframe_records": rows})))
        wrong = [row["error"] for row in answer["predictions"] if row["error"] is not None]
        if wrong or len(answer["predictions"]) != len(rows):
            raise SystemExit(f"the server refused {len(wrong)} of {len(rows)} rows: {wrong[:1]}")

    def _ask(self, method: str, path: str, body: str | None) -> bytes:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECONDS)) as connection:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise SystemExit(f"{method} {path}: status {answer.status}: {content.decode()[:500]}")
            return content


@contextlib.contextmanager
def serving(model: Path, log: Path) -> Iterator[tuple[Client, psutil.Process]]:
    """A client of `mlflow models serve` on a free loopback port, and the process that serves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    words = ["models", "serve", "-m", str(model), "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-m", "mlflow", *words]
    # MLflow looks for uvicorn among the programs of the shell.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with log.open("wb") as out:
        started = subprocess.Popen(command, env=environment, cwd=log.parent, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        client, ends = Client(port), time.monotonic() + START_SECONDS
        while True:
            if started.poll() is not None or time.monotonic() > ends:
                raise SystemExit(f"the scoring server did not start:\n{log.read_text()[-3000:]}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                client.ping()
                break
            time.sleep(0.5)
        family = [psutil.Process(started.pid), *psutil.Process(started.pid).children(recursive=True)]
        yield client, max(family, key=lambda process: process.memory_info().rss)
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(30)


def median_seconds(work: Callable[[int], None], times: int) -> float:
    """Median seconds of a call, which is told its number."""
    spent = []
    for number in range(times):
        began = time.perf_counter()
        work(number)
        spent.append(time.perf_counter() - began)
    return float(np.median(spent))


def measure(config: Config, warehouse: Warehouse, data: Path, folder: Path, requests: int, rows: int, rounds: int) -> dict[str, Any]:
    """Figures of the champion's model; of each speed the best of several rounds, because other programs only ever make it worse."""
    champion = read_champion(warehouse)
    if champion is None:
        raise SystemExit(f"{warehouse.root}: there is no champion to serve; run `ltv run`")
    write_model(config, warehouse, champion.window, folder / "model")
    write_files(config, warehouse, champion.window, folder / "files")
    here, batch = OnlineModel.load(folder / "files"), impressions(data, rows)
    frame = pd.DataFrame(batch)
    ping = single = served = called = float("inf")
    with serving(folder / "model", folder / "log") as (client, process):
        client.score(batch[:1])
        client.score(batch)
        here.predict(frame)
        for _ in range(rounds):
            ping = min(ping, median_seconds(lambda _: client.ping(), requests))
            single = min(single, median_seconds(lambda number: client.score([batch[number % rows]]), requests))
            served = min(served, median_seconds(lambda _: client.score(batch), 3))
            called = min(called, median_seconds(lambda _: here.predict(frame), 3))
        memory = process.memory_info().rss
    return {
        "rows": rows,
        "ping_ms": round(ping * 1000, 2),
        "single_row_ms": round(single * 1000, 2),
        "single_row_ratio": round(ping / single, 4),
        "rows_per_second": round(rows / served, 1),
        "baseline": "the same model called in this process",
        "baseline_rows_per_second": round(rows / called, 1),
        "batch_ratio": round(called / served, 4),
        "rss_mb": round(memory / 2**20, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="data root with test/")
    parser.add_argument("--warehouse", type=Path, default=None, help="a warehouse with a champion")
    parser.add_argument("--requests", type=int, default=100, help="requests with one row, and pings, of each round")
    parser.add_argument("--rows", type=int, default=1000, help="rows of a request with many")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if (options.data is None) != (options.warehouse is None):
        parser.error("--data and --warehouse belong together: give both, or neither")
    with tempfile.TemporaryDirectory(prefix="ltv-bench-serving-") as temporary:
        folder = Path(temporary)
        data, root = (options.data, options.warehouse) if options.data is not None else make(folder)
        figures = measure(load_config(), Warehouse(root.absolute()), data, folder, options.requests, options.rows, options.rounds)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
