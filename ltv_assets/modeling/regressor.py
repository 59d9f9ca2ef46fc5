"""How much: revenue heads whose horizons cannot cross, and the one that adds up to money.

What belongs here: the stage ``revenue_regressor``: log1p of what payers spend within the shortest horizon, log increments
to the longer ones on all rows, the expected-revenue head, and the pinned reference on the same rows. What does not: the blend of
scores (``stacker``). Next to read: ``stacker.py``.

Inspired by the order-preserving network of Li et al. (CIKM 2022): the longer horizons add non-negative increments to the
shorter one's score, so no horizon is ever below a shorter one. Increments are fitted on *all* rows, because people who pay for
the first time after the shortest horizon are in there.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import PoissonRegressor

from ltv_assets.core.config import BoosterConfig, ModelsConfig
from ltv_assets.core.contract import Scores, load_contract
from ltv_assets.core.errors import ModelFileError
from ltv_assets.modeling.baseline import choose_reference, fit_reference
from ltv_assets.modeling.boosting import Chosen, Curves, Params, Trainer, TreeModel, booster_params, log_metrics, row_dot
from ltv_assets.modeling.classifier import Arrays
from ltv_assets.modeling.dataset import Floats
from ltv_assets.modeling.design_matrix import Design, Matrix, Split
from ltv_assets.modeling.folds import HeldOutRows
from ltv_assets.modeling.gating import BuyerGating
from ltv_assets.modeling.serialization import Files, from_json, to_json
from ltv_assets.sampling.hhistus import HhistusPlan

if TYPE_CHECKING:
    from ltv_assets.modeling.evaluated import Evaluated

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
    ``reference`` None: a refit that does not serve it. ``rounds``: trees of every booster, for refits. ``oof`` (auxiliary
    rows): ``log_revenue_if_buyer``, ``expected_revenue``, and
    ``reference_score`` (time-last fold only, NaN elsewhere).
    """

    head: TreeModel
    log_range: tuple[float, float]
    increments: dict[str, TreeModel]
    expected: ExpectedRevenue
    reference: TreeModel | None
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
        """log1p score of the pinned reference, (n,), at least 0. Raises ModelFileError for a refit, which has none."""
        if self.reference is None:
            raise ModelFileError("a refitted model has no reference, only the evaluated one is compared with it: ask that one")
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
        files = {**self.head.to_files(head_name(self.names)), "revenue_regressor.json": to_json(meta)}
        if self.reference is not None:
            files |= self.reference.to_files("reference")
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
            reference=TreeModel.from_files(files, "reference") if "reference.json" in files else None,
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
    evaluated: Evaluated | None = None,
) -> RevenueRegressor:
    """Fit the stage.

    ``plan`` (rows of the window): HHISTUS; None keeps every payer with weight 1. ``gating`` supplies out-of-fold probabilities.
    ``evaluated`` (refits): its tree counts and its verdict on the monotone constraints are reused, and its scores of rows that it did
    not see; the reference is fitted again only if that is what is served.
    """
    names, d7 = design.data.names, design.data.d7
    head_key = head_name(names)
    weight = (d7 > 0).astype(np.float32) if plan is None else plan.weight
    paid = design.data.log_d7[d7 > 0]
    log_range = (float(paid.min()), float(paid.max()))
    curves: dict[str, Curves] = {}
    oof: Arrays = {}
    if evaluated is None:
        rows, aux_weight = design.held_out, weight[design.auxiliary]
        head_rounds, monotone_kept, curves[head_key], last = _choose_head(design, aux_weight, models, trainer)
        bar = choose_reference(design, trainer)
        rounds, curves["reference"] = {head_key: head_rounds, "reference": bar.rounds}, bar.curves
        oof["reference_score"] = np.full(len(rows), np.nan)
        oof["reference_score"][design.stopping.held_rows] = np.clip(bar.model.predict(design.stopping.held.values), 0.0, None)
    else:
        before, rows = evaluated.models.regressor, evaluated.rows
        rounds, monotone_kept = dict(before.rounds), before.monotone_kept

    def train_head(matrix: Matrix, log_revenue: Floats, weights: NDArray[Any], served: bool = False) -> TreeModel:
        params = _head_params(matrix, models, monotone_kept)
        return _train_payers(matrix, log_revenue, weights, params, rounds[head_key], trainer, served)

    if evaluated is None:
        log_revenue = rows.log_d7

        def held_out(split: Split) -> Floats:
            own = split.train_rows
            return train_head(split.train, log_revenue[own], aux_weight[own]).predict(split.held.values)

        mu = design.out_of_fold(held_out, last)
    else:
        mu = evaluated.oof["log_revenue_if_buyer"]
    mu = oof["log_revenue_if_buyer"] = np.clip(mu, *log_range)
    head = train_head(design.train, design.data.log_d7[design.served_rows], weight[design.served_rows], served=True)
    wanted = evaluated is None or evaluated.models.stacker.serves_reference
    reference = fit_reference(design, trainer, rounds["reference"]) if wanted else None
    increments = _fit_increments(design, models.increments, trainer, rounds, curves, reuse=evaluated is not None)
    design.served_are_fitted()
    cap_usd, tail_factor = revenue_cap(d7, models.cap_quantile)
    inputs = (gating.oof["capped_probability"], mu, gating.oof["whale_probability"])
    expected = fit_expected_revenue(rows.d7, cap_usd, tail_factor, *inputs)
    oof["expected_revenue"] = expected.predict(*inputs)
    diagnostics = _diagnostics(rows, names, oof, expected, increments, rounds)
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


