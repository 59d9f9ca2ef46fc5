"""The models of a window in the order of the graph: ``buyer_classifier``, ``buyer_gating``, ``revenue_regressor``, ``stacker``.

Each asset rebuilds the window's rows (kept in memory inside one process), loads the stages before it, calls one stage
function, and publishes files that the next one verifies.
"""

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dagster as dg

from ltv_assets.defs.publication import Publication, declared, markdown_table, picture_metadata, readable_failures
from ltv_assets.defs.resources import CatalogueResource, ProjectResource, TrackingResource
from ltv_assets.state.project import Project

if TYPE_CHECKING:
    from ltv_assets.modeling.stages import WindowContext

StageFunction = Callable[[Publication, "WindowContext"], Any]


def _buyer_classifier(work: Publication, window: "WindowContext") -> Any:
    from ltv_assets.modeling import stages
    from ltv_assets.training.windows import read_histos_plan

    return stages.buyer_classifier(window, read_histos_plan(work.project, work.key, window))


def _buyer_gating(work: Publication, window: "WindowContext") -> Any:
    from ltv_assets.modeling import stages
    from ltv_assets.modeling.model_store import read_stage

    return stages.buyer_gating(window, read_stage(work.project.warehouse, "buyer_classifier", work.key))


def _revenue_regressor(work: Publication, window: "WindowContext") -> Any:
    from ltv_assets.modeling import stages
    from ltv_assets.modeling.model_store import read_stage
    from ltv_assets.training.windows import read_hhistus_plan

    plan = read_hhistus_plan(work.project, work.key, window)
    return stages.revenue_regressor(window, plan, read_stage(work.project.warehouse, "buyer_gating", work.key))


def _stacker(work: Publication, window: "WindowContext") -> Any:
    from ltv_assets.modeling import stages
    from ltv_assets.modeling.model_store import read_stage

    earlier = [read_stage(work.project.warehouse, name, work.key) for name in ("buyer_classifier", "buyer_gating", "revenue_regressor")]
    return stages.final_stacker(window, *earlier)


STAGES: dict[str, StageFunction] = {
    "buyer_classifier": _buyer_classifier,
    "buyer_gating": _buyer_gating,
    "revenue_regressor": _revenue_regressor,
    "stacker": _stacker,
}


def build(project: Project, windows: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    """The four stages on the windows' clock."""
    return [_bind(name, function, project, windows) for name, function in STAGES.items()]


def _bind(name: str, function: StageFunction, project: Project, windows: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    @dg.asset(**declared(name, project), partitions_def=windows)
    def stage_asset(
        context: dg.AssetExecutionContext,
        project_resource: ProjectResource,
        catalogue: CatalogueResource,
        tracking: TrackingResource,
    ) -> dg.MaterializeResult:
        from ltv_assets.modeling.model_store import write_stage
        from ltv_assets.tracking.records import log_stage, stage_evidence
        from ltv_assets.training.windows import window_context

        with readable_failures():
            work = Publication.begin(project_resource, catalogue, name, context.partition_key)
            window = window_context(work.project, work.key)
            stage = function(work, window)
            evidence = stage_evidence(name, stage, window)
            # Recorded before it is published: a run killed in between is repeated, record and all; a fresh stage never is.
            log_stage(tracking.open(work.project), work.project, name, work.key, evidence, run_id=context.run_id, seconds=work.seconds)
            manifest = work.publish(lambda folder: write_stage(folder, work.key, stage))
            return work.result(manifest, {**_metadata(stage, evidence.pictures), **_gate_metadata(stage), **_components(stage)})

    return stage_asset


def _gate_metadata(stage: Any) -> dict[str, dg.JsonMetadataValue]:
    """The gate's files as they are read at scoring."""
    names = ("buyer_threshold.json", "buyer_gating.json", "score_gate.json")
    return {name: dg.MetadataValue.json(json.loads(data)) for name, data in stage.to_files().items() if name in names}


def _components(stage: Any) -> dict[str, dg.MarkdownMetadataValue]:
    """RMSLE of the stacker's parts and of their combinations on the last fold, of which the best is served."""
    from ltv_assets.plots import rmsle_bars

    prefix = "last_fold_mse_"
    found = {k.removeprefix(prefix): math.sqrt(v) for k, v in stage.diagnostics.items() if k.startswith(prefix)}
    return picture_metadata({"components.png": rmsle_bars(found, title="Parts of the stacker, last fold")}) if found else {}


def _metadata(stage: Any, pictures: dict[str, bytes]) -> dict[str, Any]:
    figures = {k: float(v) for k, v in stage.diagnostics.items() if v == v}
    shown = picture_metadata(pictures)
    return {**figures, "figures": markdown_table([{"figure": k, "value": v} for k, v in figures.items()]), **shown}
