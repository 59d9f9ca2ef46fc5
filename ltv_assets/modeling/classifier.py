"""Who buys: a LightGBM classifier on the HistOS plan, corrected for its prior and calibrated at the natural rate.

What belongs here: the stage ``buyer_classifier``. What does not: caps and cut-offs (``gating``). Next to read: ``gating.py``.

A buyer is a row with revenue > 0, not one with a buyer flag: one flagged buyer in ten has no recorded revenue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from ltv_assets.core.config import CalibrationConfig, ModelsConfig
from ltv_assets.core.errors import DataError
from ltv_assets.modeling.boosting import Chosen, Curves, Params, Trainer, TreeModel, booster_params, log_loss, log_odds, sigmoid
from ltv_assets.modeling.calibration import Calibrator, Kind, choose_kind, fit_calibrator, prior_shift
from ltv_assets.modeling.dataset import Floats, Ints
from ltv_assets.modeling.design_matrix import Design, Matrix, Split
from ltv_assets.modeling.encoding.window_encoder import WindowEncoder
from ltv_assets.modeling.folds import HeldOutRows
from ltv_assets.modeling.serialization import Files, from_json, to_json

if TYPE_CHECKING:
    from ltv_assets.modeling.evaluated import Evaluated

MIN_LEVEL_ROWS = 200
"""With fewer rows in half a fold's training part the level is left as it is."""
MAX_LEVEL = 1.2
"""Largest correction of the final model's level; more would say that the folds tell nothing about it."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Growth:
    """How the level of a model's probabilities grows with the rows that taught it.

    A booster is too sure that rows unlike its own payers do not pay, the more so the fewer rows taught it. The calibrator is fitted on
    the folds' models and would leave the final model, taught by half as many rows again, a few per cent too high. The level is
    therefore measured at half of a fold's training rows as well, and extrapolated as ``level(n) = a - b / n``. Levels are relative to
    the payer rate among the rows that taught the model, which is what chance moves most.

    ``slope``: b in units of the folds' level; ``reciprocal``: mean 1 / n of the folds' models.
    """

    slope: float
    reciprocal: float

    def level(self, rows: int) -> float:
        """Level of a model taught by so many rows over that of the folds' models, 1 to MAX_LEVEL."""
        return float(np.clip(1.0 + self.slope * (self.reciprocal - 1.0 / rows), 1.0, MAX_LEVEL))


@dataclass(eq=False)
class BuyerClassifier:
    """Result of the stage. ``oof`` (auxiliary rows): ``buyer_log_odds`` (prior-corrected, uncalibrated) and
    ``buyer_probability`` (calibrated by a map fitted without the row's own fold). ``growth``: how its level grows with its rows.
    """

    encoder: WindowEncoder
    model: TreeModel
    shift: float
    calibrator: Calibrator
    rounds: int
    growth: Growth
    oof: Arrays = field(default_factory=dict)
    diagnostics: dict[str, float] = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)

    def log_odds(self, matrix: Matrix) -> Floats:
        """Prior-corrected, uncalibrated log-odds (n,)."""
        return self.model.predict(matrix.values) + self.shift

    def probability(self, log_odds: Floats) -> Floats:
        """Calibrated probability of revenue > 0 (n,)."""
        return self.calibrator.probability(log_odds)

    def to_files(self) -> Files:
        """Encoder, booster, calibrator: everything scoring needs of this stage."""
        meta = {
            "shift": self.shift,
            "rounds": self.rounds,
            "growth": asdict(self.growth),
            "calibrator": self.calibrator.to_dict(),
            "diagnostics": self.diagnostics,
        }
        return {
            **self.model.to_files("buyer_booster"),
            "buyer_classifier.json": to_json(meta),
            "encoder.json": to_json(self.encoder.to_dict()),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], oof: Arrays | None = None) -> BuyerClassifier:
        """Inverse of ``to_files``; pass the stored out-of-fold arrays when later stages are to be fitted."""
        meta = from_json(files, "buyer_classifier.json")
        return cls(
            encoder=WindowEncoder.from_dict(from_json(files, "encoder.json")),
            model=TreeModel.from_files(files, "buyer_booster"),
            shift=float(meta["shift"]),
            calibrator=Calibrator.from_dict(meta["calibrator"]),
            rounds=int(meta["rounds"]),
            growth=Growth(**meta["growth"]),
            oof=dict(oof or {}),
            diagnostics=dict(meta["diagnostics"]),
        )


