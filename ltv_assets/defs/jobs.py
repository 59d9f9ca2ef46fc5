"""The jobs people look for, one per thing they want done."""

from __future__ import annotations

import dagster as dg

from ltv_assets.core.asset_specs import INGESTED_ASSETS, SCORED_ASSETS, WINDOW_ASSETS
from ltv_assets.core.check_specs import standing_checks


def build(days: dg.PartitionsDefinition, windows: dg.PartitionsDefinition) -> list[dg.UnresolvedAssetJobDefinition]:
    """Jobs over the asset graph; a backfill of ``train_window`` is a walk-forward backtest."""
    select = dg.AssetSelection.assets
    return [
        dg.define_asset_job("ingest_days", select(*INGESTED_ASSETS), partitions_def=days, description="Inventory and flatten days."),
        dg.define_asset_job(
            "train_window",
            select(*WINDOW_ASSETS),
            partitions_def=windows,
            description="Train, evaluate and refit one window; promote it if it deserves it.",
        ),
        dg.define_asset_job(
            "score_days",
            select(*SCORED_ASSETS),
            partitions_def=days,
            description="Score days with the champion, and forecast what they bring by group.",
        ),
        dg.define_asset_job("make_submission", select("submission"), description="Write the submission of the configured test days."),
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
