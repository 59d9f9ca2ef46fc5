"""Plots for the asset pages, the tracking server and the documentation: plain arrays in, PNG bytes out.

What belongs here: drawing. What does not: computing figures (``modeling/evaluation/``), choosing where a plot is shown
(``defs/``). For empty, constant, all-zero and NaN input every function draws "no data" or the valid part.
"""

from __future__ import annotations

from ltv_assets.plots.canvas import no_data, to_markdown_image
from ltv_assets.plots.cohorts import forecast_intervals
from ltv_assets.plots.data import (
    feature_importances,
    missing_shares,
    psi_bars,
    rows_by_hour,
    sampling_histogram,
    shap_summary,
    training_curves,
)
from ltv_assets.plots.quality import (
    decile_chart,
    gain_curves,
    reliability_curve,
    residuals_by_revenue,
    revenue_against_spend,
    rmsle_bars,
    score_distribution,
    zero_rate_by,
)

__all__ = [
    "decile_chart",
    "feature_importances",
    "forecast_intervals",
    "gain_curves",
    "missing_shares",
    "no_data",
    "psi_bars",
    "reliability_curve",
    "residuals_by_revenue",
    "revenue_against_spend",
    "rmsle_bars",
    "rows_by_hour",
    "sampling_histogram",
    "score_distribution",
    "shap_summary",
    "to_markdown_image",
    "training_curves",
    "zero_rate_by",
]
