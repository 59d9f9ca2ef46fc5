"""The final score: a LightGBM meta learner that starts at the best non-negative blend of the components.

What belongs here: the stage ``stacker``: caps of components, the blend, the meta learner, the decision whether it is kept,
and the gate on final scores. What does not: the components themselves (``components``). Next to read: ``scoring``.

The pinned reference is among the components, so the blend can only lose to it by noise. On the time-last fold, whose
components have seen nothing but the past, three candidates are compared: meta learner, blend, and best single component
(see ``winner``). The files say which is served and what each lost.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from ltv_assets.core.config import ModelsConfig
from ltv_assets.core.errors import ModelFileError
from ltv_assets.modeling.base_learners import COMPONENTS, BaseLearners, BaseSettings, base_out_of_fold, choose_base_settings, fit_base
from ltv_assets.modeling.boosting import Params, Trainer, TreeModel, booster_params, row_dot
from ltv_assets.modeling.classifier import Arrays, BuyerClassifier
from ltv_assets.modeling.dataset import Floats
from ltv_assets.modeling.design_matrix import Design, Matrix
from ltv_assets.modeling.gating import SCHEMA_VERSION, BuyerGating, ScoreGate, fit_score_gate
from ltv_assets.modeling.levels import scores_on_window_level
from ltv_assets.modeling.linear import Penalties
from ltv_assets.modeling.regressor import RevenueRegressor
from ltv_assets.modeling.serialization import Files, digest, from_json, to_json

Kind = Literal["meta", "blend", "component"]


@dataclass(frozen=True)
class Signals:
    """What earlier stages say about rows; arrays (n,)."""

    probability: Floats
    log_odds: Floats
    log_revenue: Floats
    whale: Floats
    reference: Floats
    increments: Floats

    @property
    def two_part(self) -> Floats:
        """probability x log revenue: the score without a stacker."""
        return self.probability * self.log_revenue


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


@dataclass(eq=False)
class Stacker:
    """Result of the stage.

    ``kind``: what is served; ``component``: the single component when kind is "component". ``oof`` (auxiliary rows): ``score``
    (final, before the whale factor), ``component_<name>``. ``gate``: the gate that is applied, with the digests it belongs to.
    """

    kind: Kind
    component: str
    blend: Blend | None
    base: BaseLearners | None
    meta: TreeModel | None
    context: tuple[int, ...]
    settings: BaseSettings | None
    meta_rounds: int
    log_max: float
    gate: ScoreGate
    belongs_to: dict[str, str]
    window: dict[str, str]
    oof: Arrays = field(default_factory=dict)
    diagnostics: dict[str, float] = field(default_factory=dict)

    def score(self, signals: Signals, matrix: Matrix) -> Floats:
        """Final score in log1p USD (n,), within [0, largest log1p revenue]."""
        components = self._components(signals, matrix)
        if self.kind == "component":
            score = components[:, COMPONENTS.index(self.component)] if self.base is not None else signals.two_part
        else:
            score = cast(Blend, self.blend).predict(components)
            if self.kind == "meta":
                features = meta_features(components, signals, matrix.values[:, list(self.context)], cast(Blend, self.blend))
                score = cast(TreeModel, self.meta).predict(features, start=score)
        return np.clip(score, 0.0, self.log_max)

    def _components(self, signals: Signals, matrix: Matrix) -> Floats:
        staged = np.column_stack([signals.two_part, signals.reference])
        return staged if self.base is None else np.column_stack([staged, self.base.scores(matrix, self._wanted)])

    @property
    def _wanted(self) -> Collection[str]:
        """Components that the served kind looks at."""
        if self.kind == "meta":
            return COMPONENTS
        if self.kind == "component":
            return (self.component,)
        return [name for name, weight in zip(COMPONENTS, cast(Blend, self.blend).weights, strict=True) if weight]

    def to_files(self) -> Files:
        """Base learners, meta learner, ``stacker.json`` and ``score_gate.json``."""
        models = self._model_files()
        gate = {"schema_version": SCHEMA_VERSION, "window": self.window, "models": self.belongs_to, **self.gate.to_dict()}
        return {**models, "score_gate.json": to_json(gate)}

    def _model_files(self) -> Files:
        files: Files = {}
        if self.base is not None:
            files |= self.base.to_files()
        if self.meta is not None:
            files |= self.meta.to_files("meta")
        settings = self.settings and {
            "c": self.settings.penalties.c,
            "alpha_payers": self.settings.penalties.alpha_payers,
            "alpha_direct": self.settings.penalties.alpha_direct,
            "boosting_rounds": self.settings.boosting_rounds,
            "additive_rounds": self.settings.additive_rounds,
        }
        blend = self.blend and {"caps": self.blend.caps.tolist(), "weights": self.blend.weights.tolist(), "constant": self.blend.constant}
        meta = {
            "kind": self.kind,
            "component": self.component,
            "components": list(COMPONENTS),
            "blend": blend,
            "context": list(self.context),
            "settings": settings,
            "meta_rounds": self.meta_rounds,
            "log_max": self.log_max,
            "diagnostics": self.diagnostics,
        }
        return files | {"stacker.json": to_json(meta)}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], oof: Arrays | None = None) -> Stacker:
        """Inverse of ``to_files``; raises ModelFileError when ``score_gate.json`` belongs to another stacker."""
        state, gate = from_json(files, "stacker.json"), from_json(files, "score_gate.json")
        if gate.get("schema_version") != SCHEMA_VERSION:
            raise ModelFileError(
                f"score_gate.json: expected schema_version {SCHEMA_VERSION}, found {gate.get('schema_version')}; train again"
            )
        own = digest({name: content for name, content in files.items() if name != "score_gate.json"})
        if gate["models"]["stacker"] != own:
            raise ModelFileError("score_gate.json: fitted with another stacker than the one beside it; materialize the stacker again")
        blend, s = state["blend"], state["settings"]
        return cls(
            kind=state["kind"],
            component=state["component"],
            blend=blend and Blend(np.asarray(blend["caps"]), np.asarray(blend["weights"]), float(blend["constant"])),
            base=BaseLearners.from_files(files) if "linear.json" in files else None,
            meta=TreeModel.from_files(files, "meta") if "meta.json" in files else None,
            context=tuple(int(i) for i in state["context"]),
            settings=s
            and BaseSettings(Penalties(s["c"], s["alpha_payers"], s["alpha_direct"]), int(s["boosting_rounds"]), int(s["additive_rounds"])),
            meta_rounds=int(state["meta_rounds"]),
            log_max=float(state["log_max"]),
            gate=ScoreGate.from_dict(gate),
            belongs_to=dict(gate["models"]),
            window=dict(gate["window"]),
            oof=dict(oof or {}),
            diagnostics=dict(state["diagnostics"]),
        )


def meta_features(components: Floats, signals: Signals, context: NDArray[Any], blend: Blend) -> NDArray[np.float32]:
    """Inputs of the meta learner (n, c + 7 + contexts): capped components, signals of earlier stages, context columns."""
    return np.ascontiguousarray(
        np.column_stack(
            [
                blend.capped(components),
                blend.predict(components),
                signals.probability,
                signals.log_revenue,
                signals.whale,
                signals.log_odds,
                signals.increments,
                context,
            ]
        ),
        dtype=np.float32,
    )


def staged_digests(classifier: BuyerClassifier, gating: BuyerGating, regressor: RevenueRegressor) -> dict[str, str]:
    """Digests of the stages a final gate belongs to; ``buyer_gating`` covers both of its JSON files."""
    return {
        "buyer_classifier": digest(classifier.to_files()),
        "buyer_gating": digest(gating.to_files()),
        "revenue_regressor": digest(regressor.to_files()),
    }


def out_of_fold_signals(classifier: BuyerClassifier, gating: BuyerGating, regressor: RevenueRegressor) -> Signals:
    """The earlier stages' out-of-fold arrays as one object."""
    return Signals(
        probability=np.asarray(gating.oof["capped_probability"], dtype=np.float64),
        log_odds=np.asarray(classifier.oof["buyer_log_odds"], dtype=np.float64),
        log_revenue=np.asarray(regressor.oof["log_revenue_if_buyer"], dtype=np.float64),
        whale=np.asarray(gating.oof["whale_probability"], dtype=np.float64),
        reference=np.asarray(regressor.oof["reference_score"], dtype=np.float64),
        increments=np.column_stack([regressor.oof["increment_d14"], regressor.oof["increment_d28"]]),
    )


