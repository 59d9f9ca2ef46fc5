"""The stages of a window in the order of the asset graph; each asset calls exactly one of these functions.

What belongs here: the composition of sampling, folds and stages. What does not: files, partitions, tracking. Next to read:
``model_set.py``; ``ltv_model.py`` runs all stages at once.

A stage is declared once, in `STAGES`: fitting, storing, refitting, scoring and what is shown of it follow from there.

Order and what each needs:

    data = prepare_window(X, revenue, period, row_id)
    context = WindowContext(data, config.models, config.sampling, seed, threads)
    histos = histos_plan(context)                          asset histos_train (None when switched off)
    hhistus = hhistus_plan(context)                        asset hhistus_buyers (None when switched off)
    classifier = buyer_classifier(context, histos)
    gating = buyer_gating(context, classifier)
    regressor = revenue_regressor(context, hhistus, gating)
    stacker = final_stacker(context, classifier, gating, regressor)
    models = WindowModels(classifier, gating, regressor, stacker)

In a process of its own a stage rebuilds ``context`` from the window's data (encoders are refitted: same rows, same bytes)
and loads the earlier stages with ``Stage.from_files(files, oof=arrays)``. ``evaluated=`` takes the evaluated models with their scores
of rows that they did not see, and fits only what scores new rows: that is how the served model is refitted (`refit`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from ltv_assets.core.config import ModelsConfig, SamplingConfig
from ltv_assets.core.errors import ModelFileError
from ltv_assets.modeling.boosting import RemoteFit, Trainer
from ltv_assets.modeling.classifier import BuyerClassifier, fit_buyer_classifier
from ltv_assets.modeling.dataset import WindowData, concat_windows
from ltv_assets.modeling.design_matrix import Design
from ltv_assets.modeling.evaluated import Evaluated, see_holdout
from ltv_assets.modeling.gating import BuyerGating, fit_buyer_gating
from ltv_assets.modeling.regressor import RevenueRegressor, fit_revenue_regressor
from ltv_assets.modeling.stacker import Stacker, fit_stacker
from ltv_assets.sampling.hhistus import HhistusPlan, plan_hhistus
from ltv_assets.sampling.histogram import TargetHistogram
from ltv_assets.sampling.histos import HistosPlan, plan_histos

if TYPE_CHECKING:
    from ltv_assets.modeling.model_set import WindowModels

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class WindowContext:
    """A window's rows and settings; encodings and folds are made on first use and shared by the stages of one process.

    ``remote``: see `Trainer`. ``columns``: the encoded columns to be used; None chooses them.
    """

    data: WindowData
    models: ModelsConfig
    sampling: SamplingConfig
    seed: int = 0
    threads: int = 2
    remote: RemoteFit | None = None
    columns: tuple[str, ...] | None = None

    @cached_property
    def design(self) -> Design:
        """Encoded rows and folds."""
        return Design(self.data, self.models, self.seed, self.threads, self.columns)

    def forget_encodings(self) -> None:
        """Give up the memory of encoded rows and folds; they are made again when they are asked for."""
        self.__dict__.pop("design", None)

    def with_settings(self, models: ModelsConfig) -> WindowContext:
        """The same rows, encoded once for both, under settings that change neither encodings nor folds."""
        other = replace(self, models=models)
        other.__dict__["design"] = self.design
        return other

    def with_rows(self, more: WindowData) -> WindowContext:
        """The window with more rows, under the same settings."""
        return replace(self, data=concat_windows(self.data, more))

    @property
    def trainer(self) -> Trainer:
        """Seed and threads of every booster."""
        return Trainer(self.seed, self.threads, self.remote)

    @property
    def histogram(self) -> TargetHistogram:
        """Bins of the revenue; their range comes from this window's training rows."""
        return TargetHistogram.from_revenue(self.data.d7, self.sampling.n_bins)


