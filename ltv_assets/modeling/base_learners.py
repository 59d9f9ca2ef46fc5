"""The base learners under the stacker, each as a score in log1p USD.

What belongs here: fitting linear models, random forest and gradient boosting, and lining their scores up with those of the
stages before. What does not: blending (``stacker``). Next to read: ``stacker.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ltv_assets.core.config import ForestConfig, ModelsConfig
from ltv_assets.modeling.blend import fit_blend
from ltv_assets.modeling.boosting import Params, Trainer, TreeModel, booster_params
from ltv_assets.modeling.dataset import Floats
from ltv_assets.modeling.design_matrix import Design, Matrix, Split
from ltv_assets.modeling.linear import LinearModels, Penalties, choose_linear, fit_linear
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
NOISE_ERRORS = 1.0
"""Standard errors within which the losses of two numbers of trees are taken to be equal."""
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


@dataclass(frozen=True)
class _Form:
    """How a booster continues the lines' score: the objective of its fit, the scale on which it adds, and the way back."""

    objective: str
    link: Callable[[Floats], Floats]
    inverse: Callable[[Floats], Floats]

    def fit(self, matrix: Matrix, log_revenue: Floats, start: Floats, models: ModelsConfig, trainer: Trainer, trees: int) -> TreeModel:
        """So many trees upon the lines' score ``start`` of the rows; one of nothing where nobody pays, which LightGBM's Poisson refuses."""
        objective, trees = (self.objective, trees) if _any_positive(log_revenue) else ("regression", 1)
        return trainer.train(matrix, log_revenue, booster_params(models.boosting, objective), trees, start=self.link(start))


@dataclass(frozen=True, eq=False)
class _Fold:
    """A fold and its linear models: where the other learners are fitted and compared."""

    split: Split
    lines: LinearModels
    own: Floats
    later: Floats

    @cached_property
    def start(self) -> Floats:
        """The lines' two-part score of the rows that train."""
        return self.lines.scores(self.split.train)[0]

    @cached_property
    def line_scores(self) -> tuple[Floats, Floats]:
        """The lines' scores of the held-out rows, two-part and direct."""
        two_part, direct = self.lines.scores(self.split.held)
        return self._within(two_part), self._within(direct)

    def choose_booster(self, form: _Form, models: ModelsConfig, trainer: Trainer) -> TreeModel | None:
        """A booster that grew until the held-out rows gained nothing more; None if they gained nothing after its first tree."""
        if not _any_positive(self.own):
            return None
        start = form.link(self.line_scores[0])
        chosen = trainer.choose_rounds(
            self.split.train,
            self.own,
            booster_params(models.boosting, form.objective),
            models.boosting,
            self.split.held,
            {"mse": lambda raw: float(np.mean((form.inverse(raw) - self.later) ** 2))},
            start=form.link(self.start),
            later_start=start,
        )
        return chosen.grown if chosen.rounds > 1 else None

    def growth(self, form: _Form, booster: TreeModel, counts: Sequence[int]) -> Floats:
        """Scores of the held-out rows (n, c) under the first trees alone, for ascending numbers of them."""
        start = form.link(self.line_scores[0])[:, None]
        return self._within(form.inverse(start + booster.growth(self.split.held.values, counts)))

    def grown(self, form: _Form, models: ModelsConfig, trainer: Trainer, counts: Sequence[int]) -> Floats:
        """The same of a booster that is fitted here."""
        return self.growth(form, form.fit(self.split.train, self.own, self.start, models, trainer, counts[-1]), counts)

    def forest(self, models: ModelsConfig, trainer: Trainer) -> Floats:
        """A forest's scores of the held-out rows."""
        fitted = trainer.train(self.split.train, self.own, _forest_params(models.forest, len(self.own)), models.forest.trees)
        return self._within(fitted.predict(self.split.held.values))

    def _within(self, scores: Floats) -> Floats:
        return np.clip(scores, 0.0, self.own.max(initial=0.0))


