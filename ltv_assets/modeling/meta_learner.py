"""The LightGBM meta learner, which starts at the blend.

What belongs here: its inputs, its number of trees, its fit, and the comparison that decides whether meta learner, blend or a
single component is served. What does not: the blend (``blend.py``), files and the final gate (``stacker.py``). Next to read:
``stacker.py``.

The three candidates are compared on the time-last fold, whose components were fitted on the past only (see ``winner``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ltv_assets.core.config import ModelsConfig
from ltv_assets.modeling.base_learners import COMPONENTS
from ltv_assets.modeling.blend import Blend, fit_blend
from ltv_assets.modeling.boosting import Params, Trainer, TreeModel, booster_params
from ltv_assets.modeling.dataset import Floats
from ltv_assets.modeling.design_matrix import Design, Matrix

Kind = Literal["meta", "blend", "component"]


@dataclass(frozen=True)
class Signals:
    """Outputs of the earlier stages; arrays (n,), increments (n, horizons - 1)."""

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


def stacked(n: int, columns: Sequence[Floats]) -> Floats:
    """Columns (n,) side by side, (n, 0) if there is none."""
    return np.column_stack(columns) if columns else np.empty((n, 0))


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


@dataclass(frozen=True)
class OutOfFoldTable:
    """Out-of-fold rows with the inputs of the meta learner."""

    components: Floats
    signals: Signals
    context: NDArray[np.float32]
    log_revenue: Floats

    def features(self, blend: Blend) -> NDArray[np.float32]:
        return meta_features(self.components, self.signals, self.context, blend)


def _meta_params(models: ModelsConfig, rows: int) -> Params:
    config = models.stacker.booster
    return booster_params(config, "regression") | {"min_data_in_leaf": max(2, min(config.min_data_in_leaf, rows // 20))}


def _meta_matrix(features: NDArray[np.float32]) -> Matrix:
    return Matrix(features, tuple(f"m{i}" for i in range(features.shape[1])), (), max_bin=63)


def choose_meta_rounds(design: Design, table: OutOfFoldTable, models: ModelsConfig, trainer: Trainer) -> int:
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
    design: Design, table: OutOfFoldTable, models: ModelsConfig, trainer: Trainer, rounds: int
) -> tuple[Kind, str, dict[str, float]]:
    """Compare meta learner, blend and components on the last fold; MSE of each is reported.

    The best single component is named by all earlier rows, so that it does not profit from being the best of many here.
    """
    earlier, last = np.flatnonzero(~design.folds.last_fold), np.flatnonzero(design.folds.last_fold)
    y = table.log_revenue
    past = {n: float(np.mean((table.components[earlier, i] - y[earlier]) ** 2)) for i, n in enumerate(COMPONENTS)}
    component = min(past, key=lambda n: past[n])
    blend, meta = fit_meta(table, earlier, models, trainer, rounds, "meta")
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
    """Choose the predictor to serve by the last fold; arrays (n,) in log1p USD.

    The meta learner has to beat the blend it starts from. The better of the two is replaced by the best component only when
    that wins by more than FALLBACK_ERRORS standard errors of the paired difference: the blend averages out errors of single
    components, the number of trees was chosen on this fold, and rows of the same users and days are not independent.
    """
    losses = {"meta": (meta - log_revenue) ** 2, "blend": (blend - log_revenue) ** 2}
    kind: Kind = "meta" if losses["meta"].mean() < losses["blend"].mean() else "blend"
    difference = losses[kind] - (component - log_revenue) ** 2
    return "component" if difference.mean() > FALLBACK_ERRORS * difference.std() / np.sqrt(len(difference)) else kind


def cross_fitted_score(
    design: Design, table: OutOfFoldTable, models: ModelsConfig, trainer: Trainer, rounds: int, kind: Kind, component: str
) -> Floats:
    """Final scores of the auxiliary rows, each by a meta learner that saw no row of its fold."""
    if kind == "component":
        return table.components[:, COMPONENTS.index(component)]
    score = np.empty(len(table.log_revenue))
    for k in range(design.folds.n_folds):
        rows, own = design.folds.split(k)
        score[own] = _predict(table, own, *fit_meta(table, rows, models, trainer, rounds, kind))
    return score
