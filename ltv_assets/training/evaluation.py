"""Evaluation of a window on its holdout day: figures by segment, scored rows for later comparison, and pictures.

The bridge between the warehouse and ``modeling.evaluation``: it scores the holdout with the *evaluated* model, adds the
truth where the data carries one, and says which columns make segments. Formulas are in ``modeling/metrics.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ltv_assets import plots as pictures
from ltv_assets.ingestion.footers import Footer, read_footer
from ltv_assets.modeling.evaluation.segments import ALL, cold_start, decile_table, evaluate
from ltv_assets.modeling.model_set import WindowModels
from ltv_assets.modeling.model_store import read_evaluated
from ltv_assets.state.project import Project
from ltv_assets.storage.warehouse import SCORES_FILE
from ltv_assets.training.stored_rows import Rows
from ltv_assets.training.windows import WindowRows, window_context

SEGMENT_COLUMNS = ("country", "advertiser_category", "dev_os")
COLD_START_COLUMN = "advertiser_bundle"
TRUTH_ROWS = 2_000_000
"""Rows of a simulation's truth that are in memory at a time."""


@dataclass(frozen=True)
class Holdout:
    """The evaluated holdout: its rows, their scores (with ``reference_log``), the figures and the deciles."""

    rows: Rows
    scores: pd.DataFrame
    figures: pd.DataFrame
    deciles: pd.DataFrame
    oracle_log: NDArray[np.float64] | None
    cap_usd: float

    def headline(self) -> dict[str, float]:
        """{metric: value} of the holdout as a whole."""
        whole = self.figures[self.figures["segment"] == ALL]
        return {str(m): float(v) for m, v in zip(whole["metric"], whole["value"], strict=True) if v == v}

    def relation(self, key: str) -> pa.Table:
        """The relation ``holdout_metrics`` of one window."""
        frame = self.figures.assign(window_key=key)[["window_key", "metric", "segment", "value", "low", "high"]]
        schema = pa.schema(
            [("window_key", pa.string()), ("metric", pa.string()), ("segment", pa.string())]
            + [(c, pa.float64()) for c in ("value", "low", "high")]
        )
        return pa.Table.from_pandas(frame, schema=schema, preserve_index=False)

    def scores_table(self) -> pa.Table:
        """Scored holdout rows, from which a later window is compared with this one."""
        table = pa.Table.from_pandas(self.scores, preserve_index=False).append_column("row_id", self.rows.row_id)
        return table.append_column("revenue_d7", pa.array(self.rows.revenue.iloc[:, 0].to_numpy()))


def evaluate_window(project: Project, key: str) -> Holdout:
    """Score the holdout day of a window with the model trained before it, and measure it."""
    window = window_context(project, key)
    window.forget_encodings()  # of the window only its labels and bundles are needed any more
    models = read_evaluated(project.warehouse, key)
    rows = WindowRows(project, key).holdout_rows()
    seen = window.data.X.get(COLD_START_COLUMN)
    return measure(project, models, rows, constant_log=float(window.data.log_d7.mean()), seen=seen)


def measure(project: Project, models: WindowModels, rows: Rows, *, constant_log: float, seen: pd.Series | None) -> Holdout:
    """Score some labelled rows and compute every figure of the evaluation."""
    settings = project.config.evaluation
    scores = models.score(rows.X, project.config.compute.chunk_rows)
    scores["reference_log"] = np.log1p(models.reference_ltv(rows.X))
    oracle = oracle_scores(project, rows)
    figures = evaluate(
        scores,
        rows.revenue,
        cap_usd=models.cap_usd,
        segments=_segments(rows, seen),
        oracle_log=oracle,
        constant_log=constant_log,
        min_segment_rows=settings.min_segment_rows,
        max_segments=settings.max_segments,
        replicates=settings.bootstrap_repeats,
        seed=project.config.seed,
    )
    deciles = decile_table(rows.revenue.iloc[:, 0].to_numpy(), scores["ltv_d7"].to_numpy(), scores["expected_revenue_d7"].to_numpy())
    return Holdout(rows, scores, figures, deciles, oracle, models.cap_usd)


