"""A feature that says who paid in training, and says nothing where it matters, keeps its window and its scores from being used."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltv_assets.core.config import Config
from ltv_assets.defs.asset_checks import scoring, training
from ltv_assets.features.schema import categorical_names, feature_names
from ltv_assets.ingestion.calendar import Horizon
from ltv_assets.ingestion.separation import separate_codes, separate_numbers
from ltv_assets.monitoring import leaks
from ltv_assets.state.project import Project
from ltv_assets.storage.warehouse import Warehouse

pytestmark = pytest.mark.contest

TRAIN, WINDOW, TEST = ("2025-10-01", "2025-10-02"), "2025-10-03", "2025-10-08"
ROWS = 400


def project(root: Path, test_days: tuple[date, ...] = (date(2025, 10, 8),), **checks: float) -> Project:
    config = Config()
    config = config.model_copy(update={"checks": config.checks.model_copy(update=checks)})
    return Project(config, Horizon((), test_days, 2, 7, 0, frozenset()), Warehouse(root))


@cache
def day_of_noise(number: int) -> tuple[pa.Table, np.ndarray]:
    """A flattened day whose features say nothing, and who pays on it."""
    registry, rng = Project(Config(), Horizon((), (), 2, 7, 0, frozenset()), Warehouse(Path())).registry, np.random.default_rng(number)
    words, payer = set(categorical_names(registry)), rng.random(ROWS) < 0.1
    text, noise = pa.array(rng.choice(["a", "b"], ROWS)).dictionary_encode(), pa.array(rng.normal(size=ROWS), pa.float32())
    columns: dict[str, Any] = {"row_id": [f"{number} {i}" for i in range(ROWS)], "iap_revenue_d7": np.where(payer, 5.0, 0.0)}
    return pa.table(columns | {name: text if name in words else noise for name in feature_names(registry)}), payer


def publish_days(p: Project, planted: Mapping[str, Any], scored: Mapping[str, Any], days: tuple[str, ...] = (*TRAIN, TEST)) -> None:
    """Days of noise; ``planted`` makes columns of the training days from who pays, ``scored`` those of the others."""
    for number, day in enumerate(days):
        table, payer = day_of_noise(number)
        for name, make in (planted if day in TRAIN else scored).items():
            table = table.set_column(table.column_names.index(name), name, make(payer))
        p.warehouse.write("flattened_features", day, file_of(table), code_version="1", config="c", inputs={}, facts={})
    inputs = {f"flattened_features/{day}": "x" for day in TRAIN}
    p.warehouse.write("buyer_classifier", WINDOW, lambda folder: {}, code_version="1", config="c", inputs=inputs, facts={})
    p.warehouse.write("predictions", TEST, lambda folder: {}, code_version="1", config="c", inputs={}, facts={"champion": WINDOW})


def file_of(table: pa.Table) -> Any:
    def fill(folder: Path) -> dict[str, int | None]:
        # Several row groups, whose dictionaries differ.
        pq.write_table(table, folder / "day.parquet", row_group_size=150)
        return {"day.parquet": table.num_rows}

    return fill


def absent(payer: np.ndarray) -> pa.Array:
    return pa.nulls(len(payer), pa.float32())


def filled_for_half_of_the_payers(payer: np.ndarray) -> pa.Array:
    return pa.array(np.ones(len(payer), np.float32), mask=~(payer & (np.arange(len(payer)) % 2 == 0)))


def status(payer: np.ndarray) -> pa.Array:
    return pa.array(np.where(payer, "customer", "visitor")).dictionary_encode()


def visitor(payer: np.ndarray) -> pa.Array:
    return pa.array(["visitor"] * len(payer)).dictionary_encode()


LEAKS = {
    "filled only for payers, half of them": ("avg_act_days", filled_for_half_of_the_payers, absent, "100% of the"),
    "a category that becomes customer": ("carrier", status, visitor, "visitor everywhere on the days to be scored"),
    "a number that is larger for payers": (
        "wifi_ratio",
        lambda payer: pa.array(payer + np.linspace(0, 1, len(payer)), pa.float32()),
        lambda payer: pa.array(np.zeros(len(payer)), pa.float32()),
        "0.0 everywhere on the days to be scored",
    ),
}


@pytest.mark.parametrize("what", LEAKS)
def test_a_leak_fails_the_window_and_the_scores_and_is_named(tmp_path: Path, what: str) -> None:
    name, planted, scored, said = LEAKS[what]
    p = project(tmp_path)
    publish_days(p, {name: planted}, {name: scored})
    for outcome, subject in ((training.no_leak(p, WINDOW), f"window {WINDOW}"), (scoring.predictions_without_leak(p, TEST), f"day {TEST}")):
        assert not outcome.passed
        assert outcome.message.startswith(f"{subject}: leak: {name} (") and said in outcome.message
        assert [row["feature"] for row in outcome.rows] == [name]
        assert outcome.figures == {"features_absent_or_constant": 1, "leaks": 1}


def test_a_feature_that_is_gone_but_never_told_who_pays_passes(tmp_path: Path) -> None:
    p = project(tmp_path)
    publish_days(p, {}, {"avg_act_days": absent, "carrier": visitor})
    outcome = training.no_leak(p, WINDOW)
    assert outcome.passed and outcome.figures["features_absent_or_constant"] == 2


def test_what_tells_who_pays_and_is_there_on_scored_days_passes(tmp_path: Path) -> None:
    """Such a feature may simply be good: only its absence where it matters gives it away."""
    p = project(tmp_path)
    publish_days(p, {"carrier": status}, {"carrier": status})
    assert training.no_leak(p, WINDOW).passed


def test_verdict_follows_the_bounds(tmp_path: Path) -> None:
    p = project(tmp_path, leak_auc_max=1.0, leak_exclusive_max=1.0)
    publish_days(p, {"carrier": status}, {"carrier": visitor})
    assert training.no_leak(p, WINDOW).passed


def test_without_a_day_to_score_the_window_passes_and_says_so(tmp_path: Path) -> None:
    p = project(tmp_path, test_days=())
    publish_days(p, {"carrier": status}, {}, days=TRAIN)
    outcome = training.no_leak(p, WINDOW)
    assert outcome.passed and "no day without labels" in outcome.message


def test_many_training_rows_are_judged_by_evenly_spaced_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "MOST_ROWS", 300)
    p = project(tmp_path)
    publish_days(p, {"carrier": status}, {"carrier": visitor})
    files = [f for day in TRAIN for f in p.warehouse.files("flattened_features", day)]
    table = leaks._spread(files, ["row_id"])
    assert table["row_id"].to_pylist() == [f"{number} {i}" for number in range(len(TRAIN)) for i in range(ROWS)][::3]
    assert not training.no_leak(p, WINDOW).passed


def test_separation_is_the_auc_and_the_share_of_payers_among_unusual_rows() -> None:
    payer = np.array([True] * 40 + [False] * 360)
    values = np.where(np.arange(400) < 36, 7.0, 0.0)  # 36 payers and nobody else
    found = separate_numbers(values, payer)
    assert (found.rows, found.payer_share, found.exclusive) == (36, 1.0, 1.0)
    assert found.auc == pytest.approx(0.5 + 0.5 * 36 / 40)
    values[36:76] = 7.0  # the other four payers, and 36 others
    found = separate_numbers(values, payer)
    assert found.payer_share == pytest.approx(40 / 76)
    assert found.exclusive == pytest.approx(1 - (36 / 76) / 0.9)
    assert separate_numbers(np.where(values > 0, np.nan, 1.0), payer).rows == 76


def test_many_values_of_a_category_by_chance_do_not_separate() -> None:
    """A rate of a category is taken from other rows than it is judged on, so an identifier is no leak."""
    rng = np.random.default_rng(0)
    payer = rng.random(4000) < 0.1
    assert separate_codes(np.arange(4000), payer).auc == pytest.approx(0.5, abs=0.05)
    assert separate_codes(rng.integers(0, 500, 4000), payer).auc < 0.57
    assert separate_codes(np.where(payer, 3, rng.integers(0, 3, 4000)), payer).auc > 0.99


def test_no_payer_and_no_row_separate_nothing() -> None:
    assert separate_numbers(np.arange(50.0), np.zeros(50, bool)).auc == 0.5
    assert separate_codes(np.arange(0), np.zeros(0, bool)).auc == 0.5
    assert separate_numbers(np.full(50, np.nan), np.arange(50) % 2 == 0) == separate_numbers(np.ones(50), np.arange(50) % 2 == 0)
