"""Asset checks: partitioned, blocking where a bad result must not travel, and remembered in the warehouse.

Every check is a function from (project, partition) to an `Outcome`; `build` wraps each into a Dagster check that also
records the verdict, because blocking checks stop what is downstream only inside one run. The functions read what was
published, never what is in memory, so a check can be executed alone, from the UI, at any time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq

from ltv_assets.core.columns import BLOCKING_CHECKS, LABEL_NAMES, RELATIONS
from ltv_assets.core.errors import DataError, LtvError, StaleError, TransientError
from ltv_assets.defs.publication import markdown_table, readable_failures
from ltv_assets.defs.resources import ProjectResource, TrackingResource
from ltv_assets.ingestion.calendar import parse_day
from ltv_assets.ingestion.inventory import files_problem, rows_problem
from ltv_assets.state.project import Project
from ltv_assets.state.status import headline_figures, partition_states
from ltv_assets.storage.warehouse import WARNING, Verdict

MAX_FAILING_ROWS = 10
ADVERSARIAL_DAYS = 3
"""Earlier days that a new one is compared with as a whole."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check found: the verdict, one sentence with the figures, and the rows at fault."""

    passed: bool
    message: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()


CheckFunction = Callable[[Project, str], Outcome]


# ------------------------------------------------------------------------------------------------------- raw_partitions


def files_readable(project: Project, key: str) -> Outcome:
    """At least one readable file, not too many quarantined ones, and every hour if the configuration asks for it."""
    facts = project.warehouse.require("raw_partitions", key, "materialize it first").facts
    bad, good = facts["files_quarantined"], facts["files_good"]
    rows = [{"file": path, "reason": reason} for path, reason in bad[:MAX_FAILING_ROWS]]
    figures = {"files_good": good, "files_quarantined": len(bad), "hours_missing": len(facts["missing_hours"])}
    problem = files_problem(key, good, bad, project.config.data.max_bad_file_share)
    if problem is not None:
        return Outcome(False, problem, figures, rows)
    missing = facts["missing_hours"]
    if missing and project.config.data.require_all_hours:
        return Outcome(
            False, f"day {key}: {len(missing)} of 24 hours are missing (require_all_hours is true); first {missing[0]}", figures, rows
        )
    return Outcome(True, f"{good} files readable, {len(bad)} quarantined, {len(missing)} hours missing", figures, rows)


def schema_contract(project: Project, key: str) -> Outcome:
    """Key and label columns are present in every file; other missing columns are read as NULL and named."""
    facts = project.warehouse.require("raw_partitions", key, "materialize it first").facts
    errors = facts["schema_errors"]
    figures = {"columns_missing": len(facts["columns_missing"]), "columns_unexpected": len(facts["columns_unexpected"])}
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        return Outcome(False, errors[0] + more, figures, [{"problem": e} for e in errors[:MAX_FAILING_ROWS]])
    notes = []
    if facts["columns_missing"]:
        notes.append(f"{len(facts['columns_missing'])} columns missing and read as NULL: {', '.join(facts['columns_missing'][:5])}")
    if facts["columns_unexpected"]:
        notes.append(f"{len(facts['columns_unexpected'])} unexpected columns ignored: {', '.join(facts['columns_unexpected'][:5])}")
    return Outcome(True, "; ".join(notes) or "every column of the contract is present", figures)


def hours_complete(project: Project, key: str) -> Outcome:
    """All 24 hours are there and none is empty, nor does any lie where no partition reads it."""
    facts = project.warehouse.require("raw_partitions", key, "materialize it first").facts
    missing, empty = facts["missing_hours"], facts["empty_hours"]
    rows = [{"hour": h, "problem": "missing"} for h in missing] + [{"hour": h, "problem": "empty"} for h in empty]
    elsewhere = facts.get("hours_uncovered", [])
    if rows:
        text = f"day {key}: {len(missing)} hours missing, {len(empty)} empty; first {rows[0]['hour']}"
        return Outcome(False, "; ".join((text, *elsewhere)), {"hours": 24 - len(rows)}, rows)
    return Outcome(not elsewhere, "; ".join(("24 hours", *elsewhere)), {"hours": 24})


