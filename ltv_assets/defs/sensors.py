"""Sensors: a day has landed or was rewritten, and the champion's figures left their bounds. All are off until switched on.

Thin: what has landed is found by ``ingestion/arrivals.py``, what is fresh by ``state/freshness.py``, what asks for retraining by
``monitoring/retraining.py``. A sensor keeps in its cursor what it has asked for, so a day that fails is asked for again only when its
files change, and a look without news costs a few directory listings. Windows and scores follow by ``automation.py``.
"""

import json
import time

import dagster as dg

from ltv_assets.core.config import Config
from ltv_assets.core.errors import LtvError
from ltv_assets.core.hashing import json_hash
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.defs.automation import sensor as automation_sensor
from ltv_assets.defs.resources import ProjectResource
from ltv_assets.ingestion.arrivals import landings
from ltv_assets.monitoring.retraining import look, watched
from ltv_assets.state.readiness import newest_trainable_window

REASON_TAG = "ltv/reason"


def build(config: Config, days: dg.PartitionsDefinition) -> list[dg.SensorDefinition]:
    """Every sensor of the project."""
    return [_days_landed(config, days), automation_sensor(config), _retraining_needed(config)]


def _days_landed(config: Config, days: dg.PartitionsDefinition) -> dg.SensorDefinition:
    @dg.sensor(
        name="days_landed",
        job_name="ingest_days",
        minimum_interval_seconds=config.automation.sensor_seconds,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description=(
            "Ingests a day when its 24 hours have landed (or all but automation.allow_missing_hours) and lain still for "
            "automation.settle_seconds, and again when one of its files is rewritten, added or removed."
        ),
    )
    def days_landed(context: dg.SensorEvaluationContext, project_resource: ProjectResource) -> dg.SensorResult:
        project = project_resource.open()
        lineage = project.lineage()
        asked = _asked(context.cursor)
        requests, notes = [], []
        for landing in landings(project.config, project.horizon):
            key = PartitionKey(landing.day)
            fingerprint, count = asked.get(key, ("", 0))
            if fingerprint == landing.fingerprint:
                continue
            waiting = landing.waiting_for(project.config, time.time())
            if waiting is None and not days.has_partition_key(key):
                waiting = "it lies beyond the partitions that were known when the code was loaded; reload the code location"
            if waiting is None and _in_progress(context.instance, key):
                waiting = "a run for it is under way; its outcome decides"
            if waiting is not None:
                notes.append(f"day {key}: {waiting}")
                continue
            asked[key] = (landing.fingerprint, count + 1)
            status = lineage.status("flattened_features", key)
            if status.state == "fresh":
                continue
            why = "its files changed" if count else "it has landed"
            # Dagster drops a key it has run, even when the cursor that counted was reset: only the time makes one that is new.
            requests.append(
                dg.RunRequest(
                    run_key=f"{key}:{landing.fingerprint}:{time.time_ns()}",
                    partition_key=key,
                    tags={REASON_TAG: f"{why}; it was {status.state}"},
                )
            )
        known = {PartitionKey(day) for day in (*project.horizon.train_days, *project.horizon.test_days)}
        cursor = json.dumps({key: value for key, value in asked.items() if key in known}, sort_keys=True)
        skip = None if requests else "; ".join(notes) or "no day landed or changed since the last look"
        return dg.SensorResult(run_requests=requests, skip_reason=skip, cursor=cursor)

    return days_landed


def _asked(cursor: str | None) -> dict[str, tuple[str, int]]:
    """{day: what was asked for, how often}; a cursor that somebody wrote by hand counts as none."""
    try:
        return {day: (str(fingerprint), int(count)) for day, (fingerprint, count) in json.loads(cursor or "{}").items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _retraining_needed(config: Config) -> dg.SensorDefinition:
    @dg.sensor(
        name="retraining_needed",
        job_name="train_window",
        minimum_interval_seconds=config.automation.sensor_seconds,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description=(
            "Trains the newest possible window when the champion's RMSLE, the zero rate of its predictions or the distribution of its "
            "scores leaves the bounds automation.retrain_*, unless a run for it is under way. "
            "For those who do not train every window by windows_and_scores."
        ),
    )
    def retraining_needed(context: dg.SensorEvaluationContext, project_resource: ProjectResource) -> dg.SensorResult:
        project = project_resource.open()
        try:
            seen = watched(project)
            if seen is None:
                return dg.SensorResult(skip_reason="there is no champion yet")
            window, about = newest_trainable_window(project.lineage())
            identity = json_hash([seen, window])
            if identity == context.cursor:
                return dg.SensorResult(skip_reason="nothing was evaluated or scored since the last look", cursor=identity)
            if window is not None and _in_progress(context.instance, window):
                return dg.SensorResult(skip_reason=f"a run for {window} is under way; its outcome decides", cursor=context.cursor)
            watch = look(project)
        except LtvError as error:
            return dg.SensorResult(skip_reason=str(error), cursor=context.cursor)
        if not watch.reasons:
            figures = ", ".join(f"{name} {value:.4f}" for name, value in watch.figures.items()) or "no figure yet"
            return dg.SensorResult(skip_reason=f"within bounds: {figures}", cursor=identity)
        reason = "; ".join(watch.reasons)
        if window is None:
            return dg.SensorResult(skip_reason=f"{reason}; but there is nothing to train: {about}", cursor=identity)
        request = dg.RunRequest(run_key=f"{window}:{identity}:{time.time_ns()}", partition_key=window, tags={REASON_TAG: reason[:1000]})
        return dg.SensorResult(run_requests=[request], cursor=identity)

    return retraining_needed


def _in_progress(instance: dg.DagsterInstance, partition: str) -> bool:
    """Whether a run for this partition is queued or executing: what is half made looks like something that still has to be made."""
    status = dg.DagsterRunStatus
    waiting = [status.QUEUED, status.NOT_STARTED, status.STARTING, status.STARTED, status.MANAGED]
    return instance.get_runs_count(dg.RunsFilter(statuses=waiting, tags={"dagster/partition": partition})) > 0
