"""The stage ``stacker``: base learners, blend, meta learner and the gate on final scores.

What belongs here: the stage's result, its files, its fit. What does not: the components (``base_learners.py``), the blend
(``blend.py``), the meta learner and the choice of what is served (``meta_learner.py``). Next to read: ``meta_learner.py``.

The pinned reference is no component, which would cost its out-of-fold fits, a third of a window. It is compared instead: on the
time-last fold, which neither saw, and served itself if the stacker loses to it beyond noise. The files say which of the candidates
is served and what each lost.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from ltv_assets.core.config import ModelsConfig
from ltv_assets.core.errors import ModelFileError
from ltv_assets.modeling.base_learners import (
    BASE_COMPONENTS,
    COMPONENTS,
    REFERENCE,
    BaseLearners,
    BaseSettings,
    choose_base,
    fit_base,
)
from ltv_assets.modeling.baseline import reference_out_of_fold
from ltv_assets.modeling.blend import Blend
from ltv_assets.modeling.boosting import Trainer, TreeModel
from ltv_assets.modeling.classifier import Arrays, BuyerClassifier
from ltv_assets.modeling.dataset import Floats
from ltv_assets.modeling.design_matrix import Design, Matrix
from ltv_assets.modeling.folds import HeldOutRows
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
)
from ltv_assets.modeling.preprocessing import Steps
from ltv_assets.modeling.regressor import RevenueRegressor
from ltv_assets.modeling.serialization import Files, digest, from_json, to_json

if TYPE_CHECKING:
    from ltv_assets.modeling.evaluated import Evaluated


@dataclass(eq=False)
class Stacker:
    """Result of the stage.

    ``kind``: what is served; ``component``: the single component, or the reference, when kind is "component". ``oof`` (auxiliary
    rows): ``score`` (final, before the whale factor), ``component_<name>``, ``context_<column>``. ``gate``: the gate that is
    applied, with the digests it belongs to.
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

    def score(self, signals: Signals, matrix: Matrix, reference: Floats | None = None) -> Floats:
        """Final score in log1p USD (n,), within [0, largest log1p revenue]; ``reference``: its score, where ``serves_reference``."""
        if self.serves_reference:
            return np.clip(cast(Floats, reference), 0.0, self.log_max)
        return self.score_components(self.components(signals, matrix, self._wanted), signals, matrix)

    def score_components(self, components: Floats, signals: Signals, matrix: Matrix) -> Floats:
        """The same from `components` that hold every one that is wanted."""
        if self.kind == "component":
            score = components[:, COMPONENTS.index(self.component)]
        else:
            score = cast(Blend, self.blend).predict(components)
            if self.kind == "meta":
                features = meta_features(components, signals, matrix.values[:, list(self.context)], cast(Blend, self.blend))
                score = cast(TreeModel, self.meta).predict(features, start=score)
        return np.clip(score, 0.0, self.log_max)

    def components(self, signals: Signals, matrix: Matrix, wanted: Collection[str] = COMPONENTS) -> Floats:
        """Scores (n, c) in the order of COMPONENTS; 0 where a booster is skipped or not ``wanted``."""
        if self.base is None:
            return signals.two_part[:, None]
        base = self.base.scores(matrix, wanted)
        if self.settings is not None:
            base[:, [BASE_COMPONENTS.index(name) for name in self.settings.skipped]] = 0.0
        return np.column_stack([signals.two_part, base])

    @property
    def serves_reference(self) -> bool:
        """Whether the pinned reference itself is served."""
        return self.kind == "component" and self.component == REFERENCE

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
            "payers": self.settings.penalties.payers,
            "direct": self.settings.penalties.direct,
            "boosting_rounds": self.settings.boosting_rounds,
            "additive_rounds": self.settings.additive_rounds,
            "skipped": list(self.settings.skipped),
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
            and BaseSettings(
                Penalties(s["c"], s["payers"], s["direct"]),
                int(s["boosting_rounds"]),
                int(s["additive_rounds"]),
                tuple(s["skipped"]),
            ),
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
    )


