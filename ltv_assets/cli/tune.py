"""``ltv tune``: a search for better hyperparameters on walk-forward windows, which can stop and go on at any time.

Every trial fits complete windows with its settings and is judged by the mean RMSLE of the shortest horizon on their holdout days;
the first trial is the configuration in force. The newest window takes no part in the search, so that the winner can be
compared with the present settings on a day that had no say in choosing it. The study lies in the warehouse and is the
record; MLflow gets one run for each trial when its server answers, or later from ``ltv mlflow-sync``. Optuna is imported
only here, when a study is opened.

What belongs here: what is searched, how a trial is judged, the snippet. What does not: fits and figures (``modeling/``).
Next to read: ``docs/tuning.md``.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from ltv_assets.core.config import ModelsConfig
from ltv_assets.core.errors import LtvError, PermanentError, StaleError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.modeling.dataset import Floats, WindowData
from ltv_assets.modeling.evaluation.metrics import auc, log_loss, paired_bootstrap, rmsle
from ltv_assets.modeling.model_set import WindowModels
from ltv_assets.modeling.stages import (
    WindowContext,
    buyer_classifier,
    buyer_gating,
    final_stacker,
    hhistus_plan,
    histos_plan,
    revenue_regressor,
)
from ltv_assets.state.project import Project
from ltv_assets.storage.files import file_lock
from ltv_assets.tracking.client import PushResult, Tracker
from ltv_assets.training.windows import WindowRows, as_window

if TYPE_CHECKING:
    import optuna
    from mlflow.tracking import MlflowClient

Value = int | float
Settings = dict[str, Value]

STUDY_FILE = "tuning.db"
DEFAULT_WINDOWS = 2
DEFAULT_TRIALS = 20
EXPERIMENT_SUFFIX = "tuning"


@dataclass(frozen=True, slots=True)
class Range:
    """What a hyperparameter may be: from ``low`` to ``high``, in even steps of its logarithm if ``log``."""

    low: Value
    high: Value
    log: bool = False

    def containing(self, value: Value) -> Range:
        """The same range, widened to hold the present value."""
        return replace(self, low=min(self.low, value), high=max(self.high, value))

    def suggest(self, trial: optuna.Trial, name: str) -> Value:
        """The trial's value; four digits, so that what is tried is exactly what is written down."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return float(f"{trial.suggest_float(name, self.low, self.high, log=self.log):.4g}")


_BOOSTER: dict[str, Range] = {
    "num_leaves": Range(3, 63, log=True),
    "learning_rate": Range(0.01, 0.15, log=True),
    "min_data_in_leaf": Range(10, 500, log=True),
    "feature_fraction": Range(0.1, 1.0),
    "lambda_l2": Range(0.0, 60.0),
}
SPACE: Mapping[str, Mapping[str, Range]] = {
    "classifier": {f"buyer_classifier.{name}": r for name, r in _BOOSTER.items()},
    "regressor": {f"revenue_head.{name}": r for name, r in _BOOSTER.items()},
    "stacker": {f"{part}.{name}": r for part in ("boosting", "stacker.booster") for name, r in _BOOSTER.items()},
}
"""What is searched for each part of the model: keys below ``models`` in the configuration."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search has found so far.

    ``best`` is the number of the best trial (0: the present configuration), ``rmsle`` its mean RMSLE over ``windows`` and
    ``rmsle_present`` that of the configuration. ``check`` compares both on a window that took no part: (window, RMSLE of the
    best, of the present, low and high end of the 95 % interval of their difference); None if there was none left, or
    nothing to compare.
    """

    study: str
    trials: int
    windows: tuple[str, ...]
    best: int
    rmsle: float
    rmsle_present: float
    settings: Settings
    check: tuple[str, float, float, float, float] | None
    problem: str | None

    def snippet(self) -> str:
        """YAML that can be pasted into a configuration file; comments say where the numbers come from."""
        lines = [
            f"# ltv tune, trial {self.best} of {self.trials}: mean RMSLE {self.rmsle:.5f} on {', '.join(self.windows)}, "
            f"the configuration it started from {self.rmsle_present:.5f}",
        ]
        if self.best == 0:
            lines.append("# no trial was better than the configuration itself; these are its values")
        if self.check is not None:
            window, ours, present, low, high = self.check
            lines.append(f"# window {window}, not searched: {ours:.5f} against {present:.5f}, difference {low:+.5f} .. {high:+.5f} (95 %)")
        return "\n".join(lines) + "\n" + yaml.safe_dump({"models": _nested(self.settings)}, sort_keys=False)


