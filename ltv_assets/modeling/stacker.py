"""The stage ``stacker``: base learners, blend, meta learner and the gate on final scores.

What belongs here: the stage's result, its files, its fit. What does not: the components (``base_learners.py``), the blend
(``blend.py``), the meta learner and the choice of what is served (``meta_learner.py``). Next to read: ``meta_learner.py``.

The pinned reference is among the components, so the blend can only lose to it by noise. The files say which of the
candidates is served and what each lost.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ltv_assets.core.config import ModelsConfig
from ltv_assets.core.errors import ModelFileError
from ltv_assets.modeling.base_learners import COMPONENTS, BaseLearners, BaseSettings, base_out_of_fold, choose_base_settings, fit_base
from ltv_assets.modeling.blend import Blend
from ltv_assets.modeling.boosting import Trainer, TreeModel
from ltv_assets.modeling.classifier import Arrays, BuyerClassifier
from ltv_assets.modeling.dataset import Floats
from ltv_assets.modeling.design_matrix import Design, Matrix
from ltv_assets.modeling.gating import SCHEMA_VERSION, BuyerGating, ScoreGate, fit_score_gate
from ltv_assets.modeling.levels import scores_on_window_level
from ltv_assets.modeling.linear import Penalties
from ltv_assets.modeling.meta_learner import (
    Kind,
    OutOfFoldTable,
    Signals,
    choose_meta_rounds,
    choose_served,
    cross_fitted_score,
    fit_meta,
    meta_features,
    stacked,
)
from ltv_assets.modeling.regressor import RevenueRegressor
from ltv_assets.modeling.serialization import Files, digest, from_json, to_json


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
        """Components that the served kind uses."""
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
        increments=stacked(
            len(regressor.oof["log_revenue_if_buyer"]), [regressor.oof[f"increment_{h}"] for h in regressor.names.names[1:]]
        ),
    )


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
    table = OutOfFoldTable(
        np.column_stack([signals.two_part, signals.reference, base_scores]),
        signals,
        np.asarray(design.out_of_fold(lambda s: _columns(s.held, context_names).astype(np.float64)), dtype=np.float32),
        log_revenue,
    )
    if evaluated is None:
        meta_rounds = choose_meta_rounds(design, table, models, trainer)
        kind, component, diagnostics = choose_served(design, table, models, trainer, meta_rounds)
    else:
        meta_rounds, kind, component, diagnostics = evaluated.meta_rounds, evaluated.kind, evaluated.component, dict(evaluated.diagnostics)
    blend, meta = fit_meta(table, np.arange(len(log_revenue)), models, trainer, meta_rounds, kind)
    score = np.clip(cross_fitted_score(design, table, models, trainer, meta_rounds, kind, component), 0.0, log_max)
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
