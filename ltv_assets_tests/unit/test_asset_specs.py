"""Every list of assets follows from the one declaration, and none changed its content when it began to."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltv_assets.core import asset_specs as specs
from ltv_assets.storage.warehouse import Warehouse

MODELS = ("buyer_classifier", "buyer_gating", "revenue_regressor", "stacker")
WINDOW = ("histos_train", "hhistus_buyers", *MODELS, "holdout_metrics", "cohort_errors", "served_model")
SCORED = ("predictions", "cohort_forecast", "cohort_outcome")
BOOSTING = ("compute.engine", "compute.threads", "compute.max_memory_gb")

CODE_VERSIONS = {
    "raw_partitions": "2",
    "flattened_features": "4",
    "histos_train": "1",
    "hhistus_buyers": "1",
    "buyer_classifier": "5",
    "buyer_gating": "6",
    "revenue_regressor": "6",
    "stacker": "10",
    "holdout_metrics": "2",
    "cohort_errors": "2",
    "served_model": "7",
    "predictions": "3",
    "cohort_forecast": "2",
    "cohort_outcome": "1",
    "submission": "1",
}
WINDOW_UPSTREAM = {
    "histos_train": (),
    "hhistus_buyers": (),
    "buyer_classifier": ("histos_train",),
    "buyer_gating": ("buyer_classifier",),
    "revenue_regressor": ("hhistus_buyers", "buyer_classifier", "buyer_gating"),
    "stacker": ("buyer_classifier", "buyer_gating", "revenue_regressor"),
    "holdout_metrics": MODELS,
    "cohort_errors": (*MODELS[:3], "holdout_metrics"),
    "served_model": ("stacker", "holdout_metrics"),
}
CONFIG_KEYS = {
    "raw_partitions": ("data.{split}.max_partitions",),
    "flattened_features": ("seed", "features", "data.{split}.sampling_fraction"),
    "histos_train": ("seed", "sampling"),
    "hhistus_buyers": ("seed", "sampling"),
    "buyer_classifier": ("seed", "sampling", "models", *BOOSTING),
    "buyer_gating": ("seed", "models", *BOOSTING),
    "revenue_regressor": ("seed", "sampling", "models", *BOOSTING),
    "stacker": ("seed", "models", "compute.threads", "compute.max_memory_gb"),
    "holdout_metrics": ("seed", "evaluation"),
    "cohort_errors": ("seed", "models", "evaluation.min_segment_rows", "evaluation.max_segments"),
    "served_model": ("seed", "sampling", "models", *BOOSTING),
    "predictions": (),
    "cohort_forecast": ("evaluation.min_segment_rows", "evaluation.max_segments"),
    "cohort_outcome": (),
    "submission": ("data.sample_submission",),
}
TRACKED = {
    "buyer_classifier": ("buyer_classifier", "calibration"),
    "buyer_gating": ("whale_classifier", "gating"),
    "revenue_regressor": ("revenue_head", "increments", "cap_quantile"),
    "stacker": ("stacker", "boosting", "forest", "linear"),
}


@pytest.mark.contest
@pytest.mark.parametrize(
    ("derived", "literal"),
    [
        (specs.ASSET_NAMES, ("raw_partitions", "flattened_features", *WINDOW, *SCORED, "submission")),
        (specs.DAY_ASSETS, ("raw_partitions", "flattened_features", *SCORED)),
        (specs.INGESTED_ASSETS, ("raw_partitions", "flattened_features")),
        (specs.MODEL_ASSETS, MODELS),
        (specs.WINDOW_ASSETS, WINDOW),
        (specs.SHARED_ASSETS, ("raw_partitions", "flattened_features", *SCORED, *WINDOW, "submission")),
        (specs.AUTOMATED_ASSETS, (*WINDOW, *SCORED, "submission")),
        (specs.IMPRESSION_ASSETS, ("flattened_features", "histos_train", "hhistus_buyers", "predictions", "submission")),
        (tuple(specs.RELATIONS), tuple(name for name in specs.ASSET_NAMES if name != "flattened_features")),
        ({name: len(columns) for name, columns in specs.RELATIONS.items() if name not in MODELS}, {
            "raw_partitions": 10, "histos_train": 6, "hhistus_buyers": 6, "holdout_metrics": 6, "served_model": 3,
            "predictions": 10, "cohort_forecast": 10, "cohort_outcome": 18, "cohort_errors": 17, "submission": 2,
        }),
        (list(specs.CODE_VERSIONS.items()), list(CODE_VERSIONS.items())),
        (list(specs.WINDOW_UPSTREAM.items()), list(WINDOW_UPSTREAM.items())),
        (specs.CONFIG_KEYS, CONFIG_KEYS),
        ({a.name: a.tracked_sections for a in specs.ASSETS if a.tracked_sections}, TRACKED),
    ],
)  # fmt: skip
def test_derived_list_is_the_one_that_stood_there_before(derived: object, literal: object) -> None:
    """A code version or a configuration key that differs would make every partition of a warehouse stale."""
    assert derived == literal


@pytest.mark.parametrize(
    ("asset", "folder"),
    [
        ("flattened_features", "lake/flattened_features/day=2025-10-01"),
        ("predictions", "lake/predictions/day=2025-10-01"),
        ("cohort_forecast", "lake/cohort_forecast/day=2025-10-01"),
        ("histos_train", "lake/histos_train/window=2025-10-01"),
        ("holdout_metrics", "lake/holdout_metrics/window=2025-10-01"),
        ("stacker", "models/window=2025-10-01/stacker"),
        ("served_model", "models/window=2025-10-01/served_model"),
        ("submission", "submissions/2025-10-01"),
        ("report", "reports/window=2025-10-01"),
        ("model_card", "champions/window=2025-10-01"),
    ],
)
def test_partitions_lie_where_they_lay(tmp_path: Path, asset: str, folder: str) -> None:
    assert Warehouse(tmp_path).folder(asset, "2025-10-01") == tmp_path / folder


def test_an_asset_stands_after_what_it_is_made_from() -> None:
    for position, spec in enumerate(specs.ASSETS):
        assert {above.asset for above in spec.upstream} <= set(specs.ASSET_NAMES[:position]), spec.name