# --------------------------------------------------------------------------------------------------- flattened_features


def flattened_rows_reconciled(project: Project, key: str) -> Outcome:
    """Rows of the raw files = rows flattened + set aside (singly or with their file) + sampled out; few are set aside."""
    inventory = project.warehouse.require("raw_partitions", key, "materialize it first").facts
    manifest = project.warehouse.require("flattened_features", key, "materialize it first")
    facts, data = manifest.facts, project.config.data
    quarantined, sampled_out = sum(facts["rows_quarantined"].values()), facts["rows_sampled_out"]
    with_files = facts.get("rows_in_files_quarantined", 0)
    raw, accounted = inventory["rows"], manifest.rows + quarantined + with_files + sampled_out
    figures = {
        "rows_raw": raw,
        "rows_flattened": manifest.rows,
        "rows_quarantined": quarantined,
        "rows_in_files_quarantined": with_files,
        "rows_sampled_out": sampled_out,
    }
    undecodable = facts.get("files_quarantined", [])
    rows = [{"reason": r, "rows": n} for r, n in facts["rows_quarantined"].items()]
    rows += [{"reason": f"{path}: {reason}", "rows": ""} for path, reason in undecodable[:MAX_FAILING_ROWS]]
    if raw != accounted:
        return Outcome(False, f"day {key}: {raw} raw rows but {accounted} accounted for ({raw - accounted} lost)", figures, rows)
    aside = [*undecodable, *inventory.get("files_quarantined", [])]
    problem = files_problem(key, inventory["files_good"] - len(undecodable), aside, data.max_bad_file_share) if undecodable else None
    if problem is not None:
        return Outcome(False, problem, figures, rows)
    problem = rows_problem(key, raw, facts["rows_quarantined"], data.max_bad_row_share)
    if problem is not None:
        return Outcome(False, problem, figures, rows)
    least = project.config.checks.min_rows_per_day
    if manifest.rows < least:
        return Outcome(False, f"day {key}: {manifest.rows} rows, fewer than min_rows_per_day = {least}", figures, rows)
    return Outcome(True, f"{raw} rows in, {manifest.rows} out, {quarantined + with_files} quarantined", figures, rows)


def row_ids_new(project: Project, key: str) -> Outcome:
    """No row_id of the day stands in one of the days before it: a row that both trains and tests flatters the model."""
    earlier = [k for k in project.warehouse.keys("flattened_features") if k < key][-project.config.windows.max_train_days :]
    if not earlier:
        return Outcome(True, "no earlier day to compare with")
    new = [str(f) for f in project.warehouse.files("flattened_features", key, verify=False)]
    rows = []
    with project.open_duckdb() as connection:
        for day in earlier:
            old = [str(f) for f in project.warehouse.files("flattened_features", day, verify=False)]
            query = "SELECT count(*), min(row_id) FROM read_parquet(?) SEMI JOIN (SELECT row_id FROM read_parquet(?)) USING (row_id)"
            count, first = connection.execute(query, [new, old]).fetchone() or (0, None)
            if count:
                rows.append({"day": day, "rows": count, "first row_id": first})
    figures = {"rows_seen_before": sum(row["rows"] for row in rows), "days_compared": len(earlier)}
    if rows:
        text = f"{figures['rows_seen_before']} rows have a row_id that stands on an earlier day, first {rows[0]['first row_id']!r}"
        return Outcome(False, f"day {key}: {text} on {rows[0]['day']}; deliver each impression once", figures, rows)
    return Outcome(True, f"no row_id of {earlier[0]} .. {earlier[-1]} again", figures)


def no_label_among_features(project: Project, key: str) -> Outcome:
    """No feature column is a label, or derived from one, by role and by name; all labels kept are marked as labels."""
    found: list[dict[str, Any]] = []
    features = 0
    for path in project.warehouse.files("flattened_features", key, verify=False):
        for column in pq.read_schema(path):
            role = (column.metadata or {}).get(b"role", b"").decode()
            features += role == "feature"
            stem = column.name.split("__")[0]
            if stem in LABEL_NAMES and role != "label":
                found.append({"column": column.name, "role": role or "none"})
            if stem.startswith("retention") or stem == "registration":
                found.append({"column": column.name, "role": role or "none"})
    if found:
        return Outcome(
            False, f"day {key}: label column {found[0]['column']} stands among the features; rebuild with the shipped registry", {}, found
        )
    return Outcome(True, f"{features} features, no label among them", {"features": features})