def fit_buyer_classifier(
    design: Design, multiplicity: NDArray[Any] | None, models: ModelsConfig, trainer: Trainer, evaluated: Evaluated | None = None
) -> BuyerClassifier:
    """Fit the stage.

    ``multiplicity`` (rows of the window): the HistOS plan, None for natural weights. ``evaluated`` (refits): its number of trees and its
    kind of calibration are reused, the calibrator is fitted to its scores of rows that it did not see. None chooses the trees by the
    log-loss, at the natural rate, of the stopping rows.
    """
    params = booster_params(models.buyer_classifier, "binary")
    weight = None if multiplicity is None else np.asarray(multiplicity, dtype=np.float32)
    if weight is not None and len(weight) != len(design.data):
        raise DataError(f"the HistOS plan has {len(weight)} rows, the window {len(design.data)}: build the plan from the same days")
    curves: Curves = {}
    if evaluated is None:
        rows = design.held_out
        aux_weight = None if weight is None else weight[design.auxiliary]
        chosen, last = _choose_rounds(design, aux_weight, models, params, trainer)
        rounds, curves = chosen.rounds, chosen.curves
        odds = design.out_of_fold(lambda split: _held_out_odds(split, rows.payer, aux_weight, params, rounds, trainer), last)
        growth = _growth_of_level(design, odds, aux_weight, params, rounds, trainer)
        calibrator, probability, details = _calibrate(rows, odds, models.calibration)
    else:
        before, rows = evaluated.models.classifier, evaluated.rows
        rounds, growth = before.rounds, before.growth
        odds, probability = evaluated.oof["buyer_log_odds"], evaluated.oof["buyer_probability"]
        calibrator, details = _recalibrate(rows, odds, before.calibrator.kind, models.calibration)
    payer = design.data.payer
    model, _ = _fit_on(design.train, payer[design.served_rows], design.served_weight(weight), params, rounds, trainer, served=True)
    shift = 0.0 if weight is None else prior_shift(payer, weight)  # drawn zeros are weighed back, which shifts no prior
    level = growth.level(len(design.data))
    shift -= float(np.log(level))
    diagnostics = {**details, **_diagnostics(rows.payer, odds, probability), "rounds": float(rounds), "shift": shift, "level": level}
    diagnostics |= {
        "training_rows": float(len(design.data)),
        "served_rows": float(len(design.served_rows)),
        "zero_weight": 1.0 if design.served is None else 1.0 / design.served.share,
        "auxiliary_rows": float(len(design.auxiliary)),
        "features": float(len(design.train.names)),
    }
    oof: Arrays = {"buyer_log_odds": odds, "buyer_probability": probability}
    return BuyerClassifier(design.encoder, model, shift, calibrator, rounds, growth, oof, diagnostics, curves)


def _fit_on(
    matrix: Matrix,
    payer: Floats,
    weight: NDArray[Any] | None,
    params: Params,
    rounds: int,
    trainer: Trainer,
    *,
    part: Ints | None = None,
    served: bool = False,
) -> tuple[TreeModel, float]:
    """The booster and its prior shift; payer and weight are those of ``part`` (row numbers, None: all)."""
    start = log_odds(float(np.average(payer, weights=weight)))
    model = trainer.train(matrix, payer, params, rounds, weight=weight, start=start, rows=part, served=served)
    return model, 0.0 if weight is None else prior_shift(payer, weight)


def _held_out_odds(split: Split, payer: Floats, weight: NDArray[Any] | None, params: Params, rounds: int, trainer: Trainer) -> Floats:
    rows = split.train_rows
    model, shift = _fit_on(split.train, payer[rows], None if weight is None else weight[rows], params, rounds, trainer)
    return model.predict(split.held.values) + shift


