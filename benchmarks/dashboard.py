"""Measure the pages of `ltv dashboard` on a warehouse of 60 days and 14 windows.

    python benchmarks/dashboard.py [--data DATA --warehouse WAREHOUSE --config CONFIG] [--rounds 3]

Without folders it makes them first: 58 labelled and 2 unlabelled simulated days and one window by `ltv run`, whose partitions are then
repeated under the keys of 13 more windows; scores and forecasts of a day are repeated under all days that have none. `--keep FOLDER` keeps
them. Prints one JSON object:

    start_seconds, start_cpu_seconds    from starting the command to its first answer
    pages                               for each page: seconds and processor seconds until it was there, the first time (every figure
                                        is read) and the median of later times, and its bytes
    peak_rss_mb                         most memory of the server after every page, shared libraries included
    peak_rss_explained_mb               the same after one impression was explained, which brings LightGBM and scikit-learn
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

PROJECT = Path(__file__).resolve().parents[1]
PAGES = ("/", "/money", "/trust", "/compare", "/impression")
LABELLED, UNLABELLED, WINDOWS = 58, 2, 14
SMALL = "{num_leaves: 7, learning_rate: 0.1, min_data_in_leaf: 20, max_rounds: 60, patience: 10}"
CONFIG = f"""
windows: {{min_train_days: 2, max_train_days: 7}}
evaluation: {{bootstrap_repeats: 200}}
models:
  folds: 2
  buyer_classifier: &small {SMALL}
  whale_classifier: *small
  revenue_head: *small
  increments: *small
  boosting: *small
  forest: {{trees: 20, num_leaves: 8}}
  linear: {{penalties: [0.01]}}
  stacker: {{booster: *small}}
"""
START_SECONDS = 600.0


def environment(data: Path, warehouse: Path, config: Path) -> dict[str, str]:
    """Variables that point the commands at the folders."""
    places = {"LTV_DATA_ROOT": str(data), "LTV_WAREHOUSE": str(warehouse), "LTV_CONFIG": str(config), "DAGSTER_DISABLE_TELEMETRY": "yes"}
    return {**os.environ, **places}


def make(folder: Path, rows_per_hour: int) -> tuple[Path, Path, Path]:
    """Simulated data, a warehouse of 60 days and 14 windows, and its configuration."""
    data, warehouse, config = folder / "data", folder / "warehouse", folder / "config.yaml"
    config.write_text(CONFIG)
    env = environment(data, warehouse, config)

    def run(*words: str) -> None:
        print(" ".join(words), file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "ltv_assets.cli.app", *words], env=env, stdout=subprocess.DEVNULL, check=True)

    if not (data / "truth").is_dir():
        days = ("--train-days", str(LABELLED), "--test-days", str(UNLABELLED))
        run("simulate", "--out", str(data), *days, "--rows-per-hour", str(rows_per_hour))
    run("run")
    fill_up(warehouse)
    return data, warehouse, config


def fill_up(root: Path) -> None:
    """Repeat the newest window and the newest scored day of a warehouse under the keys that have none."""
    from ltv_assets.core.asset_specs import WINDOW_ASSETS
    from ltv_assets.storage.warehouse import Warehouse

    warehouse = Warehouse(root)
    days = warehouse.keys("flattened_features")
    windows = days[-UNLABELLED - WINDOWS : -UNLABELLED]
    for asset, keys in (*((a, windows) for a in (*WINDOW_ASSETS, "report")), ("predictions", days), ("cohort_forecast", days)):
        known = warehouse.keys(asset)
        for key in keys if known else ():
            if key not in known:
                repeat(warehouse, asset, known[-1], key)


def repeat(warehouse: Any, asset: str, source: str, key: str) -> None:
    """Publish a partition again under another key; the key's column of a parquet relation is rewritten."""
    manifest = warehouse.require(asset, source, "run `ltv run`")

    def fill(folder: Path) -> dict[str, int | None]:
        listed: dict[str, int | None] = {}
        for stored in manifest.files:
            path = warehouse.folder(asset, source) / stored.name
            name = (
                stored.name
                if stored.rows is None or path.suffix != ".parquet"
                else re.sub(r"-[0-9a-f]{12}\.parquet$", ".parquet", stored.name)
            )
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            table = pq.read_table(path, partitioning=None) if name.endswith(".parquet") and stored.rows is not None else None
            if table is None or not {"day", "window_key"} & set(table.column_names):
                shutil.copyfile(path, folder / name)
            else:
                column = next(c for c in ("day", "window_key") if c in table.column_names)
                place = table.column_names.index(column)
                pq.write_table(table.set_column(place, column, pa.array([key] * len(table), pa.string())), folder / name)
            listed[name] = stored.rows
        return listed

    warehouse.write(
        asset, key, fill, code_version=manifest.code_version, config=manifest.config, inputs=manifest.inputs, facts=manifest.facts
    )


