"""Measurements say what was measured, and their ratios are speeds by the baseline's."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltv_assets.config import PROJECT_ROOT
from ltv_assets.errors import DataError
from ltv_assets.measuring import bench
from ltv_assets.project import Project
from ltv_assets.simulator import simulate

ROWS = 3 * 24 * 60


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench")
    simulate(root, train_days=3, test_days=1, rows_per_hour=60)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "score"])
def test_a_stage_is_measured_against_its_baseline(data: Path, stage: str) -> None:
    figures = bench(stage, Project.open(), data, 2)
    assert figures["rows"] == pytest.approx(ROWS, rel=0.05)
    assert figures["ratio"] == pytest.approx(float(figures["rows_per_second"]) / float(figures["baseline_rows_per_second"]), rel=0.02)
    assert 0 < float(figures["peak_rss_mb"]) < 4096
    if stage == "score":
        assert float(figures["rows_per_second_from_raw"]) < float(figures["rows_per_second"])
        assert int(figures["csv_bytes"]) > 40 * int(figures["rows"])
    else:
        assert figures["auxiliary_rows"] == figures["rows"]


def test_data_without_labelled_days_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected train/"):
        bench("train", Project.open(), tmp_path, 2)


@pytest.mark.slow
def test_a_whole_run_is_measured_step_by_step(data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LTV_CONFIG", str(PROJECT_ROOT / "config" / "config_test.yaml"))
    figures = {name: float(value) for name, value in bench("run", Project.open(), data, 2).items() if name != "baseline"}
    assert figures["rows"] == pytest.approx(ROWS / 3 * 4, rel=0.05)
    assert sum(figures[f"{step}_seconds"] for step in ("start", "flatten", "train", "score", "submit")) == pytest.approx(
        figures["seconds"], rel=0.05
    )
    assert figures["peak_rss_mb"] == max(value for name, value in figures.items() if name.endswith("_peak_rss_mb"))
    assert 100 < figures["largest_process_mb"] <= figures["peak_rss_mb"]
    assert 0 < figures["lake_share"] == pytest.approx(figures["lake_bytes"] / figures["raw_bytes"], abs=0.001)
    assert "train_window" in capfd.readouterr().err
