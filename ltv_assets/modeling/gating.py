"""What may be said at most, and what is said to be zero.

What belongs here: the stage ``buyer_gating`` (cap, level of the payer rate, whale classifier and rule, the zero rate to be met and a
provisional cut-off) and the final gate, which the stacker's stage adds once final scores exist. What does not: how a level is followed
(``levels``), applying it all to rows (``scoring``). Next to read: ``regressor.py``.

Two steps, because they know different things. ``buyer_gating`` runs before any revenue is predicted: it fixes the cap, the
whale rule and *which share* of rows is to be zero, with a cut-off on the probability that would meet it. The cheapest rows
to gate are those with the smallest final ``score`` (the cost of a gate in MSLE is exactly ``mean(score^2 * 1{gated})``), and
that score exists only after the stacker; so ``score_gate.json`` holds the cut-off that is applied, together with the hashes
of every model it was fitted with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from ltv_assets.core.config import GatingConfig, ModelsConfig
from ltv_assets.core.errors import ModelFileError
from ltv_assets.modeling.boosting import Params, Trainer, TreeModel, booster_params, log_loss, log_odds, sigmoid
from ltv_assets.modeling.calibration import top_rows, upper_bound
from ltv_assets.modeling.classifier import Arrays, BuyerClassifier
from ltv_assets.modeling.dataset import Floats
from ltv_assets.modeling.design_matrix import Design, Matrix, Split
from ltv_assets.modeling.levels import Level, follow_level, on_window_level, shift_to, shifted
from ltv_assets.modeling.serialization import Files, digest, from_json, to_json

if TYPE_CHECKING:
    from ltv_assets.modeling.evaluated import Evaluated

SCHEMA_VERSION = 2
MIN_WHALES = 20
"""With fewer whales in the window there is nothing to learn: the whale probability is their share and no rule is made."""
MIN_FLAGGED = 20
"""A whale rule must flag at least this many out-of-fold rows to be trusted."""


@dataclass(eq=False)
class BuyerGating:
    """Result of the stage. ``whale_cutoff`` None: no rule. ``oof``: ``whale_probability``, ``capped_probability``.

    ``level_ratio``: payers at the followed level over payers at the window's, among rows alike: the factor of expected revenue.
    ``level_shift``: what is added to the log-odds of calibrated probabilities, so that their mean is the followed level.
    """

    window: dict[str, str]
    classifier_digest: str
    zero_rate: str
    cap: float
    level: Level
    level_ratio: float
    level_shift: float
    target_zero_rate: float
    probability_cutoff: float | None
    whale_usd: float
    whale_rate: float
    whale_model: TreeModel | None
    whale_cutoff: float | None
    rounds: int
    summary: dict[str, float]
    oof: Arrays = field(default_factory=dict)
    diagnostics: dict[str, float] = field(default_factory=dict)

    def at_level(self, probability: Floats) -> Floats:
        """Capped probabilities at the followed level, (n,)."""
        if not self.level_shift:
            return probability
        return np.minimum(shifted(probability, self.level_shift), self.cap)

    def whale_probability(self, matrix: Matrix) -> Floats:
        """P(revenue >= whale_usd), (n,)."""
        if self.whale_model is None:
            return np.full(len(matrix), self.whale_rate)
        return sigmoid(self.whale_model.predict(matrix.values))

    def likely_whale(self, whale_probability: Floats) -> NDArray[np.bool_]:
        """Rows that are never gated to zero, (n,)."""
        if self.whale_cutoff is None:
            return np.zeros(len(whale_probability), dtype=bool)
        return whale_probability >= self.whale_cutoff

    def to_files(self) -> Files:
        """The whale booster, ``buyer_threshold.json`` and ``buyer_gating.json``."""
        booster = {} if self.whale_model is None else self.whale_model.to_files("whale_booster")
        shared = {
            "schema_version": SCHEMA_VERSION,
            "window": self.window,
            "models": {"buyer_classifier": self.classifier_digest, "whale_classifier": digest(booster)},
        }
        threshold = {
            **shared,
            "zero_rate": self.zero_rate,
            "target_zero_rate": self.target_zero_rate,
            "probability_cutoff": self.probability_cutoff,
            "applied": "the score cut-off in the stacker's score_gate.json, fitted to target_zero_rate",
        }
        gating = {
            **shared,
            "probability_cap": self.cap,
            "level": {**self.level.to_dict(), "expected_revenue_factor": self.level_ratio, "log_odds_shift": self.level_shift},
            "probability_cutoff": self.probability_cutoff,
            "whale": {
                "revenue_usd": self.whale_usd,
                "rate": self.whale_rate,
                "probability_cutoff": self.whale_cutoff,
                "rounds": self.rounds,
            },
            **self.summary,
        }
        return {**booster, "buyer_threshold.json": to_json(threshold), "buyer_gating.json": to_json(gating)}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], oof: Arrays | None = None) -> BuyerGating:
        """Inverse of ``to_files``; raises ModelFileError when the two JSON files disagree or belong to another booster."""
        threshold, gating = from_json(files, "buyer_threshold.json"), from_json(files, "buyer_gating.json")
        for name, content in (("buyer_threshold.json", threshold), ("buyer_gating.json", gating)):
            if content.get("schema_version") != SCHEMA_VERSION:
                raise ModelFileError(
                    f"{name}: expected schema_version {SCHEMA_VERSION}, found {content.get('schema_version')}; train again"
                )
        booster = {name: content for name, content in files.items() if name.startswith("whale_booster")}
        if threshold["models"] != gating["models"] or threshold["window"] != gating["window"]:
            raise ModelFileError("buyer_threshold.json and buyer_gating.json belong to different models; materialize buyer_gating again")
        if gating["models"]["whale_classifier"] != digest(booster):
            raise ModelFileError(
                "buyer_gating.json: the whale classifier beside it is not the one it was fitted with; materialize it again"
            )
        whale = gating["whale"]
        known = {"schema_version", "window", "models", "probability_cap", "level", "probability_cutoff", "whale"}
        return cls(
            window=gating["window"],
            classifier_digest=gating["models"]["buyer_classifier"],
            zero_rate=threshold["zero_rate"],
            cap=float(gating["probability_cap"]),
            level=Level.from_dict(gating["level"]),
            level_ratio=float(gating["level"]["expected_revenue_factor"]),
            level_shift=float(gating["level"]["log_odds_shift"]),
            target_zero_rate=float(threshold["target_zero_rate"]),
            probability_cutoff=threshold["probability_cutoff"],
            whale_usd=float(whale["revenue_usd"]),
            whale_rate=float(whale["rate"]),
            whale_model=TreeModel.from_files(files, "whale_booster") if booster else None,
            whale_cutoff=whale["probability_cutoff"],
            rounds=int(whale["rounds"]),
            summary={k: v for k, v in gating.items() if k not in known},
            oof=dict(oof or {}),
        )


def fit_buyer_gating(
    design: Design,
    classifier: BuyerClassifier,
    models: ModelsConfig,
    whale_quantile: float,
    trainer: Trainer,
    evaluated: Evaluated | None = None,
) -> BuyerGating:
    """Fit the stage from the classifier's out-of-fold probabilities.

    ``whale_quantile``: payers from this quantile of revenue on are whales. ``evaluated`` (refits): its number of trees is reused, and its
    whale probabilities of rows that it did not see.
    """
    config = models.gating
    rows = design.held_out if evaluated is None else evaluated.rows
    payer = rows.payer
    probability = np.asarray(classifier.oof["buyer_probability"], dtype=np.float64)
    cap = probability_cap(probability, payer, config)
    capped = np.minimum(probability, cap)
    whale_usd = float(np.quantile(design.data.d7[design.data.d7 > 0], whale_quantile))
    model, whale_probability, rounds = _fit_whales(design, whale_usd, models, trainer, evaluated)
    whale_cutoff = None if model is None else _whale_cutoff(whale_probability, payer, config.whale_precision)
    follow = config.level == "follow"
    level = follow_level(design.data.payer, design.data.period, design.data.period_names, follow=follow)
    weight = level.row_weights(rows.period)
    served, ratio, shift = capped, 1.0, 0.0
    if follow:
        odds = on_window_level(np.asarray(classifier.oof["buyer_log_odds"], dtype=np.float64), payer, rows.folds)
        served = np.minimum(classifier.probability(odds), cap)
        if level.movement_sd > 0.0:
            ratio = float(level.rate / (weight @ served) / (payer.mean() / served.mean()))
        shift = shift_to(served, weight, level.rate)
        served = np.minimum(shifted(served, shift), cap)
    target = 1.0 - level.rate
    cutoff, summary = _provisional(served, payer, rows.log_d7, weight, target, config)
    diagnostics = {"probability_cap": cap, "target_zero_rate": target, **summary, "rounds": float(rounds)}
    diagnostics |= {**level.figures(), "level_ratio": ratio, "level_shift": shift}
    whale = (rows.d7 >= whale_usd).astype(np.float64)
    if 0 < whale.sum() < len(whale):
        diagnostics["whale_auc"] = float(roc_auc_score(whale, whale_probability))
    return BuyerGating(
        window={"first": design.data.period_names[0], "last": design.data.period_names[-1]},
        classifier_digest=digest(classifier.to_files()),
        zero_rate=config.zero_rate,
        cap=cap,
        level=level,
        level_ratio=ratio,
        level_shift=shift,
        target_zero_rate=target,
        probability_cutoff=cutoff,
        whale_usd=whale_usd,
        whale_rate=float((design.data.d7 >= whale_usd).mean()),
        whale_model=model,
        whale_cutoff=whale_cutoff,
        rounds=rounds,
        summary=summary,
        oof={"whale_probability": whale_probability, "capped_probability": capped},
        diagnostics=diagnostics,
    )


def probability_cap(probability: Floats, payer: Floats, config: GatingConfig) -> float:
    """Upper confidence bound of the outcome rate in the top bin of out-of-fold probabilities."""
    top = top_rows(probability, config.cap_share, config.cap_min_rows)
    return upper_bound(float(payer[top].sum()), len(top), config.cap_confidence)


def _fit_whales(
    design: Design, whale_usd: float, models: ModelsConfig, trainer: Trainer, evaluated: Evaluated | None
) -> tuple[TreeModel | None, Floats, int]:
    """Whale booster, its out-of-fold probabilities and its trees; (None, the constant share, 0) with too few whales."""
    label = np.asarray(design.data.d7 >= whale_usd, dtype=np.float64)
    held_out = design.held_out if evaluated is None else evaluated.rows
    if label.sum() < MIN_WHALES or (evaluated is not None and evaluated.models.gating.whale_model is None):
        return None, np.full(len(held_out), float(label.mean())), 0
    params = booster_params(models.whale_classifier, "binary")
    if evaluated is None:
        split, aux_label = design.stopping, np.asarray(held_out.d7 >= whale_usd, dtype=np.float64)
        later, own = aux_label[split.held_rows], aux_label[split.train_rows]
        metrics = {"log_loss": lambda raw: log_loss(later, raw)}
        start = log_odds(float(own.mean()))
        part, own, w = design.few_zeros(own, design.auxiliary[split.train_rows])
        chosen = trainer.choose_rounds(
            split.train, own, params, models.whale_classifier, split.held, metrics, weight=w, start=start, rows=part
        )
        rounds, last = chosen.rounds, sigmoid(chosen.model.predict(split.held.values))
        oof = design.out_of_fold(lambda split: _held_out_whales(design, split, aux_label, params, rounds, trainer), last)
    else:
        rounds, oof = evaluated.models.gating.rounds, evaluated.oof["whale_probability"]
    start = log_odds(float(label.mean()))
    part, label, w = design.few_zeros(label[design.served_rows], design.served_rows, design.served_weight())
    model = trainer.train(design.train, label, params, rounds, weight=w, start=start, rows=part, served=True)
    return model, oof, rounds


def _held_out_whales(design: Design, split: Split, label: Floats, params: Params, rounds: int, trainer: Trainer) -> Floats:
    own = label[split.train_rows]
    start = log_odds(float(own.mean()))
    part, own, w = design.few_zeros(own, design.auxiliary[split.train_rows])
    return sigmoid(trainer.train(split.train, own, params, rounds, weight=w, start=start, rows=part).predict(split.held.values))


def _whale_cutoff(whale_probability: Floats, payer: Floats, precision: float) -> float | None:
    """Lowest whale probability from which on at least ``precision`` of the out-of-fold rows pay; None if there is none."""
    order = np.argsort(-whale_probability, kind="stable")
    share = np.cumsum(payer[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero(share[MIN_FLAGGED - 1 :] >= precision)
    return float(whale_probability[order[good[-1] + MIN_FLAGGED - 1]]) if len(good) else None


def _provisional(
    probability: Floats, payer: Floats, log_revenue: Floats, weight: Floats, target: float, config: GatingConfig
) -> tuple[float | None, dict[str, float]]:
    """Probability cut-off that meets the target on rows weighted by how far their day is followed, with its figures.

    The score of a row at this stage is probability x mean log revenue of payers; its gate's cost is in MSLE.
    """
    observed = float(1.0 - weight @ payer)
    if config.zero_rate == "off":
        return None, {"observed_zero_rate": observed, "predicted_zero_rate": 0.0, "gate_cost_msle": 0.0}
    order = np.argsort(probability, kind="stable")
    cutoff = float(probability[order[min(_matching_count(weight[order], target), len(order) - 1)]])
    gated = probability < cutoff
    score = probability * float(log_revenue[payer > 0].mean())
    return cutoff, {
        "observed_zero_rate": observed,
        "predicted_zero_rate": float(weight @ gated),
        "gate_cost_msle": float(weight @ (score**2 * gated)),
    }


def _matching_count(weight: Floats, target: float) -> int:
    """How many of the first rows have together the weight nearest to ``target``."""
    reached = np.concatenate([[0.0], np.cumsum(weight)])
    count = int(np.searchsorted(reached, target))
    return count - 1 if count == len(reached) or (count and target - reached[count - 1] < reached[count] - target) else count


@dataclass(frozen=True)
class ScoreGate:
    """The gate that is applied: ``score < cutoff``, ties at the cut-off by ``tie_breaker < tie_cutoff``, never a likely whale.

    ``whale_factor`` multiplies the score of likely whales. ``cutoff`` None: no gate.
    """

    cutoff: float | None
    tie_cutoff: float
    whale_factor: float
    target_zero_rate: float
    summary: dict[str, float]

    def is_zero(self, score: Floats, tie_breaker: Floats, likely_whale: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The verdict for each row, (n,)."""
        if self.cutoff is None:
            return np.zeros(len(score), dtype=bool)
        below = (score < self.cutoff) | ((score == self.cutoff) & (tie_breaker < self.tie_cutoff))
        return below & ~likely_whale

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "score_cutoff": self.cutoff,
            "tie_cutoff": self.tie_cutoff,
            "whale_factor": self.whale_factor,
            "target_zero_rate": self.target_zero_rate,
            "summary": self.summary,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> ScoreGate:
        """Inverse of ``to_dict``."""
        return cls(
            None if state["score_cutoff"] is None else float(state["score_cutoff"]),
            float(state["tie_cutoff"]),
            float(state["whale_factor"]),
            float(state["target_zero_rate"]),
            dict(state["summary"]),
        )


