"""Checks of predictions, their forecast and the submission: every row once, every value possible, groups that add up."""

from pathlib import Path

from ltv_assets.core.asset_specs import relations
from ltv_assets.core.check_specs import MAX_FAILING_ROWS, Outcome, check
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.defs.asset_checks.training import LEAK_BOUNDS, leaks
from ltv_assets.modeling.evaluation.segments import ALL
from ltv_assets.state.project import Project


@check(
    "predictions",
    name="rows_reconciled",
    blocking=True,
    bounds=("data.max_bad_row_share", "data.max_bad_file_share", "checks.min_rows_per_day"),
)
def predictions_rows_reconciled(project: Project, key: PartitionKey) -> Outcome:
    """One prediction for every flattened row."""
    flattened = project.warehouse.require("flattened_features", key, "materialize it first").rows
    scored = project.warehouse.require("predictions", key, "materialize it first").rows
    text = f"{flattened} flattened rows, {scored} predictions"
    return Outcome(
        flattened == scored, text if flattened == scored else f"day {key}: {text}", {"rows_flattened": flattened, "rows_scored": scored}
    )


@check("predictions", blocking=True)
def scores_valid(project: Project, key: PartitionKey) -> Outcome:
    """Scores are finite and not negative, probabilities at most 1, and longer horizons never below shorter ones."""
    files = [str(f) for f in project.warehouse.files("predictions", key, verify=False)]
    numbers = [c.name for c in relations(project.contract)["predictions"] if c.type == "DOUBLE"]
    rules = [f"NOT isfinite({n}) OR {n} IS NULL OR {n} < 0" for n in numbers]
    names = project.contract.scores
    rules += ["buyer_probability > 1", *names.violations(), f"predicted_zero AND {names.target} <> 0"]
    with project.open_duckdb() as connection:
        query = f"SELECT * FROM read_parquet(?) WHERE {' OR '.join(f'({r})' for r in rules)} LIMIT {MAX_FAILING_ROWS}"
        bad = connection.execute(query, [files]).fetch_df().to_dict("records")
        row = connection.execute("SELECT avg(predicted_zero::INT) FROM read_parquet(?)", [files]).fetchone()
        zero_share = float(row[0]) if row and row[0] is not None else 0.0
    if bad:
        return Outcome(False, f"day {key}: invalid scores, first at row_id {bad[0]['row_id']}", {"zero_rate": zero_share}, bad)
    return Outcome(True, f"all scores valid, predicted zero rate {zero_share:.4f}", {"zero_rate": zero_share})


@check("cohort_forecast", blocking=True)
def groups_add_up(project: Project, key: PartitionKey) -> Outcome:
    """The groups of every segment add up to the day in every digit, the day has every scored row, and intervals hold what is expected."""
    files = [str(f) for f in project.warehouse.files("cohort_forecast", key, verify=False)]
    scored = project.warehouse.require("predictions", key, "materialize it first").rows
    sums = ", ".join(f"sum({n}) AS {n}" for n in ("rows", "expected_payers", "expected_revenue_usd"))
    outside = (
        "SELECT * FROM read_parquet(?) WHERE NOT (0 <= payers_low AND payers_low <= expected_payers AND expected_payers <= payers_high "
        "AND 0 <= revenue_low_usd AND revenue_low_usd <= expected_revenue_usd AND expected_revenue_usd <= revenue_high_usd "
        "AND isfinite(payers_high) AND isfinite(revenue_high_usd))"
    )
    with project.open_duckdb() as connection:
        totals = connection.execute(f"SELECT segment, {sums} FROM read_parquet(?) GROUP BY ALL ORDER BY segment", [files]).fetchall()
        bad = connection.execute(f"{outside} LIMIT {MAX_FAILING_ROWS}", [files]).fetch_df().to_dict("records")
    whole = next((row[1:] for row in totals if row[0] == ALL), None)
    rows = [{"segment": s, "rows": n, "expected_payers": p, "expected_revenue_usd": usd} for s, n, p, usd in totals if (n, p, usd) != whole]
    figures = {"rows_scored": scored, "segments": len(totals) - 1, "groups_outside_interval": len(bad)}
    if whole is None or whole[0] != scored:
        found = "no row of segment all" if whole is None else f"{whole[0]} rows in segment all"
        return Outcome(False, f"day {key}: {scored} predictions, {found}; materialize cohort_forecast {key} again", figures)
    if rows:
        return Outcome(False, f"day {key}: segment {rows[0]['segment']} does not add up to the day", figures, rows)
    if bad:
        text = f"day {key}: {bad[0]['segment']} = {bad[0]['value']} lies outside its own interval"
        return Outcome(False, text, figures, bad)
    return Outcome(True, f"{len(totals) - 1} segments add up to {scored} rows and {whole[2]:,.2f} USD", figures)


