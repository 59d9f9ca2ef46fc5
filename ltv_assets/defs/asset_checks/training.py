"""Checks of a window: trained and evaluated on every row, no label among the inputs, figures within their bounds."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from ltv_assets.core.check_specs import MAX_FAILING_ROWS, Outcome, check
from ltv_assets.core.errors import DataError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.state.project import Project
from ltv_assets.state.status import headline_figures
from ltv_assets.storage.warehouse import WARNING


@check("buyer_classifier", blocking=True)
def training_rows_reconciled(project: Project, key: PartitionKey) -> Outcome:
    """The window was trained on every flattened row of its training days, each once."""
    days = [PartitionKey(day) for day in project.horizon.training_days(key.day)]
    flattened = sum(project.warehouse.require("flattened_features", day, "materialize it first").rows for day in days)
    meta = json.loads(project.warehouse.artifacts("buyer_classifier", key)["buyer_classifier.json"])
    trained = int(meta["diagnostics"]["training_rows"])
    text = f"{flattened} flattened rows of {days[0]} .. {days[-1]}, {trained} trained on"
    figures = {"rows_flattened": flattened, "rows_trained": trained}
    return Outcome(flattened == trained, text if flattened == trained else f"window {key}: {text}", figures)


LEAK_BOUNDS = ("checks.leak_auc_max", "checks.leak_exclusive_max")


def leaks(project: Project, window: PartitionKey, scored: Sequence[PartitionKey], subject: str) -> Outcome:
    """No feature of a window's training days tells payers apart and is absent or constant on the days to be scored."""
    from ltv_assets.features.schema import feature_names
    from ltv_assets.monitoring.leaks import find_leaks

    checks, warehouse = project.config.checks, project.warehouse
    days = warehouse.require("buyer_classifier", window, "materialize it first").made_from("flattened_features")
    training = [f for day in days for f in warehouse.files("flattened_features", day, verify=False)]
    there = [f for day in scored for f in warehouse.files("flattened_features", day, verify=False)]
    found, silent = find_leaks(
        training,
        there,
        feature_names(project.registry),
        project.contract.target,
        auc_max=checks.leak_auc_max,
        exclusive_max=checks.leak_exclusive_max,
    )
    figures = {"features_absent_or_constant": silent, "leaks": len(found)}
    rows = [{"feature": k.feature, "auc": k.separation.auc, "exclusive": k.separation.exclusive, "scored": str(k.value)} for k in found]
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        bounds = f"bounds: leak_auc_max = {checks.leak_auc_max:g}, leak_exclusive_max = {checks.leak_exclusive_max:g}"
        remedy = "it is known only afterwards: declare its column a label, or take it out of the features"
        return Outcome(False, f"{subject}: leak: {found[0].said()}{more}; {remedy} ({bounds})", figures, rows[:MAX_FAILING_ROWS])
    return Outcome(True, f"{silent} features are absent or constant on the days to be scored, none of them tells payers apart", figures)


@check("buyer_classifier", blocking=True, bounds=LEAK_BOUNDS)
def no_leak(project: Project, key: PartitionKey) -> Outcome:
    """No feature alone tells payers from others in training and is absent or constant on every flattened day without labels."""
    scored = [d for d in map(PartitionKey, project.horizon.test_days) if project.warehouse.manifest("flattened_features", d) is not None]
    if not scored:
        return Outcome(True, "no day without labels to compare with; its predictions are checked when there is one")
    return leaks(project, key, scored, f"window {key}")


@check("holdout_metrics", blocking=True)
def holdout_rows_reconciled(project: Project, key: PartitionKey) -> Outcome:
    """The window was evaluated on every flattened row of its holdout day."""
    flattened = project.warehouse.require("flattened_features", key, "materialize it first").rows
    evaluated = int(_value(headline_figures(project, key), "rows", key))
    text = f"{flattened} flattened rows, {evaluated} evaluated"
    figures = {"rows_flattened": flattened, "rows_evaluated": evaluated}
    return Outcome(flattened == evaluated, text if flattened == evaluated else f"window {key}: {text}", figures)


@check("buyer_classifier", blocking=True)
def no_label_in_model(project: Project, key: PartitionKey) -> Outcome:
    """No input of the classifier is a label column."""
    files = project.warehouse.artifacts("buyer_classifier", key)
    names = [n for f, data in files.items() if f == "encoder.json" for n in json.loads(data)["columns"]]
    found = [{"column": n} for n in names if n.split("__")[0] in project.contract.label_names]
    if found:
        return Outcome(False, f"window {key}: label column {found[0]['column']} is an input of the models", {"inputs": len(names)}, found)
    return Outcome(bool(names), f"{len(names)} inputs, no label among them", {"inputs": len(names)})


def _value(figures: dict[str, dict[str, float | None]], metric: str, key: PartitionKey) -> float:
    if metric not in figures:
        raise DataError(f"holdout_metrics {key}: metric {metric} is missing, as in one made by an older version; {_again(key)}")
    value = figures[metric]["value"]
    if value is None or value != value:
        raise DataError(f"holdout_metrics {key}: metric {metric} is undefined on this holdout; {_other_holdout(key)}")
    return value


def _again(key: PartitionKey) -> str:
    return f"make it again with `dagster asset materialize --select holdout_metrics --partition {key}`"


def _other_holdout(key: PartitionKey) -> str:
    return f"look whether the labels of {key} have arrived (`ltv check-data`), or judge a window of another day"


def _nobody_paid(figures: dict[str, dict[str, float | None]], key: PartitionKey, what: str) -> Outcome | None:
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


@check("holdout_metrics", blocking=True, bounds=("checks.zero_rate_tolerance",))
def zero_rate(project: Project, key: PartitionKey) -> Outcome:
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


def _newest_training_day(project: Project, key: PartitionKey) -> tuple[str, float, float]:
    """(day, zero rate, its sampling variance) of the last day whose labels the window's gate was set by."""
    gating = json.loads(project.warehouse.artifacts("buyer_gating", key)["buyer_gating.json"])
    newest = gating["level"]["daily"][-1]
    rate = float(newest["payer_rate"])
    return str(newest["day"]), 1.0 - rate, rate * (1.0 - rate) / newest["rows"]


@check("holdout_metrics", blocking=True, bounds=("checks.rmsle_max",))
def rmsle(project: Project, key: PartitionKey) -> Outcome:
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


@check("holdout_metrics", bounds=("checks.ece_max",))
def calibration(project: Project, key: PartitionKey) -> Outcome:
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


@check("holdout_metrics", bounds=("checks.expected_revenue_ratio_min", "checks.expected_revenue_ratio_max"))
def expected_revenue(project: Project, key: PartitionKey) -> Outcome:
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


def _segments(project: Project, key: PartitionKey, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """The given metrics by segment, side by side."""
    rows = [r for f in project.warehouse.files("holdout_metrics", key) for r in pq.read_table(f).to_pylist() if r["metric"] in metrics]
    by_segment: dict[str, dict[str, Any]] = {}
    for row in rows:
        by_segment.setdefault(row["segment"], {"segment": row["segment"]})[row["metric"]] = row["value"]
    return [{"segment": s, **{m: r.get(m, "") for m in metrics}} for s, r in list(by_segment.items())[:40]]
