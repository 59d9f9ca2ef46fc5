"""Who buys: a LightGBM classifier on the HistOS plan, corrected for its prior and calibrated at the natural rate.

What belongs here: the stage ``buyer_classifier``. What does not: caps and cut-offs (``gating``). Next to read: ``gating``.

A buyer is a row with revenue > 0, not one with a buyer flag: one flagged buyer in ten has no recorded revenue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from ltv_assets.core.config import CalibrationConfig, ModelsConfig
from ltv_assets.core.errors import DataError
from ltv_assets.modeling.boosting import Curves, Params, Trainer, TreeModel, booster_params, log_loss, log_odds, sigmoid
from ltv_assets.modeling.calibration import Calibrator, Kind, choose_kind, fit_calibrator, prior_shift
from ltv_assets.modeling.dataset import Floats
from ltv_assets.modeling.design_matrix import Design, Matrix, Split
from ltv_assets.modeling.encoding.window_encoder import WindowEncoder
from ltv_assets.modeling.serialization import Files, from_json, to_json

MIN_LEVEL_ROWS = 200
"""With fewer rows in half a fold's training part the level is left as it is."""
MAX_LEVEL = 1.2
"""Largest correction of the final model's level; more would say that the folds tell nothing about it."""

Arrays = dict[str, NDArray[Any]]


@dataclass(eq=False)
class BuyerClassifier:
    """Result of the stage. ``oof`` (auxiliary rows): ``buyer_log_odds`` (prior-corrected, uncalibrated) and
    ``buyer_probability`` (calibrated by a map fitted without the row's own fold).
    """

    encoder: WindowEncoder
    model: TreeModel
    shift: float
    calibrator: Calibrator
    rounds: int
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
        meta = {"shift": self.shift, "rounds": self.rounds, "calibrator": self.calibrator.to_dict(), "diagnostics": self.diagnostics}
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
            oof=dict(oof or {}),
            diagnostics=dict(meta["diagnostics"]),
        )


def fit_buyer_classifier(
    design: Design, multiplicity: NDArray[Any] | None, models: ModelsConfig, trainer: Trainer, rounds: int | None = None
) -> BuyerClassifier:
    """Fit the stage.

    ``multiplicity`` (rows of the window): the HistOS plan, None for natural weights. ``rounds``: reuse this number of trees
    (refits); None chooses it by the log-loss, at the natural rate, of the stopping rows.
    """
    params = booster_params(models.buyer_classifier, "binary")
    weight = None if multiplicity is None else np.asarray(multiplicity, dtype=np.float32)
    if weight is not None and len(weight) != len(design.data):
        raise DataError(f"the HistOS plan has {len(weight)} rows, the window {len(design.data)}: build the plan from the same days")
    aux_weight = None if weight is None else weight[design.auxiliary]
    curves: Curves = {}
    if rounds is None:
        rounds, curves = _choose_rounds(design, aux_weight, models, params, trainer)
    model, shift = _fit_on(design.train, design.data.payer, weight, params, rounds, trainer, served=True)
    design.served_are_fitted()
    odds = design.out_of_fold(lambda split: _held_out_odds(split, design.aux.payer, aux_weight, params, rounds, trainer))
    level = _growth_of_level(design, odds, aux_weight, params, rounds, trainer)
    shift -= float(np.log(level))
    calibrator, probability, details = _calibrate(design, odds, models.calibration)
    diagnostics = {**details, **_diagnostics(design.aux.payer, odds, probability), "rounds": float(rounds), "shift": shift, "level": level}
    diagnostics |= {
        "training_rows": float(len(design.data)),
        "auxiliary_rows": float(len(design.auxiliary)),
        "features": float(len(design.train.names)),
    }
    oof: Arrays = {"buyer_log_odds": odds, "buyer_probability": probability}
    return BuyerClassifier(design.encoder, model, shift, calibrator, rounds, oof, diagnostics, curves)