@check("cohort_outcome", bounds=("checks.forecast_coverage_min", "checks.forecast_days"))
def forecast_coverage(project: Project, key: PartitionKey) -> Outcome:
    """Of the newest observed days, the share of groups whose payers and revenue lie in their 80 % intervals."""
    from ltv_assets.modeling.evaluation.metrics import outcome_figures
    from ltv_assets.training.cohorts import past_outcomes

    bounds = project.config.checks
    found = past_outcomes(project, until=key, days=bounds.forecast_days)
    own = found[found["day"] == key]
    if own.empty:
        text = f"day {key}: its model had seen the day, or its labels came for other rows than were scored; it says nothing of forecasts"
        return Outcome(True, text)
    figures = outcome_figures(found)
    days, shares = int(found["day"].nunique()), (figures["coverage_payers"], figures["coverage_revenue"])
    text = (
        f"payers of {shares[0]:.0%} and revenue of {shares[1]:.0%} of {len(found)} groups of {days} days lie in their 80 % intervals; "
        f"expected / came: payers {figures['bias_payers']:.2f}, revenue {figures['bias_revenue']:.2f}"
    )
    passed = min(shares) >= bounds.forecast_coverage_min
    if not passed:
        text = f"{text}; fewer than forecast_coverage_min = {bounds.forecast_coverage_min:g}"
    outside = own[~(own["payers_inside"] & own["revenue_inside"])].head(MAX_FAILING_ROWS)
    return Outcome(passed, text, {**figures, "days": days}, [] if passed else outside.to_dict("records"))


@check("predictions", name="no_leak", blocking=True, bounds=LEAK_BOUNDS)
def predictions_without_leak(project: Project, key: PartitionKey) -> Outcome:
    """No feature alone told payers from others when the champion was trained and is absent or constant on the day that was scored."""
    window = PartitionKey(project.warehouse.require("predictions", key, "materialize it first").facts["champion"])
    return leaks(project, window, [key], f"day {key}")


@check("submission", blocking=True)
def submission_rows_reconciled(project: Project, key: PartitionKey) -> Outcome:
    """One line for every prediction of every test day."""
    days = [PartitionKey(day) for day in project.horizon.test_days]
    scored = sum(project.warehouse.require("predictions", day, "materialize it first").rows for day in days)
    written = project.warehouse.require("submission", key, "materialize it first").rows
    text = f"{scored} predictions, {written} lines"
    figures = {"rows_scored": scored, "rows_written": written}
    return Outcome(scored == written, text if scored == written else f"submission {key}: {text}", figures)


@check("submission", blocking=True)
def submission_valid(project: Project, key: PartitionKey) -> Outcome:
    """The CSV has one finite, non-negative value for every test row and nothing else, in the right order."""
    from ltv_assets.scoring.submission import validate_submission

    path = project.warehouse.folder("submission", key) / "submission.csv"
    compute, sample = project.config.compute, project.config.data.sample_submission
    problems = validate_submission(
        path,
        sample,
        expected=_predicted_files(project),
        threads=compute.threads,
        contract=project.contract,
        memory_limit=compute.duckdb_limit,
    )
    rows = project.warehouse.require("submission", key, "materialize it first").rows
    if problems:
        return Outcome(False, f"{path.name}: {problems[0]}", {"rows": rows}, [{"problem": p} for p in problems[:MAX_FAILING_ROWS]])
    return Outcome(True, f"{rows} rows, every test row once", {"rows": rows})


def _predicted_files(project: Project) -> list[Path]:
    return [f for day in map(PartitionKey, project.horizon.test_days) for f in project.warehouse.files("predictions", day, verify=False)]
