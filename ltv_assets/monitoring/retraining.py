"""Reasons to retrain: the champion's figures against the bounds of ``automation`` in the configuration. Pure: no Dagster.

Four signals, each with its figures: RMSLE of the champion on the newest evaluated day, the zero rate of new predictions
against the one the champion was gated to, the distribution of new scores against the champion's holdout, and, if asked for,
how many of its forecasts held.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from ltv_assets.core.errors import LtvError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.monitoring.psi import score_shift
from ltv_assets.state.project import Project
from ltv_assets.state.status import headline_figures
from ltv_assets.storage.champion import Champion
from ltv_assets.storage.warehouse import SCORES_FILE


@dataclass(frozen=True, slots=True)
class Watch:
    """Figures by name, and one sentence per figure out of bounds."""

    figures: dict[str, float]
    reasons: tuple[str, ...]


def watched(project: Project) -> tuple[str, ...] | None:
    """Identity of the inputs of `look`; None if there is no champion. Cheap: manifests only."""
    champion = project.lineage().champion()
    if champion is None:
        return None
    warehouse = project.warehouse
    windows, scored = warehouse.keys("holdout_metrics"), _scored_by(project, champion)
    observed = warehouse.keys("cohort_outcome")
    newest = windows[-1] if windows else None
    return (
        champion.window,
        champion.fingerprint,
        newest or "",
        (warehouse.fingerprint("holdout_metrics", newest) or "") if newest else "",
        scored or "",
        (warehouse.fingerprint("predictions", scored) or "") if scored else "",
        observed[-1] if observed else "",
        (warehouse.fingerprint("cohort_outcome", observed[-1]) or "") if observed else "",
    )


def look(project: Project) -> Watch:
    """Compare the champion's newest figures with the bounds for retraining."""
    champion = project.lineage().champion()
    if champion is None:
        return Watch({}, ())
    bounds, compute = project.config.automation, project.config.compute
    figures: dict[str, float] = {}
    reasons: list[str] = []
    value, day = champion_rmsle(project, champion)
    if value is not None:
        figures["rmsle"] = value
        if value > bounds.retrain_rmsle_max:
            reasons.append(
                f"RMSLE of champion {champion.window} on day {day} is {value:.4f}, above retrain_rmsle_max = {bounds.retrain_rmsle_max:g}"
            )
    if bounds.retrain_forecast_coverage is not None:
        from ltv_assets.modeling.evaluation.metrics import outcome_figures
        from ltv_assets.training.cohorts import past_outcomes

        outcomes = past_outcomes(project, days=project.config.checks.forecast_days)
        outcomes = outcomes[outcomes["model_window"] == champion.window]
        if len(outcomes):
            figures["forecast_coverage"] = outcome_figures(outcomes)["coverage_payers"]
            if figures["forecast_coverage"] < bounds.retrain_forecast_coverage:
                reasons.append(
                    f"payers of {figures['forecast_coverage']:.0%} of {len(outcomes)} groups that champion {champion.window} forecast lie "
                    f"in their 80 % intervals, fewer than retrain_forecast_coverage = {bounds.retrain_forecast_coverage:g}"
                )
    scored = _scored_by(project, champion)
    if scored is None:
        return Watch(figures, tuple(reasons))
    files = project.warehouse.files("predictions", scored, verify=False)
    rate = _zero_rate(project, files)
    target = headline_figures(project, champion.window).get("zero_rate_observed", {}).get("value")
    if rate is not None and target is not None and project.config.models.gating.zero_rate == "match":
        figures["zero_rate_gap"] = abs(rate - target)
        if figures["zero_rate_gap"] > bounds.retrain_zero_rate_gap:
            reasons.append(
                f"zero rate of the predictions of day {scored} is {rate:.4f} against {target:.4f} on the champion's holdout, "
                f"further apart than retrain_zero_rate_gap = {bounds.retrain_zero_rate_gap:g}"
            )
    holdout = project.warehouse.folder("holdout_metrics", champion.window) / SCORES_FILE
    if holdout.is_file():
        ltv = project.contract.scores.ltv[0]
        figures["score_psi"] = score_shift([holdout], files, ltv, threads=compute.threads, memory_limit=compute.duckdb_limit)
        if figures["score_psi"] > bounds.retrain_score_psi:
            reasons.append(
                f"scores of day {scored} moved by PSI {figures['score_psi']:.3f} against the champion's holdout, "
                f"above retrain_score_psi = {bounds.retrain_score_psi:g}"
            )
    return Watch(figures, tuple(reasons))


def champion_rmsle(project: Project, champion: Champion) -> tuple[float | None, str]:
    """RMSLE of the champion on the newest day it was measured on, and that day: a refused challenger's, else its own holdout."""
    newest = max((k for k in project.warehouse.keys("holdout_metrics") if k > champion.window), default=None)
    if newest is not None:
        path = project.warehouse.comparison(newest, champion.window)
        try:
            stored = json.loads(path.read_bytes())
            if stored["champion_fingerprint"] == champion.fingerprint:
                return float(stored["rmsle_champion"]), newest
        except (OSError, ValueError, KeyError, TypeError):
            pass
    try:
        return headline_figures(project, champion.window).get("rmsle", {}).get("value"), champion.window
    except LtvError:
        return None, champion.window


def _scored_by(project: Project, champion: Champion) -> PartitionKey | None:
    """The newest day that was scored by this champion."""
    for key in reversed(project.warehouse.keys("predictions")):
        manifest = project.warehouse.manifest("predictions", key)
        if manifest is not None and manifest.inputs.get(f"champion/{champion.window}") == champion.fingerprint:
            return key
    return None


def _zero_rate(project: Project, files: Sequence[Path]) -> float | None:
    if not files or not any(pq.read_metadata(f).num_rows for f in files):
        return None
    with project.open_duckdb() as connection:
        row = connection.execute("SELECT avg(predicted_zero::INT) FROM read_parquet(?)", [[str(f) for f in files]]).fetchone()
    return None if row is None or row[0] is None else float(row[0])
