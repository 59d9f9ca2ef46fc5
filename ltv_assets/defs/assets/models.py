"""The models of a window, one asset for each of ``modeling/stages.py``'s `STAGES`.

Each asset rebuilds the window's rows (kept in memory inside one process), loads the stages before it, calls one stage
function, and publishes files that the next one verifies.
"""

import json
import math
from typing import TYPE_CHECKING, Any

import dagster as dg

from ltv_assets.defs.publication import Publication, markdown_table, picture_metadata

if TYPE_CHECKING:
    from ltv_assets.modeling.stages import WindowContext


def _needed(work: Publication, name: str, window: "WindowContext") -> Any:
    """A plan or an earlier stage of the window, read back verified."""
    from ltv_assets.modeling.model_store import read_stage
    from ltv_assets.training.windows import PLAN_READERS

    if name in PLAN_READERS:
        return PLAN_READERS[name](work.project, work.key, window)
    return read_stage(work.project.warehouse, name, work.key)


def stage(work: Publication) -> dg.MaterializeResult:
    """Fit the stage that has the asset's name."""
    from ltv_assets.modeling.model_store import write_stage
    from ltv_assets.modeling.stages import STAGE_SPECS
    from ltv_assets.tracking.records import log_stage, stage_evidence
    from ltv_assets.training.windows import window_context

    window = window_context(work.project, work.key)
    spec = STAGE_SPECS[work.asset]
    fitted = spec.fit(window, *(_needed(work, needed, window) for needed in spec.needs))
    evidence = stage_evidence(work.asset, fitted, window)
    # Recorded before it is published: a run killed in between is repeated, record and all; a fresh stage never is.
    log_stage(work.tracker, work.project, work.asset, work.key, evidence, run_id=work.run_id, seconds=work.seconds)
    manifest = work.publish(lambda folder: write_stage(folder, work.key, fitted))
    return work.result(manifest, {**_metadata(fitted, evidence.pictures), **_gate_metadata(fitted), **_components(fitted)})


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
