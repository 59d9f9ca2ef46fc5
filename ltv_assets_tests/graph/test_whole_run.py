"""The main job, end to end, through the installed commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltv_assets.core.asset_specs import ASSET_NAMES, RELATIONS
from ltv_assets.modeling.cohorts import totals_differ
from ltv_assets_tests.conftest import PROJECT
from ltv_assets_tests.faults.damaged_parquet import write_encrypted
from ltv_assets_tests.graph.conftest import Ran, command, environment

IMMUTABLE = ("lake", "models", "submissions", "verdicts", "reports")


def tree(root: Path, *parts: str) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for part in parts for p in sorted((root / part).rglob("*")) if p.is_file()}


def states(run: Ran) -> dict[tuple[str, str], dict[str, object]]:
    done = run.ltv("status", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {(r["asset"], r["partition"]): r for r in rows}


def test_run_ends_with_figures_and_a_valid_submission(ran: Ran) -> None:
    assert ran.exit_code == 0, ran.output
    for words in ("RMSLE of ltv_d7 (ungated)", "RMSLE of the oracle", "zero rate predicted", "cost of the gate", "submission.csv"):
        assert words in ran.output
    path = next((ran.warehouse / "submissions").glob("*/submission.csv"))
    test_rows = sum(pq.read_metadata(p).num_rows for p in (ran.data / "test").rglob("*.parquet"))
    lines = path.read_text().splitlines()
    assert lines[0] == "row_id,iap_revenue_d7"
    assert len(lines) == test_rows + 1
    assert (path.parent / "submission_ungated.csv").is_file()
    assert ran.ltv("validate-submission", str(path)).exit_code == 0


def test_every_partition_is_fresh_afterwards(ran: Ran) -> None:
    found = states(ran)
    assert {asset for asset, _ in found} == set(ASSET_NAMES) - {"cohort_outcome"}, "no label of a forecast day has come"
    assert {key: row["state"] for key, row in found.items() if row["state"] != "fresh"} == {}


def test_catalogue_has_a_relation_for_each_asset_from_any_folder(ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with duckdb.connect(str(ran.warehouse / "ltv.duckdb"), read_only=True) as connection:
        for asset in ASSET_NAMES:
            described = connection.execute(f"DESCRIBE {asset}").fetchall()
            if asset in RELATIONS:
                assert [(c[0], c[1]) for c in described] == [(c.name, c.type) for c in RELATIONS[asset]], asset
            rows = connection.execute(f"SELECT count(*) FROM {asset}").fetchone()
            assert rows is not None
            assert (rows[0] > 0) == (asset != "cohort_outcome"), asset
        lost = connection.execute(
            "SELECT (SELECT sum(rows) FROM raw_partitions WHERE verdict = 'good') - (SELECT count(*) FROM flattened_features)"
        ).fetchone()
        assert lost == (0,)
        scored = connection.execute("SELECT count(*), count(DISTINCT row_id) FROM predictions").fetchone()
        submitted = connection.execute("SELECT count(*), count(DISTINCT row_id) FROM submission").fetchone()
        assert scored == submitted
        assert scored is not None
        assert scored[0] == scored[1]
        differing = connection.execute(
            "SELECT count(*) FROM submission JOIN predictions USING (row_id) WHERE submission.iap_revenue_d7 <> predictions.iap_revenue_d7"
        ).fetchone()
        assert differing == (0,)


def test_forecast_of_every_scored_day_adds_up_to_its_predictions(ran: Ran) -> None:
    """Totals, row for row of the day; every segment's groups in every digit."""
    with duckdb.connect(str(ran.warehouse / "ltv.duckdb"), read_only=True) as connection:
        days = connection.execute(
            "SELECT rows, expected_payers - payers, expected_revenue_usd - usd FROM cohort_forecast JOIN (SELECT day, count(*) AS scored, "
            "sum(buyer_probability) AS payers, sum(expected_revenue_d7) AS usd FROM predictions GROUP BY day) AS p USING (day) "
            "WHERE segment = 'all' AND rows = scored"
        ).fetchall()
        scored = connection.execute("SELECT count(DISTINCT day) FROM predictions").fetchone()
        forecast = connection.execute("SELECT * FROM cohort_forecast").fetch_df()
    assert len(days) == scored[0] > 0  # type: ignore[index]
    assert max(abs(difference) for _, *differences in days for difference in differences) < 1e-3
    assert {day: totals_differ(groups) for day, groups in forecast.groupby("day")} == {day: [] for day in forecast["day"]}
    assert {"all", "country", "dev_os"} <= set(forecast["segment"])
    assert (forecast["payers_low"] < forecast["payers_high"]).all()


