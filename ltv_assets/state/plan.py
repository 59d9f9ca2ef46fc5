"""The plan: the partitions that there should be, the state of each, and the reason why it is to be made.

What belongs here: one pass over the asset table. ``ltv status`` prints the plan, ``ltv run`` executes it, sensors and schedules
submit from it. What does not: judging one partition (``freshness.py``), when its inputs are ready (``readiness.py``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, timedelta

from ltv_assets.core.asset_specs import ASSET_NAMES, ASSETS, JOBS, AssetSpec
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.ingestion.calendar import Horizon, mature_horizons, today
from ltv_assets.state.freshness import Lineage, Status, has_raw_data


@dataclass(frozen=True, slots=True)
class Targets:
    """Partition keys that a plan covers: days to ingest, windows to train, days to score, the submission (one or none), and forecast days
    whose outcome is known.

    ``stored``: also whatever the warehouse holds of windows and scores beside them.
    """

    days: tuple[PartitionKey, ...]
    windows: tuple[PartitionKey, ...]
    scored: tuple[PartitionKey, ...]
    submission: tuple[PartitionKey, ...]
    observed: tuple[PartitionKey, ...] = ()
    stored: bool = False

    def keys(self, lineage: Lineage, asset: AssetSpec) -> tuple[PartitionKey, ...]:
        """Keys of one asset, oldest first."""
        if asset.partitions == "submission":
            return self.submission
        if asset.group == "ingestion":
            return self.days
        chosen = {"train_window": self.windows, "observe_days": self.observed}.get(asset.job, self.scored)
        return tuple(sorted({*chosen, *lineage.warehouse.keys(asset.name)})) if self.stored else chosen


def observable(lineage: Lineage) -> tuple[PartitionKey, ...]:
    """Days that were forecast and whose labels have come and are final."""
    known = {PartitionKey(day) for day in lineage.horizon.train_days if 7 in mature_horizons(lineage.config, day)}
    return tuple(key for key in lineage.warehouse.keys("cohort_forecast") if key in known)


def standing(lineage: Lineage) -> Targets:
    """Every day with data, the newest window, the test days, and what the warehouse holds already."""
    horizon = lineage.horizon
    newest = () if horizon.last_window is None else (PartitionKey(horizon.last_window),)
    return Targets(_days(lineage, None), newest, _keys(horizon.test_days), submission_keys(horizon), observable(lineage), stored=True)


def up_to(lineage: Lineage, window: PartitionKey) -> Targets:
    """What one window and the scores made from it need; days without data are left for the window to complain about."""
    horizon = lineage.horizon
    observed = tuple(key for key in observable(lineage) if key <= window)
    return Targets(_days(lineage, window.day), (window,), _keys(horizon.test_days), submission_keys(horizon), observed)


def followed(lineage: Lineage) -> Targets:
    """What automation keeps up to date: windows not older than ``automation.windows_back`` days before the newest, and the test days."""
    horizon = lineage.horizon
    windows = horizon.window_keys()
    oldest = windows[-1] - timedelta(days=lineage.config.automation.windows_back) if windows else None
    recent = tuple(PartitionKey(day) for day in windows if oldest is not None and day >= oldest)
    return Targets(_days(lineage, None), recent, _keys(horizon.test_days), submission_keys(horizon), observable(lineage))


def plan(lineage: Lineage, targets: Targets, assets: Collection[str] = ASSET_NAMES) -> tuple[Status, ...]:
    """State of every partition that the targets cover and its reason, in the order of the asset table."""
    return tuple(lineage.status(a.name, key) for a in ASSETS if a.name in assets for key in targets.keys(lineage, a))


@dataclass(frozen=True, slots=True)
class Step:
    """One Dagster run to be made: a job, its partition, and the states of the job's assets there."""

    job: str
    key: PartitionKey
    states: tuple[Status, ...]

    @property
    def unfresh(self) -> tuple[Status, ...]:
        """The partitions to be made."""
        return tuple(state for state in self.states if state.state != "fresh")


def steps(planned: Collection[Status]) -> tuple[Step, ...]:
    """The plan as runs in the order of execution: job by job, each from its first key to its last."""
    return tuple(
        Step(job, key, tuple(s for s in planned if s.asset in assets and s.partition == key))
        for job, assets in JOBS.items()
        for key in dict.fromkeys(s.partition for s in planned if s.asset in assets)
    )


def submission_keys(horizon: Horizon) -> tuple[PartitionKey, ...]:
    """The submission's partition, first and last test day; empty without test days."""
    days = horizon.test_days
    return (PartitionKey(f"{days[0]}_{days[-1]}"),) if days else ()


def _keys(days: Collection[date]) -> tuple[PartitionKey, ...]:
    return tuple(map(PartitionKey, days))


def _days(lineage: Lineage, window: date | None) -> tuple[PartitionKey, ...]:
    """Days with data: labelled ones, up to the window if there is one, and those to be scored; none that has not begun."""
    config, horizon = lineage.config, lineage.horizon
    known = (*(d for d in horizon.train_days if window is None or d <= window), *horizon.test_days)
    return tuple(PartitionKey(d) for d in known if has_raw_data(config, horizon, d) and (window is None or d <= today()))
