"""Forecasts as people meet them: a file, a page, the report, and what came of them when labels arrive."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import duckdb
import pandas as pd
import pytest
from click.testing import CliRunner

from ltv_assets.cli.app import main
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets_tests.graph.conftest import Ran

DAY = PartitionKey("2025-10-05")


def relation(run: Ran, name: str) -> pd.DataFrame:
    with duckdb.connect(str(run.warehouse / "ltv.duckdb"), read_only=True) as connection:
        return connection.execute(f"SELECT * FROM {name}").fetch_df()


def test_forecast_file_has_the_relation_and_says_what_its_money_counts(ran: Ran, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "forecast.csv"
    done = CliRunner().invoke(main, ["forecast", "--out", str(out)], env=ran.environment(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    written, stored = pd.read_csv(out), relation(ran, "cohort_forecast")
    assert list(written) == [*stored.columns, "model_window", "cap_usd", "tail_factor"]
    pd.testing.assert_frame_equal(written[list(stored.columns)], stored, check_dtype=False)
    assert set(written["model_window"]) == {"2025-10-03"} and (written["cap_usd"] > 0).all() and (written["tail_factor"] >= 1).all()
    assert "country = us" in done.output and f"{stored['expected_revenue_usd'].iloc[0]:,.2f}" in done.output


def test_forecast_of_a_day_that_was_not_scored_names_those_that_were(ran: Ran) -> None:
    done = CliRunner().invoke(main, ["forecast", "--day", "2025-10-02"], env=ran.environment())
    assert done.exit_code != 0
    assert f"cohort_forecast 2025-10-02: not in the warehouse {ran.warehouse}; forecast days are {DAY}" in " ".join(done.output.split())


@pytest.mark.parametrize("asset", ["predictions", "cohort_forecast", "cohort_errors", "holdout_metrics", "stacker", "flattened_features"])
def test_figures_that_people_look_for_stand_before_seconds_bytes_and_paths(ran: Ran, asset: str) -> None:
    with dg.DagsterInstance.from_config(str(ran.warehouse / "dagster")) as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert event is not None and event.asset_materialization is not None
        names = list(event.asset_materialization.metadata)
    technical = [names.index(name) for name in ("seconds", "bytes", "content_fingerprint", "path")]
    assert min(technical) > max(i for i, name in enumerate(names) if name.startswith("picture_") or name == "dagster/row_count")
    assert names.index("dagster/row_count") > 0


def test_report_shows_how_the_forecast_of_the_holdout_held(ran: Ran) -> None:
    errors = relation(ran, "cohort_errors")
    held = errors[errors["source"] == "holdout"]
    page = (ran.warehouse / "reports" / "window=2025-10-03" / "report.html").read_text()
    assert "Forecast by group" in page and f"{held['revenue_capped_usd'].iloc[0]:.2f}" in page
    assert held["payers"].between(0, held["rows"]).all() and (held["payers_low"] <= held["expected_payers"]).all()
    past = errors[errors["source"] == "out of fold"]
    assert set(past["day"]) == {"2025-10-01", "2025-10-02"} and past["payers_low"].isna().all()


def labels_arrive(run: Ran) -> None:
    """The hours of the test day come again, in train/ and with labels."""
    from ltv_assets.simulator import simulate

    later = run.data.parent / "later"
    simulate(later, train_days=5, test_days=0, rows_per_hour=120, seed=3)
    for folder in (run.data / "test").glob(f"datetime={DAY}-*"):
        shutil.rmtree(folder)
    for folder in (later / "train").glob(f"datetime={DAY}-*"):
        shutil.copytree(folder, run.data / "train" / folder.name)
    shutil.copy(later / "truth" / "train.parquet", run.data.parent / "truth.parquet")


@pytest.mark.slow
def test_labels_of_a_forecast_day_are_put_beside_the_forecast_that_was_published(
    copied: Callable[[], Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ltv_assets.cli.runner import replay_days
    from ltv_assets.definitions import build_defs
    from ltv_assets.state.plan import observable, standing
    from ltv_assets.state.project import Project

    run = copied()
    for name, value in run.environment().items():
        if name.startswith("LTV_"):
            monkeypatch.setenv(name, value)
    before = relation(run, "cohort_forecast")
    labels_arrive(run)
    assert replay_days(Project.open(), [DAY], advance=lambda line: None).problems == []

    lineage = Project.open().lineage()
    for asset in ("predictions", "cohort_forecast"):
        status = lineage.status(asset, DAY)
        assert (status.state, status.why) == ("fresh", "kept as it was published: the day has labels")
    assert standing(lineage).observed == observable(lineage) == (DAY,)
    monkeypatch.setenv("LTV_TODAY", "2025-10-11")
    assert observable(Project.open().lineage()) == (), "labels are not final yet"
    monkeypatch.delenv("LTV_TODAY")

    done = build_defs().resolve_job_def("observe_days").execute_in_process(partition_key=DAY, instance=dg.DagsterInstance.ephemeral())
    assert done.success
    outcome = relation(run, "cohort_outcome")
    pd.testing.assert_frame_equal(outcome[list(before.columns)], before)
    assert set(outcome["model_age_days"]) == {2} and set(outcome["model_window"]) == {"2025-10-03"}
    with duckdb.connect(str(run.warehouse / "ltv.duckdb"), read_only=True) as connection:
        truth = connection.execute(
            "SELECT country, count(*) AS rows, sum((revenue > 0)::INT) AS payers, sum(revenue) AS usd FROM flattened_features "
            f"JOIN '{run.data.parent / 'truth.parquet'}' USING (row_id) WHERE datetime LIKE '{DAY}%' GROUP BY country"
        ).fetch_df()
    total = outcome.iloc[0]
    assert (total["rows"], total["payers"]) == (truth["rows"].sum(), truth["payers"].sum())
    assert total["revenue_usd"] == pytest.approx(truth["usd"].sum(), rel=1e-5) and total["revenue_capped_usd"] <= total["revenue_usd"]
    found = outcome[outcome["segment"] == "country"].set_index("value")
    named = truth.set_index("country")["payers"]
    for value in found.index.difference(["(other)"]):
        assert found.loc[value, "payers"] == named[value]
    assert found.loc["(other)", "payers"] == named.sum() - named[found.index.difference(["(other)"])].sum()
    held = (outcome["payers"] >= outcome["payers_low"]) & (outcome["payers"] <= outcome["payers_high"])
    assert outcome["payers_inside"].tolist() == held.tolist()
    (verdict,) = Project.open().warehouse.verdicts("cohort_outcome", DAY)
    assert verdict.check == "forecast_coverage" and verdict.figures["coverage_payers"] == pytest.approx(held.mean())
    assert Project.open().lineage().status("cohort_outcome", DAY).state == "fresh"