def fit_stacker(
    design: Design,
    classifier: BuyerClassifier,
    gating: BuyerGating,
    regressor: RevenueRegressor,
    models: ModelsConfig,
    trainer: Trainer,
    evaluated: Evaluated | None = None,
) -> Stacker:
    """Fit the stage; ``evaluated`` (refits): its settings, tree counts and decision are reused, and its scores of rows it did not see."""
    signals = out_of_fold_signals(classifier, gating, regressor)
    rows = design.held_out if evaluated is None else evaluated.rows
    log_max = float(design.data.log_d7.max())
    digests = staged_digests(classifier, gating, regressor)
    window = {"first": design.data.period_names[0], "last": design.data.period_names[-1]}
    if not models.stacker.enabled:
        signals = replace(signals, probability=gating.at_level(signals.probability))
        score = np.clip(signals.two_part, 0.0, log_max)
        gate = _gate(rows, score, signals, gating, models)
        empty = Stacker("component", "two_part", None, None, None, (), None, 0, log_max, gate, {}, window, {"score": score})
        return _sealed(empty, digests)
    found = _stack(design, regressor, signals, models, trainer) if evaluated is None else _stacked_before(evaluated, signals)
    table = found.table
    base = fit_base(design.aux_train, design.held_out.log_d7, models, found.settings, trainer, steps=found.steps)
    blend, meta = fit_meta(table, np.arange(len(rows)), models, trainer, found.meta_rounds, found.kind)
    score = np.clip(found.score, 0.0, log_max)
    gate = _gate(rows, score, signals, gating, models, None if found.kind == "component" else blend.predict(table.components))
    oof: Arrays = {"score": score} | {f"component_{n}": table.components[:, i] for i, n in enumerate(COMPONENTS)}
    oof |= {f"context_{name}": table.context[:, i] for i, name in enumerate(found.context)}
    diagnostics = dict(found.diagnostics)
    diagnostics |= {f"weight_{n}": float(w) for n, w in zip(COMPONENTS, blend.weights, strict=True)} | {"constant": blend.constant}
    diagnostics |= {f"skipped_{n}": float(n in found.settings.skipped) for n in BASE_COMPONENTS}
    diagnostics["rmsle"] = float(np.sqrt(np.mean((score - rows.log_d7) ** 2)))
    stacker = Stacker(
        kind=found.kind,
        component=found.component,
        blend=blend,
        base=base,
        meta=meta,
        context=tuple(design.train.names.index(name) for name in found.context),
        settings=found.settings,
        meta_rounds=found.meta_rounds,
        log_max=log_max,
        gate=gate,
        belongs_to={},
        window=window,
        oof=oof,
        diagnostics=diagnostics,
    )
    return _sealed(stacker, digests)


@dataclass(frozen=True, eq=False)
class _Stack:
    """What is decided out of fold: settings, the table of the meta learner, what is served, and its out-of-fold scores.

    ``steps``: those of the final linear models; None looks for them.
    """

    settings: BaseSettings
    table: OutOfFoldTable
    context: list[str]
    kind: Kind
    component: str
    meta_rounds: int
    score: Floats
    diagnostics: dict[str, float]
    steps: Steps | None = None


def _stack(design: Design, regressor: RevenueRegressor, signals: Signals, models: ModelsConfig, trainer: Trainer) -> _Stack:
    rows, held = design.held_out, design.stopping.held_rows
    settings, base_scores = choose_base(design, models, trainer, signals.two_part[held])
    names = _context_names(regressor, design, models.stacker.context_features)
    context = np.asarray(design.out_of_fold(lambda s: _columns(s.held, names).astype(np.float64)), dtype=np.float32)
    table = OutOfFoldTable(np.column_stack([signals.two_part, base_scores]), signals, context, rows.log_d7, rows.folds)
    reference = np.asarray(regressor.oof["reference_score"], dtype=np.float64)
    meta_rounds = choose_meta_rounds(table, models, trainer)
    kind, component, served, figures = choose_served(table, reference[held], settings.skipped, models, trainer, meta_rounds)
    if component == REFERENCE:
        score = reference_out_of_fold(design, trainer, regressor.rounds["reference"], served)
    else:
        score = cross_fitted_score(table, models, trainer, meta_rounds, kind, component, served)
    return _Stack(settings, table, names, kind, component, meta_rounds, score, figures)


def _stacked_before(evaluated: Evaluated, signals: Signals) -> _Stack:
    before, oof = evaluated.models.stacker, evaluated.oof
    encoded = [str(name) for name in evaluated.models.classifier.encoder.get_feature_names_out()]
    names = [encoded[i] for i in before.context]
    context = np.column_stack([np.empty((len(evaluated.rows), 0)), *(oof[f"context_{name}"] for name in names)]).astype(np.float32)
    components = np.column_stack([oof[f"component_{name}"] for name in COMPONENTS])
    table = OutOfFoldTable(components, signals, context, evaluated.rows.log_d7, evaluated.rows.folds)
    settings = cast(BaseSettings, before.settings)
    steps = cast(BaseLearners, before.base).linear.shaper.steps
    return _Stack(settings, table, names, before.kind, before.component, before.meta_rounds, oof["score"], before.diagnostics, steps)


def _sealed(stacker: Stacker, digests: dict[str, str]) -> Stacker:
    stacker.belongs_to = digests | {"stacker": digest(stacker._model_files())}
    return stacker


def _gate(
    rows: HeldOutRows, score: Floats, signals: Signals, gating: BuyerGating, models: ModelsConfig, blended: Floats | None = None
) -> ScoreGate:
    whale = gating.likely_whale(signals.whale)
    if models.gating.level == "follow":
        score = scores_on_window_level(score, rows.log_d7, rows.folds, blended)
    weight = gating.level.row_weights(rows.period)
    return fit_score_gate(score, signals.log_odds, whale, rows.log_d7, weight, gating)


def _context_names(regressor: RevenueRegressor, design: Design, count: int) -> list[str]:
    """Columns with the largest gain in the reference, among those every fold has: recency, place, device, past spend."""
    importance = cast(TreeModel, regressor.reference).importance()
    shared = set(importance).intersection(*(design.fold(k).train.names for k in range(design.folds.n_folds)))
    best = set(sorted(shared, key=lambda name: (-importance[name]["gain"], name))[:count])
    return [name for name in design.train.names if name in best]


def _columns(matrix: Matrix, names: Sequence[str]) -> NDArray[np.float32]:
    return matrix.values[:, [matrix.names.index(name) for name in names]]
