"""Score of the best possible prediction, and a model's skill score relative to it.

What belongs here: figures of the truth files. What does not: metrics of models in general. Next to read: ``laws.py``
(where ``oracle_log`` comes from).
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import pandas as pd


class OracleMetrics(TypedDict):
    """RMSLE of three predictions (zero, the best constant, the oracle) with the corresponding MSLEs, and basic rates."""

    rows: int
    payer_rate: float
    rmsle_zero: float
    rmsle_constant: float
    rmsle_oracle: float
    msle_zero: float
    msle_constant: float
    msle_oracle: float


def oracle_metrics(truth: pd.DataFrame) -> OracleMetrics:
    """Reference losses of one truth file (columns ``revenue`` in USD and ``oracle_log``).

    RMSLE is sqrt(mean((log1p(prediction) - log1p(revenue))^2)). The best constant is the mean of log1p(revenue); a
    model with the same columns beats the oracle only by chance.
    """
    log = np.log1p(truth["revenue"].to_numpy(float))
    zero, constant = float(np.mean(log**2)), float(np.var(log))
    oracle = float(np.mean((log - truth["oracle_log"].to_numpy(float)) ** 2))
    return OracleMetrics(
        rows=len(log),
        payer_rate=float(np.mean(log > 0)),
        rmsle_zero=zero**0.5,
        rmsle_constant=constant**0.5,
        rmsle_oracle=oracle**0.5,
        msle_zero=zero,
        msle_constant=constant,
        msle_oracle=oracle,
    )


def attained_share(msle_constant: float, msle: float, msle_oracle: float) -> float:
    """(constant - model) / (constant - oracle): 0 is no better than a constant, 1 is as good as possible.

    Raises ValueError when the oracle is not better than the constant, because the share is then undefined.
    """
    if msle_oracle >= msle_constant:
        raise ValueError(
            f"oracle MSLE {msle_oracle:.4f} is not below the constant's {msle_constant:.4f}: the sample is too small for a share"
        )
    return (msle_constant - msle) / (msle_constant - msle_oracle)