def choose_base(design: Design, models: ModelsConfig, trainer: Trainer, two_part: Floats) -> tuple[BaseSettings, Floats]:
    """Settings of the base learners, and their scores of the auxiliary rows out of fold (n, 5).

    All folds decide on the penalties of the linear models and on the trees of the boosters. Before that the last one says how many
    trees are compared, and which learners are worth fitting on the others: those that a blend misses there. A booster that stops
    after its first tree says what the lines it starts from say. ``two_part``: the earlier stages' scores of the last fold's rows.
    """
    log_revenue, choice = design.held_out.log_d7, choose_linear(design, models.linear)
    splits = [design.fold(k) for k in range(design.folds.n_folds)]
    folds = [_Fold(s, lines, log_revenue[s.train_rows], log_revenue[s.held_rows]) for s, lines in zip(splits, choice.folds, strict=True)]
    last = folds[-1]
    left_out: set[str] = set(models.stacker.without)
    if "boosting" in left_out:
        left_out |= {"additive_boosting"}
    counts: dict[str, list[int]] = {}
    growth: dict[str, Floats] = {}
    for name, form in BOOSTED.items():
        booster = None if name in left_out else last.choose_booster(form, models, trainer)
        if booster is not None:
            counts[name] = _twelfths(booster.n_trees)
            growth[name] = last.growth(form, booster, counts[name])
    found = {name: each[:, fewest_within_noise(each, last.later)] for name, each in growth.items()}
    if "forest" not in left_out:
        found["forest"] = last.forest(models, trainer)
    absent = set(TREE_COMPONENTS) - set(found)
    columns = [*last.line_scores, *(found.get(name, np.zeros(len(two_part))) for name in TREE_COMPONENTS)]
    skipped = left_out | absent | _useless(np.column_stack([two_part, *columns]), last.later, absent)

    scores, rounds = np.zeros((len(log_revenue), len(BASE_COMPONENTS))), dict.fromkeys(BOOSTED, 1)
    for fold in folds:
        rows = fold.split.held_rows
        scores[rows, :2] = np.column_stack(fold.line_scores)
        if "forest" not in skipped:
            scores[rows, BASE_COMPONENTS.index("forest")] = found["forest"] if fold is last else fold.forest(models, trainer)
    for name, form in BOOSTED.items():
        if name in skipped:
            continue
        tried = counts[name]
        under = np.empty((len(log_revenue), len(tried)))
        under[last.split.held_rows] = growth[name]
        for fold in folds[:-1]:
            under[fold.split.held_rows] = fold.grown(form, models, trainer, tried)
        best = fewest_within_noise(under, log_revenue)
        rounds[name], scores[:, BASE_COMPONENTS.index(name)] = tried[best], under[:, best]
    names = tuple(name for name in BASE_COMPONENTS if name in skipped)
    scores[:, [BASE_COMPONENTS.index(name) for name in names]] = 0.0
    return BaseSettings(choice.penalties, rounds["boosting"], rounds["additive_boosting"], names), scores


def _twelfths(trees: int) -> list[int]:
    """Numbers of trees that are compared, up to all of them."""
    return sorted({max(1, round(trees * i / 12)) for i in range(1, 13)})


def fewest_within_noise(scores: Floats, log_revenue: Floats) -> int:
    """The first column of scores (n, c) whose squared error is above the best one's by no more than NOISE_ERRORS of the paired difference.

    The one-standard-error rule (Breiman et al. 1984). Where the curve is flat, the best number is chance, and more trees only add
    variance.
    """
    losses = (scores - log_revenue[:, None]) ** 2
    differences = losses - losses[:, [int(np.argmin(losses.mean(axis=0)))]]
    errors = differences.std(axis=0) / np.sqrt(len(losses))
    return int(np.argmax(differences.mean(axis=0) <= NOISE_ERRORS * errors))


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
    steps: Steps | None = None,
) -> BaseLearners:
    """Fit the base learners that are not skipped on one set of rows; ``steps``: those of the linear models, if they are chosen already.

    Both boosters learn log1p(revenue) and start at the linear two-part score. One has a Poisson likelihood with log link and
    multiplies the score, one has squared loss and adds to it: which suits depends on how effects combine, and neither adds
    anything where a product of lines says it all.
    """
    linear = fit_linear(matrix, log_revenue, models.linear, settings.penalties, trainer.threads, steps)
    forest = None
    if "forest" not in settings.skipped:
        forest = trainer.train(matrix, log_revenue, _forest_params(models.forest, len(log_revenue)), models.forest.trees)
    rounds = {"boosting": settings.boosting_rounds, "additive_boosting": settings.additive_rounds}
    wanted = [name for name in BOOSTED if name not in settings.skipped]
    start = linear.scores(matrix)[0] if wanted else np.zeros(0)
    boosters = {name: BOOSTED[name].fit(matrix, log_revenue, start, models, trainer, rounds[name]) for name in wanted}
    return BaseLearners(linear, forest, boosters.get("boosting"), boosters.get("additive_boosting"), float(log_revenue.max(initial=0.0)))


def _log(score: Floats) -> Floats:
    return np.log(np.maximum(score, SMALLEST_SCORE))


def _exp(log_score: Floats) -> Floats:
    return np.exp(np.clip(log_score, -50.0, 50.0))


def _same(score: Floats) -> Floats:
    return score


BOOSTED: Mapping[str, _Form] = {"boosting": _Form("poisson", _log, _exp), "additive_boosting": _Form("regression", _same, _same)}
"""The boosters, both on the lines' two-part score: one multiplies it, one adds to it."""


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
