"""Measure every stage on the same simulated data and compare its ratio with the recorded one.

    python benchmarks/check.py [--record] [--repeats 2] [--rows-per-hour 600]

Fails (exit 1) when a ratio is more than 20 % below the last one recorded in ``benchmarks/results.csv`` for the same stage, data
and baseline. ``--record`` appends the figures with the package's version; record on a machine that does nothing else. Ratios
compare two speeds of one run, so they travel between machines far better than rows per second do. That of training is one by
``reference_multiple``: how many times what the pinned reference costs a whole window costs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ltv_assets.simulator import Simulator

RESULTS = Path(__file__).with_name("results.csv")
SERVING = Path(__file__).with_name("serving.py")
COLUMNS = (
    *("version", "stage", "rows_per_hour", "rows", "rows_per_second", "ratio", "peak_rss_mb", "cores"),
    *("reference_multiple", "baseline"),
)
LOWEST = 0.8
SIMULATED_ROWS = 60_000


def python(*words: str) -> str:
    """Output of a Python program under the project's small configuration."""
    environment = {**os.environ, "LTV_CONFIG": str(Path(__file__).parents[1] / "config" / "config_test.yaml")}
    return subprocess.run([sys.executable, *words], env=environment, check=True, capture_output=True, text=True).stdout


def ltv(*words: str) -> str:
    """Output of a command of the project's own interface."""
    return python("-m", "ltv_assets.cli.app", *words)


def simulating(data: Path) -> dict[str, Any]:
    """One hour of impressions made in memory; baseline: writing it as a parquet file."""
    began = time.perf_counter()
    table, _ = Simulator(0, "additive", SIMULATED_ROWS).hour(datetime(2025, 10, 1, 9, tzinfo=UTC))
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    pq.write_table(table, data / "hour.parquet")
    written = time.perf_counter() - began
    return {"rows": table.num_rows, "rows_per_second": round(table.num_rows / seconds, 1), "ratio": round(written / seconds, 4)}


def benched(stage: str) -> Callable[[Path], dict[str, Any]]:
    """A measurement of ``ltv bench``."""
    return lambda data: dict(json.loads(ltv("bench", stage, "--data", str(data))))


def serving(data: Path) -> dict[str, Any]:
    """Requests of a thousand rows to a scoring server, whose model is small, on data of its own."""
    figures = json.loads(python(str(SERVING)))
    return {**figures, "ratio": figures["batch_ratio"], "peak_rss_mb": figures["rss_mb"]}


STAGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "simulate": simulating,
    **{stage: benched(stage) for stage in ("flatten", "train", "score", "run")},
    "serve": serving,
}


def measured(stage: str, data: Path, repeats: int) -> dict[str, Any]:
    """The best of several measurements by ratio: other programs only ever make it worse. Serving takes the best of several by itself."""
    return max((STAGES[stage](data) for _ in range(1 if stage == "serve" else repeats)), key=lambda figures: figures["ratio"])


def recorded(stage: str, rows_per_hour: int, baseline: str) -> float | None:
    """The newest recorded ratio of a stage to the same baseline on such data."""
    wanted = {"stage": stage, "rows_per_hour": str(rows_per_hour), "baseline": baseline}
    with RESULTS.open(newline="") as handle:
        found = [row for row in csv.DictReader(handle) if wanted.items() <= row.items()]
    return float(found[-1]["ratio"]) if found else None


def main() -> int:
    """Measure, compare, and record if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rows-per-hour", type=int, default=600)
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="ltv-bench-check-") as folder:
        data = Path(folder)
        ltv("simulate", "--out", str(data), "--train-days", "4", "--test-days", "1", "--rows-per-hour", str(arguments.rows_per_hour))
        for stage in STAGES:
            figures = measured(stage, data, arguments.repeats)
            before = recorded(stage, arguments.rows_per_hour, figures.get("baseline", ""))
            good = before is None or figures["ratio"] >= LOWEST * before
            failed += not good
            print(
                f"{stage}: ratio {figures['ratio']} ({'none' if before is None else before} recorded) {'ok' if good else 'SLOWER'}",
                flush=True,
            )
            if arguments.record:
                line = {"version": version("ltv_assets"), "stage": stage, "rows_per_hour": arguments.rows_per_hour, "cores": os.cpu_count()}
                with RESULTS.open("a", newline="") as handle:
                    csv.DictWriter(handle, COLUMNS, extrasaction="ignore", lineterminator="\n").writerow({**figures, **line})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
