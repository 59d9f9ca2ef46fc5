"""What a window tells MLflow and the asset pages: pictures of a stage, and records for the outbox.

The same figures and pictures go to both, so the two never disagree. Next to read: ``tracking.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from ltv_assets import __version__
from ltv_assets.project import Project
from ltv_assets.tracking import WINDOW_STAGE, PushResult, Record, Tracker, flat_params
from ltv_assets.windows import window_identity

if TYPE_CHECKING:
    from ltv_assets.modeling.stages import WindowContext


def stage_pictures(name: str, stage: Any, window: WindowContext) -> dict[str, bytes]:
    """Pictures of one stage by file name: reliability, importances, training curves, whatever the stage has."""
    from ltv_assets.pictures import feature_importances, reliability_curve, training_curves

    pictures: dict[str, bytes] = {}
    if name == "buyer_classifier":
        pictures["reliability.png"] = reliability_curve(window.design.aux.payer, stage.oof["buyer_probability"])
        pictures["importances.png"] = _importances(stage.model, "Buyer classifier: features", feature_importances)
        if stage.curves:
            pictures["training.png"] = training_curves(stage.curves, metric="log-loss", best_iteration=stage.rounds)
    elif name == "buyer_gating" and stage.whale_model is not None:
        pictures["importances.png"] = _importances(stage.whale_model, "Whale classifier: features", feature_importances)
    elif name == "revenue_regressor":
        pictures["importances.png"] = _importances(stage.head, "D7 revenue head: features", feature_importances)
        for head, curves in stage.curves.items():
            if curves:
                pictures[f"training_{head}.png"] = training_curves(curves, metric="RMSLE, MAE", title=f"Training of {head}")
    return pictures


def _importances(model: Any, title: str, draw: Any) -> bytes:
    found = model.importance()
    return draw(list(found), [v["gain"] for v in found.values()], [v["split"] for v in found.values()], title=title)


def _curves(stage: Any) -> dict[str, list[float]]:
    """Every training curve of a stage under one flat name."""
    flat: dict[str, list[float]] = {}
    for name, curve in getattr(stage, "curves", {}).items():
        if isinstance(curve, Mapping):
            flat.update({f"{name}.{inner}": list(values) for inner, values in curve.items()})
        else:
            flat[name] = list(curve)
    return flat


def log_stage(
    tracker: Tracker, project: Project, name: str, key: str, stage: Any, pictures: Mapping[str, bytes], *, run_id: str
) -> PushResult:
    """Record one stage as a nested run of its window."""
    parameters = {
        "buyer_classifier": ("buyer_classifier", "calibration"),
        "buyer_gating": ("whale_classifier", "gating"),
        "revenue_regressor": ("revenue_head", "increments", "cap_quantile"),
        "stacker": ("stacker", "boosting", "forest", "linear"),
    }[name]
    models = project.config.models.model_dump(mode="json")
    record = Record(
        window=key,
        stage=name,
        identity=window_identity(project, key),
        params=flat_params({"models": {p: models[p] for p in parameters}}),
        metrics=stage.diagnostics,
        curves=_curves(stage),
        tags={"dagster.run_id": run_id, "window": key, "code_version": __version__},
        pictures=pictures,
    )
    return tracker.log(record)


def log_window(
    tracker: Tracker,
    project: Project,
    key: str,
    figures: Mapping[str, float],
    pictures: Mapping[str, bytes],
    deciles: pd.DataFrame,
    *,
    run_id: str,
) -> PushResult:
    """Record the evaluated window as the parent run: configuration, headline figures, pictures, decile table, gate files."""
    gate = {
        name: data.decode()
        for asset, names in (("buyer_gating", ("buyer_threshold.json", "buyer_gating.json")), ("stacker", ("score_gate.json",)))
        for name, data in project.warehouse.artifacts(asset, key).items()
        if name in names
    }
    settings = project.config.model_dump(mode="json", exclude={"warehouse", "tracking"})
    settings["data"].pop("root")
    settings["data"].pop("sample_submission")
    lineage = project.lineage()
    record = Record(
        window=key,
        stage=WINDOW_STAGE,
        identity=window_identity(project, key),
        params=flat_params({**settings, "features": project.registry.fingerprint()}),
        metrics=figures,
        tags={
            "dagster.run_id": run_id,
            "window": key,
            "training_days": ",".join(str(d) for d in project.horizon.training_days(pd.Timestamp(key).date())),
            "data_fingerprint": window_identity(project, key),
            "config_hash": lineage.config_hash("stacker", key),
            "code_version": __version__,
        },
        pictures=pictures,
        texts={**gate, "deciles.csv": deciles.to_csv(index=False)},
        finished=True,
    )
    return tracker.log(record)
