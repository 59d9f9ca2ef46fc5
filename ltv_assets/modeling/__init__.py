"""Models: from encoded rows to calibrated probabilities, revenue at three horizons and a zero gate.

What belongs here: estimators in scikit-learn style, one module per stage, and ``LTVModel``, which composes them. What does
not: Dagster, MLflow, files of the warehouse. Next to read: ``stages`` for the order of things, ``ltv_model`` for the
estimator.
"""

from __future__ import annotations

from ltv_assets.modeling.ltv_model import LTVModel

__all__ = ["LTVModel"]
