"""How much: revenue heads whose horizons cannot cross, and the one that adds up to money.

What belongs here: the stage ``revenue_regressor``: log1p of what payers spend within the shortest horizon, log increments
to the longer ones on all rows, the expected-revenue head, and the pinned reference on the same rows. What does not: the blend of
scores (``stacker``). Next to read: ``stacker``.

Inspired by the order-preserving network of Li et al. (CIKM 2022): the longer horizons add non-negative increments to the
shorter one's score, so no horizon is ever below a shorter one. Increments are fitted on *all* rows, because people who pay for
the first time after the shortest horizon are in there.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import PoissonRegressor

from ltv_assets.core.config import BoosterConfig, ModelsConfig
from ltv_assets.core.contract import Scores, load_contract
from ltv_assets.modeling.baseline import fit_reference, reference_out_of_fold, reference_rounds
from ltv_assets.modeling.boosting import Curves, Params, Trainer, TreeModel, booster_params, log_metrics, row_dot
from ltv_assets.modeling.classifier import Arrays
from ltv_assets.modeling.dataset import Floats
from ltv_assets.modeling.design_matrix import Design, Matrix, Split
from ltv_assets.modeling.gating import BuyerGating
from ltv_assets.modeling.serialization import Files, from_json, to_json
from ltv_assets.sampling.hhistus import HhistusPlan

MIN_STOP_PAYERS = 20
"""With fewer payers among the stopping rows the head gets DEFAULT_HEAD_ROUNDS trees."""
DEFAULT_HEAD_ROUNDS = 60
EXPECTED_PENALTY = 1e-3
"""L2 penalty of the expected-revenue head on standardised inputs."""


@dataclass(frozen=True, eq=False)
class ExpectedRevenue:
    """E[min(revenue, cap_usd)] within the shortest horizon as a log-linear model of the other heads' logs.

    ``log E = intercept + coefficients . (x - center) / scale`` with x = (log p, log revenue if buyer, log whale probability).
    A Poisson likelihood with log link has the sums of predictions and outcomes equal on the rows it was fitted on
    (here: out-of-fold rows), which is the property asked for; the outcome need not be a count (Gourieroux et al. 1984).
    ``level``: factor from the window's payers to those of the level that is followed.
    """

    cap_usd: float
    tail_factor: float
    intercept: float
    coefficients: Floats
    center: Floats
    scale: Floats
    level: float = 1.0

    def predict(self, probability: Floats, log_revenue: Floats, whale_probability: Floats) -> Floats:
        """Expected capped revenue in USD, (n,), at most ``cap_usd``."""
        z = (_expected_inputs(probability, log_revenue, whale_probability) - self.center) / self.scale
        return np.minimum(self.level * np.exp(np.minimum(self.intercept + row_dot(z, self.coefficients), 50.0)), self.cap_usd)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "cap_usd": self.cap_usd,
            "tail_factor": self.tail_factor,
            "intercept": self.intercept,
            "coefficients": self.coefficients.tolist(),
            "center": self.center.tolist(),
            "scale": self.scale.tolist(),
            "level": self.level,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> ExpectedRevenue:
        """Inverse of ``to_dict``."""
        coefficients, center, scale = (np.asarray(state[k], dtype=np.float64) for k in ("coefficients", "center", "scale"))
        cap_usd, tail_factor, intercept, level = (float(state[k]) for k in ("cap_usd", "tail_factor", "intercept", "level"))
        return cls(cap_usd, tail_factor, intercept, coefficients, center, scale, level)


def _expected_inputs(probability: Floats, log_revenue: Floats, whale_probability: Floats) -> Floats:
    return np.column_stack([np.log(probability), log_revenue, np.log(np.clip(whale_probability, 1e-7, 1.0))])


def fit_expected_revenue(
    revenue: Floats, cap_usd: float, tail_factor: float, probability: Floats, log_revenue: Floats, whale_probability: Floats
) -> ExpectedRevenue:
    """Fit the head on out-of-fold inputs; revenue in USD, all arrays (n,)."""
    x = _expected_inputs(probability, log_revenue, whale_probability)
    center, scale = x.mean(axis=0), x.std(axis=0)
    # A constant input carries rounding dust as its spread; dividing by that would amplify noise.
    scale = np.where(scale > 1e-6, scale, 1.0)
    capped = np.minimum(revenue, cap_usd)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = PoissonRegressor(alpha=EXPECTED_PENALTY, solver="newton-cholesky", max_iter=100).fit((x - center) / scale, capped)
    head = ExpectedRevenue(cap_usd, tail_factor, float(model.intercept_), np.asarray(model.coef_, dtype=np.float64), center, scale)
    total = float(head.predict(probability, log_revenue, whale_probability).sum())
    correction = float(np.log(capped.sum() / total)) if total > 0 else 0.0  # only clipping at the cap moves this from 0
    return ExpectedRevenue(cap_usd, tail_factor, head.intercept + correction, head.coefficients, center, scale)


def head_name(names: Scores) -> str:
    """What the booster of payers is called in files and figures."""
    return f"head_{names.names[0]}"


@dataclass(eq=False)
class RevenueRegressor:
    """Result of the stage.

    ``names``: the horizons. ``increments``: by horizon beyond the shortest, absent when the window has no labels for it.
    ``rounds``: trees of every booster, for refits. ``oof`` (auxiliary rows): ``log_revenue_if_buyer``, ``reference_score``,
    ``expected_revenue``, and ``increment_d<days>`` of every longer horizon (0 where that head is absent).
    """

    head: TreeModel
    log_range: tuple[float, float]
    increments: dict[str, TreeModel]
    expected: ExpectedRevenue
    reference: TreeModel
    monotone_kept: bool
    rounds: dict[str, int]
    names: Scores
    oof: Arrays = field(default_factory=dict)
    diagnostics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Curves] = field(default_factory=dict)

    def log_revenue_if_buyer(self, matrix: Matrix) -> Floats:
        """E[log1p(revenue) given revenue > 0] within the shortest horizon, (n,), within what was ever paid."""
        return np.clip(self.head.predict(matrix.values), *self.log_range)

    def reference_score(self, matrix: Matrix) -> Floats:
        """log1p score of the pinned reference, (n,), at least 0."""
        return np.clip(self.reference.predict(matrix.values), 0.0, None)

    def increment(self, horizon: str, matrix: Matrix) -> Floats:
        """Non-negative log increment that leads to ``horizon`` from the one before, (n,); 0 when the head is absent."""
        model = self.increments.get(horizon)
        return np.zeros(len(matrix)) if model is None else np.clip(model.predict(matrix.values), 0.0, None)

    def to_files(self) -> Files:
        """Head, increments, reference and the expected-revenue coefficients."""
        meta = {
            "log_range": list(self.log_range),
            "increments": sorted(self.increments),
            "expected_revenue": self.expected.to_dict(),
            "monotone_kept": self.monotone_kept,
            "rounds": self.rounds,
            "horizons": list(self.names.horizons),
            "target": self.names.target,
            "diagnostics": self.diagnostics,
        }
        files = {
            **self.head.to_files(head_name(self.names)),
            **self.reference.to_files("reference"),
            "revenue_regressor.json": to_json(meta),
        }
        for horizon, model in self.increments.items():
            files |= model.to_files(f"increment_{horizon}")
        return files

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], oof: Arrays | None = None) -> RevenueRegressor:
        """Inverse of ``to_files``."""
        meta = from_json(files, "revenue_regressor.json")
        low, high = meta["log_range"]
        shipped = load_contract().scores  # a model that does not say its horizons was made when there were no others
        names = Scores(tuple(meta.get("horizons", shipped.horizons)), str(meta.get("target", shipped.target)))
        return cls(
            head=TreeModel.from_files(files, head_name(names)),
            log_range=(float(low), float(high)),
            increments={h: TreeModel.from_files(files, f"increment_{h}") for h in meta["increments"]},
            expected=ExpectedRevenue.from_dict(meta["expected_revenue"]),
            reference=TreeModel.from_files(files, "reference"),
            monotone_kept=bool(meta["monotone_kept"]),
            rounds={k: int(v) for k, v in meta["rounds"].items()},
            names=names,
            oof=dict(oof or {}),
            diagnostics=dict(meta["diagnostics"]),
        )


def fit_revenue_regressor(
    design: Design,
    plan: HhistusPlan | None,
    gating: BuyerGating,
    models: ModelsConfig,
    trainer: Trainer,
    evaluated: RevenueRegressor | None = None,
) -> RevenueRegressor:
    """Fit the stage.

    ``plan`` (rows of the window): HHISTUS; None keeps every payer with weight 1. ``gating`` supplies out-of-fold probabilities.
    ``evaluated``: reuse its tree counts and its verdict on the monotone constraints.
    """
    names, d7 = design.data.names, design.data.d7
    head_key = head_name(names)
    weight = (d7 > 0).astype(np.float32) if plan is None else plan.weight
    aux_weight = weight[design.auxiliary]
    paid = design.data.log_d7[d7 > 0]
    log_range = (float(paid.min()), float(paid.max()))
    curves: dict[str, Curves] = {}
    if evaluated is None:
        head_rounds, monotone_kept, curves[head_key] = _choose_head(design, aux_weight, models, trainer)
        rounds = {head_key: head_rounds}
        rounds["reference"], curves["reference"] = reference_rounds(design, trainer)
    else:
        rounds, monotone_kept = dict(evaluated.rounds), evaluated.monotone_kept

    def train_head(matrix: Matrix, log_revenue: Floats, weights: NDArray[Any], served: bool = False) -> TreeModel:
        params = _head_params(matrix, models, monotone_kept)
        return _train_payers(matrix, log_revenue, weights, params, rounds[head_key], trainer, served)

    def held_out(split: Split) -> Floats:
        rows = split.train_rows
        return train_head(split.train, design.aux.log_d7[rows], aux_weight[rows]).predict(split.held.values)

    head = train_head(design.train, design.data.log_d7, weight, served=True)
    mu = np.clip(design.out_of_fold(held_out), *log_range)
    reference = fit_reference(design, trainer, rounds["reference"])
    increments = _fit_increments(design, models.increments, trainer, rounds, curves, reuse=evaluated is not None)
    design.served_are_fitted()
    oof: Arrays = {
        "log_revenue_if_buyer": mu,
        "reference_score": np.clip(reference_out_of_fold(design, trainer, rounds["reference"]), 0.0, None),
    }
    for j, horizon in enumerate(design.data.names.names[1:], start=1):
        oof[f"increment_{horizon}"] = _increment_out_of_fold(design, j, horizon, models.increments, trainer, rounds)
    cap_usd, tail_factor = revenue_cap(d7, models.cap_quantile)
    inputs = (gating.oof["capped_probability"], mu, gating.oof["whale_probability"])
    expected = fit_expected_revenue(design.aux.d7, cap_usd, tail_factor, *inputs)
    oof["expected_revenue"] = expected.predict(*inputs)
    diagnostics = _diagnostics(design, oof, expected, increments, rounds)
    expected = replace(expected, level=gating.level_ratio)
    return RevenueRegressor(head, log_range, increments, expected, reference, monotone_kept, rounds, names, oof, diagnostics, curves)


def revenue_cap(d7: Floats, quantile: float) -> tuple[float, float]:
    """(cap_usd, raw sum / capped sum) over all labelled rows; with fewer payers than 1 - quantile the cap is the maximum."""
    cap = float(np.quantile(d7, quantile))
    if cap <= 0.0:
        cap = float(d7.max())
    return cap, float(d7.sum() / np.minimum(d7, cap).sum())


def _head_params(matrix: Matrix, models: ModelsConfig, monotone: bool) -> Params:
    params = booster_params(models.revenue_head, "regression")
    signs = [models.monotone.get(name, 0) for name in matrix.names]
    return params | {"monotone_constraints": signs} if monotone and any(signs) else params


def _choose_head(design: Design, weight: NDArray[Any], models: ModelsConfig, trainer: Trainer) -> tuple[int, bool, Curves]:
    """Trees, whether the monotone constraints stay, and curves: decided on the stopping rows' payers."""
    split, log_revenue = design.stopping, design.aux.log_d7
    free = _head_params(split.train, models, monotone=False)
    later = np.flatnonzero(log_revenue[split.held_rows] > 0)
    if len(later) < MIN_STOP_PAYERS or not weight[split.train_rows].any():
        return DEFAULT_HEAD_ROUNDS, False, {}
    own = np.flatnonzero(weight[split.train_rows] > 0)
    train, label, w = split.train.take(own), log_revenue[split.train_rows][own], weight[split.train_rows][own]
    start = float(np.average(label, weights=w))
    held, metrics = split.held.take(later), log_metrics(log_revenue[split.held_rows][later])

    def attempt(params: Params) -> tuple[int, Curves]:
        return trainer.choose_rounds(train, label, params, models.revenue_head, held, metrics, weight=w, start=start)

    rounds, curves = attempt(free)
    constrained = _head_params(split.train, models, monotone=True)
    if constrained == free:
        return rounds, False, curves
    constrained_rounds, constrained_curves = attempt(constrained)
    if min(constrained_curves["rmsle"]) <= min(curves["rmsle"]):
        return constrained_rounds, True, constrained_curves
    return rounds, False, curves