def fit_score_gate(
    score: Floats, tie_breaker: Floats, likely_whale: NDArray[np.bool_], log_revenue: Floats, weight: Floats, gating: BuyerGating
) -> ScoreGate:
    """The gate on final scores that meets ``gating.target_zero_rate`` on weighted out-of-fold rows.

    score, tie_breaker (the raw log-odds), likely_whale, log_revenue, weight (sum 1): aligned out-of-fold rows; scores from one level.
    """
    factor = _whale_factor(score, log_revenue, likely_whale)
    s = np.where(likely_whale, score * factor, score)
    cutoff, tie_cutoff = None, 0.0
    if gating.zero_rate == "match":
        cutoff, tie_cutoff = _matching_cutoff(s, tie_breaker, likely_whale, weight, gating.target_zero_rate)
    gate = ScoreGate(cutoff, tie_cutoff, factor, gating.target_zero_rate, {})
    zero = gate.is_zero(s, tie_breaker, likely_whale)
    summary = {
        "observed_zero_rate": float(weight @ (log_revenue == 0)),
        "predicted_zero_rate": float(weight @ zero),
        "gate_cost_msle": float(weight @ (s**2 * zero)),
        "rmsle_ungated": float(np.sqrt(weight @ (s - log_revenue) ** 2)),
        "rmsle_gated": float(np.sqrt(weight @ (np.where(zero, 0.0, s) - log_revenue) ** 2)),
    }
    return ScoreGate(cutoff, tie_cutoff, factor, gating.target_zero_rate, summary)


