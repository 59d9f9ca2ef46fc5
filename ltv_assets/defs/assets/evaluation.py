"""``holdout_metrics``: the evaluated model on the day it never saw; ``cohort_errors``: its groups forecast and observed;
``served_model``: the refit that scores new days."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from ltv_assets.defs.publication import Publication, groups_picture, largest_groups, markdown_table, picture_metadata
from ltv_assets.state.project import Project
from ltv_assets.storage.champion import Champion

if TYPE_CHECKING:
    from ltv_assets.training.cohorts import WindowErrors


def holdout_metrics(work: Publication) -> dg.MaterializeResult:
    """Measure the evaluated model on the holdout day, and write the report."""
    from ltv_assets.reporting.report import write_report
    from ltv_assets.tracking.records import log_window
    from ltv_assets.training.evaluation import evaluate_window, holdout_pictures, write_holdout

    holdout = evaluate_window(work.project, work.key)
    manifest = work.publish(lambda folder: write_holdout(folder, work.key, holdout))
    drawn = holdout_pictures(holdout)
    report = write_report(work.project, work.key, drawn)
    documents = {report.name: report.read_bytes()}
    log_window(work.tracker, work.project, work.key, holdout, drawn, documents, run_id=work.run_id, seconds=work.seconds)
    return work.result(manifest, _evaluation_metadata(holdout, drawn, report, work.tracker.run_id(work.key)))


def cohort_errors(work: Publication) -> dg.MaterializeResult:
    """Compare forecasts of groups with what came."""
    from ltv_assets.training.cohorts import window_errors, write_errors

    found = window_errors(work.project, work.key)
    shown = _errors_metadata(found, work.project.contract.scores.within)
    return work.result(work.publish(lambda folder: write_errors(folder, found)), shown)


def served_model(work: Publication) -> dg.MaterializeResult:
    """Fit the model that scores new days, and let it compete for champion."""
    from ltv_assets.promotion.promotion import update_champion
    from ltv_assets.reporting.model_card import describe_champion
    from ltv_assets.training.refit import refit_window, write_served

    models = refit_window(work.project, work.key)
    manifest = work.publish(lambda folder: write_served(folder, work.key, models))
    champion = update_champion(work.project)
    work.log.info(champion.why)
    for problem in (describe_champion(work.project), work.tracker.mirror_champion(champion)):
        if problem is not None:
            work.log.warning(problem)
    return work.result(manifest, _champion_metadata(work.project, champion))


def _evaluation_metadata(holdout: Any, drawn: dict[str, bytes], report: Path, run_id: str | None) -> dict[str, Any]:
    figures = holdout.headline()
    deciles = [{str(k): v for k, v in row.items()} for row in holdout.deciles.to_dict("records")]
    shown = picture_metadata(drawn)
    return {
        **figures,
        "report": dg.MetadataValue.path(str(report)),
        "deciles": markdown_table(deciles),
        **shown,
        "mlflow_run_id": run_id or "not delivered yet; run `ltv mlflow-sync`",
    }


def _errors_metadata(found: "WindowErrors", within: str) -> dict[str, Any]:
    """Whether the intervals of the holdout day held, how much levels move, and every group of that day."""
    noise, groups = found.noise, found.holdout
    title = f"Forecast of {found.window} by the models trained before it, and what came"
    picture = groups_picture(largest_groups(groups), title, within)
    return {
        "groups": len(groups),
        **{name: float(share) for name, share in found.coverage.items()},
        "movement_of_days": noise.day.sd,
        "movement_of_revenue_per_payer": noise.amount.sd,
        **{f"movement_of_{segment}": movement.sd for segment, movement in noise.groups.items()},
        "days": ", ".join(noise.days),
        **picture_metadata({"forecast_and_outcome.png": picture}),
    }


def _champion_metadata(project: Project, champion: Champion) -> dict[str, Any]:
    """Who scores new days, why, and its model card."""
    from ltv_assets.reporting.model_card import CARD_FILE

    card = project.warehouse.folder("model_card", champion.window) / CARD_FILE
    text = card.read_text() if card.is_file() else "no card was written; `ltv promote --unpin` writes it"
    return {"champion": champion.window, "champion_reason": champion.why, "model_card": dg.MetadataValue.md(text)}
