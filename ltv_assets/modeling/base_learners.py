"""The base learners under the stacker, each as a score in log1p USD.

What belongs here: fitting linear models, random forest and gradient boosting, and lining their scores up with those of the
stages before. What does not: blending (``stacker``). Next to read: ``stacker.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ltv_assets.core.config import ForestConfig, ModelsConfig
from ltv_assets.modeling.blend import fit_blend
from ltv_assets.modeling.boosting import Chosen, Params, Trainer, TreeModel, booster_params
from ltv_assets.modeling.dataset import Floats
from ltv_assets.modeling.design_matrix import Design, Matrix, Split
from ltv_assets.modeling.linear import LinearChoice, LinearModels, Penalties, choose_linear, fit_linear
from ltv_assets.modeling.preprocessing import Steps
from ltv_assets.modeling.serialization import Files, from_json, to_json

STAGE_COMPONENTS: tuple[str, ...] = ("two_part",)
"""Scores that earlier stages supply: probability x log revenue."""
BASE_COMPONENTS: tuple[str, ...] = ("linear", "elastic_net", "forest", "boosting", "additive_boosting")
"""Scores of the base learners fitted here."""
TREE_COMPONENTS: tuple[str, ...] = ("forest", "boosting", "additive_boosting")
"""Those that cost something to fit again; the lines share their sums."""
COMPONENTS: tuple[str, ...] = STAGE_COMPONENTS + BASE_COMPONENTS
REFERENCE = "reference"
"""The pinned reference is no component: it is served in place of them all if they lose to it beyond noise."""

SMALLEST_SCORE = 1e-6
"""Scores enter the boosting's log link no smaller than this."""
NOISE_GAIN = 4.0
"""A learner is fitted again if it adds more than this to twice the log-likelihood of a blend; noise adds 4 once in twenty times."""
MIN_FOREST_ROWS = 5
"""Fewest rows that a tree of the forest sees, where there are so many."""


@dataclass(frozen=True)
class BaseSettings:
    """What later time decided about the base learners; reused for folds, final fits and refits.

    ``skipped``: components that got no weight on the last fold, or are left out by the configuration; they are fitted no more.
    """

    penalties: Penalties
    boosting_rounds: int
    additive_rounds: int
    skipped: tuple[str, ...] = ()


@dataclass(eq=False)
class BaseLearners:
    """Linear models, random forest, gradient boosting in two forms; fitted on the same rows, without those that are skipped.

    Both boosters start at the linear two-part score: ``boosting`` multiplies it (log link), ``additive`` adds to it.
    """

    linear: LinearModels
    forest: TreeModel | None
    boosting: TreeModel | None
    additive: TreeModel | None
    log_max: float

    def scores(self, matrix: Matrix, wanted: Collection[str] = BASE_COMPONENTS) -> Floats:
        """Log1p scores (n, 5) in the order of BASE_COMPONENTS, each within [0, largest log1p revenue].

        Boosters that are skipped or not ``wanted`` have scores 0: a stacker that gives them no weight need not wait.
        """
        two_part, direct = self.linear.scores(matrix)
        forest, boosting, additive = np.zeros((3, len(matrix)))
        if self.forest is not None and "forest" in wanted:
            forest = self.forest.predict(matrix.values)
        if self.boosting is not None and "boosting" in wanted:
            boosting = _exp(self.boosting.predict(matrix.values, start=_log(two_part)))
        if self.additive is not None and "additive_boosting" in wanted:
            additive = self.additive.predict(matrix.values, start=two_part)
        return np.clip(np.column_stack([two_part, direct, forest, boosting, additive]), 0.0, self.log_max)

    def to_files(self) -> Files:
        """Linear coefficients as JSON, boosters as text."""
        files = {"linear.json": to_json(self.linear.to_dict() | {"log_max": self.log_max})}
        for name, model in (("forest", self.forest), ("boosting", self.boosting), ("additive_boosting", self.additive)):
            files |= {} if model is None else model.to_files(name)
        return files

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> BaseLearners:
        """Inverse of ``to_files``."""
        state = from_json(files, "linear.json")
        forest, boosting, additive = (
            TreeModel.from_files(files, name) if f"{name}.json" in files else None for name in ("forest", "boosting", "additive_boosting")
        )
        return cls(LinearModels.from_dict(state), forest, boosting, additive, float(state["log_max"]))