def _segments(rows: Rows, seen: pd.Series | None) -> pd.DataFrame:
    segments = pd.DataFrame({c: rows.X[c] for c in SEGMENT_COLUMNS if c in rows.X})
    segments["hour"] = rows.hour
    if seen is not None and COLD_START_COLUMN in rows.X:
        segments["cold_bundle"] = cold_start(rows.X[COLD_START_COLUMN], seen)
    return segments


def oracle_scores(project: Project, rows: Rows) -> NDArray[np.float64] | None:
    """E[log1p(revenue) | row] of simulated data, in row order; None where the data carries no truth."""
    path = project.config.data.root / "truth" / "train.parquet"
    footer = read_footer(path) if path.is_file() else None
    if not isinstance(footer, Footer) or "oracle_log" not in footer.schema.names:
        return None
    found = np.full(len(rows.row_id), np.nan)
    wanted = rows.row_id.combine_chunks()
    for batch in pq.ParquetFile(path).iter_batches(TRUTH_ROWS, columns=["row_id", "oracle_log"]):  # each has the wanted ids hashed anew
        place = pc.index_in(batch["row_id"], value_set=wanted)
        known = place.is_valid()
        found[place.filter(known).to_numpy()] = batch["oracle_log"].filter(known).to_numpy()
    return None if np.isnan(found).any() else found


def holdout_pictures(holdout: Holdout) -> dict[str, bytes]:
    """Pictures of an evaluated holdout by file name."""
    revenue = holdout.rows.revenue.iloc[:, 0].to_numpy()
    scores = holdout.scores
    ltv = scores["ltv_d7"].to_numpy()
    ranked = {"ltv_d7": ltv, "reference": scores["reference_log"].to_numpy()}
    if holdout.oracle_log is not None:
        ranked["oracle"] = holdout.oracle_log
    whole = holdout.figures[holdout.figures["segment"] == ALL].set_index("metric")
    names = {
        "rmsle_zero": "predict zero",
        "rmsle_constant": "constant",
        "rmsle_reference": "reference",
        "rmsle": "ltv_d7",
        "rmsle_gated": "ltv_d7, gated",
        "rmsle_oracle": "oracle",
    }
    bars: dict[str, tuple[float, float, float]] = {
        label: tuple(float(v) for v in whole.loc[m, ["value", "low", "high"]])  # type: ignore[misc]
        for m, label in names.items()
        if m in whole.index
    }
    return {
        "rmsle.png": pictures.rmsle_bars(bars),
        "reliability.png": pictures.reliability_curve(revenue > 0, scores["buyer_probability"]),
        "gain.png": pictures.gain_curves(revenue, ranked),
        "deciles.png": pictures.decile_chart(revenue, ltv, scores["expected_revenue_d7"], cap_usd=holdout.cap_usd),
        "zero_rate_by_hour.png": pictures.zero_rate_by(holdout.rows.hour, revenue, scores["predicted_zero"], by="hour"),
        "residuals.png": pictures.residuals_by_revenue(revenue, ltv),
        "capture_against_spend.png": pictures.revenue_against_spend(revenue, ranked),
        "score_distribution.png": pictures.score_distribution(ltv, revenue),
    }


def write_holdout(folder: Path, key: str, holdout: Holdout) -> dict[str, int | None]:
    """Write the evaluation's relation and its scored rows; returns what `Warehouse.write` wants to know."""
    relation = holdout.relation(key)
    pq.write_table(relation, folder / "metrics.parquet")
    pq.write_table(holdout.scores_table(), folder / SCORES_FILE, compression="zstd")
    holdout.deciles.to_csv(folder / "deciles.csv", index=False)
    return {"metrics.parquet": relation.num_rows, SCORES_FILE: None, "deciles.csv": None}


def ablation_table(project: Project, window: date, *, progress: Callable[[str], None]) -> pd.DataFrame:
    """Refit a window without one part at a time and compare the variants on its holdout.

    Raises StaleError if one of its days is missing or outdated.
    """
    from ltv_assets.modeling.evaluation.ablation import ablate
    from ltv_assets.training.windows import as_window

    key = str(window)
    project.lineage().require_ready("histos_train", key)
    rows = WindowRows(project, key)
    return ablate(window_context(project, key), as_window(rows.holdout_rows()), progress=progress)