def test_run_with_nothing_to_do_imports_nothing_that_makes_or_draws(copied: Callable[[], Ran]) -> None:
    done = command("ltv", "run", env=copied().environment() | {"PYTHONPROFILEIMPORTTIME": "1"})
    assert "everything is fresh" in done.stderr
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "ltv_assets.cli.runner" in imported
    assert imported.isdisjoint({"dagster", "lightgbm", "matplotlib", "mlflow", "pandas", "scipy", "sklearn", "ltv_assets.definitions"})


def test_second_run_finds_everything_fresh_and_changes_nothing(copied: Callable[[], Ran]) -> None:
    run = copied()
    before = tree(run.warehouse, *IMMUTABLE)
    done = run.ltv("run")
    assert done.exit_code == 0
    assert "everything is fresh" in done.stderr
    assert tree(run.warehouse, *IMMUTABLE) == before


@pytest.mark.slow
def test_materializing_every_partition_again_leaves_identical_bytes(copied: Callable[[], Ran]) -> None:
    run = copied()
    before = tree(run.warehouse, *IMMUTABLE)
    shutil.rmtree(run.warehouse)
    assert command("ltv", "run", env=run.environment()).returncode == 0
    after = tree(run.warehouse, *IMMUTABLE)
    assert sorted(after) == sorted(before)
    assert [name for name in after if after[name] != before[name]] == []


def test_run_touches_nothing_outside_its_folders(ran: Ran) -> None:
    """The session's own run was started in the project's folder and worked on folders below a temporary root."""
    assert ran.touched == ()
    assert not list(PROJECT.glob(".tmp_dagster_home_*"))
    assert {p.name for p in ran.data.iterdir()} == {"train", "test", "truth"}


def test_mlflow_has_one_run_per_window_with_nested_stages(ran: Ran) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{ran.warehouse}/mlflow.db")
    experiment = client.get_experiment_by_name("ltv")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    nested = {r.data.tags["stage"] for r in runs if r.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id}
    assert len(parents) == 1
    assert nested == {"histos_train", "hhistus_buyers", "buyer_classifier", "buyer_gating", "revenue_regressor", "stacker"}
    assert parents[0].info.status == "FINISHED"
    with duckdb.connect(str(ran.warehouse / "ltv.duckdb"), read_only=True) as connection:
        stored = dict(
            connection.execute("SELECT metric, value FROM holdout_metrics WHERE segment = 'all' AND value IS NOT NULL").fetchall()
        )
    for name in ("rmsle", "rmsle_gated", "rmsle_reference", "zero_rate_predicted", "auc"):
        assert parents[0].data.metrics[name] == pytest.approx(stored[name], rel=1e-12)
    listed = [a for folder in (None, "pictures", "tables", "gating") for a in client.list_artifacts(parents[0].info.run_id, folder)]
    artifacts = {PurePosixPath(a.path).name for a in listed}
    assert {"reliability.png", "gain.png", "deciles.csv", "buyer_gating.json", "buyer_threshold.json"} <= artifacts
    assert parents[0].data.params["seed"] == "0"


