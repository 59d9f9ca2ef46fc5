"""The base learners under the stacker, each as a score in log1p USD.

What belongs here: fitting linear models, random forest and gradient boosting, and lining their scores up with those of the
stages before. What does not: blending (``stacker``). Next to read: ``stacker``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from ltv_assets.core.config import ForestConfig, ModelsConfig
from ltv_assets.modeling.boosting import Params, Trainer, TreeModel, booster_params
from ltv_assets.modeling.dataset import Floats
from ltv_assets.modeling.design_matrix import Design, Matrix, Split
from ltv_assets.modeling.linear import LinearModels, Penalties, choose_penalties, fit_linear
from ltv_assets.modeling.serialization import Files, from_json, to_json

STAGE_COMPONENTS: tuple[str, ...] = ("two_part", "reference")
"""Scores that earlier stages supply: probability x log revenue, and the pinned reference."""
BASE_COMPONENTS: tuple[str, ...] = ("linear", "elastic_net", "forest", "boosting", "additive_boosting")
"""Scores of the base learners fitted here."""
COMPONENTS: tuple[str, ...] = STAGE_COMPONENTS + BASE_COMPONENTS

SMALLEST_SCORE = 1e-6
"""Scores enter the boosting's log link no smaller than this."""
MIN_FOREST_ROWS = 5
"""Fewest rows that a tree of the forest sees, where there are so many."""


@dataclass(frozen=True)
class BaseSettings:
    """What later time decided about the base learners; reused for folds, final fits and refits."""

    penalties: Penalties
    boosting_rounds: int
    additive_rounds: int


@dataclass(eq=False)
class BaseLearners:
    """Linear models, random forest, gradient boosting in two forms; fitted on the same rows.

    Both boosters start at the linear two-part score: ``boosting`` multiplies it (log link), ``additive`` adds to it.
    """

    linear: LinearModels
    forest: TreeModel
    boosting: TreeModel
    additive: TreeModel
    log_max: float

    def scores(self, matrix: Matrix, wanted: Collection[str] = BASE_COMPONENTS) -> Floats:
        """Log1p scores (n, 5) in the order of BASE_COMPONENTS, each within [0, largest log1p revenue].

        Boosters that are not ``wanted`` are left out, their scores are 0: a stacker that gives them no weight need not wait.
        """
        two_part, direct = self.linear.scores(matrix)
        forest, boosting, additive = np.zeros((3, len(matrix)))
        if "forest" in wanted:
            forest = self.forest.predict(matrix.values)
        if "boosting" in wanted:
            boosting = _exp(self.boosting.predict(matrix.values, start=_log(two_part)))
        if "additive_boosting" in wanted:
            additive = self.additive.predict(matrix.values, start=two_part)
        return np.clip(np.column_stack([two_part, direct, forest, boosting, additive]), 0.0, self.log_max)

    def to_files(self) -> Files:
        """Linear coefficients as JSON, boosters as text."""
        return {
            "linear.json": to_json(self.linear.to_dict() | {"log_max": self.log_max}),
            **self.forest.to_files("forest"),
            **self.boosting.to_files("boosting"),
            **self.additive.to_files("additive_boosting"),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> BaseLearners:
        """Inverse of ``to_files``."""
        state = from_json(files, "linear.json")
        return cls(
            LinearModels.from_dict(state),
            TreeModel.from_files(files, "forest"),
            TreeModel.from_files(files, "boosting"),
            TreeModel.from_files(files, "additive_boosting"),
            float(state["log_max"]),
        )


def choose_base_settings(design: Design, models: ModelsConfig, trainer: Trainer) -> tuple[BaseSettings, LinearModels]:
    """Penalties of the linear models and trees of the boosters, on the last fold; and that fold's linear models."""
    split, log_revenue = design.stopping, design.aux.log_d7
    own, later = log_revenue[split.train_rows], log_revenue[split.held_rows]
    penalties, linear = choose_penalties(split.train, own, split.held, later, models.linear)
    start, later_start = (linear.scores(m)[0] for m in (split.train, split.held))

    def rounds(objective: str, link: Callable[[Floats], Floats], inverse: Callable[[Floats], Floats]) -> int:
        if not _any_positive(own):
            return 1
        metrics = {"mse": lambda raw: float(np.mean((inverse(raw) - later) ** 2))}
        params = booster_params(models.boosting, objective)
        chosen, _ = trainer.choose_rounds(
            split.train, own, params, models.boosting, split.held, metrics, start=link(start), later_start=link(later_start)
        )
        return chosen

    return BaseSettings(penalties, rounds("poisson", _log, _exp), rounds("regression", _same, _same)), linear


def fit_base(
    matrix: Matrix,
    log_revenue: Floats,
    models: ModelsConfig,
    settings: BaseSettings,
    trainer: Trainer,
    linear: LinearModels | None = None,
) -> BaseLearners:
    """Fit all base learners on one set of rows; ``linear``: the linear models of these rows, if they are fitted already.

    Both boosters learn log1p(revenue) and start at the linear two-part score. One has a Poisson likelihood with log link and
    multiplies the score, one has squared loss and adds to it: which suits depends on how effects combine, and neither adds
    anything where a product of lines says it all.
    """
    linear = linear or fit_linear(matrix, log_revenue, models.linear, settings.penalties)
    forest = trainer.train(matrix, log_revenue, _forest_params(models.forest, len(log_revenue)), models.forest.trees)
    start = linear.scores(matrix)[0]
    objective, rounds = ("poisson", settings.boosting_rounds) if _any_positive(log_revenue) else ("regression", 1)
    boosting = trainer.train(matrix, log_revenue, booster_params(models.boosting, objective), rounds, start=_log(start))
    additive = trainer.train(matrix, log_revenue, booster_params(models.boosting, "regression"), settings.additive_rounds, start=start)
    return BaseLearners(linear, forest, boosting, additive, float(log_revenue.max(initial=0.0)))


def base_out_of_fold(
    design: Design, models: ModelsConfig, settings: BaseSettings, trainer: Trainer, last_linear: LinearModels | None
) -> Floats:
    """Held-out scores (auxiliary rows, 5) of the base learners; ``last_linear``: the last fold's linear models, if fitted already."""

    def fit(split: Split) -> Floats:
        own = design.aux.log_d7[split.train_rows]
        linear = last_linear if split is design.stopping else None
        return fit_base(split.train, own, models, settings, trainer, linear).scores(split.held)

    return design.out_of_fold(fit)


def _log(score: Floats) -> Floats:
    return np.log(np.maximum(score, SMALLEST_SCORE))


def _exp(log_score: Floats) -> Floats:
    return np.exp(np.clip(log_score, -50.0, 50.0))


def _same(score: Floats) -> Floats:
    return score


def _any_positive(log_revenue: Floats) -> bool:
    """Whether LightGBM, which holds labels in float32, sees a payer: it refuses a Poisson fit whose labels sum to 0."""
    return bool(log_revenue.astype(np.float32).any())


def _forest_params(config: ForestConfig, rows: int) -> Params:
    # LightGBM predicts NaN with a tree that saw one row, and ends the fit at one that saw none.
    share = max(config.bagging_fraction, min(MIN_FOREST_ROWS / max(rows, 1), 0.99))
    return {
        "objective": "regression",
        "boosting": "rf",
        "num_leaves": config.num_leaves,
        "min_data_in_leaf": config.min_data_in_leaf,
        "bagging_fraction": share,
        "bagging_freq": 1,
        "feature_fraction": config.feature_fraction,
    }