def values_read(project: Project, key: str) -> Outcome:
    """Every value that is there can be read: none becomes missing because of how it is written."""
    lost = project.warehouse.require("flattened_features", key, "materialize it first").facts.get("lost_values", {})
    rows = [{"column": name, "values": count, "first": first} for name, (count, first) in lost.items()]
    figures = {"values_lost": sum(count for count, _ in lost.values()), "columns": len(lost)}
    if not rows:
        return Outcome(True, "every value that is there was read", figures)
    worst = max(rows, key=lambda row: row["values"])
    text = f"day {key}: {figures['values_lost']} values of {len(rows)} columns cannot be read and count as missing"
    return Outcome(False, f"{text}; most: {worst['column']} ({worst['values']}), first {worst['first']}", figures, rows)


def drift(project: Project, key: str) -> Outcome:
    """Population stability index of every feature against the newest earlier day."""
    from ltv_assets.defs.assets.ingestion import shifted_features

    shifted = shifted_features(project, key)
    if not shifted:
        return Outcome(True, "no earlier day to compare with")
    limit = project.config.checks.psi_warn
    beyond = [row for row in shifted if row["psi"] > limit]
    figures = {"largest_psi": shifted[0]["psi"], "features_beyond": len(beyond)}
    if beyond:
        worst = beyond[0]
        return Outcome(
            False,
            f"day {key}: {len(beyond)} features moved by PSI > {limit:g}, most {worst['feature']} ({worst['psi']:.2f})",
            figures,
            beyond[:20],
        )
    return Outcome(True, f"largest PSI {shifted[0]['psi']:.3f} ({shifted[0]['feature']})", figures)


def adversarial_drift(project: Project, key: str) -> Outcome:
    """AUC of a small model that tells the day's rows from those of the days before it: 0.5 means that it cannot."""
    from ltv_assets.features.schema import feature_names
    from ltv_assets.monitoring.adversarial import adversarial_separation

    earlier = [k for k in project.warehouse.keys("flattened_features") if k < key][-ADVERSARIAL_DAYS:]
    if not earlier:
        return Outcome(True, "no earlier day to compare with")
    try:
        found = adversarial_separation(
            [f for k in earlier for f in project.warehouse.files("flattened_features", k, verify=False)],
            project.warehouse.files("flattened_features", key, verify=False),
            feature_names(project.registry),
            seed=project.config.seed,
            threads=project.config.compute.threads,
            memory_limit=project.config.compute.duckdb_limit,
        )
    except DataError as error:
        return Outcome(True, f"day {key}: not measured: {error}")
    limit = project.config.checks.adversarial_auc_warn
    figures = {"auc": found.auc, "rows_a_side": found.rows_new}
    rows = [{"feature": name, "share of gain": share} for name, share in found.features]
    text = f"a model tells day {key} from {earlier[0]} .. {earlier[-1]} with AUC {found.auc:.3f}"
    if found.auc > limit:
        return Outcome(False, f"{text}, above adversarial_auc_warn = {limit:g}; most by {found.features[0][0]}", figures, rows)
    return Outcome(True, text, figures, rows)


# ------------------------------------------------------------------------------------------------------------- windows


def training_rows_reconciled(project: Project, key: str) -> Outcome:
    """The window was trained on every flattened row of its training days, each once."""
    import json

    days = [str(day) for day in project.horizon.training_days(parse_day(key))]
    flattened = sum(project.warehouse.require("flattened_features", day, "materialize it first").rows for day in days)
    meta = json.loads(project.warehouse.artifacts("buyer_classifier", key)["buyer_classifier.json"])
    trained = int(meta["diagnostics"]["training_rows"])
    text = f"{flattened} flattened rows of {days[0]} .. {days[-1]}, {trained} trained on"
    figures = {"rows_flattened": flattened, "rows_trained": trained}
    return Outcome(flattened == trained, text if flattened == trained else f"window {key}: {text}", figures)