def measure(env: dict[str, str], rounds: int) -> dict[str, Any]:
    """Start the command, ask for every page, and look at its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    began = time.perf_counter()
    words = [sys.executable, "-m", "ltv_assets.cli.app", "dashboard", "--port", str(port)]
    server = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL)
    process = psutil.Process(server.pid)

    def used() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    def get(path: str) -> tuple[float, float, str]:
        at, cpu = time.perf_counter(), used()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=START_SECONDS) as answer:
            text = answer.read().decode()
        return time.perf_counter() - at, used() - cpu, text

    try:
        while True:
            with contextlib.suppress(OSError):
                get("/state")
                break
            if time.perf_counter() - began > START_SECONDS or server.poll() is not None:
                raise SystemExit("the dashboard did not start")
            time.sleep(0.02)
        figures: dict[str, Any] = {"start_seconds": time.perf_counter() - began, "start_cpu_seconds": used(), "pages": {}}
        first = {path: get(path) for path in PAGES}
        figures["peak_rss_mb"] = peak_mb(server.pid)
        chosen = re.search(r'href="(/impression\?day=[^"]+)"', first["/impression"][2])
        paths = list(PAGES)
        if chosen is not None:
            explained = chosen.group(1).replace("&amp;", "&")
            first[explained] = get(explained)
            paths.append(explained)
        for path in paths:
            later = [get(path) for _ in range(rounds)]
            figures["pages"][urllib.parse.urlsplit(path).path + (" explained" if "?" in path else "")] = {
                "first_seconds": first[path][0],
                "first_cpu_seconds": first[path][1],
                "later_seconds": statistics.median(x[0] for x in later),
                "later_cpu_seconds": statistics.median(x[1] for x in later),
                "bytes": len(first[path][2].encode()),
            }
        figures["peak_rss_explained_mb"] = peak_mb(server.pid)
        return figures
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def peak_mb(pid: int) -> float:
    """Most resident memory of a process so far, in units of 2**20 bytes; what it has now where the system does not tell."""
    status = Path(f"/proc/{pid}/status")
    peak = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.is_file() else None
    return int(peak.group(1)) / 1024 if peak else psutil.Process(pid).memory_info().rss / 2**20


def rounded(value: Any) -> Any:
    """Figures with three decimals."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def main() -> None:
    """Make what is missing, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--warehouse", type=Path, default=None)
    parser.add_argument("--config", type=Path, default=PROJECT / "config" / "config_test.yaml")
    parser.add_argument("--keep", type=Path, default=None, help="folder to make data and warehouse in, and to go on with if they are there")
    parser.add_argument("--rows-per-hour", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if (options.data is None) != (options.warehouse is None):
        parser.error("--data and --warehouse belong together: give both, or neither")
    with tempfile.TemporaryDirectory(prefix="ltv-bench-dashboard-") as temporary:
        if options.data is None:
            folder = options.keep or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            places = make(folder, options.rows_per_hour)
        else:
            places = (options.data, options.warehouse, options.config)
        env = environment(*(place.absolute() for place in places))
        counts = {
            asset: len(list((places[1] / "lake" / asset).glob("*=*")))
            for asset in ("flattened_features", "cohort_forecast", "holdout_metrics")
        }
        print(json.dumps({"partitions": counts, **rounded(measure(env, options.rounds))}, indent=1))


if __name__ == "__main__":
    main()
