"""What a window tells MLflow and the asset pages: pictures and tables of a stage, and records for the outbox.

The same figures and pictures go to both, so the two never disagree. Parameters, tags and names are chosen so that MLflow's
table of runs says which run is better, and what was different about it. Next to read: ``outbox.py``, ``client.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ltv_assets import __version__
from ltv_assets.core.asset_specs import SPECS, WINDOW_ASSETS
from ltv_assets.core.config import Config
from ltv_assets.core.hashing import short_hash
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.state.project import Project
from ltv_assets.tracking.client import PushResult, Tracker
from ltv_assets.tracking.outbox import WINDOW_STAGE, Input, Record

if TYPE_CHECKING:
    from ltv_assets.modeling.boosting import TreeModel
    from ltv_assets.modeling.stages import WindowContext
    from ltv_assets.training.evaluation import Holdout

EXPLAINED_ROWS = 500
"""Rows whose scores are taken apart into SHAP values."""
SHAPING_SECTIONS = ("seed", "data", "windows", "sampling", "models")
"""Sections of the configuration that decide a window's models; logged as parameters."""
JUDGING_SECTIONS = ("evaluation", "checks")
LONGEST_NAME = 80


@dataclass(frozen=True)
class StageEvidence:
    """What a fitted stage has to show: figures, training curves by flat name, pictures and tables by file name."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    tables: dict[str, bytes] = field(default_factory=dict)

    @property
    def artifacts(self) -> dict[str, bytes]:
        """Everything by its path below an MLflow run."""
        return {**_below("pictures", self.pictures), **_below("tables", self.tables)}


# ------------------------------------------------------------------------------------------------------------- evidence


def stage_evidence(name: str, stage: Any, window: WindowContext) -> StageEvidence:
    """Figures, curves, pictures and tables of one fitted stage; its trees are explained on a seeded sample of rows."""
    from ltv_assets.modeling.stages import STAGE_SPECS
    from ltv_assets.plots import reliability_curve, training_curves

    spec, found = STAGE_SPECS[name], StageEvidence(stage.diagnostics, _curves(stage))
    if spec.probability:
        found.pictures["reliability.png"] = reliability_curve(window.design.aux.payer, stage.oof[spec.probability])
    curves = getattr(stage, "curves", {}) if spec.training else {}
    if any(isinstance(curve, Mapping) for curve in curves.values()):
        for head, inner in curves.items():
            if inner:
                found.pictures[f"training_{head}.png"] = training_curves(inner, metric=spec.training, title=f"Training of {head}")
    elif curves:
        found.pictures["training.png"] = training_curves(curves, metric=spec.training, best_iteration=stage.rounds)
    model = getattr(stage, spec.explained.attribute) if spec.explained else None
    if spec.explained and model is not None and spec.explained.rows is None:
        _importances(found, model, spec.explained.title)
    elif spec.explained and model is not None:
        _explain(found, model, spec.explained.title, window, payers=spec.explained.rows == "payers")
    return found


def _explain(found: StageEvidence, model: TreeModel, title: str, window: WindowContext, *, payers: bool) -> None:
    """Importances and SHAP summary of a model over the window's features; of a model of payers, on payers."""
    from ltv_assets.plots import shap_summary

    numbers = window.design.served_rows
    rows = np.flatnonzero(window.data.payer[numbers] > 0) if payers else np.arange(len(numbers))
    draw = np.random.default_rng(window.seed).choice(rows, min(EXPLAINED_ROWS, rows.size), replace=False)
    values = window.design.train.take(np.sort(draw)).values
    contributions = model.contributions(values)
    found.pictures["shap.png"] = shap_summary(model.names, contributions, values, title=f"{title}: SHAP values")
    _importances(found, model, title, dict(zip(model.names, np.abs(contributions).mean(axis=0), strict=True)))


def _importances(found: StageEvidence, model: TreeModel, title: str, shap: Mapping[str, float] | None = None) -> None:
    from ltv_assets.plots import feature_importances

    used = model.importance()
    gain, split = [v["gain"] for v in used.values()], [v["split"] for v in used.values()]
    found.pictures["importances.png"] = feature_importances(list(used), gain, split, title=f"{title}: features")
    columns: dict[str, Any] = {"feature": list(used), "gain": gain, "splits": split}
    if shap is not None:
        columns["mean_absolute_shap"] = [shap[name] for name in used]
    table = pd.DataFrame(columns).sort_values(["gain", "feature"], ascending=[False, True])
    found.tables["importances.csv"] = table.to_csv(index=False, float_format="%.6g").encode()


