"""Checks of the warehouse as a whole: partitions that stay failed, freshness of days and of the champion."""

from collections.abc import Mapping
from typing import Any

from ltv_assets.core.check_specs import Outcome, standing_check
from ltv_assets.core.errors import LtvError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.ingestion.calendar import hours_per_day
from ltv_assets.state.project import Project
from ltv_assets.state.status import partition_states

MAX_STANDING_ROWS = 20


@standing_check
def standing_failures(project: Project) -> Outcome:
    """No partition stays failed, stale, or missing though everything it is made from is there."""
    lineage = project.lineage()

    def stands(row: Mapping[str, Any]) -> bool:
        if row["asset"] == "submission" or row["state"] == "fresh":
            return False
        if row["state"] != "missing":
            return True
        try:
            upstream = lineage.upstream(row["asset"], row["partition"])
        except LtvError:
            return False
        return bool(upstream) and all(lineage.status(*above).state == "fresh" for above in upstream)

    standing = sorted(filter(stands, partition_states(project)), key=lambda row: row["state"] != "failed")
    rows = [{name: row[name] for name in ("asset", "partition", "state", "why")} for row in standing[:MAX_STANDING_ROWS]]
    failed = sum(row["state"] == "failed" for row in standing)
    figures = {"failed": failed, "not_fresh": len(standing)}
    if not rows:
        return Outcome(True, "no partition stays failed, stale or half done", figures)
    first = f"{rows[0]['asset']} {rows[0]['partition']} is {rows[0]['state']} ({rows[0]['why']})"
    text = f"{failed} partitions failed, {len(standing) - failed} more are stale or half done"
    return Outcome(False, f"{text}; first: {first}", figures, rows)


@standing_check
def days_fresh(project: Project) -> Outcome:
    """The newest day that has landed is flattened, fresh and checked."""
    from ltv_assets.ingestion.arrivals import landings

    least = hours_per_day(project.config) - project.config.automation.allow_missing_hours
    landed = [d for d in landings(project.config, project.horizon) if d.hours >= least]
    if not landed:
        return Outcome(True, "no complete day has landed")
    lineage = project.lineage()
    late = []
    for landing in reversed(landed):
        status = lineage.status("flattened_features", PartitionKey(landing.day))
        if status.state == "fresh":
            break
        late.append({"day": str(landing.day), "state": status.state, "why": status.why})
    newest = landed[-1].day
    if late:
        return Outcome(
            False, f"day {newest} has landed, but {len(late)} newest days are not fresh: {late[0]['why']}", {"days_late": len(late)}, late
        )
    return Outcome(True, f"the newest complete day {newest} is fresh", {"days_late": 0})


@standing_check
def champion_fresh(project: Project) -> Outcome:
    """The champion's window lies at most ``champion_max_age_days`` behind the newest day with final labels."""
    from ltv_assets.ingestion.calendar import mature_horizons

    champion = project.lineage().champion()
    if champion is None:
        return Outcome(False, "there is no champion: no window has passed its blocking checks; `ltv status` says which failed and why")
    mature = [d for d in project.horizon.train_days if project.contract.horizons[0] in mature_horizons(project.config, d)]
    age = (max(mature) - champion.window.day).days if mature else 0
    limit = project.config.checks.champion_max_age_days
    text = f"champion {champion.window}{' (pinned)' if champion.pinned else ''} is {age} days behind the newest day with final labels"
    return Outcome(age <= limit, text if age <= limit else f"{text}, more than champion_max_age_days = {limit}", {"age_days": age})