def repeatable(stage: Callable[Concatenate[WindowContext, P], T]) -> Callable[Concatenate[WindowContext, P], T]:
    """The stage with ``context.threads`` threads for linear algebra, whatever the environment says.

    How BLAS divides a product decides in which order it is summed, and the last digit of a sum can decide which model wins.
    Dask, for one, leaves OPENBLAS_NUM_THREADS=1 to whatever is started after its workers.
    """

    @wraps(stage)
    def limited(context: WindowContext, *args: P.args, **kwargs: P.kwargs) -> T:
        with threadpool_limits(context.threads, user_api="blas"):
            return stage(context, *args, **kwargs)

    return limited


def histos_plan(context: WindowContext) -> HistosPlan | None:
    """HistOS multiplicities in row order, each period planned on its own; None when the configuration says so."""
    sampling, data = context.sampling, context.data
    if sampling.classifier == "none":
        return None
    bins, multiplicity = np.zeros(len(data), dtype=np.uint8), np.ones(len(data), dtype=np.uint16)
    for period in range(len(data.period_names)):
        rows = np.flatnonzero(data.period == period)
        plan = plan_histos(
            data.d7[rows],
            data.hashes[rows],
            context.histogram,
            beta=sampling.histos_beta,
            max_copies=sampling.max_copies,
            seed=context.seed,
        )
        bins[rows], multiplicity[rows] = plan.bin, plan.multiplicity
    return HistosPlan(bins, multiplicity)


def hhistus_plan(context: WindowContext) -> HhistusPlan | None:
    """HHISTUS keep flags and weights in row order, each period planned on its own; None when the configuration says so."""
    sampling, data = context.sampling, context.data
    if sampling.regressor == "none":
        return None
    bins, keep = np.zeros(len(data), dtype=np.uint8), np.zeros(len(data), dtype=bool)
    weight = np.zeros(len(data), dtype=np.float32)
    for period in range(len(data.period_names)):
        rows = np.flatnonzero(data.period == period)
        plan = plan_hhistus(
            data.d7[rows],
            data.hashes[rows],
            context.histogram,
            beta=sampling.hhistus_beta,
            whale_quantile=sampling.whale_quantile,
            seed=context.seed + 1,
        )
        bins[rows], keep[rows], weight[rows] = plan.bin, plan.keep, plan.weight
    return HhistusPlan(bins, keep, weight)


@repeatable
def buyer_classifier(context: WindowContext, plan: HistosPlan | None, evaluated: Evaluated | None = None) -> BuyerClassifier:
    """Who buys."""
    return fit_buyer_classifier(context.design, plan.multiplicity if plan else None, context.models, context.trainer, evaluated)


@repeatable
def buyer_gating(context: WindowContext, classifier: BuyerClassifier, evaluated: Evaluated | None = None) -> BuyerGating:
    """What may be said at most, who is a likely whale, which share is to be zero."""
    return fit_buyer_gating(context.design, classifier, context.models, context.sampling.whale_quantile, context.trainer, evaluated)


@repeatable
def revenue_regressor(
    context: WindowContext, plan: HhistusPlan | None, gating: BuyerGating, evaluated: Evaluated | None = None
) -> RevenueRegressor:
    """How much."""
    return fit_revenue_regressor(context.design, plan, gating, context.models, context.trainer, evaluated)


@repeatable
def final_stacker(
    context: WindowContext,
    classifier: BuyerClassifier,
    gating: BuyerGating,
    regressor: RevenueRegressor,
    evaluated: Evaluated | None = None,
) -> Stacker:
    """The final score and its gate."""
    return fit_stacker(context.design, classifier, gating, regressor, context.models, context.trainer, evaluated)


@dataclass(frozen=True)
class Explained:
    """A tree model of a stage that is shown by its importances, and by SHAP values over ``rows`` unless there are none."""

    attribute: str
    title: str
    rows: str | None