def _curves(stage: Any) -> dict[str, list[float]]:
    """Every training curve of a stage under one flat name."""
    flat: dict[str, list[float]] = {}
    for name, curve in getattr(stage, "curves", {}).items():
        if isinstance(curve, Mapping):
            flat.update({f"curve.{name}.{inner}": list(values) for inner, values in curve.items()})
        else:
            flat[f"curve.{name}"] = list(curve)
    return flat


# -------------------------------------------------------------------------------------------------------------- records


def log_stage(
    tracker: Tracker, project: Project, name: str, key: PartitionKey, evidence: StageEvidence, *, run_id: str, seconds: float = 0.0
) -> PushResult:
    """Record one asset of a window as a nested run; the first one opens the window's own run."""
    identity = project.lineage().window_identity(key)
    if not tracker.outbox.has(key, identity, WINDOW_STAGE):
        tracker.log(_window_record(tracker, project, key, identity, run_id=run_id, seconds=seconds))
    settings = _shaping_settings(project)
    chosen = {p: settings["models"][p] for p in SPECS[name].tracked_sections}
    record = Record(
        window=key,
        stage=name,
        identity=identity,
        name=name,
        params=flat_params({"models": chosen} if chosen else {"sampling": settings["sampling"]}),
        metrics=evidence.metrics,
        curves=evidence.curves,
        tags={"dagster.run_id": run_id, "window": key, "code_version": __version__},
        artifacts=evidence.artifacts,
        seconds=seconds,
    )
    return tracker.log(record)


def log_window(
    tracker: Tracker,
    project: Project,
    key: PartitionKey,
    holdout: Holdout,
    pictures: Mapping[str, bytes],
    documents: Mapping[str, bytes],
    *,
    run_id: str,
    seconds: float = 0.0,
) -> PushResult:
    """Record the evaluated window in its own run: figures, verdict, documents, pictures, tables, gate files. Ends the run."""
    gate = {
        f"gating/{name}": data
        for asset, names in (("buyer_gating", ("buyer_threshold.json", "buyer_gating.json")), ("stacker", ("score_gate.json",)))
        for name, data in project.warehouse.artifacts(asset, key).items()
        if name in names
    }
    tables = {
        "deciles.csv": holdout.deciles.to_csv(index=False).encode(),
        "figures_by_segment.csv": holdout.figures.to_csv(index=False, float_format="%.6g").encode(),
    }
    artifacts = {**documents, **_below("pictures", pictures), **_below("tables", tables), **gate}
    identity = project.lineage().window_identity(key)
    verdict = _verdict(holdout.figures)
    record = _window_record(
        tracker, project, key, identity, run_id=run_id, seconds=seconds, metrics=holdout.headline(), artifacts=artifacts, verdict=verdict
    )
    return tracker.log(record)


def _window_record(
    tracker: Tracker,
    project: Project,
    key: PartitionKey,
    identity: str,
    *,
    run_id: str,
    seconds: float,
    metrics: Mapping[str, float] | None = None,
    artifacts: Mapping[str, bytes] | None = None,
    verdict: str | None = None,
) -> Record:
    """The window's own run: as it is opened, or with ``metrics`` and ``verdict`` as it ends.

    Its name and the tag ``changed_from_before`` say what was changed since the configuration recorded before: in a loop of
    experiments that is the question.
    """
    days = project.horizon.training_days(key.day)
    shaping = flat_params({**_shaping_settings(project), "features": project.registry.fingerprint()})
    changes, differences = config_changes(project.config), tracker.outbox.differences(shaping)
    data = _data_name(project)
    inputs = [_input(project, days, "training")]
    if verdict is not None:
        inputs.append(_input(project, [key.day], "evaluation"))
    tags = {
        "dagster.run_id": run_id,
        "training_days": f"{days[0]} .. {days[-1]} ({len(days)})",
        "data": data,
        "data_fingerprint": _data_fingerprint(project, [*days, key.day]),
        "config_hash": _config_hash(project, key),
        "changed_from_defaults": "; ".join(changes) or "nothing",
        "changed_from_before": "; ".join(differences) or "nothing",
        "code_version": __version__,
        "mlflow.source.name": f"ltv_assets {__version__}",
        "mlflow.note.content": _description(key, data, changes, differences, verdict),
    }
    if verdict is not None:
        tags["against_reference"] = verdict
    return Record(
        window=key,
        stage=WINDOW_STAGE,
        identity=identity,
        name=_shortened(f"window {key}" + (f", {'; '.join(differences)}" if differences else "")),
        params=shaping,
        metrics=metrics or {},
        tags=tags,
        artifacts={"config.json": json.dumps(_settings(project.config), indent=1).encode(), **(artifacts or {})},
        inputs=inputs,
        seconds=seconds,
        finished=metrics is not None,
    )