def holdout_rows_reconciled(project: Project, key: str) -> Outcome:
    """The window was evaluated on every flattened row of its holdout day."""
    flattened = project.warehouse.require("flattened_features", key, "materialize it first").rows
    evaluated = int(_value(headline_figures(project, key), "rows", key))
    text = f"{flattened} flattened rows, {evaluated} evaluated"
    figures = {"rows_flattened": flattened, "rows_evaluated": evaluated}
    return Outcome(flattened == evaluated, text if flattened == evaluated else f"window {key}: {text}", figures)


def no_label_in_model(project: Project, key: str) -> Outcome:
    """No input of the classifier is a label column."""
    import json

    files = project.warehouse.artifacts("buyer_classifier", key)
    names = [n for f, data in files.items() if f == "encoder.json" for n in json.loads(data)["columns"]]
    found = [{"column": n} for n in names if n.split("__")[0] in LABEL_NAMES]
    if found:
        return Outcome(False, f"window {key}: label column {found[0]['column']} is an input of the models", {"inputs": len(names)}, found)
    return Outcome(bool(names), f"{len(names)} inputs, no label among them", {"inputs": len(names)})


def _value(figures: dict[str, dict[str, float | None]], metric: str, key: str) -> float:
    if metric not in figures:
        raise DataError(f"holdout_metrics {key}: metric {metric} is missing, as in one made by an older version; {_again(key)}")
    value = figures[metric]["value"]
    if value is None or value != value:
        raise DataError(f"holdout_metrics {key}: metric {metric} is undefined on this holdout; {_other_holdout(key)}")
    return value


def _again(key: str) -> str:
    return f"make it again with `dagster asset materialize --select holdout_metrics --partition {key}`"


def _other_holdout(key: str) -> str:
    return f"look whether the labels of {key} have arrived (`ltv check-data`), or judge a window of another day"


def _nobody_paid(figures: dict[str, dict[str, float | None]], key: str, what: str) -> Outcome | None:
    """The verdict on what only payers could tell, where there is none."""
    if _value(figures, "zero_rate_observed", key) < 1.0:
        return None
    rows = _value(figures, "rows", key)
    return Outcome(
        False, f"window {key}: no payer among the {rows:.0f} rows of the holdout day, so {what} cannot be judged; {_other_holdout(key)}"
    )


def sampling_allowance(variance: float, tolerance: float) -> float:
    """Two standard errors of a rate of this sampling variance, at most ``tolerance``: few rows cannot tell better."""
    return min(2.0 * math.sqrt(variance), tolerance)


def zero_rate(project: Project, key: str) -> Outcome:
    """Predicted zero rate within ``zero_rate_tolerance`` of the observed one, or no further off than the newest training day's was.

    The sampling error of the days is allowed for in both. Where only the first bound is broken the day itself moved: a warning.
    """
    figures = headline_figures(project, key)
    observed, predicted = _value(figures, "zero_rate_observed", key), _value(figures, "zero_rate_predicted", key)
    rows = _segments(project, key, ("zero_rate_observed", "zero_rate_predicted"))
    if project.config.models.gating.zero_rate == "off":
        return Outcome(True, f"the gate is off; observed zero rate {observed:.4f}", {"observed": observed, "predicted": predicted}, rows)
    tolerance = project.config.checks.zero_rate_tolerance
    variance = observed * (1.0 - observed) / max(_value(figures, "rows", key), 1.0)
    allowance, gap = sampling_allowance(variance, tolerance), abs(predicted - observed)
    figure: dict[str, Any] = {"observed": observed, "predicted": predicted, "gap": gap, "sampling_allowance": allowance}
    text = f"predicted {predicted:.4f} against observed {observed:.4f} zero rate, gap {gap:.4f}"
    if gap <= tolerance + allowance:
        return Outcome(True, text, figure, rows)
    day, newest, newest_variance = _newest_training_day(project, key)
    carried = abs(newest - observed)
    carried_allowance = sampling_allowance(variance + newest_variance, tolerance)
    figure |= {"newest_day_zero_rate": newest, "newest_day_gap": carried, "newest_day_allowance": carried_allowance}
    text += f" is more than zero_rate_tolerance = {tolerance:g} plus {allowance:.4f} for sampling error"
    missed = f"{carried:.4f} by which the {newest:.4f} of the newest training day {day} misses"
    missed += f", plus {carried_allowance:.4f} for sampling error"
    if gap > carried + carried_allowance:
        return Outcome(False, f"window {key}: {text}, and more than the {missed}: the gate is off", figure, rows)
    return Outcome(True, f"window {key}: {text}, but not more than the {missed}: the day itself moved", figure | {WARNING: True}, rows)