def _choose_head(design: Design, weight: NDArray[Any], models: ModelsConfig, trainer: Trainer) -> tuple[int, bool, Curves, Floats | None]:
    """Trees, whether the monotone constraints stay, curves, and scores of the stopping rows: decided on the stopping rows' payers."""
    split, log_revenue = design.stopping, design.held_out.log_d7
    free = _head_params(split.train, models, monotone=False)
    later = np.flatnonzero(log_revenue[split.held_rows] > 0)
    if len(later) < MIN_STOP_PAYERS or not weight[split.train_rows].any():
        return DEFAULT_HEAD_ROUNDS, False, {}, None
    own = np.flatnonzero(weight[split.train_rows] > 0)
    train, label, w = split.train.take(own), log_revenue[split.train_rows][own], weight[split.train_rows][own]
    start = float(np.average(label, weights=w))
    held, metrics = split.held.take(later), log_metrics(log_revenue[split.held_rows][later])

    def attempt(params: Params) -> Chosen:
        return trainer.choose_rounds(train, label, params, models.revenue_head, held, metrics, weight=w, start=start)

    chosen, kept = attempt(free), False
    constrained = _head_params(split.train, models, monotone=True)
    if constrained != free:
        signed = attempt(constrained)
        if min(signed.curves["rmsle"]) <= min(chosen.curves["rmsle"]):
            chosen, kept = signed, True
    return chosen.rounds, kept, chosen.curves, chosen.model.predict(split.held.values)


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
        label = _log_increment(design.data.revenue[design.served_rows], j)
        known = np.flatnonzero(np.isfinite(label))
        if design.reference_rows is not None:
            known = np.intersect1d(known, design.reference_rows, assume_unique=True)
        if not len(known) or (reuse and name not in rounds):
            continue
        if name not in rounds:
            rounds[name], curves[name] = _increment_rounds(design, j, params, config, trainer)
        weight = design.served_weight()
        drawn, label, w = design.few_zeros(label[known], design.served_rows[known], None if weight is None else weight[known])
        part = known if drawn is None else known[drawn]
        start = float(np.average(label, weights=w))
        models[horizon] = trainer.train(design.train, label, params, rounds[name], weight=w, start=start, rows=part, served=True)
    return models


def _log_increment(revenue: Floats, j: int) -> Floats:
    """max(0, log1p(horizon j) - log1p(horizon j-1)), (n,); NaN where a label is missing."""
    return np.clip(np.log1p(revenue[:, j]) - np.log1p(revenue[:, j - 1]), 0.0, None)


def _increment_rounds(design: Design, j: int, params: Params, config: BoosterConfig, trainer: Trainer) -> tuple[int, Curves]:
    split, label = design.stopping, _log_increment(design.data.revenue[design.auxiliary], j)
    own, later = label[split.train_rows], label[split.held_rows]
    known, later_known = np.flatnonzero(np.isfinite(own)), np.flatnonzero(np.isfinite(later))
    if not len(known) or not len(later_known):
        return DEFAULT_HEAD_ROUNDS, {}
    metrics = log_metrics(later[later_known])
    held = split.held.take(later_known)
    drawn, own, w = design.few_zeros(own[known], design.auxiliary[split.train_rows[known]])
    start, part = float(np.average(own, weights=w)), known if drawn is None else known[drawn]
    chosen = trainer.choose_rounds(split.train, own, params, config, held, metrics, weight=w, start=start, rows=part)
    return chosen.rounds, chosen.curves


def _diagnostics(
    rows: HeldOutRows, names: Scores, oof: Arrays, expected: ExpectedRevenue, increments: Mapping[str, TreeModel], rounds: Mapping[str, int]
) -> dict[str, float]:
    d7, log_d7 = rows.d7, rows.log_d7
    paid = d7 > 0
    figures = {
        "payers": float(paid.sum()),
        "payer_rmsle": float(np.sqrt(np.mean((oof["log_revenue_if_buyer"][paid] - log_d7[paid]) ** 2))) if paid.any() else 0.0,
        "expected_revenue_ratio": float(oof["expected_revenue"].sum() / max(np.minimum(d7, expected.cap_usd).sum(), 1e-12)),
        "cap_usd": expected.cap_usd,
        "tail_factor": expected.tail_factor,
        **{f"has_{h}": float(h in increments) for h in names.names[1:]},
        **{f"rounds_{name}": float(n) for name, n in rounds.items()},
    }
    if "reference_score" in oof:
        last = rows.folds.last_fold
        figures["reference_rmsle"] = float(np.sqrt(np.mean((oof["reference_score"][last] - log_d7[last]) ** 2)))
    return figures