def tune(
    project: Project,
    *,
    parts: Sequence[str] = tuple(SPACE),
    windows: int = DEFAULT_WINDOWS,
    trials: int | None = None,
    minutes: float | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Search until the study holds ``trials`` finished trials, or for ``minutes``, whichever comes first.

    The same command goes on where an earlier one stopped, however it ended, as long as data and configuration are the same.
    A trial that has begun is finished. ``report`` is called with one line for each trial.

    Raises PermanentError without Optuna, StaleError if a window's days are missing or outdated, TransientError if another
    search holds the study.
    """
    optuna = _optuna()
    if trials is None and minutes is None:
        trials = DEFAULT_TRIALS
    chosen = _windows(project, windows)
    folder = project.warehouse.root / "tuning"
    folder.mkdir(parents=True, exist_ok=True)
    timeout = project.config.warehouse.lock_timeout_seconds
    with file_lock(folder / "tuning.lock", timeout_seconds=timeout, what="the study"):
        search = _Search(project, tuple(p for p in SPACE if p in parts), chosen, report)
        study = search.open(optuna)
        done = len(_finished(study))
        report(f"study {study.study_name}: windows {', '.join(chosen)}, {done} trials so far")
        search.run(optuna, study, None if trials is None else max(0, trials - done), minutes)
        return search.outcome(study)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise PermanentError("`ltv tune` needs Optuna: pip install 'ltv-assets[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _storage(optuna: Any, project: Project) -> Any:
    return optuna.storages.RDBStorage(f"sqlite:///{project.warehouse.root / 'tuning' / STUDY_FILE}")


def _windows(project: Project, count: int) -> tuple[PartitionKey, ...]:
    """The newest ``count`` windows before the newest one, which is kept back; that one alone if there is no other."""
    last = project.window_or_last(None)
    earlier = [w for w in map(PartitionKey, project.horizon.window_keys()) if w < last]
    return tuple(earlier[-count:] or [last])


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [t for t in study.get_trials(deepcopy=False) if t.state.name in ("COMPLETE", "PRUNED")]


# ------------------------------------------------------------------------------------------------------------- settings


def present_settings(models: ModelsConfig, names: Sequence[str]) -> Settings:
    """Values of dotted keys below ``models``."""
    found: Settings = {}
    for name in names:
        value: Any = models
        for part in name.split("."):
            value = getattr(value, part)
        found[name] = value
    return found


def with_settings(models: ModelsConfig, settings: Settings) -> ModelsConfig:
    """``models`` with some values replaced, validated like a configuration file."""
    plain = models.model_dump()
    for name, value in settings.items():
        *path, leaf = name.split(".")
        part = plain
        for key in path:
            part = part[key]
        part[leaf] = value
    return ModelsConfig.model_validate(plain)


def _nested(settings: Settings) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        *path, leaf = name.split(".")
        part = tree
        for key in path:
            part = part.setdefault(key, {})
        part[leaf] = value
    return tree


# -------------------------------------------------------------------------------------------------------------- windows


class SearchedWindow:
    """One window's rows, encoded once; parts whose settings a trial leaves alone are not fitted again."""

    def __init__(self, context: WindowContext, holdout: WindowData) -> None:
        self.context = context
        self.holdout = holdout
        self._kept: dict[str, tuple[Any, Any]] = {}

    @classmethod
    def read(cls, project: Project, key: PartitionKey) -> SearchedWindow:
        """Raises StaleError if a day of the window is missing, outdated or not mature."""
        project.lineage().require_ready("histos_train", key)
        rows = WindowRows(project, key)
        return cls(rows.context(), as_window(rows.holdout_rows()))

    def fit(self, models: ModelsConfig) -> WindowModels:
        """The evaluated model of the window under other settings."""
        # What is searched changes neither encodings nor folds, so every trial reads the same ones.
        context = self.context.with_settings(models)
        classifier = self._once("classifier", models.buyer_classifier, lambda: buyer_classifier(context, histos_plan(context)))
        gating = self._once("gating", models.buyer_classifier, lambda: buyer_gating(context, classifier))
        head = (models.buyer_classifier, models.revenue_head)
        regressor = self._once("regressor", head, lambda: revenue_regressor(context, hhistus_plan(context), gating))
        return WindowModels(classifier, gating, regressor, final_stacker(context, classifier, gating, regressor))

    def _once(self, part: str, settings: Any, fit: Callable[[], Any]) -> Any:
        if self._kept.get(part, (None, None))[0] != settings:
            self._kept[part] = (settings, fit())
        return self._kept[part][1]

    def losses(self, models: ModelsConfig) -> Floats:
        """Squared errors of log1p(LTV) on the holdout day, (n,)."""
        ltv = self.fit(models).score(self.holdout.X)[self.holdout.names.ltv[0]].to_numpy()
        return (np.log1p(ltv) - self.holdout.log_d7) ** 2

    def figures(self, models: ModelsConfig) -> dict[str, float]:
        """Figures of the holdout day under the names of ``holdout_metrics``."""
        frame = self.fit(models).score(self.holdout.X)
        probability = frame["buyer_probability"].to_numpy()
        return {
            "rmsle": rmsle(self.holdout.d7, frame[self.holdout.names.ltv[0]].to_numpy()),
            "rmsle_gated": rmsle(self.holdout.d7, frame[self.holdout.names.target].to_numpy()),
            "auc": auc(self.holdout.payer, probability),
            "log_loss": log_loss(self.holdout.payer, probability),
        }


# --------------------------------------------------------------------------------------------------------------- search


class _Search:
    """One study: opening it, running trials, and saying what came of it."""

    def __init__(self, project: Project, parts: tuple[str, ...], keys: tuple[PartitionKey, ...], report: Callable[[str], None]) -> None:
        self.project = project
        self.keys = keys
        self.parts = parts
        self.report = report
        self.models = project.config.models
        names = [name for part in parts for name in SPACE[part]]
        self.present = present_settings(self.models, names)
        self.space = {name: SPACE[part][name].containing(self.present[name]) for part in parts for name in SPACE[part]}
        self._loaded: dict[str, SearchedWindow] = {}
        self._tracker = Tracker(project.config, project.warehouse)
        self._delivery = PushResult((), (), None)

    def window(self, key: PartitionKey) -> SearchedWindow:
        if key not in self._loaded:
            self._loaded[key] = SearchedWindow.read(self.project, key)
        return self._loaded[key]

    @property
    def name(self) -> str:
        """Studies have the same name exactly if their trials can be compared: same parts, rows and remaining settings."""
        holdouts = {key: self.project.warehouse.fingerprint("flattened_features", key) for key in self.keys}
        lineage = self.project.lineage()
        identity = [[lineage.window_identity(key) for key in self.keys], holdouts, self.present]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
        return f"{'-'.join(self.parts)}-{digest}"

    def open(self, optuna: Any) -> optuna.Study:
        """The stored study, or a new one whose first trial will be the present configuration."""
        for key in self.keys:
            self.project.lineage().require_ready("histos_train", key)
        study = optuna.create_study(storage=_storage(optuna, self.project), study_name=self.name, direction="minimize", load_if_exists=True)
        earlier = study.get_trials(deepcopy=False)
        # A new process with the first one's seed would draw the first one's numbers again.
        study.sampler = optuna.samplers.TPESampler(seed=self.project.config.seed + len(earlier))
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=4)
        if not earlier:
            study.enqueue_trial(self.present)
        for trial in earlier:
            if trial.state.name == "RUNNING":
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                study.enqueue_trial({**trial.system_attrs.get("fixed_params", {}), **trial.params})
        return study

    def run(self, optuna: Any, study: optuna.Study, trials: int | None, minutes: float | None) -> None:
        """Run trials until one of the budgets is used up."""
        if trials == 0:
            self.report("the study has as many trials as were asked for; ask for more with --trials, or give --minutes")
        else:
            study.optimize(
                lambda trial: self._judge(optuna, trial),
                n_trials=trials,
                timeout=None if minutes is None else minutes * 60,
                catch=(LtvError,),
                callbacks=[self._after_trial],
            )
        self._delivery = _deliver(self._tracker, study)

    def _judge(self, optuna: Any, trial: optuna.Trial) -> float:
        """Mean RMSLE over the windows; a trial that is worse than most after some windows is not carried on."""
        started = time.monotonic()
        models = with_settings(self.models, {name: allowed.suggest(trial, name) for name, allowed in self.space.items()})
        figures: dict[str, dict[str, float]] = {}
        for step, key in enumerate(self.keys, start=1):
            figures[key] = self.window(key).figures(models)
            trial.set_user_attr("figures", figures)
            trial.set_user_attr("seconds", round(time.monotonic() - started, 1))
            mean = float(np.mean([f["rmsle"] for f in figures.values()]))
            trial.report(mean, step)
            if step < len(self.keys) and trial.should_prune():
                raise optuna.TrialPruned
        return mean

    def _after_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        seconds = trial.user_attrs.get("seconds", 0.0)
        if trial.state.name == "COMPLETE":
            best = study.best_trial
            note = "best so far" if best.number == trial.number else f"best {best.value:.5f} of trial {best.number}"
            self.report(f"trial {trial.number}: RMSLE {trial.value:.5f} ({note}), {seconds:.0f} s")
        elif trial.state.name == "PRUNED":
            self.report(
                f"trial {trial.number}: stopped after {len(trial.user_attrs['figures'])} of {len(self.keys)} windows, {seconds:.0f} s"
            )
        else:
            self.report(f"trial {trial.number}: could not be fitted")
        if self._delivery.problem is None:
            # After a failure nothing is tried again before the end of the search.
            self._delivery = _deliver(self._tracker, study)

    def outcome(self, study: optuna.Study) -> Outcome:
        """What the study says now. Raises StaleError if no trial was finished yet."""
        complete = [t for t in _finished(study) if t.state.name == "COMPLETE"]
        if not complete:
            raise StaleError(f"study {study.study_name} has no finished trial yet; run `ltv tune` again with a larger budget")
        best = min(complete, key=lambda t: (t.value, t.number))
        present = next((t for t in complete if self._settings(t) == self.present), best)
        settings = self._settings(best)
        return Outcome(
            study=study.study_name,
            trials=len(_finished(study)),
            windows=self.keys,
            best=best.number,
            rmsle=float(best.value or 0.0),
            rmsle_present=float(present.value or 0.0),
            settings=settings,
            check=self._check(study, best.number, settings) if settings != self.present else None,
            problem=self._delivery.problem,
        )

    def _settings(self, trial: optuna.trial.FrozenTrial) -> Settings:
        return {name: value if isinstance(value, int) else float(f"{value:.4g}") for name, value in trial.params.items()}

    def _check(self, study: optuna.Study, number: int, settings: Settings) -> tuple[str, float, float, float, float] | None:
        """Best and present settings on the newest window, if it took no part; remembered with the study."""
        key = self.project.window_or_last(None)
        if key in self.keys:
            return None
        name = f"check of trial {number} on {key} {self.project.warehouse.fingerprint('flattened_features', key)}"
        stored = study.user_attrs.get(name)
        if stored is None:
            self.report(f"comparing trial {number} with the present configuration on window {key}, which was not searched")
            window = self.window(key)
            ours, present = window.losses(with_settings(self.models, settings)), window.losses(self.models)
            repeats = self.project.config.evaluation.bootstrap_repeats
            result = paired_bootstrap(ours, present, replicates=repeats, seed=self.project.config.seed)
            stored = [result.model.value, result.reference.value, result.difference.low, result.difference.high]
            study.set_user_attr(name, stored)
        return (key, *stored)


