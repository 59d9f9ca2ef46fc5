"""Readiness: the missing inputs of a planned partition, and the identity of its inputs.

Sensors, schedules and automation conditions take from the plan (``plan.py``), which `ltv run` and `ltv status` share, what is
ready. Pure: no Dagster.
"""

from __future__ import annotations

from collections.abc import Sequence

from ltv_assets.core.asset_specs import CODE_VERSIONS, WINDOW_UPSTREAM
from ltv_assets.core.check_specs import blocking_checks, check_bounds
from ltv_assets.core.contract import contract_of
from ltv_assets.core.errors import LtvError
from ltv_assets.core.hashing import json_hash
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.ingestion.calendar import mature_horizons
from ltv_assets.state.freshness import Lineage, Status
from ltv_assets.state.plan import followed, plan


def waiting_for(lineage: Lineage, asset: str, key: PartitionKey) -> str | None:
    """Missing input of a partition, or None if the partition could be made now.

    A window waits for its days, holdout included: fresh in the lake, blocking checks passed, labels of the shortest horizon mature.
    Scores wait for their day and for a champion, the submission for the scores of every test day.
    """
    try:
        if asset in WINDOW_UPSTREAM:
            return _window_waits_for(lineage, key)
        lineage.require_ready(asset, key)
    except LtvError as error:
        return str(error)
    return None


def _window_waits_for(lineage: Lineage, key: PartitionKey) -> str | None:
    window = key.day
    days = (*lineage.horizon.training_days(window), window)
    shortest = contract_of(lineage.config).horizons[0]
    if window not in lineage.horizon.train_days:
        return f"window {key}: its holdout day has no labelled hours yet"
    for day in days:
        if shortest not in mature_horizons(lineage.config, day):
            return f"window {key}: the D{shortest} labels of day {day} are not final yet"
    for day in days:
        status = lineage.status("flattened_features", PartitionKey(day))
        if status.state != "fresh":
            return f"window {key}: day {day} is {status.state} ({status.why})"
    return None


def identity(lineage: Lineage, asset: str, key: PartitionKey) -> str:
    """Hash of everything a partition would be made from now, so that the same inputs launch one run only.

    Raises StaleError if an input is missing.
    """
    if asset in WINDOW_UPSTREAM:
        days = map(PartitionKey, (*lineage.horizon.training_days(key.day), key.day))
        inputs = {day: lineage.warehouse.fingerprint("flattened_features", day) or "" for day in days}
        horizons = sorted(mature_horizons(lineage.config, key.day))
        settings = [(name, CODE_VERSIONS[name], lineage.config_hash(name, key)) for name in sorted(WINDOW_UPSTREAM)]
        bounded = [check for name in WINDOW_UPSTREAM for check in blocking_checks(name) if check in check_bounds()]
        parts: object = [inputs, horizons, settings, *map(lineage.bounds_hash, bounded)]
    else:
        parts = [lineage.inputs(asset, key), CODE_VERSIONS[asset], lineage.config_hash(asset, key)]
    return json_hash([asset in WINDOW_UPSTREAM or asset, key, parts])


def to_make(lineage: Lineage, assets: Sequence[str]) -> tuple[Status, ...]:
    """Partitions of the assets that automation keeps up to date, are not fresh, and could be made now; oldest first."""
    planned = plan(lineage, followed(lineage), assets)
    return tuple(s for s in planned if s.state != "fresh" and waiting_for(lineage, s.asset, s.partition) is None)


def newest_trainable_window(lineage: Lineage) -> tuple[PartitionKey | None, str]:
    """The newest window that could be trained now and is not fresh, and a sentence about it or about why there is none."""
    reasons: list[str] = []
    planned = plan(lineage, followed(lineage), WINDOW_UPSTREAM)
    for key in sorted({s.partition for s in planned}, reverse=True):
        blocked = waiting_for(lineage, "served_model", key)
        if blocked is not None:
            reasons.append(blocked)
            continue
        if all(s.state == "fresh" for s in planned if s.partition == key):
            return None, "; ".join([f"window {key} is the newest that can be trained, and it is fresh", *reasons])
        return key, f"window {key} can be trained: its days passed their checks and their labels are final"
    return None, "; ".join(reasons) or "no window has enough labelled days"
