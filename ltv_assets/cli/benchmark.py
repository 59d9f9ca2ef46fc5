"""How fast and how large training, scoring and whole runs are, each against a named baseline of the same run.

What belongs here: the measurements behind ``ltv bench train|score|run``. What does not: flattening by itself
(``flatten_benchmark.py``) and the table of results (``benchmarks/``). A ratio of two speeds that were measured side by side
says more than either: the machine, its disk and its other programs touch both.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq

from ltv_assets.cli.flatten_benchmark import find_days, peak_memory, scan, timed_scan
from ltv_assets.core.errors import DataError, PermanentError
from ltv_assets.core.memory import release_memory
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.features.flatten import RawFile, flatten_files
from ltv_assets.features.schema import feature_names
from ltv_assets.modeling.baseline import choose_reference, fit_reference
from ltv_assets.modeling.dataset import WindowData
from ltv_assets.modeling.stages import WindowContext, fit_window, refit
from ltv_assets.scoring.batch import score_files
from ltv_assets.scoring.submission import write_submissions
from ltv_assets.state.project import Project
from ltv_assets.training.evaluation import measure
from ltv_assets.training.stored_rows import Rows, count_rows, read_rows
from ltv_assets.training.windows import affordable, as_window

Figures = dict[str, float | int | str]
T = TypeVar("T")

MODEL_ROWS = 40_000
"""Rows of the first days that teach the model of ``bench score``."""


def bench(what: str, project: Project, data: Path, threads: int) -> Figures:
    """Measure ``train``, ``score`` or ``run`` on a data root with ``train/`` (and ``test/``).

    Returns rows, seconds, rows_per_second, peak_rss_mb (this process and its children, while it is measured), bytes on
    disk, the baseline's name and speed, and ratio = the speed by the baseline's. Raises DataError without labelled days.
    """
    if what == "run":
        return _bench_run(project, data, threads)
    with tempfile.TemporaryDirectory(prefix="ltv-bench-") as folder:
        lake, flatten_seconds = _flatten_days(project, data, Path(folder), threads)
        release_memory()
        measure = _bench_train if what == "train" else _bench_score
        return measure(project, lake, Path(folder), threads, flatten_seconds)


def _flatten_days(project: Project, data: Path, folder: Path, threads: int) -> tuple[dict[PartitionKey, tuple[Path, ...]], float]:
    """Flattened files of the labelled days, and how long they took."""
    lake: dict[PartitionKey, tuple[Path, ...]] = {}
    began = time.perf_counter()
    for (split, day), files in find_days(data, project.contract).items():
        if split == "train":
            lake[day] = (folder / f"{day}.parquet",)
            limit = project.config.compute.duckdb_limit
            flatten_files(files, registry=project.registry, labelled=True, out=lake[day][0], threads=threads, memory_limit=limit)
    if not lake:
        layout = project.contract.layout
        raise DataError(f"{data}: expected train/{layout.example if layout else ''}/*.parquet, found none")
    return lake, time.perf_counter() - began


def _timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """Result, seconds, and peak of resident memory in MB."""
    with peak_memory() as memory:
        began = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - began
    return result, seconds, memory[0] / 2**20


def _figures(rows: int, seconds: float, peak_mb: float, baseline: str, baseline_seconds: float, **more: Any) -> Figures:
    return {
        "rows": rows,
        "seconds": round(seconds, 3),
        "rows_per_second": round(rows / seconds, 1),
        "baseline": baseline,
        "baseline_rows_per_second": round(rows / baseline_seconds, 1),
        "ratio": round(baseline_seconds / seconds, 4),
        "peak_rss_mb": round(peak_mb, 1),
        **more,
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def _cpu_seconds() -> float:
    """Processor time of this process and of children that have ended: what other programs on the machine do not move."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _bench_train(project: Project, lake: dict[PartitionKey, tuple[Path, ...]], folder: Path, threads: int, _: float) -> Figures:
    """A whole window from the lake, the last labelled day being its holdout: plans, stages, evaluation, refit.

    Baseline: choosing the trees of the pinned reference on its later rows and fitting it once, on rows that are encoded already.
    """
    config, features = project.config, feature_names(project.registry)
    *days, last = sorted(lake)
    if len(days) < 2:
        raise DataError(f"bench train: expected three labelled days, two to train on and one to measure on, found {sorted(lake)}")
    seconds: dict[str, float] = {}

    def step(name: str, work: Callable[[], T]) -> T:
        began = _cpu_seconds()
        result = work()
        seconds[name] = seconds.get(name, 0.0) + _cpu_seconds() - began
        return result

    def read() -> tuple[WindowContext, Rows, WindowData]:
        rows = read_rows(config, {day: lake[day] for day in days}, features, beside=count_rows({last: lake[last]}))
        models = affordable(config, len(features), count_rows(lake))
        data = as_window(rows)
        del rows  # as in a run, identifiers stay no longer than it takes to hash them
        holdout = read_rows(config, {last: lake[last]}, features, beside=len(data))
        return WindowContext(data, models, config.sampling, config.seed, threads), holdout, as_window(holdout)

    def window() -> WindowContext:
        context, rows, holdout = step("read", read)
        models = fit_window(context, step=step)
        level, seen = float(context.data.log_d7.mean()), context.data.X.get(project.contract.cold_start or "")
        step("holdout_metrics", lambda: measure(project, models, rows, constant_log=level, seen=seen))
        if config.models.refit:
            step("served_model", lambda: refit(models, context, holdout))
        return context

    began = _cpu_seconds()
    context, elapsed, peak = _timed(window)
    whole = _cpu_seconds() - began
    context.forget_encodings()
    release_memory()
    design, trainer = context.design, context.trainer
    encoded = design.stopping.train, design.stopping.held, design.train  # by whoever fits, so no part of the baseline
    columns = len(encoded[-1].names)
    began = _cpu_seconds()
    baseline = _timed(lambda: fit_reference(design, trainer, choose_reference(design, trainer).rounds))[1]
    reference = _cpu_seconds() - began
    return _figures(
        count_rows(lake),
        elapsed,
        peak,
        "the pinned reference, chosen and fitted once on the same rows",
        baseline,
        reference_multiple=round(elapsed / baseline, 2),
        reference_multiple_cpu=round(whole / reference, 2),
        cpu_seconds=round(whole, 1),
        reference_cpu_seconds=round(reference, 1),
        **{f"{name}_cpu_seconds": round(value, 1) for name, value in seconds.items()},
        auxiliary_rows=len(design.auxiliary),
        served_rows=len(design.served_rows),
        columns=columns,
        lake_bytes=_size(folder),
    )


