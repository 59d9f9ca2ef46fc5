"""``predictions`` of a day by the champion, their ``cohort_forecast`` by group and its ``cohort_outcome``, and the ``submission``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.defs.publication import Publication, groups_picture, largest_groups, markdown_table, picture_metadata
from ltv_assets.state.project import Project

if TYPE_CHECKING:
    from ltv_assets.training.cohorts import CohortForecast, CohortOutcome


def predictions(work: Publication) -> dg.MaterializeResult:
    """Score every impression of a day."""
    manifest = work.publish(lambda folder: _score(work, folder), {"champion": _champion_window(work)})
    return work.result(manifest, _prediction_metadata(work))


def cohort_forecast(work: Publication) -> dg.MaterializeResult:
    """Add the scores of a day up by group, with intervals."""
    from ltv_assets.training.cohorts import forecast_day, write_forecast

    forecast = forecast_day(work.project, work.key)
    shown = _forecast_metadata(forecast, work.project.contract.scores.within)
    return work.result(work.publish(lambda folder: write_forecast(folder, forecast), forecast.facts()), shown)


def cohort_outcome(work: Publication) -> dg.MaterializeResult:
    """Put the forecast of a day and what came of it side by side."""
    from ltv_assets.training.cohorts import compare_day, write_outcome

    outcome = compare_day(work.project, work.key)
    manifest = work.publish(lambda folder: write_outcome(folder, outcome))
    return work.result(manifest, _outcome_metadata(work.project, outcome))


def submission(work: Publication) -> dg.MaterializeResult:
    """Write the scores of all test days as one file."""
    return work.result(work.publish(lambda folder: _write_submission(work, folder)), _submission_metadata(work))


def _champion_window(work: Publication) -> PartitionKey:
    return next(PartitionKey(k.removeprefix("champion/")) for k in work.inputs if k.startswith("champion/"))


def _score(work: Publication, folder: Path) -> dict[str, int | None]:
    from ltv_assets.features.schema import feature_names
    from ltv_assets.modeling.model_store import read_served
    from ltv_assets.scoring.batch import score_files
    from ltv_assets.training.dask_cluster import workers_of

    rows = score_files(
        read_served(work.project.warehouse, _champion_window(work)),
        work.project.warehouse.files("flattened_features", work.key),
        feature_names(work.project.registry),
        folder / "scores.parquet",
        chunk_rows=work.project.config.compute.chunk_rows,
        threads=work.project.config.compute.threads,
        day=work.key,
        workers=workers_of(work.project.config),
    )
    return {"scores.parquet": rows}


def _prediction_metadata(work: Publication) -> dict[str, Any]:
    from ltv_assets.plots import score_distribution

    files = [str(f) for f in work.project.warehouse.files("predictions", work.key, verify=False)]
    expected, ltv = work.project.contract.scores.expected, work.project.contract.scores.ltv[0]
    with work.project.open_duckdb() as connection:
        row = connection.execute(
            f"SELECT avg(predicted_zero::INT), avg(buyer_probability), sum({expected}), max({ltv}) FROM read_parquet(?)", [files]
        ).fetchone()
        scores = connection.execute(
            f"SELECT {ltv} FROM read_parquet(?) USING SAMPLE reservoir(200000 ROWS) REPEATABLE (0)", [files]
        ).fetchnumpy()
    names = ("predicted_zero_rate", "mean_buyer_probability", f"{expected}_usd", f"largest_{ltv}_usd")
    figures = {n: float(v) for n, v in zip(names, row or (), strict=False) if v is not None}
    picture = score_distribution(scores[ltv], title=f"Distribution of {ltv}, {work.key}")
    return {"champion": _champion_window(work), **figures, **picture_metadata({"scores.png": picture})}


def _forecast_metadata(forecast: "CohortForecast", within: str) -> dict[str, Any]:
    """What a day will bring, how sure that is and why, then the groups of which most is expected."""
    total, shown = forecast.total, largest_groups(forecast.groups)
    return {
        "expected_revenue_usd": float(total["expected_revenue_usd"]),
        "revenue_80_percent_usd": f"{total['revenue_low_usd']:,.2f} to {total['revenue_high_usd']:,.2f}",
        "expected_payers": float(total["expected_payers"]),
        "payers_80_percent": f"{total['payers_low']:,.1f} to {total['payers_high']:,.1f}",
        **picture_metadata({"forecast.png": groups_picture(shown, f"What {forecast.day} will bring, by group", within)}),
        "largest_groups": markdown_table([{str(k): v for k, v in row.items()} for row in shown.to_dict("records")]),
        "interval": forecast.reach,
        "champion": forecast.champion,
        "days_ahead": forecast.days_ahead,
        "cap_usd": forecast.cap_usd,
        "tail_factor": forecast.tail_factor,
    }


def _outcome_metadata(project: Project, outcome: "CohortOutcome") -> dict[str, Any]:
    """What came against what was forecast, then how good the forecasts of all days were, by segment and age of the model."""
    from ltv_assets.training.cohorts import past_outcomes, summary

    shown = largest_groups(outcome.groups)
    title = f"What {outcome.day} was to bring, and what came"
    return {
        **outcome.figures,
        **picture_metadata({"outcome.png": groups_picture(shown, title, project.contract.scores.within)}),
        "by_segment_and_age": markdown_table(summary(past_outcomes(project, until=outcome.day)).to_dict("records")),
        "largest_groups": markdown_table([{str(k): v for k, v in row.items()} for row in shown.to_dict("records")]),
        "model_window": outcome.champion,
        "cap_usd": outcome.cap_usd,
    }


def _submission_metadata(work: Publication) -> dict[str, Any]:
    warehouse, days = work.project.warehouse, [PartitionKey(day) for day in work.project.horizon.test_days]
    names = work.project.contract.scores
    query = (
        f"SELECT count(*) AS rows, avg(predicted_zero::INT) AS zero_rate, max({names.target}) AS largest_usd, "
        f"sum({names.expected}) AS expected_revenue_usd FROM read_parquet(?)"
    )
    with work.project.open_duckdb() as connection:
        found = [
            connection.execute(query, [[str(f) for f in warehouse.files("predictions", day, verify=False)]])
            .fetch_df()
            .to_dict("records")[0]
            for day in days
        ]
    by_day = [{"day": day, **{str(k): v for k, v in row.items()}} for day, row in zip(days, found, strict=True)]
    folder = warehouse.folder("submission", work.key)
    return {
        "file": dg.MetadataValue.path(str(folder / "submission.csv")),
        "file_ungated": dg.MetadataValue.path(str(folder / "submission_ungated.csv")),
        "by_day": markdown_table(by_day),
    }


def _write_submission(work: Publication, folder: Path) -> dict[str, int | None]:
    from ltv_assets.scoring.submission import write_submissions

    config = work.project.config
    files = [f for day in map(PartitionKey, work.project.horizon.test_days) for f in work.project.warehouse.files("predictions", day)]
    rows = write_submissions(
        files,
        config.data.sample_submission,
        folder,
        threads=config.compute.threads,
        contract=work.project.contract,
        memory_limit=config.compute.duckdb_limit,
    )
    return {"submission.csv": rows, "submission_ungated.csv": None}
