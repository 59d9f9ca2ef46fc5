"""Measure the pages of `ltv dashboard` on a warehouse of 60 days and 14 windows.

    python benchmarks/dashboard.py [--data DATA --warehouse WAREHOUSE --config CONFIG] [--rounds 3]

Without folders it makes them first: 58 labelled and 2 unlabelled simulated days, the newest 14 windows by `ltv run`, every day scored and
forecast by Dagster's job. That takes most of an hour; `--keep FOLDER` keeps them. Prints one JSON object:

    start_seconds, start_cpu_seconds    from starting the command to its first answer
    pages                               for each page: seconds and processor seconds until it was there, the first time (every figure
                                        is read) and the median of later times, and its bytes
    peak_rss_mb                         most memory of the server, every page and one explained impression included
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psutil

PROJECT = Path(__file__).resolve().parents[1]
PAGES = ("/", "/money", "/trust", "/compare", "/impression")
LABELLED, UNLABELLED, WINDOWS = 58, 2, 14
FIRST_DAY = date(2025, 10, 1)
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
        subprocess.run([sys.executable, *words], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)

    if not (data / "truth").is_dir():
        days = ("--train-days", str(LABELLED), "--test-days", str(UNLABELLED))
        run("-m", "ltv_assets.cli.app", "simulate", "--out", str(data), *days, "--rows-per-hour", str(rows_per_hour))
    for number in range(LABELLED - WINDOWS, LABELLED):
        run("-m", "ltv_assets.cli.app", "run", "--window", str(FIRST_DAY + timedelta(days=number)))
    run(str(Path(__file__).resolve()), "--score-every-day")
    return data, warehouse, config


def score_every_day() -> None:
    """Score and forecast every day of the opened project by Dagster's job, in this process."""
    from ltv_assets.definitions import defs
    from ltv_assets.defs.instance import open_instance
    from ltv_assets.state.project import Project

    project = Project.open()
    job = defs.resolve_job_def("score_days")
    with open_instance(project.warehouse.root) as instance:
        for day in project.horizon.train_days:
            job.execute_in_process(instance=instance, partition_key=str(day), raise_on_error=False)


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
        status = Path(f"/proc/{server.pid}/status")
        peak = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.is_file() else None
        figures["peak_rss_mb"] = int(peak.group(1)) / 1024 if peak else process.memory_info().rss / 2**20
        return figures
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


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
    parser.add_argument("--score-every-day", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.score_every_day:
        score_every_day()
        return
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