def _fit_on(
    matrix: Matrix, payer: Floats, weight: NDArray[Any] | None, params: Params, rounds: int, trainer: Trainer, served: bool = False
) -> tuple[TreeModel, float]:
    start = log_odds(float(np.average(payer, weights=weight)))
    model = trainer.train(matrix, payer, params, rounds, weight=weight, start=start, served=served)
    return model, 0.0 if weight is None else prior_shift(payer, weight)


def _held_out_odds(split: Split, payer: Floats, weight: NDArray[Any] | None, params: Params, rounds: int, trainer: Trainer) -> Floats:
    rows = split.train_rows
    model, shift = _fit_on(split.train, payer[rows], None if weight is None else weight[rows], params, rounds, trainer)
    return model.predict(split.held.values) + shift


def _growth_of_level(design: Design, odds: Floats, weight: NDArray[Any] | None, params: Params, rounds: int, trainer: Trainer) -> float:
    """Mean probability of unseen rows under the final model, over that under the folds' models.

    A booster is too sure that rows unlike its own payers do not pay, the more so the fewer rows taught it: the level of
    its probabilities rises with its rows. The calibrator is fitted on the folds' models and would leave the final model,
    taught by half as many rows again, a few per cent too high. The level is therefore measured at half of a fold's
    training rows as well, and extrapolated as ``level(n) = a - b / n``. Levels are relative to the payer rate among the
    rows that taught the model, which is what chance moves most.
    """
    folds, payer = design.folds, design.aux.payer
    slopes, reciprocals = [], []
    for k in range(min(2, folds.n_folds)):
        rows, held = folds.split(k)
        half = rows[np.argsort(design.aux.period[rows], kind="stable")][: len(rows) // 2]
        if len(half) < MIN_LEVEL_ROWS or not payer[half].any():
            continue
        less = sigmoid(_held_out_odds(design.split(half, held), payer, weight, params, rounds, trainer)).mean() / payer[half].mean()
        more = sigmoid(odds[held]).mean() / payer[rows].mean()
        slopes.append((1.0 - less / more) / (1.0 / len(half) - 1.0 / len(rows)))
        reciprocals.append(1.0 / len(rows))
    if not slopes:
        return 1.0
    level = 1.0 + float(np.mean(slopes)) * (float(np.mean(reciprocals)) - 1.0 / len(design.data))
    return float(np.clip(level, 1.0, MAX_LEVEL))


def _choose_rounds(
    design: Design, weight: NDArray[Any] | None, models: ModelsConfig, params: Params, trainer: Trainer
) -> tuple[int, Curves]:
    split, payer = design.stopping, design.aux.payer
    rows, later = split.train_rows, payer[split.held_rows]
    w = None if weight is None else weight[rows]
    shift = 0.0 if w is None else prior_shift(payer[rows], w)
    metrics = {"log_loss": lambda raw: log_loss(later, raw + shift)}
    start = log_odds(float(np.average(payer[rows], weights=w)))
    return trainer.choose_rounds(split.train, payer[rows], params, models.buyer_classifier, split.held, metrics, weight=w, start=start)


def _calibrate(design: Design, odds: Floats, config: CalibrationConfig) -> tuple[Calibrator, Floats, dict[str, float]]:
    """Calibrator for scoring, cross-fitted probabilities of the auxiliary rows, and how the choice was made.

    Rows of the last fold take no part: they stopped the boosters, so their log-odds belong to a tree count chosen on them.
    """
    folds, payer = design.folds, design.aux.payer
    usable = ~folds.last_fold
    earlier, later = folds.earlier_split()
    kind, details = choose_kind(odds[earlier], payer[earlier], odds[later], payer[later], config)
    calibrator = fit_calibrator(kind, odds[usable], payer[usable], config.min_payers)
    return calibrator, _cross_fitted(design, odds, usable, kind, config), details | {"isotonic": float(calibrator.kind == "isotonic")}


def _cross_fitted(design: Design, odds: Floats, usable: NDArray[np.bool_], kind: Kind, config: CalibrationConfig) -> Floats:
    folds, payer = design.folds, design.aux.payer
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
