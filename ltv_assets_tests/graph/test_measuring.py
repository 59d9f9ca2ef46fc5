"""Measurements say what was measured, and their ratios are speeds by the baseline's."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ltv_assets.cli import benchmark as measuring
from ltv_assets.cli.benchmark import bench
from ltv_assets.core.errors import DataError
from ltv_assets.modeling.stages import PLANS, STAGE_NAMES
from ltv_assets.simulator import simulate
from ltv_assets.state.project import Project
from ltv_assets_tests.conftest import SMALL_RUN

ROWS = 3 * 24 * 60


def labelled_rows(data: Path) -> int:
    return sum(int(pq.read_metadata(path).num_rows) for path in data.glob("train/*/*.parquet"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench")
    simulate(root, train_days=3, test_days=1, rows_per_hour=60)
    return root


@pytest.fixture(autouse=True)
def tiny(place: Callable[..., Path]) -> None:
    """Models as small as they go: what is measured is not what is tested."""
    place(config=SMALL_RUN)


def take(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Let whatever is measured take so many seconds, one after the other, by a clock that the machine does not set."""
    remaining, timed = iter(seconds), measuring._timed

    def scripted(work: Callable[[], Any]) -> tuple[Any, float, float]:
        result, _, peak = timed(work)
        return result, next(remaining), peak

    monkeypatch.setattr(measuring, "_timed", scripted)


@pytest.mark.slow
def test_training_is_measured_against_the_reference_of_the_same_rows(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take(monkeypatch, 8.0, 2.0)
    figures = bench("train", Project.open(), data, 2)
    rows = labelled_rows(data)
    assert figures["rows"] == rows
    assert int(figures["auxiliary_rows"]) == int(figures["served_rows"]) == pytest.approx(rows * 2 / 3, rel=0.05), (
        "the last day is held out"
    )
    assert figures["reference_multiple"] == 4.0
    steps = ["read", *PLANS, *STAGE_NAMES, "holdout_metrics", "served_model"]
    assert sum(float(figures[f"{step}_cpu_seconds"]) for step in steps) == pytest.approx(float(figures["cpu_seconds"]), abs=1.0)
    multiple = float(figures["cpu_seconds"]) / float(figures["reference_cpu_seconds"])
    assert float(figures["reference_multiple_cpu"]) == pytest.approx(multiple, rel=0.5)
    assert (figures["seconds"], figures["rows_per_second"]) == (8.0, round(rows / 8.0, 1))
    assert (figures["baseline_rows_per_second"], figures["ratio"]) == (round(rows / 2.0, 1), 0.25)
    assert 0 < float(figures["peak_rss_mb"]) < 4096


@pytest.mark.slow
def test_scoring_is_measured_against_decoding_the_same_rows(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take(monkeypatch, 2.0, 8.0)
    figures = bench("score", Project.open(), data, 2)
    rows = labelled_rows(data)
    assert (figures["rows"], figures["rows_per_second"], figures["ratio"]) == (rows, round(rows / 8.0, 1), 0.25)
    assert 0 < float(figures["rows_per_second_from_raw"]) < float(figures["rows_per_second"]), "flattening takes time, too"
    assert int(figures["csv_bytes"]) > 40 * rows
    assert 0 < float(figures["peak_rss_mb"]) < 4096


def test_data_without_labelled_days_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected train/"):
        bench("train", Project.open(), tmp_path, 2)


@pytest.mark.soak
def test_a_whole_run_is_measured_step_by_step(data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    figures = {name: float(value) for name, value in bench("run", Project.open(), data, 2).items() if name != "baseline"}
    assert figures["rows"] == pytest.approx(ROWS / 3 * 4, rel=0.05)
    assert all(figures[f"{step}_seconds"] >= 0 and figures[f"{step}_peak_rss_mb"] > 0 for step in ("start", *measuring.STEPS.values()))
    assert figures["raw_bytes"] == sum(path.stat().st_size for path in data.glob("t*/datetime=*/*.parquet"))
    assert 100 < figures["largest_process_mb"] <= figures["peak_rss_mb"]
    assert 0 < figures["lake_share"] == pytest.approx(figures["lake_bytes"] / figures["raw_bytes"], abs=0.001)
    assert "train_window" in capfd.readouterr().err


STEPWISE = """
import time
print("starting", flush=True)
print("ingest_days 2025-10-01", flush=True)
block = bytearray(b"x") * (300 << 20)
time.sleep(1)
del block
time.sleep(0.5)
print("train_window 2025-10-03", flush=True)
time.sleep(1)
print("score_days 2025-10-04", flush=True)
print("make_submission 2025-10-04_2025-10-04", flush=True)
raise SystemExit(3)
"""


def test_steps_of_a_run_are_told_apart_by_its_own_lines() -> None:
    """A program that says what `ltv run` says: what it takes while it says so belongs to that step."""
    code, said, steps = measuring._watched([sys.executable, "-c", STEPWISE], dict(os.environ))
    assert code == 3
    assert said.startswith("starting\ningest_days")
    assert list(steps) == ["start", "flatten", "train", "score", "submit"]
    assert steps["flatten"][0] >= 1.5
    assert steps["train"][0] >= 1.0
    assert steps["flatten"][1] >= steps["flatten"][2] > 300 << 20
    assert steps["train"][1] < 300 << 20
