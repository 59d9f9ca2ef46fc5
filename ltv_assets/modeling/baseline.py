"""The bar: a plain LightGBM on log1p(revenue), pinned.

What belongs here: the one model every run is compared with. Its parameters are constants on purpose; a reference that can
be configured is no reference. Next to read: ``regressor``, which fits it on the same features and the same folds.
"""

from __future__ import annotations

from ltv_assets.core.config import BoosterConfig
from ltv_assets.modeling.boosting import Curves, Params, Trainer, TreeModel, booster_params, log_metrics
from ltv_assets.modeling.dataset import Floats
from ltv_assets.modeling.design_matrix import Design, Split

REFERENCE = BoosterConfig(num_leaves=31, learning_rate=0.03, max_rounds=500, patience=30)


def _params() -> Params:
    return booster_params(REFERENCE, "regression")


def reference_rounds(design: Design, trainer: Trainer) -> tuple[int, Curves]:
    """Trees of the reference: RMSLE on the stopping rows, with the curves of RMSLE and MAE."""
    split, log_revenue = design.stopping, design.aux.log_d7
    metrics = log_metrics(log_revenue[split.held_rows])
    return trainer.choose_rounds(split.train, log_revenue[split.train_rows], _params(), REFERENCE, split.held, metrics)


def fit_reference(design: Design, trainer: Trainer, rounds: int) -> TreeModel:
    """The reference on the window's rows, at most ``models.max_reference_rows`` of them."""
    rows, log_revenue = design.reference_rows, design.data.log_d7
    label = log_revenue if rows is None else log_revenue[rows]
    return trainer.train(design.train, label, _params(), rounds, rows=rows, served=True)


def reference_out_of_fold(design: Design, trainer: Trainer, rounds: int) -> Floats:
    """Held-out log1p scores of the reference for every auxiliary row."""

    def fit(split: Split) -> Floats:
        return trainer.train(split.train, design.aux.log_d7[split.train_rows], _params(), rounds).predict(split.held.values)

    return design.out_of_fold(fit)