@dataclass(frozen=True)
class _Table:
    """Out-of-fold rows as the meta learner sees them."""

    components: Floats
    signals: Signals
    context: NDArray[np.float32]
    log_revenue: Floats

    def features(self, blend: Blend) -> NDArray[np.float32]:
        return meta_features(self.components, self.signals, self.context, blend)


def fit_stacker(
    design: Design,
    classifier: BuyerClassifier,
    gating: BuyerGating,
    regressor: RevenueRegressor,
    models: ModelsConfig,
    trainer: Trainer,
    evaluated: Stacker | None = None,
) -> Stacker:
    """Fit the stage; ``evaluated``: reuse its settings, tree counts and decision (a refit has no unseen day to decide on)."""
    signals = out_of_fold_signals(classifier, gating, regressor)
    log_revenue = design.aux.log_d7
    log_max = float(log_revenue.max())
    digests = staged_digests(classifier, gating, regressor)
    window = {"first": design.data.period_names[0], "last": design.data.period_names[-1]}
    if not models.stacker.enabled:
        signals = replace(signals, probability=gating.at_level(signals.probability))
        score = np.clip(signals.two_part, 0.0, log_max)
        gate = _gate(design, score, signals, gating, models)
        empty = Stacker("component", "two_part", None, None, None, (), None, 0, log_max, gate, {}, window, {"score": score})
        return _sealed(empty, digests)
    last_linear = None
    if evaluated and evaluated.settings:
        settings = evaluated.settings
    else:
        settings, last_linear = choose_base_settings(design, models, trainer)
    base_scores = base_out_of_fold(design, models, settings, trainer, last_linear)
    base = fit_base(design.aux_train, log_revenue, models, settings, trainer)
    context_names = _context_names(regressor, design, models.stacker.context_features)
    context = tuple(design.train.names.index(name) for name in context_names)
    table = _Table(
        np.column_stack([signals.two_part, signals.reference, base_scores]),
        signals,
        np.asarray(design.out_of_fold(lambda s: _columns(s.held, context_names).astype(np.float64)), dtype=np.float32),
        log_revenue,
    )
    if evaluated is None:
        meta_rounds = _meta_rounds(design, table, models, trainer)
        kind, component, diagnostics = _decide(design, table, models, trainer, meta_rounds)
    else:
        meta_rounds, kind, component, diagnostics = evaluated.meta_rounds, evaluated.kind, evaluated.component, dict(evaluated.diagnostics)
    blend, meta = _fit_meta(table, np.arange(len(log_revenue)), models, trainer, meta_rounds, kind)
    score = np.clip(_cross_fitted_score(design, table, models, trainer, meta_rounds, kind, component), 0.0, log_max)
    gate = _gate(design, score, signals, gating, models, None if kind == "component" else blend.predict(table.components))
    oof: Arrays = {"score": score} | {f"component_{n}": table.components[:, i] for i, n in enumerate(COMPONENTS)}
    diagnostics |= {f"weight_{n}": float(w) for n, w in zip(COMPONENTS, blend.weights, strict=True)} | {"constant": blend.constant}
    diagnostics["rmsle"] = float(np.sqrt(np.mean((score - log_revenue) ** 2)))
    stacker = Stacker(kind, component, blend, base, meta, context, settings, meta_rounds, log_max, gate, {}, window, oof, diagnostics)
    return _sealed(stacker, digests)