def _bench_score(
    project: Project, lake: dict[PartitionKey, tuple[Path, ...]], folder: Path, threads: int, flatten_seconds: float
) -> Figures:
    """The whole chain from the lake to the submission's CSV; baseline: DuckDB decoding every column of the lake."""
    config, features = project.config, feature_names(project.registry)
    rows = read_rows(config, lake, features)
    few = np.linspace(0, len(rows.row_id) - 1, min(MODEL_ROWS, len(rows.row_id))).astype(np.int64)
    data = replace(as_window(rows), period=np.arange(len(rows.row_id)) * 5 // len(rows.row_id), period_names=tuple("01234")).rows(few)
    models = fit_window(WindowContext(data, config.models, config.sampling, config.seed, threads))
    del rows, data
    release_memory()
    files = [path for _, paths in sorted(lake.items()) for path in paths]
    raw = [RawFile(path, "") for path in files]
    limit = config.compute.duckdb_limit
    scan(raw, threads, limit)
    baseline = _timed(lambda: scan(raw, threads, limit))[1]
    release_memory()

    def score() -> int:
        written = []
        for number, path in enumerate(files):
            written.append(folder / f"scores-{number}.parquet")
            score_files(models, [path], features, written[-1], chunk_rows=config.compute.chunk_rows, threads=threads)
        return write_submissions(written, None, folder, threads=threads, memory_limit=limit, contract=project.contract)

    count, seconds, peak = _timed(score)
    stages = (models.classifier.model, models.regressor.head, *models.regressor.increments.values())
    base = models.stacker.base
    trees = sum(m.n_trees for m in (*stages, *((base.forest, base.boosting, base.additive) if base else ())) if m is not None)
    from_raw = round(count / (seconds + flatten_seconds), 1)
    csv = (folder / "submission.csv").stat().st_size
    name = "DuckDB decoding every column of the flattened days"
    return _figures(count, seconds, peak, name, baseline, rows_per_second_from_raw=from_raw, trees=trees, csv_bytes=csv)


STEPS = {"ingest_days": "flatten", "train_window": "train", "score_days": "score", "make_submission": "submit"}
"""Jobs of ``ltv run`` in their order, under the names their figures have."""


def _bench_run(project: Project, data: Path, threads: int) -> Figures:
    """``ltv run`` in a process and a warehouse of its own; baseline: DuckDB decoding every column of the raw files.

    Beside the figures of the whole there are seconds and peak memory of each of STEPS, ``start`` being what comes before
    the first of them. Lines of the run are passed on to standard error. Raises PermanentError with the run's own words when it fails.
    """
    days = find_days(data)
    files = [file for members in days.values() for file in members]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        baseline = other.submit(timed_scan, files, threads, project.config.compute.duckdb_limit).result()
    with tempfile.TemporaryDirectory(prefix="ltv-bench-") as folder:
        environment = {**os.environ, "LTV_WAREHOUSE": folder, "LTV_DATA_ROOT": str(data)}
        command = [sys.executable, "-m", "ltv_assets.cli.app", "run"]
        (code, said, steps), seconds, _ = _timed(lambda: _watched(command, environment))
        if code:
            raise PermanentError(f"ltv run failed on {data}: {said[-1000:]}")
        lake, raw = _size(Path(folder) / "lake" / "flattened_features"), sum(file.path.stat().st_size for file in files)
    rows = sum(int(pq.read_metadata(file.path).num_rows) for file in files)
    more: Figures = {"raw_bytes": raw, "lake_bytes": lake, "lake_share": round(lake / raw, 3)}
    more["largest_process_mb"] = round(max(process for _, _, process in steps.values()) / 2**20, 1)
    for name, (step_seconds, peak, _) in steps.items():
        more |= {f"{name}_seconds": round(step_seconds, 1), f"{name}_peak_rss_mb": round(peak / 2**20, 1)}
    tree = max(peak for _, peak, _ in steps.values()) / 2**20
    return _figures(rows, seconds, tree, "DuckDB decoding every column of the raw files", baseline, **more)


def _watched(command: list[str], environment: dict[str, str]) -> tuple[int, str, dict[str, tuple[float, float, float]]]:
    """Exit code and output of ``ltv run``, and seconds, peak memory and largest process in bytes by step."""
    steps: dict[str, tuple[float, float, float]] = {}
    said, step, began = [], "start", time.perf_counter()

    def close(memory: list[float]) -> None:
        before = steps.get(step, (0.0, 0.0, 0.0))
        steps[step] = (before[0] + time.perf_counter() - began, max(before[1], memory[0]), max(before[2], memory[1]))
        memory[:] = 0.0, 0.0

    with peak_memory(own=False) as memory, subprocess.Popen(command, env=environment, stdout=PIPE, stderr=STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            sys.stderr.write(line)
            following = STEPS.get(line.split(" ", 1)[0], step)
            if following != step:
                close(memory)
                step, began = following, time.perf_counter()
        process.wait()
        close(memory)
    return process.returncode, "".join(said), steps
