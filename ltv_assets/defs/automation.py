"""The condition under which windows, scores and the submission are made without a click.

Dagster's own ``eager()`` does not fit three ways: its latest time window is the last *lookahead* day, not the last day with
data; a day is "not missing" though it failed its checks in another run; and labels ripen by the calendar, not by an event.
`InputsReady` asks the warehouse instead (``state/readiness.py``): a partition is requested when everything it is made from is
fresh, passed its blocking checks and is mature, when it is not fresh itself, and when it was not requested before with the
same inputs. The last point bounds failures: a window that fails is tried again when its inputs change, not every 30 seconds.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

import dagster as dg

from ltv_assets.core.asset_specs import AUTOMATED_ASSETS
from ltv_assets.core.config import Config
from ltv_assets.state.freshness import Lineage
from ltv_assets.state.project import Project
from ltv_assets.state.readiness import identity, to_make


@dataclass(frozen=True)
class InputsReady(dg.AutomationCondition[dg.AssetKey]):
    """True for wanted partitions that are not fresh and whose inputs are all fresh, checked and mature; once per set of inputs."""

    @property
    def name(self) -> str:
        """How the UI names it."""
        return "every input fresh, checked and mature"

    def evaluate(self, context: dg.AutomationContext) -> dg.AutomationResult:
        """Look at the wanted partitions of one asset; the identities already asked for are kept in the cursor."""
        asset = context.key.to_user_string()
        lineage = _lineage(context.evaluation_id, context.evaluation_time)
        asked: dict[str, str] = json.loads(context.cursor) if context.cursor else {}
        partitioned = context.partitions_def is not None
        candidates = context.candidate_subset.expensively_compute_partition_keys() if partitioned else frozenset()
        requested = []
        for key in (status.partition for status in to_make(lineage, (asset,))):
            if key not in candidates if partitioned else context.candidate_subset.is_empty:
                continue
            now = identity(lineage, asset, key)
            if asked.get(key) != now:
                asked[key] = now
                requested.append(key)
        if not requested:
            subset = context.get_empty_subset()
        elif partitioned:
            subset = context.candidate_subset.compute_intersection_with_partition_keys(frozenset(requested))
        else:
            subset = context.candidate_subset
        return dg.AutomationResult(context, subset, cursor=json.dumps(asked, sort_keys=True))


@lru_cache(maxsize=1)
def _lineage(evaluation_id: int, evaluation_time: datetime) -> Lineage:
    """One view of the warehouse for all assets of a tick: each partition is judged once."""
    return Project.open().lineage()


CONDITION: dg.AutomationCondition = (~dg.AutomationCondition.in_progress() & InputsReady()).with_label("inputs_ready")


def automated(assets: Sequence[dg.AssetsDefinition]) -> list[dg.AssetsDefinition]:
    """The same assets; those that can be made without a click carry the condition."""
    names = {dg.AssetKey(name) for name in AUTOMATED_ASSETS}
    return [
        asset.map_asset_specs(lambda spec: spec.replace_attributes(automation_condition=CONDITION)) if asset.keys & names else asset
        for asset in assets
    ]


def sensor(config: Config) -> dg.AutomationConditionSensorDefinition:
    """The sensor that evaluates the condition; off until somebody switches it on."""
    return dg.AutomationConditionSensorDefinition(
        "windows_and_scores",
        target=dg.AssetSelection.assets(*AUTOMATED_ASSETS),
        default_status=dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=config.automation.sensor_seconds,
        emit_backfills=False,
        use_user_code_server=True,
        description=(
            "Trains windows whose days all passed their checks and whose labels are final, then scores the days without labels with the "
            "champion and writes the submission. Each partition is requested once for the same inputs."
        ),
    )
