"""The served model of a window: refitted with the holdout day included, or the evaluated one if refitting is off."""

from __future__ import annotations

from pathlib import Path

from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.modeling.model_set import WindowModels
from ltv_assets.modeling.model_store import read_evaluated, write_figures
from ltv_assets.modeling.stages import STAGES, refit
from ltv_assets.state.project import Project
from ltv_assets.training.windows import rows_of_refit


def refit_window(project: Project, key: PartitionKey) -> WindowModels:
    """Fit a window's models again on its training days and its holdout, with the evaluated models' settings; see `stages.refit`."""
    if not project.config.models.refit:
        return read_evaluated(project.warehouse, key)
    return refit(read_evaluated(project.warehouse, key, out_of_fold=True), *rows_of_refit(project, key))


def write_served(folder: Path, key: PartitionKey, models: WindowModels) -> dict[str, int | None]:
    """Write every file of the served model and its figures; returns what `Warehouse.write` wants to know."""
    listed: dict[str, int | None] = {}
    for name, data in models.to_files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        listed[name] = None
    roles = {stage.name: stage.role or stage.name for stage in STAGES}
    figures = {f"{roles[stage]}.{name}": value for stage, fitted in models.stages.items() for name, value in fitted.diagnostics.items()}
    return listed | write_figures(folder, key, figures)