@dataclass(frozen=True)
class StageSpec:
    """One stage: its asset's name, the class of its result, and what it is fitted from.

    ``fit``: called with the context, what ``needs`` names (plans and earlier stages) and ``evaluated``.
    ``role``: its attribute of `WindowModels`; empty for a stage whose result no score is made from.
    ``probability``: its out-of-fold array that a reliability curve is drawn of. ``training``: metrics of its training curves.
    The result has ``diagnostics`` (figures by name), ``oof`` (out-of-fold arrays), ``to_files`` and ``from_files``.
    """

    name: str
    result: type[Any]
    fit: Callable[..., Any]
    needs: tuple[str, ...]
    role: str = ""
    probability: str = ""
    training: str = ""
    explained: Explained | None = None

    def load(self, files: Mapping[str, bytes], oof: Mapping[str, Any] | None = None) -> Any:
        """The stage from its files; raises ModelFileError if another version of the package wrote them in a form of its own."""
        try:
            return self.result.from_files(files, oof=oof)
        except KeyError as error:
            raise ModelFileError(
                f"{self.name}: its files have no {error}, which this version of ltv_assets writes; they were made by another version: "
                "make the window again by `ltv run`, or use the version of ltv_assets that made them"
            ) from error


STAGES: tuple[StageSpec, ...] = (
    StageSpec(
        "buyer_classifier",
        BuyerClassifier,
        buyer_classifier,
        needs=("histos_train",),
        role="classifier",
        probability="buyer_probability",
        training="log-loss",
        explained=Explained("model", "Buyer classifier", "all"),
    ),
    StageSpec(
        "buyer_gating",
        BuyerGating,
        buyer_gating,
        needs=("buyer_classifier",),
        role="gating",
        explained=Explained("whale_model", "Whale classifier", "payers"),
    ),
    StageSpec(
        "revenue_regressor",
        RevenueRegressor,
        revenue_regressor,
        needs=("hhistus_buyers", "buyer_gating"),
        role="regressor",
        training="RMSLE, MAE",
        explained=Explained("head", "Revenue head", "payers"),
    ),
    StageSpec(
        "stacker",
        Stacker,
        final_stacker,
        needs=("buyer_classifier", "buyer_gating", "revenue_regressor"),
        role="stacker",
        explained=Explained("meta", "Meta learner", None),
    ),
)
"""Every stage, each after those it needs; the assets of the group ``models`` carry their names."""

STAGE_NAMES: tuple[str, ...] = tuple(stage.name for stage in STAGES)
STAGE_SPECS: Mapping[str, StageSpec] = {stage.name: stage for stage in STAGES}
PLANS: Mapping[str, Callable[[WindowContext], Any]] = {"histos_train": histos_plan, "hhistus_buyers": hhistus_plan}
"""What stages need beside other stages."""


def _at_once(_: str, work: Callable[[], Any]) -> Any:
    return work()


def fit_window(
    context: WindowContext, evaluated: Evaluated | None = None, step: Callable[[str, Callable[[], Any]], Any] = _at_once
) -> WindowModels:
    """All stages in order; a plan is made right before the first stage that needs it.

    ``step`` is called with the name of each plan and stage and the function that makes it, whose result it returns.
    """
    from ltv_assets.modeling.model_set import WindowModels

    fitted: dict[str, Any] = {}
    for stage in STAGES:
        for name in stage.needs:
            if name not in fitted:
                fitted[name] = step(name, partial(PLANS[name], context))
        fitted[stage.name] = step(stage.name, partial(stage.fit, context, *(fitted[name] for name in stage.needs), evaluated=evaluated))
    return WindowModels.of(fitted)


def refit(evaluated: WindowModels, context: WindowContext, holdout: WindowData) -> WindowModels:
    """The served model: final boosters, lines and encodings fitted again on the window and its holdout day.

    ``evaluated``: the window's models with their out-of-fold arrays. Tree counts, penalties and choices are theirs. Nothing is fitted
    out of fold again: calibration, cap, blend and gate are fitted to their out-of-fold scores of the window's days and to their scores
    of the holdout day, which they never saw. That day has already been used to measure them, and their figures stay those of the window.
    """
    together = context.with_rows(holdout)
    seen = see_holdout(evaluated, context.design, holdout, together.data)
    context.forget_encodings()  # those of the window and of its refit together are more than either stage needs
    columns = [str(name) for name in evaluated.classifier.encoder.get_feature_names_out()]
    return fit_window(replace(together, columns=tuple(columns)), seen)
