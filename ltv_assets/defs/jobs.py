"""The jobs people look for, one per thing they want done."""

from __future__ import annotations

import dagster as dg

from ltv_assets.core.asset_specs import JOBS, SPECS, WINDOW_ASSETS
from ltv_assets.core.check_specs import standing_checks

DESCRIPTIONS = {
    "ingest_days": "Inventory and flatten days.",
    "train_window": "Train, evaluate and refit one window; promote it if it deserves it.",
    "score_days": "Score days with the champion, and forecast what they bring by group.",
    "observe_days": "Compare forecasts with outcomes, for forecast days whose labels have come and are final.",
    "make_submission": "Write the submission of the configured test days.",
}


def build(days: dg.PartitionsDefinition, windows: dg.PartitionsDefinition) -> list[dg.UnresolvedAssetJobDefinition]:
    """Jobs over the asset graph; a backfill of ``train_window`` is a walk-forward backtest."""
    select = dg.AssetSelection.assets
    keys = {"day": days, "window": windows, "submission": None}
    return [
        *(
            dg.define_asset_job(job, select(*assets), partitions_def=keys[SPECS[assets[0]].partitions], description=DESCRIPTIONS[job])
            for job, assets in JOBS.items()
        ),
        dg.define_asset_job(
            "backtest",
            select(*WINDOW_ASSETS) - select("served_model"),
            partitions_def=windows,
            description="Train and evaluate windows without refitting or promoting them; backfill it over a range of holdout days.",
        ),
        dg.define_asset_job(
            "health",
            dg.AssetSelection.checks(*(dg.AssetCheckKey(dg.AssetKey("submission"), check.__name__) for check in standing_checks())),
            description="Look at the warehouse as a whole: partitions that stay failed, freshness of days and of the champion.",
        ),
    ]
