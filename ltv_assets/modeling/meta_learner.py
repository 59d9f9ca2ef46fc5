"""The LightGBM meta learner, which starts at the blend.

What belongs here: its inputs, its number of trees, its fit, and the comparison that decides whether meta learner, blend or a
single component is served. What does not: the blend (``blend.py``), files and the final gate (``stacker.py``). Next to read:
``stacker.py``.

The three candidates are compared on the time-last fold, whose components were fitted on the past only (see ``winner``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ltv_assets.core.config import ModelsConfig
from ltv_assets.modeling.base_learners import COMPONENTS, REFERENCE
from ltv_assets.modeling.blend import Blend, fit_blend
from ltv_assets.modeling.boosting import Params, Trainer, TreeModel, booster_params
from ltv_assets.modeling.dataset import Floats
from ltv_assets.modeling.design_matrix import Matrix
from ltv_assets.modeling.folds import TimeFolds

Kind = Literal["meta", "blend", "component"]


@dataclass(frozen=True)
class Signals:
    """Outputs of the earlier stages; arrays (n,)."""

    probability: Floats
    log_odds: Floats
    log_revenue: Floats
    whale: Floats

    @property
    def two_part(self) -> Floats:
        """probability x log revenue: the score without a stacker."""
        return self.probability * self.log_revenue


def meta_features(components: Floats, signals: Signals, context: NDArray[Any], blend: Blend) -> NDArray[np.float32]:
    """Inputs of the meta learner (n, c + 5 + contexts): capped components, their blend, signals of earlier stages, context columns."""
    return np.ascontiguousarray(
        np.column_stack(
            [
                blend.capped(components),
                blend.predict(components),
                signals.probability,
                signals.log_revenue,
                signals.whale,
                signals.log_odds,
                context,
            ]
        ),
        dtype=np.float32,
    )


@dataclass(frozen=True)
class OutOfFoldTable:
    """Out-of-fold rows with the inputs of the meta learner."""

    components: Floats
    signals: Signals
    context: NDArray[np.float32]
    log_revenue: Floats
    folds: TimeFolds

    def features(self, blend: Blend) -> NDArray[np.float32]:
        return meta_features(self.components, self.signals, self.context, blend)


def _meta_params(models: ModelsConfig, rows: int) -> Params:
    config = models.stacker.booster
    return booster_params(config, "regression") | {"min_data_in_leaf": max(2, min(config.min_data_in_leaf, rows // 20))}


def _meta_matrix(features: NDArray[np.float32]) -> Matrix:
    return Matrix(features, tuple(f"m{i}" for i in range(features.shape[1])), (), max_bin=63)


def choose_meta_rounds(table: OutOfFoldTable, models: ModelsConfig, trainer: Trainer) -> int:
    """Trees of the meta learner: fitted on the earlier, stopped on the later part of what precedes the last fold."""
    rows, later = table.folds.earlier_split()
    y = table.log_revenue
    blend = fit_blend(table.components[rows], y[rows])
    features, start = table.features(blend), blend.predict(table.components)
    metrics = {"mse": lambda raw: float(np.mean((raw - y[later]) ** 2))}
    chosen = trainer.choose_rounds(
        _meta_matrix(features[rows]),
        y[rows],
        _meta_params(models, len(rows)),
        models.stacker.booster,
        _meta_matrix(features[later]),
        metrics,
        start=start[rows],
        later_start=start[later],
    )
    return chosen.rounds


def fit_meta(
    table: OutOfFoldTable, rows: NDArray[np.int64], models: ModelsConfig, trainer: Trainer, rounds: int, kind: Kind
) -> tuple[Blend, TreeModel | None]:
    """Fit the blend on some rows and, if ``kind`` is meta, the meta learner that starts at it."""
    y = table.log_revenue[rows]
    blend = fit_blend(table.components[rows], y)
    if kind != "meta":
        return blend, None
    features, start = table.features(blend)[rows], blend.predict(table.components[rows])
    return blend, trainer.train(_meta_matrix(features), y, _meta_params(models, len(rows)), rounds, start=start)


def _predict(table: OutOfFoldTable, rows: NDArray[np.int64], blend: Blend, meta: TreeModel | None) -> Floats:
    score = blend.predict(table.components[rows])
    return score if meta is None else meta.predict(table.features(blend)[rows], start=score)


def choose_served(
    table: OutOfFoldTable, reference: Floats, skipped: Collection[str], models: ModelsConfig, trainer: Trainer, rounds: int
) -> tuple[Kind, str, Floats, dict[str, float]]:
    """Compare meta learner, blend, components and the reference on the last fold; MSE of each is reported.

    The best single component is named by all earlier rows, so that it does not profit from being the best of many here.
    ``reference``: the pinned reference's scores of the last fold's rows, by a booster that saw none of them. Returns what is served, and
    its scores of the last fold's rows.
    """
    earlier, last = np.flatnonzero(~table.folds.last_fold), np.flatnonzero(table.folds.last_fold)
    y = table.log_revenue
    fitted = {n: i for i, n in enumerate(COMPONENTS) if n not in skipped}
    past = {n: float(np.mean((table.components[earlier, i] - y[earlier]) ** 2)) for n, i in fitted.items()}
    component = min(past, key=lambda n: past[n])
    blend, meta = fit_meta(table, earlier, models, trainer, rounds, "meta")
    scores = {
        "meta": _predict(table, last, blend, meta),
        "blend": blend.predict(table.components[last]),
        "component": table.components[last, fitted[component]],
        REFERENCE: reference,
        **{n: table.components[last, i] for n, i in fitted.items()},
    }
    diagnostics = {f"last_fold_mse_{name}": float(np.mean((score - y[last]) ** 2)) for name, score in scores.items()}
    kind = winner(y[last], meta=scores["meta"], blend=scores["blend"], component=scores["component"])
    if beyond_noise(y[last], scores[kind], reference):
        kind, component = "component", REFERENCE
    served = reference if component == REFERENCE else scores[kind]
    return kind, component, served, diagnostics | {"meta_rounds": float(rounds), "served_meta": float(kind == "meta")}


FALLBACK_ERRORS = 3.0
"""Standard errors by which a single component must win to be served instead of the blend."""


def winner(log_revenue: Floats, *, meta: Floats, blend: Floats, component: Floats) -> Kind:
    """Choose the predictor to serve by the last fold; arrays (n,) in log1p USD.

    The meta learner has to beat the blend it starts from. The better of the two is replaced by the best component only when
    that wins by more than FALLBACK_ERRORS standard errors of the paired difference: the blend averages out errors of single
    components, the number of trees was chosen on this fold, and rows of the same users and days are not independent.
    """
    losses = {"meta": np.mean((meta - log_revenue) ** 2), "blend": np.mean((blend - log_revenue) ** 2)}
    kind: Kind = "meta" if losses["meta"] < losses["blend"] else "blend"
    return "component" if beyond_noise(log_revenue, meta if kind == "meta" else blend, component) else kind


def beyond_noise(log_revenue: Floats, score: Floats, other: Floats) -> bool:
    """Whether ``score`` loses to ``other`` by more than FALLBACK_ERRORS standard errors of the paired difference."""
    difference = (score - log_revenue) ** 2 - (other - log_revenue) ** 2
    return bool(difference.mean() > FALLBACK_ERRORS * difference.std() / np.sqrt(len(difference)))


def cross_fitted_score(
    table: OutOfFoldTable, models: ModelsConfig, trainer: Trainer, rounds: int, kind: Kind, component: str, last: Floats
) -> Floats:
    """Final scores of the auxiliary rows, each by a meta learner that saw no row of its fold; ``last``: those of the last fold."""
    if kind == "component":
        return table.components[:, COMPONENTS.index(component)]
    score = np.empty(len(table.log_revenue))
    score[table.folds.last_fold] = last
    for k in range(table.folds.n_folds - 1):
        rows, own = table.folds.split(k)
        score[own] = _predict(table, own, *fit_meta(table, rows, models, trainer, rounds, kind))
    return score