def test_predict_scores_raw_impressions_like_the_graph(ran: Ran, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    done = command("ltv", "predict", "--in", str(ran.data / "test"), "--out", str(out), env=ran.environment())
    assert done.returncode == 0, done.stderr
    with duckdb.connect() as connection:
        files = [str(p) for p in (ran.warehouse / "lake/predictions").rglob("*.parquet")]
        for one, other in ((files, [str(out)]), ([str(out)], files)):
            row = connection.execute("SELECT count(*) FROM (FROM read_parquet(?) EXCEPT ALL FROM read_parquet(?))", [one, other]).fetchone()
            assert row == (0,)


def test_predict_says_what_it_set_aside_and_scores_the_rest(ran: Ran, tmp_path: Path) -> None:
    """Uncommitted output is no data, an encrypted file and a repeated row are set aside, and a missing column is said."""
    source, out = tmp_path / "in", tmp_path / "scores.parquet"
    hours = sorted((ran.data / "test").glob("datetime=*"))[:3]
    for hour in hours:
        shutil.copytree(hour, source / hour.name)
    shutil.copytree(hours[0].parent / hours[2].name, source / ".spark-staging-1" / "datetime=2025-10-09-00-00")
    shutil.copytree(hours[0].parent / hours[2].name, source / "_temporary" / "0" / "datetime=2025-10-09-00-00")
    files = [next((source / hour.name).glob("*.parquet")) for hour in hours]
    table = pq.read_table(files[0], partitioning=None)
    pq.write_table(pa.concat_tables([table, table.slice(0, 2)]).drop_columns(["carrier"]), files[0])
    write_encrypted(pq.read_table(files[1], partitioning=None), files[1], ["wifi_ratio"], plaintext_footer=True)
    done = ran.ltv("predict", "--in", str(source), "--out", str(out))
    assert done.exit_code == 0, done.stderr
    scored = pq.read_table(out)["row_id"].to_pylist()
    wanted = [table["row_id"].to_pylist(), pq.read_table(files[2], partitioning=None)["row_id"].to_pylist()]
    assert sorted(scored) == sorted(wanted[0] + wanted[1])
    assert done.stdout.splitlines() == [
        "2 rows set aside: row_id repeated",
        f"{len(scored)} rows scored, 2 rows and 1 files set aside: {out}",
    ]
    encrypted = f"{hours[1].name}/{files[1].name}: quarantined: encrypted columns cannot be read; deliver the file unencrypted"
    missing = f"column carrier is missing in 1 of 2 files, first {hours[0].name}/{files[0].name}: read as NULL"
    assert {f"warning: {encrypted}", f"warning: {missing}"} <= set(done.stderr.splitlines())


def test_predict_writes_nothing_and_exits_2_when_a_day_is_not_usable(ran: Ran, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "scores.csv"
    hour = min((ran.data / "test").glob("datetime=*"))
    shutil.copytree(hour, source / hour.name)
    file = next((source / hour.name).glob("*.parquet"))
    table = pq.read_table(file, partitioning=None)
    pq.write_table(pa.concat_tables([table, table.slice(0, table.num_rows // 2)]), file)
    done = ran.ltv("predict", "--in", str(source), "--out", str(out))
    assert done.exit_code == 2
    assert "rows quarantined, more than max_bad_row_share = 5.0%; most: row_id repeated" in done.stderr
    assert list(tmp_path.iterdir()) == [source]


def test_rewritten_hour_makes_its_day_and_all_below_stale(copied: Callable[[], Ran]) -> None:
    run = copied()
    hour = next((run.data / "train" / "datetime=2025-10-02-05-00").glob("*.parquet"))
    table = pq.read_table(hour, partitioning=None)
    pq.write_table(table.slice(0, table.num_rows - 1), hour)
    found = states(run)
    assert found["raw_partitions", "2025-10-02"]["state"] == "stale"
    assert "was rewritten" in str(found["raw_partitions", "2025-10-02"]["why"])
    assert found["flattened_features", "2025-10-02"]["state"] == "stale"
    assert found["flattened_features", "2025-10-01"]["state"] == "fresh"
    assert found["stacker", "2025-10-03"]["state"] == "stale"


def test_touched_but_unchanged_file_stays_fresh(copied: Callable[[], Ran]) -> None:
    run = copied()
    hour = next((run.data / "train" / "datetime=2025-10-02-05-00").glob("*.parquet"))
    os.utime(hour)
    assert {row["state"] for row in states(run).values()} == {"fresh"}


def test_window_refuses_a_day_that_is_in_the_data_but_not_in_the_lake(copied: Callable[[], Ran]) -> None:
    run = copied()
    shutil.rmtree(run.warehouse / "lake/flattened_features/day=2025-10-01")
    done = command(
        "dagster",
        "asset",
        "materialize",
        "--select",
        "histos_train",
        "--partition",
        "2025-10-03",
        "-m",
        "ltv_assets.definitions",
        env=run.environment(),
    )
    assert done.returncode != 0
    text = done.stdout + done.stderr
    assert "its input flattened_features 2025-10-01 is missing (never materialized); run `ltv run`" in text
    assert "--select flattened_features --partition 2025-10-01" in text


@pytest.mark.slow
def test_impossible_bound_fails_the_run_and_keeps_the_submission_unpublished(ran: Ran, tmp_path: Path) -> None:
    config = tmp_path / "strict.yaml"
    config.write_text(ran.config.read_text() + "\nchecks: {rmsle_max: 0.01}\n")
    warehouse = tmp_path / "warehouse"
    shutil.copytree(ran.warehouse, warehouse)
    shutil.rmtree(warehouse / "submissions")
    for part in ("models/window=2025-10-03/served_model", "lake/predictions", "champion.json", "verdicts/holdout_metrics"):
        path = warehouse / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = ran.ltv("run", LTV_WAREHOUSE=str(warehouse), LTV_CONFIG=str(config))
    assert done.exit_code == 1
    assert "check rmsle of holdout_metrics failed" in done.stderr
    assert "is above rmsle_max = 0.01" in done.stderr
    assert not list((warehouse / "submissions").glob("*"))
    assert not (warehouse / "champion.json").exists()


def test_submission_before_the_run_names_the_command(simulated_small: Path, tmp_path: Path) -> None:
    env = environment(simulated_small, tmp_path / "empty", DAGSTER_CLI_ASSET_MATERIALIZE_MODULE_NAME="ltv_assets.definitions")
    done = command("dagster", "asset", "materialize", "--select", "submission", env=env)
    assert done.returncode != 0
    assert "run `ltv run`" in done.stdout + done.stderr


def test_submission_without_any_data_names_the_commands(tmp_path: Path) -> None:
    env = environment(tmp_path / "nothing", tmp_path / "empty", DAGSTER_CLI_ASSET_MATERIALIZE_MODULE_NAME="ltv_assets.definitions")
    done = command("dagster", "asset", "materialize", "--select", "submission", env=env)
    assert done.returncode != 0
    assert "run `make demo` for simulated data" in done.stdout + done.stderr


def test_definitions_validate(ran: Ran) -> None:
    """`dg check defs` starts `dagster definitions validate`."""
    done = command("dg", "check", "defs", env=ran.environment())
    assert done.returncode == 0, done.stdout + done.stderr


def test_catalogue_is_rebuilt_from_the_lake(copied: Callable[[], Ran]) -> None:
    run = copied()
    (run.warehouse / "ltv.duckdb").unlink()
    assert run.ltv("catalog").exit_code == 0
    with duckdb.connect(str(run.warehouse / "ltv.duckdb"), read_only=True) as connection:
        paths = connection.execute("SELECT count(*) FROM predictions").fetchone()
    assert paths is not None
    assert paths[0] > 0


def test_locked_catalogue_degrades_and_catches_up(copied: Callable[[], Ran]) -> None:
    run = copied()
    shutil.rmtree(run.warehouse / "lake/predictions")
    shutil.rmtree(run.warehouse / "submissions")
    config = run.warehouse.parent / "impatient.yaml"
    config.write_text(run.config.read_text() + "\nwarehouse: {lock_timeout_seconds: 0.5}\n")
    env = {**run.environment(), "LTV_CONFIG": str(config)}
    holder = duckdb.connect(str(run.warehouse / "ltv.duckdb"))
    try:
        done = command("ltv", "run", env=env)
    finally:
        holder.close()
    assert "partitions themselves are safe" in done.stderr + done.stdout
    assert list((run.warehouse / "submissions").glob("*/submission.csv"))
    assert run.ltv("run", LTV_CONFIG=str(config)).exit_code == 0


def test_asset_page_has_figures_pictures_and_partitioned_checks(ran: Ran) -> None:
    import dagster as dg
    from dagster import AssetKey, DagsterInstance

    with DagsterInstance.from_config(str(ran.warehouse / "dagster")) as instance:
        event = instance.get_latest_materialization_event(AssetKey("holdout_metrics"))
        assert event is not None
        materialization = event.asset_materialization
        assert materialization is not None
        metadata = materialization.metadata
        assert isinstance(metadata["rmsle"], dg.FloatMetadataValue)
        assert materialization.partition == "2025-10-03"
        for name in ("picture_reliability", "picture_gain", "picture_deciles", "picture_zero_rate_by_hour", "picture_rmsle"):
            picture = metadata[name].value
            assert isinstance(picture, str)
            assert picture.startswith("![")
            assert len(picture) < 150_000
        checks = [
            record.event_log_entry.dagster_event.asset_check_evaluation_data
            for record in instance.get_event_records(dg.EventRecordsFilter(dg.DagsterEventType.ASSET_CHECK_EVALUATION))
            if record.event_log_entry.dagster_event
        ]
        assert {(c.check_name, c.partition) for c in checks if c.asset_key == AssetKey("holdout_metrics")} >= {
            ("zero_rate", "2025-10-03"),
            ("rmsle", "2025-10-03"),
        }
        assert all(c.partition is not None for c in checks if c.asset_key != AssetKey("submission"))


@pytest.mark.slow
def test_flipped_byte_in_the_lake_is_healed_by_the_run_that_meets_it(copied: Callable[[], Ran]) -> None:
    run = copied()
    (path,) = (run.warehouse / "lake" / "flattened_features").glob("day=2025-10-05/*.parquet")
    whole = tree(run.warehouse, *IMMUTABLE)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(bytes(data))
    shutil.rmtree(run.warehouse / "lake" / "predictions" / "day=2025-10-05")
    done = run.ltv("run")
    assert done.exit_code == 0, done.stderr
    assert "lake/flattened_features/day=2025-10-05: a file differed from its hash; the partition was made again" in done.stderr
    assert tree(run.warehouse, *IMMUTABLE) == whole


HOLD = "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


def test_catalogue_open_in_another_program_costs_a_warning_and_never_the_report(copied: Callable[[], Ran]) -> None:
    run = copied()
    words = [sys.executable, "-c", HOLD, str(run.warehouse / "ltv.duckdb")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        done = run.ltv("run")
        holder.communicate()
    assert done.exit_code == 0, done.stderr
    assert "warning: " in done.stderr and "ltv.duckdb: the DuckDB catalogue is open in another program" in done.stderr
    assert "RMSLE of ltv_d7 (ungated)" in done.stdout and "submission.csv" in done.stdout
    (run.warehouse / "ltv.duckdb").write_bytes(b"no database")
    done = run.ltv("run")
    assert done.exit_code == 0, done.stderr
    assert "ltv.duckdb: the DuckDB catalogue cannot be read" in done.stderr and "delete the file" in done.stderr


def test_registered_model_and_runs_deleted_in_mlflow_are_made_again_by_the_next_sync(copied: Callable[[], Ran]) -> None:
    from mlflow.tracking import MlflowClient

    run = copied()
    client = MlflowClient(f"sqlite:///{run.warehouse}/mlflow.db")
    assert run.ltv("mlflow-sync").stdout == "window 2025-10-03: 0 delivered, 0 waiting\n"
    client.delete_registered_model("ltv")
    experiment = client.get_experiment_by_name("ltv")
    assert experiment is not None
    for found in client.search_runs([experiment.experiment_id]):
        client.delete_run(found.info.run_id)
    done = run.ltv("mlflow-sync")
    assert done.exit_code == 0, done.stderr
    assert "window 2025-10-03: 7 of its 7 runs were deleted on the server; made again" in done.stdout
    assert "champion 2025-10-03: its version of the registered model ltv was deleted; registered again" in done.stdout
    version = client.get_model_version_by_alias("ltv", "champion")
    assert version.tags["window"] == "2025-10-03"
    assert client.list_artifacts(version.run_id)


@pytest.mark.parametrize("uri", ["http://h:99999", *(pytest.param(u, marks=pytest.mark.soak) for u in ("http://[::1:5000", "foo://x"))])
def test_tracking_address_that_is_none_costs_a_run_one_warning_and_stops_a_sync(copied: Callable[[], Ran], uri: str) -> None:
    run = copied()
    done = run.ltv("run", MLFLOW_TRACKING_URI=uri)
    assert done.exit_code == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "tracking address" in line] == [
        line for line in done.stderr.splitlines() if line.startswith(f"warning: tracking address '{uri}': ")
    ]
    assert done.stderr.count("tracking address") == 1
    done = run.ltv("mlflow-sync", MLFLOW_TRACKING_URI=uri)
    assert done.exit_code == 1
    assert "Traceback" not in done.stderr
    assert f"tracking address '{uri}': " in done.stdout and len(done.stdout.splitlines()) == 1
