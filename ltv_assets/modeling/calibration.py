"""From the classifier's log-odds to probabilities at the natural rate, and what caps them.

What belongs here: the prior correction, sigmoid and isotonic calibration, the upper bound of a top bin. What does not:
the classifier. Next to read: ``classifier.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from ltv_assets.core.config import CalibrationConfig
from ltv_assets.core.errors import ModelFileError
from ltv_assets.modeling.boosting import log_loss, sigmoid
from ltv_assets.modeling.dataset import Floats

Kind = Literal["none", "sigmoid", "isotonic"]

PROBABILITY_FLOOR = 1e-6
"""No probability is certain: isotonic regression would otherwise say 0 or 1 where a step holds one class only."""


def prior_shift(payer: Floats, multiplicity: NDArray[Any]) -> float:
    """log(E[w | y=0] / E[w | y=1]): what over-sampling took from the log-odds (Elkan 2001), to be added to them."""
    w = np.asarray(multiplicity, dtype=np.float64)
    yes = payer > 0
    if not yes.any() or yes.all():
        return 0.0
    return float(np.log(w[~yes].mean() / w[yes].mean()))


@dataclass(frozen=True, eq=False)
class Calibrator:
    """Monotone map of log-odds to probability.

    sigmoid: ``1 / (1 + exp(-(slope * odds + intercept)))`` (Platt 1999). isotonic: piecewise linear through the knots ``x``,
    ``y`` (Zadrozny and Elkan 2002), constant outside. none: the log-odds are taken at their word.
    """

    kind: Kind
    slope: float = 1.0
    intercept: float = 0.0
    x: Floats | None = None
    y: Floats | None = None

    def probability(self, odds: Floats) -> Floats:
        """Calibrated probabilities (n,), strictly between 0 and 1."""
        if self.kind == "isotonic":
            p = np.interp(odds, cast(Floats, self.x), cast(Floats, self.y))
        else:
            p = sigmoid(self.slope * odds + self.intercept)
        return np.clip(p, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        if self.kind == "isotonic":
            return {"kind": self.kind, "x": cast(Floats, self.x).tolist(), "y": cast(Floats, self.y).tolist()}
        return {"kind": self.kind, "slope": self.slope, "intercept": self.intercept}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Calibrator:
        """Inverse of ``to_dict``."""
        if state["kind"] == "isotonic":
            return cls("isotonic", x=np.asarray(state["x"], dtype=np.float64), y=np.asarray(state["y"], dtype=np.float64))
        if state["kind"] not in ("none", "sigmoid"):
            raise ModelFileError(f"calibrator.json: expected none, sigmoid or isotonic, found {state['kind']!r}")
        return cls(state["kind"], float(state["slope"]), float(state["intercept"]))


def fit_sigmoid(odds: Floats, payer: Floats) -> Calibrator:
    """Platt's two parameters by unpenalised logistic regression; a slope that turns negative is replaced by the prior alone."""
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(odds[:, None], payer > 0)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope <= 0.0:  # the classifier ranks backwards on these rows: trust the base rate, keep no ranking
        rate = float(np.mean(payer > 0))
        return Calibrator("sigmoid", 0.0, float(np.log(rate / (1 - rate))))
    return Calibrator("sigmoid", slope, intercept)


def fit_isotonic(odds: Floats, payer: Floats) -> Calibrator:
    """Isotonic regression of the payer flag on the log-odds (scikit-learn)."""
    model = IsotonicRegression(out_of_bounds="clip").fit(odds, payer)
    return Calibrator("isotonic", x=np.asarray(model.X_thresholds_, dtype=np.float64), y=np.asarray(model.y_thresholds_, dtype=np.float64))


def fit_calibrator(kind: Kind, odds: Floats, payer: Floats, min_payers: int) -> Calibrator:
    """Fit one kind; with one class only, or fewer than ``min_payers`` payers, the prior correction has to do."""
    payers = int(payer.sum())
    if kind == "none" or payers < min_payers or payers == len(payer):
        return Calibrator("none")
    return fit_sigmoid(odds, payer) if kind == "sigmoid" else fit_isotonic(odds, payer)


def choose_kind(
    odds: Floats, payer: Floats, later_odds: Floats, later_payer: Floats, config: CalibrationConfig
) -> tuple[Kind, dict[str, float]]:
    """The configured method; for ``auto`` the one whose fit on earlier rows has the lower log-loss on the later rows."""
    if config.method != "auto":
        return config.method, {}
    losses: dict[Kind, float] = {}
    for kind in cast(tuple[Kind, ...], ("sigmoid", "isotonic")):
        p = fit_calibrator(kind, odds, payer, config.min_payers).probability(later_odds)
        losses[kind] = log_loss(later_payer, np.log(p / (1 - p)))
    return min(losses, key=lambda k: losses[k]), {f"log_loss_later_{k}": v for k, v in losses.items()}


def upper_bound(successes: float, rows: int, confidence: float) -> float:
    """One-sided upper Clopper-Pearson bound of a rate."""
    if successes >= rows:
        return 1.0
    return float(betaincinv(successes + 1.0, rows - successes, confidence))


def top_rows(values: Floats, share: float, min_rows: int) -> NDArray[np.int64]:
    """Row numbers of the top bin: the highest ``share`` of values, at least ``min_rows`` (all rows when there are fewer)."""
    size = min(len(values), max(min_rows, round(share * len(values))))
    return np.argsort(-values, kind="stable")[:size]
