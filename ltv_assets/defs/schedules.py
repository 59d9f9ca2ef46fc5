"""Schedules: score the unlabelled days daily, retrain weekly, look at the warehouse as a whole daily. All are off until switched on.

A schedule asks for what is not fresh and could be made now (``state/readiness.py``); a quiet day costs no run.
"""

import dagster as dg

from ltv_assets.core.asset_specs import JOBS
from ltv_assets.core.config import Config
from ltv_assets.defs.resources import ProjectResource
from ltv_assets.defs.sensors import REASON_TAG
from ltv_assets.state.plan import followed, plan, steps
from ltv_assets.state.readiness import newest_trainable_window, waiting_for


def build(config: Config) -> list[dg.ScheduleDefinition]:
    """Every schedule of the project."""
    settings = config.automation

    @dg.schedule(
        name="daily_prediction",
        job_name="score_days",
        cron_schedule=settings.daily_prediction,
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Scores every day without labels whose predictions or forecast are missing or were made by another champion.",
    )
    def daily_prediction(context: dg.ScheduleEvaluationContext, project_resource: ProjectResource) -> list[dg.RunRequest] | dg.SkipReason:
        lineage = project_resource.open().lineage()
        time = f"{context.scheduled_execution_time:%Y-%m-%dT%H:%M}"
        requests, notes = [], []
        for step in steps(plan(lineage, followed(lineage), JOBS["score_days"])):
            for status in step.unfresh[:1]:
                blocked = waiting_for(lineage, status.asset, step.key)
                if blocked is not None:
                    notes.append(blocked)
                    continue
                tags = {REASON_TAG: f"{status.state}: {status.why}"[:1000]}
                chosen = [dg.AssetKey(unfresh.asset) for unfresh in step.unfresh]
                requests.append(dg.RunRequest(f"{time}:{step.key}", asset_selection=chosen, partition_key=step.key, tags=tags))
        return requests or dg.SkipReason("; ".join(notes) or "the predictions of every day without labels are fresh")

    @dg.schedule(
        name="weekly_retraining",
        job_name="train_window",
        cron_schedule=settings.weekly_retraining,
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Trains the newest window whose days passed their checks and whose labels are final, whatever the figures say.",
    )
    def weekly_retraining(context: dg.ScheduleEvaluationContext, project_resource: ProjectResource) -> dg.RunRequest | dg.SkipReason:
        window, about = newest_trainable_window(project_resource.open().lineage())
        if window is None:
            return dg.SkipReason(about)
        time = f"{context.scheduled_execution_time:%Y-%m-%dT%H:%M}"
        return dg.RunRequest(run_key=f"{time}:{window}", partition_key=window, tags={REASON_TAG: about[:1000]})

    daily_health = dg.ScheduleDefinition(
        name="daily_health",
        job_name="health",
        cron_schedule=settings.daily_health,
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Runs the checks that look at the warehouse as a whole: standing failures, freshness of days and of the champion.",
    )
    return [daily_prediction, weekly_retraining, daily_health]