def _matching_cutoff(
    score: Floats, tie_breaker: Floats, likely_whale: NDArray[np.bool_], weight: Floats, target: float
) -> tuple[float, float]:
    """Cut-offs below which rows of the wanted weight lie; whales do not count as gated, so others are gated in their place."""
    candidates = np.flatnonzero(~likely_whale)
    order = candidates[np.lexsort((tie_breaker[candidates], score[candidates]))]
    wanted = _matching_count(weight[order], target)
    if wanted >= len(order):
        return (float(np.nextafter(score[order[-1]], np.inf)) if len(order) else 0.0), 0.0
    first_open = order[wanted]
    return float(score[first_open]), float(tie_breaker[first_open])


def _whale_factor(score: Floats, log_revenue: Floats, likely_whale: NDArray[np.bool_]) -> float:
    """Least-squares factor of likely whales' scores, shrunk to 1 by as much evidence as MIN_FLAGGED average rows carry.

    1 unless the factor's gain in squared error is beyond two standard errors: it is measured on the rows it was fitted to.
    """
    s, y = score[likely_whale], log_revenue[likely_whale]
    if len(s) == 0 or not s.any():
        return 1.0
    prior = MIN_FLAGGED * float(np.mean(s**2))
    factor = float((s @ y + prior) / (s @ s + prior))
    gain = (s - y) ** 2 - (factor * s - y) ** 2
    return factor if gain.mean() > 2.0 * gain.std() / np.sqrt(len(gain)) else 1.0
