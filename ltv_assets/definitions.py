"""The only place that wires: configuration and horizon in, one `dagster.Definitions` out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import dagster as dg

from ltv_assets.defs import assets, automation, jobs, partitions, schedules, sensors
from ltv_assets.defs.asset_checks import registry as checks
from ltv_assets.defs.resources import CatalogueResource, ProjectResource, TrackingResource
from ltv_assets.state.project import Project


def build_defs(*, resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Assemble the project in force; ``resource_overrides`` replaces resources by name, for tests."""
    # Partitioned checks and clamped mappings are still marked as preview and beta; the project's tests pin their behaviour.
    warnings.filterwarnings("ignore", category=dg.PreviewWarning)
    warnings.filterwarnings("ignore", category=dg.BetaWarning)
    project = Project.open()
    days = partitions.day_partitions(project.config, project.horizon)
    windows = partitions.window_partitions(project.config, project.horizon)
    return dg.Definitions(
        assets=automation.automated(assets.build(project, days, windows)),
        asset_checks=checks.build(days, windows),
        jobs=jobs.build(days, windows),
        sensors=sensors.build(project.config, days),
        schedules=schedules.build(project.config),
        resources={
            "project_resource": ProjectResource(config_file=None),
            "catalogue": CatalogueResource(database=""),
            "tracking": TrackingResource(uri=None),
            **(resource_overrides or {}),
        },
        executor=dg.in_process_executor,
    )


defs = build_defs()