def _sealed(stacker: Stacker, digests: dict[str, str]) -> Stacker:
    stacker.belongs_to = digests | {"stacker": digest(stacker._model_files())}
    return stacker


def _gate(
    design: Design, score: Floats, signals: Signals, gating: BuyerGating, models: ModelsConfig, blended: Floats | None = None
) -> ScoreGate:
    whale = gating.likely_whale(signals.whale)
    if models.gating.level == "follow":
        score = scores_on_window_level(score, design.aux.log_d7, design.folds, blended)
    weight = gating.level.row_weights(design.aux.period)
    return fit_score_gate(score, signals.log_odds, whale, design.aux.log_d7, weight, gating)


def _context_names(regressor: RevenueRegressor, design: Design, count: int) -> list[str]:
    """Columns with the largest gain in the reference, among those every fold has: recency, place, device, past spend."""
    importance = regressor.reference.importance()
    shared = set(importance).intersection(*(design.fold(k).train.names for k in range(design.folds.n_folds)))
    best = set(sorted(shared, key=lambda name: (-importance[name]["gain"], name))[:count])
    return [name for name in design.train.names if name in best]


def _columns(matrix: Matrix, names: Sequence[str]) -> NDArray[np.float32]:
    return matrix.values[:, [matrix.names.index(name) for name in names]]


