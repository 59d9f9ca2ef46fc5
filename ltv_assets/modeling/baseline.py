"""The bar: a plain LightGBM on log1p(revenue), pinned.

What belongs here: the one model every run is compared with. Its parameters are constants on purpose; a reference that can
be configured is no reference. It is a bar, not a part: chosen and fitted once, out of fold only where it is served itself. Next to
read: ``regressor.py``, which fits it on the same features.
"""

from __future__ import annotations

from ltv_assets.core.config import BoosterConfig
from ltv_assets.modeling.boosting import Chosen, Params, Trainer, TreeModel, booster_params, log_metrics
from ltv_assets.modeling.dataset import Floats
from ltv_assets.modeling.design_matrix import Design, Split

REFERENCE = BoosterConfig(num_leaves=31, learning_rate=0.03, max_rounds=500, patience=30)


def _params() -> Params:
    return booster_params(REFERENCE, "regression")


def choose_reference(design: Design, trainer: Trainer) -> Chosen:
    """Trees of the reference: RMSLE on the stopping rows, with the curves of RMSLE and MAE."""
    split, log_revenue = design.stopping, design.held_out.log_d7
    metrics = log_metrics(log_revenue[split.held_rows])
    return trainer.choose_rounds(split.train, log_revenue[split.train_rows], _params(), REFERENCE, split.held, metrics)


def fit_reference(design: Design, trainer: Trainer, rounds: int) -> TreeModel:
    """The reference on the rows of the served boosters, at most ``models.max_reference_rows`` of them."""
    rows, label, weight = design.reference_rows, design.data.log_d7[design.served_rows], design.served_weight()
    if rows is not None:
        label, weight = label[rows], None if weight is None else weight[rows]
    return trainer.train(design.train, label, _params(), rounds, weight=weight, rows=rows, served=True)


def reference_out_of_fold(design: Design, trainer: Trainer, rounds: int, last: Floats) -> Floats:
    """Held-out log1p scores of the reference for every auxiliary row; asked for only where the reference itself is served.

    ``last``: those of the time-last fold's rows.
    """
    log_revenue = design.held_out.log_d7

    def fit(split: Split) -> Floats:
        return trainer.train(split.train, log_revenue[split.train_rows], _params(), rounds).predict(split.held.values)

    return design.out_of_fold(fit, last)