def _train_payers(
    matrix: Matrix, log_revenue: Floats, weight: NDArray[Any], params: Params, rounds: int, trainer: Trainer, served: bool = False
) -> TreeModel:
    """The head of the shortest horizon on the plan's payers; bins are made from payers, whose spread differs from everybody's."""
    kept = np.flatnonzero(weight > 0)
    if not len(kept):  # a fold without payers: nothing is known about amounts, the score is 0 because p is
        kept, weight, rounds = np.arange(1), np.ones(1), 1
    label, w = log_revenue[kept], weight[kept]
    return trainer.train(matrix.take(kept), label, params, rounds, weight=w, start=float(np.average(label, weights=w)), served=served)


def _fit_increments(
    design: Design, config: BoosterConfig, trainer: Trainer, rounds: dict[str, int], curves: dict[str, Curves], *, reuse: bool
) -> dict[str, TreeModel]:
    """Increment heads of the horizons that have labels; fills ``rounds`` and ``curves``."""
    params = booster_params(config, "regression")
    models: dict[str, TreeModel] = {}
    for j, horizon in enumerate(design.data.names.names[1:], start=1):
        name = f"increment_{horizon}"
        label = _log_increment(design.data.revenue, j)
        known = np.flatnonzero(np.isfinite(label))
        if design.reference_rows is not None:
            known = np.intersect1d(known, design.reference_rows, assume_unique=True)
        if not len(known) or (reuse and name not in rounds):
            continue
        if name not in rounds:
            rounds[name], curves[name] = _increment_rounds(design, j, params, config, trainer)
        label = label[known]
        models[horizon] = trainer.train(design.train, label, params, rounds[name], start=float(label.mean()), rows=known, served=True)
    return models


