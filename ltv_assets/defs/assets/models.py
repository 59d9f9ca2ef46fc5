"""The models of a window, one asset for each of ``modeling/stages.py``'s `STAGES`.

Each asset rebuilds the window's rows (kept in memory inside one process), loads the stages before it, calls one stage
function, and publishes files that the next one verifies.
"""

import json
import math
from typing import TYPE_CHECKING, Any

import dagster as dg

from ltv_assets.core.asset_specs import MODEL_ASSETS
from ltv_assets.defs.publication import Publication, declared, markdown_table, picture_metadata, readable_failures
from ltv_assets.defs.resources import CatalogueResource, ProjectResource, TrackingResource
from ltv_assets.state.project import Project

if TYPE_CHECKING:
    from ltv_assets.modeling.stages import WindowContext


def _needed(work: Publication, name: str, window: "WindowContext") -> Any:
    """A plan or an earlier stage of the window, read back verified."""
    from ltv_assets.modeling.model_store import read_stage
    from ltv_assets.training.windows import PLAN_READERS

    if name in PLAN_READERS:
        return PLAN_READERS[name](work.project, work.key, window)
    return read_stage(work.project.warehouse, name, work.key)


def build(project: Project, windows: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    """The stages on the windows' clock."""
    return [_bind(name, project, windows) for name in MODEL_ASSETS]


def _bind(name: str, project: Project, windows: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    @dg.asset(**declared(name, project), partitions_def=windows)
    def stage_asset(
        context: dg.AssetExecutionContext,
        project_resource: ProjectResource,
        catalogue: CatalogueResource,
        tracking: TrackingResource,
    ) -> dg.MaterializeResult:
        from ltv_assets.modeling.model_store import write_stage
        from ltv_assets.modeling.stages import STAGE_SPECS
        from ltv_assets.tracking.records import log_stage, stage_evidence
        from ltv_assets.training.windows import window_context

        with readable_failures():
            work = Publication.begin(project_resource, catalogue, name, context.partition_key)
            window = window_context(work.project, work.key)
            spec = STAGE_SPECS[name]
            stage = spec.fit(window, *(_needed(work, needed, window) for needed in spec.needs))
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