def _newest_training_day(project: Project, key: str) -> tuple[str, float, float]:
    """(day, zero rate, its sampling variance) of the last day whose labels the window's gate was set by."""
    import json

    gating = json.loads(project.warehouse.artifacts("buyer_gating", key)["buyer_gating.json"])
    newest = gating["level"]["daily"][-1]
    rate = float(newest["payer_rate"])
    return str(newest["day"]), 1.0 - rate, rate * (1.0 - rate) / newest["rows"]


def rmsle(project: Project, key: str) -> Outcome:
    """RMSLE of ``ltv_d7`` below its bound, and not worse than the pinned LightGBM reference beyond the paired interval."""
    figures = headline_figures(project, key)
    value, reference = _value(figures, "rmsle", key), _value(figures, "rmsle_reference", key)
    low = figures["rmsle_minus_reference"]["low"]
    figure = {"rmsle": value, "rmsle_reference": reference, "rmsle_gated": _value(figures, "rmsle_gated", key), "difference_low": low}
    rows = _segments(project, key, ("rmsle", "rmsle_reference"))
    bound = project.config.checks.rmsle_max
    if value > bound:
        return Outcome(False, f"window {key}: RMSLE {value:.4f} is above rmsle_max = {bound:g}", figure, rows)
    if low is not None and low > 0:
        return Outcome(
            False,
            f"window {key}: RMSLE {value:.4f} is worse than the reference's {reference:.4f} beyond noise (interval starts at {low:+.4f})",
            figure,
            rows,
        )
    return Outcome(True, f"RMSLE {value:.4f}, reference {reference:.4f}", figure, rows)


def calibration(project: Project, key: str) -> Outcome:
    """Expected calibration error of ``buyer_probability`` on the holdout."""
    figures = headline_figures(project, key)
    unjudged = _nobody_paid(figures, key, "calibration")
    if unjudged is not None:
        return unjudged
    ece, ratio = _value(figures, "ece", key), _value(figures, "mean_p_over_rate", key)
    bound = project.config.checks.ece_max
    text = f"ECE {ece:.4f}, mean probability / payer rate {ratio:.3f}"
    return Outcome(
        ece <= bound, text if ece <= bound else f"window {key}: {text}; ece_max = {bound:g}", {"ece": ece, "mean_p_over_rate": ratio}
    )


def expected_revenue(project: Project, key: str) -> Outcome:
    """Sum of ``expected_revenue_d7`` against the holdout's capped revenue."""
    figures = headline_figures(project, key)
    unjudged = _nobody_paid(figures, key, "expected against observed revenue")
    if unjudged is not None:
        return unjudged
    ratio = _value(figures, "bias_ratio_capped", key)
    low, high = project.config.checks.expected_revenue_ratio_min, project.config.checks.expected_revenue_ratio_max
    text = f"expected / observed capped revenue {ratio:.3f}"
    return Outcome(
        low <= ratio <= high, text if low <= ratio <= high else f"window {key}: {text} outside {low:g} .. {high:g}", {"ratio": ratio}
    )