def _log_increment(revenue: Floats, j: int) -> Floats:
    """max(0, log1p(horizon j) - log1p(horizon j-1)), (n,); NaN where a label is missing."""
    return np.clip(np.log1p(revenue[:, j]) - np.log1p(revenue[:, j - 1]), 0.0, None)


def _increment_rounds(design: Design, j: int, params: Params, config: BoosterConfig, trainer: Trainer) -> tuple[int, Curves]:
    split, label = design.stopping, _log_increment(design.aux.revenue, j)
    own, later = label[split.train_rows], label[split.held_rows]
    known, later_known = np.flatnonzero(np.isfinite(own)), np.flatnonzero(np.isfinite(later))
    if not len(known) or not len(later_known):
        return DEFAULT_HEAD_ROUNDS, {}
    metrics = log_metrics(later[later_known])
    start = float(own[known].mean())
    held = split.held.take(later_known)
    return trainer.choose_rounds(split.train, own[known], params, config, held, metrics, start=start, rows=known)


def _increment_out_of_fold(
    design: Design, j: int, horizon: str, config: BoosterConfig, trainer: Trainer, rounds: Mapping[str, int]
) -> Floats:
    """Held-out increments (auxiliary rows), 0 when the head is absent or a fold has no labels for it."""
    name, params, label = f"increment_{horizon}", booster_params(config, "regression"), _log_increment(design.aux.revenue, j)
    if name not in rounds:
        return np.zeros(len(design.aux))

    def fit(split: Split) -> Floats:
        own = label[split.train_rows]
        known = np.flatnonzero(np.isfinite(own))
        if not len(known):
            return np.zeros(len(split.held))
        own = own[known]
        model = trainer.train(split.train, own, params, rounds[name], start=float(own.mean()), rows=known)
        return np.clip(model.predict(split.held.values), 0.0, None)

    return design.out_of_fold(fit)


def _diagnostics(
    design: Design, oof: Arrays, expected: ExpectedRevenue, increments: Mapping[str, TreeModel], rounds: Mapping[str, int]
) -> dict[str, float]:
    d7, log_d7 = design.aux.d7, design.aux.log_d7
    paid = d7 > 0
    return {
        "payers": float(paid.sum()),
        "payer_rmsle": float(np.sqrt(np.mean((oof["log_revenue_if_buyer"][paid] - log_d7[paid]) ** 2))) if paid.any() else 0.0,
        "reference_rmsle": float(np.sqrt(np.mean((oof["reference_score"] - log_d7) ** 2))),
        "expected_revenue_ratio": float(oof["expected_revenue"].sum() / max(np.minimum(d7, expected.cap_usd).sum(), 1e-12)),
        "cap_usd": expected.cap_usd,
        "tail_factor": expected.tail_factor,
        **{f"has_{h}": float(h in increments) for h in design.data.names.names[1:]},
        **{f"rounds_{name}": float(n) for name, n in rounds.items()},
    }