# ----------------------------------------------------------------------------------------------------------- parameters


def flat_params(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested configuration as flat dotted parameters, the form MLflow's run table compares."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flat_params(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, (list, tuple)) else str(value)
    return flat


def config_changes(config: Config) -> list[str]:
    """``key=value`` of every setting that shapes or judges a model and differs from its default, in the order of the configuration."""

    def settings(of: Config) -> dict[str, str]:
        tree = _settings(of)
        return flat_params({section: tree[section] for section in (*SHAPING_SECTIONS, *JUDGING_SECTIONS)})

    defaults = settings(Config())
    return [f"{name}={value}" for name, value in settings(config).items() if defaults.get(name) != value]


def _settings(config: Config) -> dict[str, Any]:
    """The configuration in force without the places where things lie, which would make equal runs look different."""
    tree = config.model_dump(mode="json", exclude={"warehouse", "tracking", "features"})
    return {**tree, "data": {k: v for k, v in tree["data"].items() if k not in ("root", "sample_submission")}}


def _shaping_settings(project: Project) -> dict[str, Any]:
    tree = _settings(project.config)
    return {section: tree[section] for section in SHAPING_SECTIONS}


# ------------------------------------------------------------------------------------------------------------------ tags


def _verdict(figures: pd.DataFrame) -> str:
    """The difference to the pinned reference and its interval, in words that sort: better, worse, or a tie."""
    row = figures[(figures["metric"] == "rmsle_minus_reference") & (figures["segment"] == "all")]
    if row.empty or not np.isfinite(row["value"].iloc[0]):
        return "not compared"
    value, low, high = (float(row[c].iloc[0]) for c in ("value", "low", "high"))
    word = "better" if high < 0 else "worse" if low > 0 else "tie"
    return f"{word}: RMSLE {value:+.4f} ({low:+.4f} .. {high:+.4f})"


def _description(key: PartitionKey, data: str, changes: Sequence[str], differences: Sequence[str], verdict: str | None) -> str:
    lines = [f"Models of the window whose holdout is **{key}**, data: {data}."]
    if verdict is not None:
        lines.append(f"Against the pinned LightGBM reference: **{verdict}**.")
    for what, settings in (("the configuration before it", differences), ("the defaults", changes)):
        lines.append(f"Different from {what}: " + (", ".join(f"`{c}`" for c in settings) or "nothing") + ".")
    return "\n\n".join(lines)


def _data_name(project: Project) -> str:
    """Name of the data root, and the law of simulated data."""
    root = project.config.data.root
    try:
        law = json.loads((root / "truth" / "law.json").read_bytes()).get("law")
    except (OSError, ValueError):
        law = None
    return f"{root.name} (simulated, law {law})" if law else root.name


def _data_fingerprint(project: Project, days: Sequence[date]) -> str:
    """Hash of the flattened content of some days: equal for equal rows, whatever the configuration."""
    text = "\n".join(f"{day} {project.warehouse.fingerprint('flattened_features', PartitionKey(day))}" for day in days)
    return short_hash(text)


def _config_hash(project: Project, key: PartitionKey) -> str:
    """Hash of every setting that shapes the window's assets."""
    lineage = project.lineage()
    text = "\n".join(lineage.config_hash(asset, key) for asset in WINDOW_ASSETS)
    return short_hash(text)


def _input(project: Project, days: Sequence[date], context: str) -> Input:
    """The flattened rows of some days as a dataset: where they lie, what they hash to, how many they are."""
    name = f"flattened_features {days[0]}" + (f" .. {days[-1]}" if len(days) > 1 else "")
    manifests = [project.warehouse.manifest("flattened_features", PartitionKey(day)) for day in days]
    folder = project.warehouse.folder("flattened_features", PartitionKey(days[0]))
    source = folder if len(days) == 1 else folder.parent
    return Input(name, _data_fingerprint(project, days), source.as_uri(), context, sum(m.rows for m in manifests if m is not None))


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _below(folder: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": data for name, data in files.items()}
