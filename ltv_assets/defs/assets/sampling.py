"""Sampling plans of a window: ``histos_train`` (how often a row is shown) and ``hhistus_buyers`` (which payers are kept)."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import pyarrow.parquet as pq

from ltv_assets.defs.publication import Publication, picture_metadata

Columns = dict[str, np.ndarray]

if TYPE_CHECKING:
    from ltv_assets.modeling.stages import WindowContext
    from ltv_assets.sampling.hhistus import HhistusPlan
    from ltv_assets.sampling.histos import HistosPlan


def histos_train(work: Publication) -> dg.MaterializeResult:
    """Plan how often each training row is shown to the classifier."""
    return _plan(work, _histos_rows, _histos_facts)


def hhistus_buyers(work: Publication) -> dg.MaterializeResult:
    """Plan which payers the regressor sees, and with which weight."""
    return _plan(work, _hhistus_rows, _hhistus_facts)


def _plan(work: Publication, rows_of: Callable[..., tuple[np.ndarray, Columns]], facts: Callable[..., Any]) -> dg.MaterializeResult:
    from ltv_assets.modeling.stages import PLANS
    from ltv_assets.training.windows import plan_table, window_context

    window = window_context(work.project, work.key)
    plan = PLANS[work.asset](window)

    def write(folder: Path) -> dict[str, int | None]:
        rows, columns = rows_of(plan)
        pq.write_table(plan_table(work.key, window, columns, rows), folder / "plan.parquet", compression="zstd")
        return {"plan.parquet": len(rows)}

    shown = _recorded(work, *facts(window, plan))
    return work.result(work.publish(write), shown)


def _histos_rows(plan: "HistosPlan | None") -> tuple[np.ndarray, Columns]:
    bins, multiplicity = (plan.bin, plan.multiplicity) if plan is not None else (np.zeros(0), np.zeros(0))
    return np.arange(len(bins)), {"bin": bins.astype(np.int16), "multiplicity": multiplicity.astype(np.int32)}


def _hhistus_rows(plan: "HhistusPlan | None") -> tuple[np.ndarray, Columns]:
    bins, weight = (plan.bin, plan.weight) if plan is not None else (np.zeros(0), np.zeros(0))
    rows = np.flatnonzero(plan.keep) if plan is not None else np.zeros(0, np.int64)
    return rows, {"bin": bins.astype(np.int16), "weight": weight.astype(np.float32)}


def _recorded(work: Publication, plan: str, figures: dict[str, float], picture: bytes | None) -> dict[str, Any]:
    """Tell MLflow of a plan, before it is published; returns the same for the asset page."""
    from ltv_assets.tracking.records import StageEvidence, log_stage

    evidence = StageEvidence(figures, pictures={"histogram.png": picture} if picture else {})
    log_stage(work.tracker, work.project, work.asset, work.key, evidence, run_id=work.run_id, seconds=work.seconds)
    return {**figures, "plan": plan, **picture_metadata(evidence.pictures)}


def _histos_facts(window: "WindowContext", plan: "HistosPlan | None") -> tuple[str, dict[str, float], bytes | None]:
    rows, payers = len(window.data), float(window.data.payer.sum())
    if plan is None:
        return "none", {"training_rows": rows, "payer_rate": payers / rows}, None
    shown = plan.multiplicity.astype(np.int64)
    figures = {
        "training_rows": rows,
        "rows_shown": int(shown.sum()),
        "payer_rate": payers / rows,
        "payer_rate_shown": float((shown * window.data.payer).sum() / shown.sum()),
    }
    return "histos", figures, _picture(window, shown.astype(np.float64), "HistOS: training rows by revenue")


def _hhistus_facts(window: "WindowContext", plan: "HhistusPlan | None") -> tuple[str, dict[str, float], bytes | None]:
    payers = int(window.data.payer.sum())
    if plan is None:
        return "none", {"payers": payers, "payers_kept": payers}, None
    figures = {"payers": payers, "payers_kept": int(plan.keep.sum()), "largest_weight": float(plan.weight.max())}
    return "hhistus", figures, _picture(window, plan.keep.astype(np.float64), "HHISTUS: payers by revenue")


def _picture(window: "WindowContext", counts: np.ndarray, title: str) -> bytes:
    from ltv_assets.plots import sampling_histogram

    bins = window.histogram.bin_of(window.data.d7)
    size = window.histogram.n_bins + 1
    before = np.bincount(bins, minlength=size) if "HistOS" in title else np.bincount(bins[window.data.d7 > 0], minlength=size)
    after = np.bincount(bins, weights=counts, minlength=size)
    return sampling_histogram(window.histogram.edges, before, after, title=title, within=window.data.names.within)