# --------------------------------------------------------------------------------------------------------------- MLflow


def deliver_trials(project: Project) -> dict[str, PushResult]:
    """Bring what MLflow has not got of any study in the warehouse there, {study: what happened}; empty if there is no study.

    Raises PermanentError without Optuna.
    """
    path = project.warehouse.root / "tuning" / STUDY_FILE
    if not path.is_file():
        return {}
    optuna = _optuna()
    storage, tracker = _storage(optuna, project), Tracker(project.config, project.warehouse)
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    for study in studies:
        _forget_deleted(tracker, study)
    return {study.study_name: _deliver(tracker, study) for study in studies}


def _forget_deleted(tracker: Tracker, study: optuna.Study) -> None:
    """Let trials whose runs were deleted on the server be brought again."""
    known: dict[str, str] = dict(study.user_attrs.get(f"runs on {tracker.server}", {}))
    if known and tracker.settings.enabled and tracker.probe() is None:
        with suppress(Exception):  # a server that cannot be asked is left to the delivery to complain about
            gone = set(tracker.missing(known.values()))
            if gone:
                study.set_user_attr(f"runs on {tracker.server}", {n: run for n, run in known.items() if run not in gone})


def _deliver(tracker: Tracker, study: optuna.Study) -> PushResult:
    """One MLflow run for each finished trial; the study remembers which is which, so none is brought twice."""
    if not tracker.settings.enabled:
        return PushResult((), (), None)
    server = f"runs on {tracker.server}"

    def runs() -> dict[str, str]:
        return dict(study.user_attrs.get(server, {}))

    def bring(client: MlflowClient, trial: optuna.trial.FrozenTrial) -> None:
        known = runs()
        study.set_user_attr(server, {**known, str(trial.number): _log(tracker, client, study.study_name, trial)})

    def waiting() -> list[tuple[str, Callable[[MlflowClient], None]]]:
        known = runs()
        return [(f"trial {t.number}", partial(bring, trial=t)) for t in _finished(study) if str(t.number) not in known]

    return tracker.deliver(f"study {study.study_name}", waiting)


