"""Asset checks run and bound to Dagster: partitioned, blocking where a bad result must not travel, remembered in the warehouse.

What belongs here: running a declared check, its verdict, its form in Dagster. What does not: judging (the other files of this folder).
A verdict is recorded because Dagster's blocking checks stop what is downstream only inside one run.
"""

import dagster as dg

from ltv_assets.core.asset_specs import SPECS
from ltv_assets.core.check_specs import CheckSpec, Outcome, StandingFunction, check_specs, standing_checks
from ltv_assets.core.errors import TransientError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.defs.publication import markdown_table, readable_failures
from ltv_assets.defs.resources import ProjectResource, TrackingResource
from ltv_assets.state.project import Project
from ltv_assets.storage.warehouse import Verdict


def run_check(project: Project, spec: CheckSpec, key: PartitionKey) -> Outcome:
    """Run one check and remember its verdict for the content it saw. Raises TransientError if that was replaced meanwhile."""
    fingerprint = project.warehouse.fingerprint(spec.asset, key) or ""
    outcome = spec.function(project, key)
    if (project.warehouse.fingerprint(spec.asset, key) or "") != fingerprint:
        raise TransientError(f"{spec.asset} {key}: replaced by another run while the check {spec.name} looked at it; run the check again")
    project.warehouse.record_verdict(
        Verdict(
            asset=spec.asset,
            partition=key,
            check=spec.name,
            passed=outcome.passed,
            blocking=spec.blocking,
            fingerprint=fingerprint,
            bounds=project.lineage().bounds_hash(spec.name),
            message=outcome.message,
            figures=dict(outcome.figures),
        )
    )
    return outcome


def _result(outcome: Outcome, blocking: bool) -> dg.AssetCheckResult:
    figures = {k: v for k, v in outcome.figures.items() if v is not None}
    return dg.AssetCheckResult(
        passed=outcome.passed,
        severity=dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN,
        description=outcome.message,
        metadata={**figures, **({"rows": markdown_table(list(outcome.rows))} if outcome.rows else {})},
    )


def _bind(spec: CheckSpec, partitions: dg.PartitionsDefinition | None) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=spec.asset,
        name=spec.name,
        description=(spec.function.__doc__ or "").strip(),
        blocking=spec.blocking,
        partitions_def=partitions,
    )
    def check(context: dg.AssetCheckExecutionContext, project_resource: ProjectResource) -> dg.AssetCheckResult:
        with readable_failures():
            project = project_resource.open()
            key = PartitionKey(context.partition_key) if partitions is not None else project.submission_key
            return _result(run_check(project, spec, key), spec.blocking)

    return check


def _bind_standing(function: StandingFunction) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset="submission", name=function.__name__, description=(function.__doc__ or "").strip())
    def check(context: dg.AssetCheckExecutionContext, project_resource: ProjectResource) -> dg.AssetCheckResult:
        with readable_failures():
            return _result(function(project_resource.open()), blocking=False)

    return check


def _bind_tracking(partitions: dg.PartitionsDefinition) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset="holdout_metrics",
        name="tracked_in_mlflow",
        description="Everything the window's assets recorded has reached the MLflow tracking server.",
        partitions_def=partitions,
    )
    def check(context: dg.AssetCheckExecutionContext, project_resource: ProjectResource, tracking: TrackingResource) -> dg.AssetCheckResult:
        with readable_failures():
            pushed = tracking.open(project_resource.open()).push(PartitionKey(context.partition_key))
            message = pushed.problem or "everything recorded has been delivered"
            return _result(Outcome(pushed.complete, message, {"waiting": len(pushed.waiting)}), blocking=False)

    return check


def build(days: dg.PartitionsDefinition, windows: dg.PartitionsDefinition) -> list[dg.AssetChecksDefinition]:
    """Every check, bound to its asset's clock."""
    clocks = {"day": days, "window": windows, "submission": None}
    partitioned = [_bind(spec, clocks[SPECS[spec.asset].partitions]) for spec in check_specs()]
    return [*partitioned, _bind_tracking(windows), *map(_bind_standing, standing_checks())]