def _meta_params(models: ModelsConfig, rows: int) -> Params:
    config = models.stacker.booster
    return booster_params(config, "regression") | {"min_data_in_leaf": max(2, min(config.min_data_in_leaf, rows // 20))}


def _meta_matrix(features: NDArray[np.float32]) -> Matrix:
    return Matrix(features, tuple(f"m{i}" for i in range(features.shape[1])), (), max_bin=63)


def _meta_rounds(design: Design, table: _Table, models: ModelsConfig, trainer: Trainer) -> int:
    """Trees of the meta learner: fitted on the earlier, stopped on the later part of what precedes the last fold."""
    rows, later = design.folds.earlier_split()
    y = table.log_revenue
    blend = fit_blend(table.components[rows], y[rows])
    features, start = table.features(blend), blend.predict(table.components)
    metrics = {"mse": lambda raw: float(np.mean((raw - y[later]) ** 2))}
    rounds, _ = trainer.choose_rounds(
        _meta_matrix(features[rows]),
        y[rows],
        _meta_params(models, len(rows)),
        models.stacker.booster,
        _meta_matrix(features[later]),
        metrics,
        start=start[rows],
        later_start=start[later],
    )
    return rounds


def _fit_meta(
    table: _Table, rows: NDArray[np.int64], models: ModelsConfig, trainer: Trainer, rounds: int, kind: Kind
) -> tuple[Blend, TreeModel | None]:
    y = table.log_revenue[rows]
    blend = fit_blend(table.components[rows], y)
    if kind != "meta":
        return blend, None
    features, start = table.features(blend)[rows], blend.predict(table.components[rows])
    return blend, trainer.train(_meta_matrix(features), y, _meta_params(models, len(rows)), rounds, start=start)


def _predict(table: _Table, rows: NDArray[np.int64], blend: Blend, meta: TreeModel | None) -> Floats:
    score = blend.predict(table.components[rows])
    return score if meta is None else meta.predict(table.features(blend)[rows], start=score)


def _decide(design: Design, table: _Table, models: ModelsConfig, trainer: Trainer, rounds: int) -> tuple[Kind, str, dict[str, float]]:
    """Compare meta learner, blend and components on the last fold; MSE of each is reported.

    The best single component is named by all earlier rows, so that it does not profit from being the best of many here.
    """
    earlier, last = np.flatnonzero(~design.folds.last_fold), np.flatnonzero(design.folds.last_fold)
    y = table.log_revenue
    past = {n: float(np.mean((table.components[earlier, i] - y[earlier]) ** 2)) for i, n in enumerate(COMPONENTS)}
    component = min(past, key=lambda n: past[n])
    blend, meta = _fit_meta(table, earlier, models, trainer, rounds, "meta")
    losses: dict[Kind, float] = {
        "meta": float(np.mean((_predict(table, last, blend, meta) - y[last]) ** 2)),
        "blend": float(np.mean((blend.predict(table.components[last]) - y[last]) ** 2)),
        "component": float(np.mean((table.components[last, COMPONENTS.index(component)] - y[last]) ** 2)),
    }
    diagnostics = {f"last_fold_mse_{k}": v for k, v in losses.items()}
    diagnostics |= {f"last_fold_mse_{n}": float(np.mean((table.components[last, i] - y[last]) ** 2)) for i, n in enumerate(COMPONENTS)}
    single = table.components[last, COMPONENTS.index(component)]
    kind = winner(y[last], meta=_predict(table, last, blend, meta), blend=blend.predict(table.components[last]), component=single)
    return kind, component, diagnostics | {"meta_rounds": float(rounds), "served_meta": float(kind == "meta")}


FALLBACK_ERRORS = 3.0
"""Standard errors by which a single component must win to be served instead of the blend."""


def winner(log_revenue: Floats, *, meta: Floats, blend: Floats, component: Floats) -> Kind:
    """What is served, by the last fold; arrays (n,) in log1p USD.

    The meta learner has to beat the blend it starts from. The better of the two gives way to the best component only when
    that wins by more than FALLBACK_ERRORS standard errors of the paired difference: the blend averages out what single
    components get wrong, trees were counted on this very fold, and rows of the same users and days are no independent witnesses.
    """
    losses = {"meta": (meta - log_revenue) ** 2, "blend": (blend - log_revenue) ** 2}
    kind: Kind = "meta" if losses["meta"].mean() < losses["blend"].mean() else "blend"
    difference = losses[kind] - (component - log_revenue) ** 2
    return "component" if difference.mean() > FALLBACK_ERRORS * difference.std() / np.sqrt(len(difference)) else kind


def _cross_fitted_score(
    design: Design, table: _Table, models: ModelsConfig, trainer: Trainer, rounds: int, kind: Kind, component: str
) -> Floats:
    """Final scores of the auxiliary rows, each by a meta learner that saw no row of its fold."""
    if kind == "component":
        return table.components[:, COMPONENTS.index(component)]
    score = np.empty(len(table.log_revenue))
    for k in range(design.folds.n_folds):
        rows, own = design.folds.split(k)
        score[own] = _predict(table, own, *_fit_meta(table, rows, models, trainer, rounds, kind))
    return score
