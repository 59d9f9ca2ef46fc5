"""Seconds and memory of whole runs against the number of impressions, as a table and a picture.

    python benchmarks/scaling.py [--rows 300000 1000000 3000000 10000000] [--data DIR ...]

Simulates three training days and one test day for every number of rows (``--data`` takes folders that are there already
instead), runs `ltv bench run` on each, writes ``benchmarks/scaling.csv`` and draws ``docs/pictures/scaling.png`` from it.
Sizes in the table that are not asked for stay as they are. Ten million rows take about an hour and 20 GB of disk; use a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

TABLE = Path(__file__).with_name("scaling.csv")
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "scaling.png"
STEPS = ("flatten", "train", "score", "submit")
COLUMNS = (
    *("rows", "seconds", "peak_rss_mb", "largest_process_mb", "lake_share"),
    *(f"{step}_{what}" for step in STEPS for what in ("seconds", "peak_rss_mb")),
)
DAYS = 4
COLOURS = dict(zip(STEPS, ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=True))  # Okabe and Ito (2008)


def ltv(*words: str) -> str:
    """Output of a command of the project's own interface; its progress goes to the terminal."""
    return subprocess.run([sys.executable, "-m", "ltv_assets.cli.app", *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(rows: int) -> dict[str, Any]:
    """Figures of a whole run on about so many simulated rows."""
    with tempfile.TemporaryDirectory(prefix="ltv-scaling-") as folder:
        per_hour = round(rows / DAYS / 24)
        ltv("simulate", "--out", folder, "--train-days", str(DAYS - 1), "--test-days", "1", "--rows-per-hour", str(per_hour))
        return run(Path(folder))


def run(data: Path) -> dict[str, Any]:
    """Figures of a whole run on the impressions of a folder."""
    figures: dict[str, Any] = json.loads(ltv("bench", "run", "--data", str(data)))
    return figures


def record(figures: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Put new figures into the table, one line for each number of rows, and return all of it."""
    lines = {int(line["rows"]): line for line in read()} | {int(new["rows"]): new for new in figures}
    with TABLE.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines[rows] for rows in sorted(lines))
    return read()


def read() -> list[dict[str, float]]:
    """The table, in order of rows."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as handle:
        return [{name: float(value) for name, value in line.items()} for line in csv.DictReader(handle)]


def draw(table: list[dict[str, float]]) -> None:
    """Seconds and peak memory of every step against rows, both axes logarithmic for the seconds."""
    mpl.use("Agg")
    figure, (times, memory) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    rows = [line["rows"] / 1e6 for line in table]
    for step in STEPS:
        times.plot(rows, [line[f"{step}_seconds"] for line in table], "o-", color=COLOURS[step], label=step)
        memory.plot(rows, [line[f"{step}_peak_rss_mb"] / 1000 for line in table], "o-", color=COLOURS[step], label=step)
    times.plot(rows, [line["seconds"] for line in table], "s--", color="black", label="whole run")
    times.set(xscale="log", yscale="log", xlabel="impressions (millions)", ylabel="seconds", title="Time, two cores")
    memory.set(xlabel="impressions (millions)", ylabel="peak of the process tree (GB)", ylim=(0, None), title="Memory")
    for axes in (times, memory):
        axes.grid(alpha=0.3)
    times.legend(frameon=False)
    figure.savefig(PICTURE, dpi=100)
    plt.close(figure)


def main() -> int:
    """Measure what is asked for, keep it, draw everything that is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[])
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    for figures in (measure(rows) for rows in arguments.rows):
        record([figures])
    for figures in (run(data) for data in arguments.data):
        record([figures])
    draw(read())
    return 0


if __name__ == "__main__":
    sys.exit(main())