def _growth_of_level(design: Design, odds: Floats, weight: NDArray[Any] | None, params: Params, rounds: int, trainer: Trainer) -> Growth:
    """Mean probability of unseen rows under half of a fold's rows, over that under all of them; see `Growth`.

    The half shares the fold's encodings and bins: what it is to show is the booster's, and new ones would cost more than it does.
    """
    folds, payer = design.folds, design.held_out.payer
    slopes, reciprocals = [], []
    for k in range(min(2, folds.n_folds)):
        rows, held = folds.split(k)
        first = np.sort(np.argsort(design.held_out.period[rows], kind="stable")[: len(rows) // 2])
        half = rows[first]
        if len(half) < MIN_LEVEL_ROWS or not payer[half].any():
            continue
        split = design.fold(k)
        model, shift = _fit_on(split.train, payer[half], None if weight is None else weight[half], params, rounds, trainer, part=first)
        less = sigmoid(model.predict(split.held.values) + shift).mean() / payer[half].mean()
        more = sigmoid(odds[held]).mean() / payer[rows].mean()
        slopes.append((1.0 - less / more) / (1.0 / len(half) - 1.0 / len(rows)))
        reciprocals.append(1.0 / len(rows))
    return Growth(float(np.mean(slopes)), float(np.mean(reciprocals))) if slopes else Growth(0.0, 0.0)


def _choose_rounds(
    design: Design, weight: NDArray[Any] | None, models: ModelsConfig, params: Params, trainer: Trainer
) -> tuple[Chosen, Floats]:
    """The number of trees, and log-odds of the stopping rows under so many."""
    split, payer = design.stopping, design.held_out.payer
    rows, later = split.train_rows, payer[split.held_rows]
    w = None if weight is None else weight[rows]
    shift = 0.0 if w is None else prior_shift(payer[rows], w)
    metrics = {"log_loss": lambda raw: log_loss(later, raw + shift)}
    start = log_odds(float(np.average(payer[rows], weights=w)))
    chosen = trainer.choose_rounds(split.train, payer[rows], params, models.buyer_classifier, split.held, metrics, weight=w, start=start)
    return chosen, chosen.model.predict(split.held.values) + shift


def _calibrate(rows: HeldOutRows, odds: Floats, config: CalibrationConfig) -> tuple[Calibrator, Floats, dict[str, float]]:
    """Calibrator for scoring, cross-fitted probabilities of the auxiliary rows, and how the choice was made.

    Rows of the last fold take no part: they stopped the boosters, so their log-odds belong to a tree count chosen on them.
    """
    folds, payer = rows.folds, rows.payer
    earlier, later = folds.earlier_split()
    kind, details = choose_kind(odds[earlier], payer[earlier], odds[later], payer[later], config)
    calibrator, isotonic = _recalibrate(rows, odds, kind, config)
    return calibrator, _cross_fitted(rows, odds, kind, config), details | isotonic


def _recalibrate(rows: HeldOutRows, odds: Floats, kind: Kind, config: CalibrationConfig) -> tuple[Calibrator, dict[str, float]]:
    usable = ~rows.folds.last_fold
    calibrator = fit_calibrator(kind, odds[usable], rows.payer[usable], config.min_payers)
    return calibrator, {"isotonic": float(calibrator.kind == "isotonic")}


def _cross_fitted(held_out: HeldOutRows, odds: Floats, kind: Kind, config: CalibrationConfig) -> Floats:
    folds, payer, usable = held_out.folds, held_out.payer, ~held_out.folds.last_fold
    probability = np.empty(len(odds))
    for k in range(folds.n_folds):
        own = folds.fold == k
        rest = usable & ~own if (usable & ~own).any() else ~own
        probability[own] = fit_calibrator(kind, odds[rest], payer[rest], config.min_payers).probability(odds[own])
    return probability


def _diagnostics(payer: Floats, odds: Floats, probability: Floats) -> dict[str, float]:
    """Out-of-fold AUC, PR-AUC, log-loss, and mean probability over payer rate."""
    rate = float(payer.mean())
    out = {
        "payer_rate": rate,
        "mean_probability_ratio": float(probability.mean() / rate) if rate else 0.0,
        "log_loss": log_loss(payer, np.log(probability / (1 - probability))),
    }
    if 0.0 < rate < 1.0:
        out |= {"auc": float(roc_auc_score(payer, odds)), "pr_auc": float(average_precision_score(payer, odds))}
    return out