def _segments(project: Project, key: str, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """The given metrics by segment, side by side."""
    rows = [r for f in project.warehouse.files("holdout_metrics", key) for r in pq.read_table(f).to_pylist() if r["metric"] in metrics]
    by_segment: dict[str, dict[str, Any]] = {}
    for row in rows:
        by_segment.setdefault(row["segment"], {"segment": row["segment"]})[row["metric"]] = row["value"]
    return [{"segment": s, **{m: r.get(m, "") for m in metrics}} for s, r in list(by_segment.items())[:40]]


# ------------------------------------------------------------------------------------------------------------- scoring


def predictions_rows_reconciled(project: Project, key: str) -> Outcome:
    """One prediction for every flattened row."""
    flattened = project.warehouse.require("flattened_features", key, "materialize it first").rows
    scored = project.warehouse.require("predictions", key, "materialize it first").rows
    text = f"{flattened} flattened rows, {scored} predictions"
    return Outcome(
        flattened == scored, text if flattened == scored else f"day {key}: {text}", {"rows_flattened": flattened, "rows_scored": scored}
    )


def scores_valid(project: Project, key: str) -> Outcome:
    """Scores are finite and not negative, probabilities at most 1, and longer horizons never below shorter ones."""
    files = [str(f) for f in project.warehouse.files("predictions", key, verify=False)]
    numbers = [c.name for c in RELATIONS["predictions"] if c.type == "DOUBLE"]
    rules = [f"NOT isfinite({n}) OR {n} IS NULL OR {n} < 0" for n in numbers]
    rules += ["buyer_probability > 1", "ltv_d7 > ltv_d14", "ltv_d14 > ltv_d28", "predicted_zero AND iap_revenue_d7 <> 0"]
    with project.open_duckdb() as connection:
        query = f"SELECT * FROM read_parquet(?) WHERE {' OR '.join(f'({r})' for r in rules)} LIMIT {MAX_FAILING_ROWS}"
        bad = connection.execute(query, [files]).fetch_df().to_dict("records")
        row = connection.execute("SELECT avg(predicted_zero::INT) FROM read_parquet(?)", [files]).fetchone()
        zero_share = float(row[0]) if row and row[0] is not None else 0.0
    if bad:
        return Outcome(False, f"day {key}: invalid scores, first at row_id {bad[0]['row_id']}", {"zero_rate": zero_share}, bad)
    return Outcome(True, f"all scores valid, predicted zero rate {zero_share:.4f}", {"zero_rate": zero_share})


def submission_rows_reconciled(project: Project, key: str) -> Outcome:
    """One line for every prediction of every test day."""
    days = [str(day) for day in project.horizon.test_days]
    scored = sum(project.warehouse.require("predictions", day, "materialize it first").rows for day in days)
    written = project.warehouse.require("submission", key, "materialize it first").rows
    text = f"{scored} predictions, {written} lines"
    figures = {"rows_scored": scored, "rows_written": written}
    return Outcome(scored == written, text if scored == written else f"submission {key}: {text}", figures)


def submission_valid(project: Project, key: str) -> Outcome:
    """The CSV has one finite, non-negative value for every test row and nothing else, in the right order."""
    from ltv_assets.scoring.submission import validate_submission

    path = project.warehouse.folder("submission", key) / "submission.csv"
    compute, sample = project.config.compute, project.config.data.sample_submission
    problems = validate_submission(
        path, sample, expected=_predicted_files(project), threads=compute.threads, memory_limit=compute.duckdb_limit
    )
    rows = project.warehouse.require("submission", key, "materialize it first").rows
    if problems:
        return Outcome(False, f"{path.name}: {problems[0]}", {"rows": rows}, [{"problem": p} for p in problems[:MAX_FAILING_ROWS]])
    return Outcome(True, f"{rows} rows, every test row once", {"rows": rows})


def _predicted_files(project: Project) -> list[Path]:
    return [f for day in project.horizon.test_days for f in project.warehouse.files("predictions", str(day), verify=False)]


# -------------------------------------------------------------------------------------------- the warehouse as a whole


def standing_failures(project: Project) -> Outcome:
    """No partition stays failed, stale, or missing though everything it is made from is there."""
    lineage = project.lineage()

    def stands(row: Mapping[str, Any]) -> bool:
        if row["asset"] == "submission" or row["state"] == "fresh":
            return False
        if row["state"] != "missing":
            return True
        try:
            upstream = lineage.upstream(row["asset"], row["partition"])
        except LtvError:
            return False
        return bool(upstream) and all(lineage.status(*above).state == "fresh" for above in upstream)

    standing = sorted(filter(stands, partition_states(project)), key=lambda row: row["state"] != "failed")
    rows = [{name: row[name] for name in ("asset", "partition", "state", "why")} for row in standing[: MAX_FAILING_ROWS * 2]]
    failed = sum(row["state"] == "failed" for row in standing)
    figures = {"failed": failed, "not_fresh": len(standing)}
    if not rows:
        return Outcome(True, "no partition stays failed, stale or half done", figures)
    first = f"{rows[0]['asset']} {rows[0]['partition']} is {rows[0]['state']} ({rows[0]['why']})"
    text = f"{failed} partitions failed, {len(standing) - failed} more are stale or half done"
    return Outcome(False, f"{text}; first: {first}", figures, rows)


def days_fresh(project: Project) -> Outcome:
    """The newest day that has landed is flattened, fresh and checked."""
    from ltv_assets.ingestion.arrivals import landings

    landed = [d for d in landings(project.config, project.horizon) if 24 - d.hours <= project.config.automation.allow_missing_hours]
    if not landed:
        return Outcome(True, "no complete day has landed")
    lineage = project.lineage()
    late = []
    for landing in reversed(landed):
        status = lineage.status("flattened_features", str(landing.day))
        if status.state == "fresh":
            break
        late.append({"day": str(landing.day), "state": status.state, "why": status.why})
    newest = landed[-1].day
    if late:
        return Outcome(
            False, f"day {newest} has landed, but {len(late)} newest days are not fresh: {late[0]['why']}", {"days_late": len(late)}, late
        )
    return Outcome(True, f"the newest complete day {newest} is fresh", {"days_late": 0})


def champion_fresh(project: Project) -> Outcome:
    """The champion's window lies at most ``champion_max_age_days`` behind the newest day with final labels."""
    from ltv_assets.ingestion.calendar import mature_horizons

    champion = project.lineage().champion()
    if champion is None:
        return Outcome(False, "there is no champion: no window has passed its blocking checks; `ltv status` says which failed and why")
    mature = [d for d in project.horizon.train_days if 7 in mature_horizons(project.config, d)]
    age = (max(mature) - parse_day(champion.window)).days if mature else 0
    limit = project.config.checks.champion_max_age_days
    text = f"champion {champion.window}{' (pinned)' if champion.pinned else ''} is {age} days behind the newest day with final labels"
    return Outcome(age <= limit, text if age <= limit else f"{text}, more than champion_max_age_days = {limit}", {"age_days": age})


STANDING_CHECKS: tuple[Callable[[Project], Outcome], ...] = (standing_failures, days_fresh, champion_fresh)
"""Checks without a partition: they stand at ``submission`` and are run with it and by the job ``health``."""


# -------------------------------------------------------------------------------------------------------------- wiring


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """A check before it is bound to Dagster."""

    asset: str
    name: str
    function: CheckFunction

    @property
    def blocking(self) -> bool:
        """Whether a failure keeps the partition from everything downstream."""
        return self.name in BLOCKING_CHECKS.get(self.asset, ())


CHECKS: tuple[CheckSpec, ...] = (
    CheckSpec("raw_partitions", "files_readable", files_readable),
    CheckSpec("raw_partitions", "schema_contract", schema_contract),
    CheckSpec("raw_partitions", "hours_complete", hours_complete),
    CheckSpec("flattened_features", "rows_reconciled", flattened_rows_reconciled),
    CheckSpec("flattened_features", "row_ids_new", row_ids_new),
    CheckSpec("flattened_features", "no_label_among_features", no_label_among_features),
    CheckSpec("flattened_features", "values_read", values_read),
    CheckSpec("flattened_features", "drift", drift),
    CheckSpec("flattened_features", "adversarial_drift", adversarial_drift),
    CheckSpec("buyer_classifier", "training_rows_reconciled", training_rows_reconciled),
    CheckSpec("buyer_classifier", "no_label_in_model", no_label_in_model),
    CheckSpec("holdout_metrics", "holdout_rows_reconciled", holdout_rows_reconciled),
    CheckSpec("holdout_metrics", "zero_rate", zero_rate),
    CheckSpec("holdout_metrics", "rmsle", rmsle),
    CheckSpec("holdout_metrics", "calibration", calibration),
    CheckSpec("holdout_metrics", "expected_revenue", expected_revenue),
    CheckSpec("predictions", "rows_reconciled", predictions_rows_reconciled),
    CheckSpec("predictions", "scores_valid", scores_valid),
    CheckSpec("submission", "submission_rows_reconciled", submission_rows_reconciled),
    CheckSpec("submission", "submission_valid", submission_valid),
)


def run_check(project: Project, spec: CheckSpec, key: str) -> Outcome:
    """Run one check and remember its verdict for the content it saw. Raises TransientError if that was replaced meanwhile."""
    fingerprint = project.warehouse.fingerprint(spec.asset, key) or ""
    outcome = spec.function(project, key)
    if (project.warehouse.fingerprint(spec.asset, key) or "") != fingerprint:
        raise TransientError(f"{spec.asset} {key}: replaced by another run while the check {spec.name} looked at it; run the check again")
    project.warehouse.record_verdict(
        Verdict(
            asset=spec.asset,
            partition=key,
            check=spec.name,
            passed=outcome.passed,
            blocking=spec.blocking,
            fingerprint=fingerprint,
            bounds=project.lineage().bounds_hash(spec.name),
            message=outcome.message,
            figures=dict(outcome.figures),
        )
    )
    if spec.asset == "holdout_metrics" and spec.blocking and not outcome.passed:
        _dethrone(project, key)
    return outcome


def _dethrone(project: Project, key: str) -> None:
    """A champion that fails a blocking check gives way at once to the newest window that still passes."""
    from ltv_assets.promotion.promotion import update_champion

    champion = project.lineage().champion()
    if champion is not None and champion.window == key:
        with suppress(StaleError):
            update_champion(project)


def _result(outcome: Outcome, blocking: bool) -> dg.AssetCheckResult:
    figures = {k: v for k, v in outcome.figures.items() if v is not None}
    return dg.AssetCheckResult(
        passed=outcome.passed,
        severity=dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN,
        description=outcome.message,
        metadata={**figures, **({"rows": markdown_table(list(outcome.rows))} if outcome.rows else {})},
    )


def _bind(spec: CheckSpec, partitions: dg.PartitionsDefinition | None) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=spec.asset,
        name=spec.name,
        description=(spec.function.__doc__ or "").strip(),
        blocking=spec.blocking,
        partitions_def=partitions,
    )
    def check(context: dg.AssetCheckExecutionContext, project_resource: ProjectResource) -> dg.AssetCheckResult:
        with readable_failures():
            project = project_resource.open()
            key = context.partition_key if partitions is not None else project.submission_key
            return _result(run_check(project, spec, key), spec.blocking)

    return check


