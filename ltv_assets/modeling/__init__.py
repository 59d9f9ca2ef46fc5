"""Models: from encoded rows to calibrated probabilities, revenue at three horizons and a zero gate.

What belongs here: estimators in scikit-learn style, one module per stage, and ``LTVModel``, which composes them. What does
not: Dagster, MLflow, the order of partitions. Next to read: ``stages.py`` for the order of things, ``ltv_model.py`` for the
estimator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltv_assets.modeling.ltv_model import LTVModel

__all__ = ["LTVModel"]


def __getattr__(name: str) -> Any:
    # The estimator brings scikit-learn; who wants a metric or a file name does not pay for it.
    if name == "LTVModel":
        from ltv_assets.modeling.ltv_model import LTVModel

        return LTVModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
