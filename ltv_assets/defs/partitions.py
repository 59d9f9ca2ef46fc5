"""The two clocks as Dagster partitions.

``days`` is the day of the impressions; ``windows`` is the holdout day of a training window. The mappings say which days a
window reads; Dagster clamps them at the first day, so every window asset verifies its days itself (``state/freshness.py``).
"""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

from ltv_assets.core.config import Config
from ltv_assets.ingestion.calendar import Horizon


def day_partitions(config: Config, horizon: Horizon) -> dg.DailyPartitionsDefinition:
    """Every day from the first known one to the last plus ``lookahead_days``, so that coming days exist as keys."""
    end = horizon.last_day + timedelta(days=config.windows.lookahead_days + 1)
    return dg.DailyPartitionsDefinition(start_date=str(horizon.first_day), end_date=str(end))


def window_partitions(config: Config, horizon: Horizon) -> dg.DailyPartitionsDefinition:
    """Every day that can be a holdout, from the first one with enough days before it."""
    end = horizon.last_day + timedelta(days=config.windows.lookahead_days + 1)
    start = min(horizon.first_window, end - timedelta(days=1))
    return dg.DailyPartitionsDefinition(start_date=str(start), end_date=str(end))


def training_days_mapping(config: Config) -> dg.TimeWindowPartitionMapping:
    """A window reads the days before it that train it."""
    last = 1 + config.windows.embargo_days
    return dg.TimeWindowPartitionMapping(
        start_offset=-(config.windows.max_train_days + config.windows.embargo_days),
        end_offset=-last,
        allow_nonexistent_upstream_partitions=True,
    )


def holdout_mapping(config: Config) -> dg.TimeWindowPartitionMapping:
    """Evaluation and refit read the training days and the holdout day itself."""
    return dg.TimeWindowPartitionMapping(
        start_offset=-(config.windows.max_train_days + config.windows.embargo_days),
        end_offset=0,
        allow_nonexistent_upstream_partitions=True,
    )
