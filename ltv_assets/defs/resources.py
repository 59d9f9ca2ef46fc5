"""Dagster resources: the opened project, the DuckDB catalogue, MLflow tracking.

Thin: they read the environment at run time, so a run started by the daemon, by the webserver or by `ltv` sees the same
project. Tests swap them through ``build_defs(resource_overrides=...)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
from dagster_duckdb import DuckDBResource
from pydantic import Field, PrivateAttr

from ltv_assets.state.project import Project
from ltv_assets.storage.catalog import Connector, open_catalogue
from ltv_assets.tracking.client import Tracker


class ProjectResource(dg.ConfigurableResource):
    """The project in force. ``config_file`` replaces ``LTV_CONFIG`` when it is set."""

    config_file: str | None = Field(None, description="configuration file; null = LTV_CONFIG, else config/config_test.yaml")

    _kept: dict[str, Any] = PrivateAttr(default_factory=dict)

    def open(self) -> Project:
        """Open the project; raises ConfigError if its configuration is wrong. The assets of a run share what it keeps in memory."""
        return Project.open(Path(self.config_file) if self.config_file else None, self._kept)


class CatalogueResource(DuckDBResource):
    """``ltv.duckdb``, opened under an OS lock with a bounded wait and closed at once."""

    database: str = Field("", description="path of the catalogue; empty = ltv.duckdb in the warehouse")

    @contextmanager
    def get_connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection for one short transaction; raises TransientError while another program keeps the file open."""
        project = Project.open()
        with open_catalogue(
            project.warehouse, timeout_seconds=project.config.warehouse.lock_timeout_seconds, connect=self._connector(project)
        ) as connection:
            yield connection

    def sync(self, project: Project) -> dict[str, int]:
        """Bring every relation in line with the warehouse's manifests."""
        return project.sync_catalogue(connect=self._connector(project))

    def _connector(self, project: Project) -> Connector:
        settings = {"custom_user_agent": "dagster", **self.connection_config}
        return partial(project.open_duckdb, database=self.database or project.warehouse.database, **settings)


class TrackingResource(dg.ConfigurableResource):
    """MLflow, reached through `ltv_assets.tracking.client.Tracker`, which never fails a run and delays it for a bounded time."""

    uri: str | None = Field(None, description="tracking server; null = MLFLOW_TRACKING_URI, else sqlite in the warehouse")

    _tracker: Tracker | None = PrivateAttr(None)

    def open(self, project: Project) -> Tracker:
        """The tracker of this run: its assets share the time that a server may take, and the knowledge that it is down."""
        if self._tracker is None or self._tracker.config != project.config:
            self._tracker = Tracker(project.config, project.warehouse, uri=self.uri, bounded=True)
        return self._tracker
