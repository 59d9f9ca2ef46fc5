"""The asset graph, thin: an asset reads its inputs, calls one function of the core, publishes, and returns metadata.

Computation does not belong here; it lives in ``features``, ``sampling``, ``modeling`` and ``storage``. The modules follow the graph:
``ingestion``, ``sampling``, ``models``, ``evaluation``, ``predictions``. An asset is made by the function of its name in one of them,
a stage of the model by ``models.stage``.
"""

import dagster as dg

from ltv_assets.core.asset_specs import ASSETS
from ltv_assets.defs.assets import evaluation, ingestion, models, predictions, sampling
from ltv_assets.defs.publication import asset
from ltv_assets.state.project import Project

MAKERS = {name: made for module in (ingestion, sampling, evaluation, predictions) for name, made in vars(module).items()}


def build(project: Project, days: dg.PartitionsDefinition, windows: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    """Every asset of the table, on its clock."""
    clocks = {"day": days, "window": windows, "submission": None}
    return [
        asset(spec.name, project, clocks[spec.partitions], models.stage if spec.group == "models" else MAKERS[spec.name]) for spec in ASSETS
    ]
