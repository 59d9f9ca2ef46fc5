"""The SQL on MLflow's own tables fits the schema of the installed MLflow."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from ltv_assets.tracking.store_repair import ARTIFACT_LOCATIONS, relocate_artifacts


def places(database: Path, text: str) -> set[tuple[str, str]]:
    """(table, column) of every value in a database that contains a text."""
    with closing(sqlite3.connect(database)) as store:
        tables = [name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = [(table, row[1]) for table in tables for row in store.execute(f"PRAGMA table_info({table})")]
        found = "SELECT 1 FROM {} WHERE instr(CAST({} AS TEXT), ?) LIMIT 1"
        return {(table, column) for table, column in columns if store.execute(found.format(table, f'"{column}"'), (text,)).fetchone()}


def test_every_artifact_location_that_mlflow_stores_follows_the_warehouse(tmp_path: Path) -> None:
    """One experiment, run, logged model and model version: no table of the installed MLflow keeps the former root."""
    from mlflow.tracking import MlflowClient

    database = tmp_path / "mlflow.db"
    former, present = ((tmp_path / name / "mlartifacts").as_uri() for name in ("before", "after"))
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.create_experiment("e", artifact_location=former)
    run = client.create_run(experiment).info
    client.create_logged_model(experiment, source_run_id=run.run_id)
    client.create_registered_model("m")
    version = client.create_model_version("m", f"{run.artifact_uri}/model", run_id=run.run_id)
    assert places(database, former) == set(ARTIFACT_LOCATIONS)

    relocate_artifacts(database, present)
    assert places(database, former) == set()
    assert client.get_run(run.run_id).info.artifact_uri == f"{present}/{run.run_id}/artifacts"
    assert client.get_model_version("m", version.version).source == f"{present}/{run.run_id}/artifacts/model"


def test_foreign_locations_and_databases_stay(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(database)) as store, store:
        store.execute("CREATE TABLE experiments (artifact_location TEXT)")
        store.execute("INSERT INTO experiments VALUES ('s3://bucket/mlartifacts')")
    before = database.read_bytes()
    relocate_artifacts(database, "file:///here/mlartifacts")
    relocate_artifacts(tmp_path / "missing.db", "file:///here/mlartifacts")
    assert database.read_bytes() == before
    assert not (tmp_path / "missing.db").exists()