def choose_base(design: Design, models: ModelsConfig, trainer: Trainer, two_part: Floats) -> tuple[BaseSettings, LinearChoice, Floats]:
    """Settings of the base learners, the linear models of all folds, and all scores (held-out rows of the last fold, 5).

    All folds decide on the penalties of the linear models, the last one on trees of the boosters, and on which learners are worth
    fitting again: those that a blend with the others on that fold misses. A booster that stops after its first tree says what the
    lines it starts from say. ``two_part``: the earlier stages' scores of the last fold's rows.
    """
    split, log_revenue = design.stopping, design.held_out.log_d7
    own, later = log_revenue[split.train_rows], log_revenue[split.held_rows]
    choice = choose_linear(design, models.linear)
    linear = choice.folds[-1]
    start, later_start = (linear.scores(m)[0] for m in (split.train, split.held))
    left_out: set[str] = set(models.stacker.without)
    if "boosting" in left_out:
        left_out |= {"additive_boosting"}

    def choose(objective: str, link: Callable[[Floats], Floats], inverse: Callable[[Floats], Floats]) -> Chosen | None:
        if not _any_positive(own):
            return None

        def losses(raw: Floats) -> Floats:
            return np.asarray((inverse(raw) - later) ** 2)

        return trainer.choose_rounds(
            split.train,
            own,
            booster_params(models.boosting, objective),
            models.boosting,
            split.held,
            {"mse": lambda raw: float(losses(raw).mean())},
            start=link(start),
            later_start=link(later_start),
            losses=losses,
        )

    boosting = None if "boosting" in left_out else choose("poisson", _log, _exp)
    additive = None if "additive_boosting" in left_out else choose("regression", _same, _same)
    forest = None if "forest" in left_out else trainer.train(split.train, own, _forest_params(models.forest, len(own)), models.forest.trees)
    multiplied, added = (chosen.model if chosen is not None and chosen.rounds > 1 else None for chosen in (boosting, additive))
    scores = BaseLearners(linear, forest, multiplied, added, float(own.max(initial=0.0))).scores(split.held)
    absent = {name for name, model in zip(TREE_COMPONENTS, (forest, multiplied, added), strict=True) if model is None} | left_out
    scores[:, [BASE_COMPONENTS.index(name) for name in absent]] = 0.0
    skipped = absent | _useless(np.column_stack([two_part, scores]), later, absent)
    scores[:, [BASE_COMPONENTS.index(name) for name in skipped]] = 0.0
    rounds, additive_rounds = (chosen.rounds if chosen is not None else 1 for chosen in (boosting, additive))
    names = tuple(name for name in BASE_COMPONENTS if name in skipped)
    return BaseSettings(choice.penalties, rounds, additive_rounds, names), choice, scores


def _useless(components: Floats, log_revenue: Floats, absent: Collection[str]) -> set[str]:
    """Tree components without which the blend of the last fold's rows (n, c) is no worse than by what a column of noise would gain.

    They are left out in turn, the least missed first: of two that say the same one stays.
    """
    useless: set[str] = set()
    while True:
        present = [n for n in COMPONENTS if n not in useless]

        def missed(name: str, present: list[str] = present) -> float:
            others = [COMPONENTS.index(n) for n in present if n != name]
            both = [COMPONENTS.index(n) for n in present]
            errors = [_blended_error(components[:, columns], log_revenue) for columns in (others, both)]
            return len(log_revenue) * float(np.log(errors[0] / errors[1]))

        gains = {name: missed(name) for name in TREE_COMPONENTS if name in present and name not in absent}
        least = min(gains, key=lambda name: gains[name], default=None)
        if least is None or gains[least] > NOISE_GAIN:
            return useless
        useless.add(least)


def _blended_error(components: Floats, log_revenue: Floats) -> float:
    return float(np.mean((fit_blend(components, log_revenue).predict(components) - log_revenue) ** 2)) + 1e-12


def fit_base(
    matrix: Matrix,
    log_revenue: Floats,
    models: ModelsConfig,
    settings: BaseSettings,
    trainer: Trainer,
    linear: LinearModels | None = None,
    steps: Steps | None = None,
) -> BaseLearners:
    """Fit the base learners that are not skipped on one set of rows; ``linear``: those of these rows, if they are fitted already.

    ``steps``: those of the linear models, if they are chosen already.

    Both boosters learn log1p(revenue) and start at the linear two-part score. One has a Poisson likelihood with log link and
    multiplies the score, one has squared loss and adds to it: which suits depends on how effects combine, and neither adds
    anything where a product of lines says it all.
    """
    linear = linear or fit_linear(matrix, log_revenue, models.linear, settings.penalties, trainer.threads, steps)
    forest = boosting = additive = None
    if "forest" not in settings.skipped:
        forest = trainer.train(matrix, log_revenue, _forest_params(models.forest, len(log_revenue)), models.forest.trees)
    boosted = {"boosting", "additive_boosting"} - set(settings.skipped)
    start = linear.scores(matrix)[0] if boosted else np.zeros(0)
    if "boosting" in boosted:
        objective, rounds = ("poisson", settings.boosting_rounds) if _any_positive(log_revenue) else ("regression", 1)
        boosting = trainer.train(matrix, log_revenue, booster_params(models.boosting, objective), rounds, start=_log(start))
    if "additive_boosting" in boosted:
        additive = trainer.train(matrix, log_revenue, booster_params(models.boosting, "regression"), settings.additive_rounds, start=start)
    return BaseLearners(linear, forest, boosting, additive, float(log_revenue.max(initial=0.0)))


def base_out_of_fold(
    design: Design, models: ModelsConfig, settings: BaseSettings, lines: Sequence[LinearModels], trainer: Trainer, last: Floats
) -> Floats:
    """Held-out scores (auxiliary rows, 5) of the base learners.

    ``lines``: the linear models by fold; ``last``: the scores of the time-last fold's rows.
    """
    log_revenue, by_fold = design.held_out.log_d7, iter(lines)

    def fit(split: Split) -> Floats:
        scores = fit_base(split.train, log_revenue[split.train_rows], models, settings, trainer, next(by_fold)).scores(split.held)
        scores[:, [BASE_COMPONENTS.index(name) for name in settings.skipped]] = 0.0
        return scores

    return design.out_of_fold(fit, last)


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
