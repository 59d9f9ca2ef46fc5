"""Whole runs with ``compute.engine`` local and dask, side by side: what worker processes cost and gain.

    python benchmarks/dask_workers.py [--rows-per-hour 6000] [--train-days 3] [--data DIR] [--workers 1 2] [--rounds 1]

Runs `ltv bench run` on the same impressions with the engine ``local`` and then ``dask``, each with as many threads or
single-threaded worker processes as ``--workers`` says, and prints a Markdown table: seconds of the run and of its steps (days
are flattened and scored, boosters fitted on the workers), the peak of the process tree and the largest process. With several
rounds the fastest of each counts. Use a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).parents[1] / "config" / "config_test.yaml"
STEPS = ("flatten", "train", "score", "submit")


def ltv(*words: str, config: Path = CONFIG) -> str:
    """Output of a command of the project's own interface; its progress goes to the terminal."""
    command = [sys.executable, "-m", "ltv_assets.cli.app", *words]
    return subprocess.run(command, env={**os.environ, "LTV_CONFIG": str(config)}, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(data: Path, folder: Path, engine: str, workers: int, memory_gb: float) -> dict[str, Any]:
    """Figures of one run of the small configuration on another engine."""
    settings = yaml.safe_load(CONFIG.read_text())
    settings["compute"] = settings.get("compute", {}) | {"engine": engine, "threads": workers, "max_memory_gb": memory_gb}
    config = folder / f"{engine}-{workers}.yaml"
    config.write_text(yaml.safe_dump(settings))
    return dict(json.loads(ltv("bench", "run", "--data", str(data), config=config)))


def line(cells: list[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Measure every combination and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows-per-hour", type=int, default=6000)
    parser.add_argument("--train-days", type=int, default=3)
    parser.add_argument("--data", type=Path, default=None, help="a data root that is there already")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--memory-gb", type=float, default=4.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ltv-dask-") as temporary:
        folder = Path(temporary)
        data = options.data or folder / "data"
        if options.data is None:
            size = ("--train-days", str(options.train_days), "--test-days", "1", "--rows-per-hour", str(options.rows_per_hour))
            ltv("simulate", "--out", str(data), *size)
        kinds = [(engine, workers) for engine in ("local", "dask") for workers in options.workers]
        best: dict[tuple[str, int], dict[str, Any]] = {}
        for _ in range(options.rounds):
            for kind in kinds:
                figures = measure(data.resolve(), folder, *kind, options.memory_gb)
                best[kind] = min(best.get(kind, figures), figures, key=lambda found: found["seconds"])
    heads = ["engine", "rows", "seconds", *STEPS, "rows a second", "tree, MB", "largest process, MB"]
    print(line(heads), line(["---"] * len(heads)), sep="\n")
    for engine, workers in kinds:
        found = best[engine, workers]
        name = f"{engine}, {workers} {'thread' if engine == 'local' else 'worker'}{'s' if workers > 1 else ''}"
        steps = [f"{found.get(f'{step}_seconds', 0.0):.1f}" for step in STEPS]
        memory = [f"{found['peak_rss_mb']:.0f}", f"{found['largest_process_mb']:.0f}"]
        print(line([name, str(found["rows"]), f"{found['seconds']:.1f}", *steps, f"{found['rows_per_second']:.0f}", *memory]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