def _bind_standing(function: Callable[[Project], Outcome]) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset="submission", name=function.__name__, description=(function.__doc__ or "").strip())
    def check(context: dg.AssetCheckExecutionContext, project_resource: ProjectResource) -> dg.AssetCheckResult:
        with readable_failures():
            return _result(function(project_resource.open()), blocking=False)

    return check


def _bind_tracking(partitions: dg.PartitionsDefinition) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset="holdout_metrics",
        name="tracked_in_mlflow",
        description="Everything the window's assets recorded has reached the MLflow tracking server.",
        partitions_def=partitions,
    )
    def check(context: dg.AssetCheckExecutionContext, project_resource: ProjectResource, tracking: TrackingResource) -> dg.AssetCheckResult:
        with readable_failures():
            pushed = tracking.open(project_resource.open()).push(context.partition_key)
            message = pushed.problem or "everything recorded has been delivered"
            return _result(Outcome(pushed.complete, message, {"waiting": len(pushed.waiting)}), blocking=False)

    return check


def build(days: dg.PartitionsDefinition, windows: dg.PartitionsDefinition) -> list[dg.AssetChecksDefinition]:
    """Every check, bound to its asset's clock."""
    clocks = {"raw_partitions": days, "flattened_features": days, "predictions": days, "submission": None}
    partitioned = [_bind(spec, clocks.get(spec.asset, windows)) for spec in CHECKS]
    return [*partitioned, _bind_tracking(windows), *(_bind_standing(function) for function in STANDING_CHECKS)]
