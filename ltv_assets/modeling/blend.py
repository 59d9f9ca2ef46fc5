"""The non-negative blend of capped base learners.

What belongs here: the cap of each component and the weights of their blend. What does not: the components themselves
(``base_learners.py``), the meta learner on top (``meta_learner.py``). Next to read: ``meta_learner.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from ltv_assets.modeling.boosting import row_dot
from ltv_assets.modeling.dataset import Floats


@dataclass(frozen=True, eq=False)
class Blend:
    """Capped components times non-negative weights plus a non-negative constant."""

    caps: Floats
    weights: Floats
    constant: float

    def capped(self, components: Floats) -> Floats:
        """Components, none above its cap; (n, c)."""
        return np.minimum(components, self.caps)

    def predict(self, components: Floats) -> Floats:
        """Blended score (n,)."""
        return row_dot(self.capped(components), self.weights) + self.constant


CAP_QUANTILES = (0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 1.0)
"""Candidates for a component's cap, as quantiles of its out-of-fold scores."""


def fit_blend(components: Floats, log_revenue: Floats) -> Blend:
    """Non-negative least squares of log1p(revenue) on capped out-of-fold components (Breiman 1996, stacked regressions)."""
    caps = np.array([component_cap(c, log_revenue) for c in components.T])
    design = np.column_stack([np.minimum(components, caps), np.full(len(components), max(float(log_revenue.mean()), 1e-12))])
    gram = design.T @ design + 1e-9 * len(design) * np.eye(design.shape[1])
    # nnls on the Cholesky factor has the same solution as on the full matrix, at the cost of a few columns.
    factor = np.linalg.cholesky(gram)
    weights, _ = nnls(factor.T, np.linalg.solve(factor, design.T @ log_revenue))
    return Blend(caps, weights[:-1], float(weights[-1] * design[0, -1]))


def component_cap(score: Floats, log_revenue: Floats) -> float:
    """The candidate at which the capped score has the smallest squared error, if that is beyond two standard errors.

    Otherwise the largest score ever given out of fold: a component may not promise more than it was seen to promise.
    """
    losses = {float(cap): (np.minimum(score, cap) - log_revenue) ** 2 for cap in np.quantile(score, CAP_QUANTILES)}
    best, largest = min(losses, key=lambda cap: float(losses[cap].mean())), float(score.max())
    gain = losses[largest] - losses[best]
    return best if gain.mean() > 2.0 * gain.std() / np.sqrt(len(gain)) else largest