def _log(tracker: Tracker, client: MlflowClient, study: str, trial: optuna.trial.FrozenTrial) -> str:
    from mlflow.entities import Metric, Param, RunTag

    figures: dict[str, dict[str, float]] = trial.user_attrs["figures"]
    start, end = (int(t.timestamp() * 1000) if t is not None else None for t in (trial.datetime_start, trial.datetime_complete))
    experiment = tracker.experiment(client, f"{tracker.settings.experiment}-{EXPERIMENT_SUFFIX}").experiment_id
    run_id = str(client.create_run(experiment, start_time=start, run_name=f"trial {trial.number}").info.run_id)
    means = {name: float(np.mean([f[name] for f in figures.values()])) for name in next(iter(figures.values()))}
    by_window = {f"rmsle_{key}": f["rmsle"] for key, f in figures.items()}
    metrics = [Metric(name, value, end or 0, 0) for name, value in {**means, **by_window}.items()]
    params = [Param(f"models.{name}", str(value)) for name, value in trial.params.items()]
    tags = {"study": study, "trial": trial.number, "windows": ", ".join(figures), "outcome": trial.state.name.lower()}
    client.log_batch(run_id, metrics=metrics, params=params, tags=[RunTag(k, str(v)) for k, v in tags.items()])
    client.set_terminated(run_id, end_time=end)
    return run_id
