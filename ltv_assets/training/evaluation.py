"""Evaluation of a window on its holdout day: figures by segment, scored rows for later comparison, and pictures.

The bridge between the warehouse and ``modeling.evaluation``: it scores the holdout with the *evaluated* model, adds the
truth where the data carries one, and says which columns make segments. Formulas are in ``modeling/evaluation/metrics.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ltv_assets import plots as pictures
from ltv_assets.core.contract import Contract
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.ingestion.footers import Footer, read_footer
from ltv_assets.modeling.evaluation.segments import ALL, cold_start, decile_table, evaluate
from ltv_assets.modeling.model_set import WindowModels
from ltv_assets.modeling.model_store import read_evaluated
from ltv_assets.state.project import Project
from ltv_assets.storage.warehouse import SCORES_FILE
from ltv_assets.training.stored_rows import Rows
from ltv_assets.training.windows import WindowRows, window_context


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

    def relation(self, key: PartitionKey) -> pa.Table:
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
        return table.append_column(self.rows.names.observed, pa.array(self.rows.revenue.iloc[:, 0].to_numpy()))


def evaluate_window(project: Project, key: PartitionKey) -> Holdout:
    """Score the holdout day of a window with the model trained before it, and measure it."""
    window = window_context(project, key)
    window.forget_encodings()  # of the window only its labels and bundles are needed any more
    models = read_evaluated(project.warehouse, key)
    rows = WindowRows(project, key).holdout_rows()
    seen = window.data.X.get(project.contract.cold_start or "")
    return measure(project, models, rows, constant_log=float(window.data.log_d7.mean()), seen=seen)


def measure(project: Project, models: WindowModels, rows: Rows, *, constant_log: float, seen: pd.Series | None) -> Holdout:
    """Score some labelled rows and compute every figure of the evaluation."""
    settings, compute, names = project.config.evaluation, project.config.compute, rows.names
    scores = models.score(rows.X, compute.chunk_rows, compute.threads, reference=True)
    oracle = oracle_scores(project, rows)
    figures = evaluate(
        scores,
        rows.revenue,
        cap_usd=models.cap_usd,
        segments=_segments(project.contract, rows, seen),
        oracle_log=oracle,
        constant_log=constant_log,
        names=names,
        min_segment_rows=settings.min_segment_rows,
        max_segments=settings.max_segments,
        replicates=settings.bootstrap_repeats,
        seed=project.config.seed,
        threads=compute.threads,
    )
    deciles = decile_table(rows.revenue.iloc[:, 0].to_numpy(), scores[names.ltv[0]].to_numpy(), scores[names.expected].to_numpy())
    return Holdout(rows, scores, figures, deciles, oracle, models.cap_usd)


def _segments(contract: Contract, rows: Rows, seen: pd.Series | None) -> pd.DataFrame:
    segments = pd.DataFrame({c: rows.X[c] for c in contract.segments if c in rows.X}, index=rows.revenue.index)
    if contract.has_hours:
        segments["hour"] = rows.hour
    if seen is not None and (column := contract.cold_start or "") in rows.X:
        segments[contract.cold_start_segment] = cold_start(rows.X[column], seen)
    return segments


def oracle_scores(project: Project, rows: Rows) -> NDArray[np.float64] | None:
    """E[log1p(revenue) | row] of simulated data, in row order; None where the data carries no truth."""
    path = project.config.data.root / "truth" / "train.parquet"
    footer = read_footer(path) if path.is_file() else None
    if not isinstance(footer, Footer) or "oracle_log" not in footer.schema.names:
        return None
    found = np.full(len(rows.row_id), np.nan)
    with project.open_duckdb() as connection:
        connection.register("wanted", pa.table({"row_id": rows.row_id, "place": pa.array(np.arange(len(found)))}))
        known = connection.execute("select place, oracle_log from read_parquet(?) join wanted using (row_id)", [str(path)]).fetchnumpy()
    found[known["place"]] = known["oracle_log"]
    return None if np.isnan(found).any() else found


def _revenue(holdout: Holdout) -> NDArray[np.float64]:
    return holdout.rows.revenue.iloc[:, 0].to_numpy()


def _ltv(holdout: Holdout) -> NDArray[np.float64]:
    return holdout.scores[holdout.rows.names.ltv[0]].to_numpy()


def _ranked(holdout: Holdout) -> dict[str, NDArray[np.float64]]:
    ranked = {holdout.rows.names.ltv[0]: _ltv(holdout), "reference": holdout.scores["reference_log"].to_numpy()}
    return ranked if holdout.oracle_log is None else {**ranked, "oracle": holdout.oracle_log}


def _bars(holdout: Holdout) -> dict[str, tuple[float, float, float]]:
    whole = holdout.figures[holdout.figures["segment"] == ALL].set_index("metric")
    ltv = holdout.rows.names.ltv[0]
    names = {
        "rmsle_zero": "predict zero",
        "rmsle_constant": "constant",
        "rmsle_reference": "reference",
        "rmsle": ltv,
        "rmsle_gated": f"{ltv}, gated",
        "rmsle_oracle": "oracle",
    }
    return {
        label: tuple(float(v) for v in whole.loc[m, ["value", "low", "high"]])  # type: ignore[misc]
        for m, label in names.items()
        if m in whole.index
    }


@dataclass(frozen=True)
class HoldoutPlot:
    """A picture of an evaluated holdout: its file, the sentence under it in the report, and how it is drawn."""

    file: str
    caption: str
    draw: Callable[[Holdout], bytes]


HOLDOUT_PLOTS: tuple[HoldoutPlot, ...] = (
    HoldoutPlot(
        "rmsle.png",
        "RMSLE against what is simpler (constant, zero, one LightGBM) and, in simulations, against the best possible.",
        lambda h: pictures.rmsle_bars(_bars(h)),
    ),
    HoldoutPlot(
        "reliability.png",
        "Does a probability of 5 % mean that 5 % pay? Points on the dashed line say yes; both axes are logarithmic.",
        lambda h: pictures.reliability_curve(_revenue(h) > 0, h.scores["buyer_probability"]),
    ),
    HoldoutPlot(
        "gain.png",
        "Share of all revenue that is found in the best-scored impressions.",
        lambda h: pictures.gain_curves(_revenue(h), _ranked(h)),
    ),
    HoldoutPlot(
        "deciles.png",
        "Impressions in ten groups by score: money expected and money recorded, each row up to the cap.",
        lambda h: pictures.decile_chart(_revenue(h), _ltv(h), h.scores[h.rows.names.expected], cap_usd=h.cap_usd),
    ),
    HoldoutPlot(
        "zero_rate_by_hour.png",
        "Share of impressions without revenue by hour of the day, recorded and predicted.",
        lambda h: pictures.zero_rate_by(h.rows.hour, _revenue(h), h.scores["predicted_zero"], by="hour"),
    ),
    HoldoutPlot(
        "residuals.png",
        "Error in log1p by recorded revenue. Payers lie far below zero in any good model: most who look like them do not pay.",
        lambda h: pictures.residuals_by_revenue(_revenue(h), _ltv(h)),
    ),
    HoldoutPlot(
        "capture_against_spend.png",
        "Share of all revenue against the share of impressions bought, best scores first.",
        lambda h: pictures.revenue_against_spend(_revenue(h), _ranked(h)),
    ),
    HoldoutPlot(
        "score_distribution.png",
        "How the scores of payers and of others are distributed.",
        lambda h: pictures.score_distribution(_ltv(h), _revenue(h)),
    ),
)
"""Pictures of every window's holdout, in the order of the report; Dagster and MLflow show them as well."""
CAPTIONS: Mapping[str, str] = {plot.file: plot.caption for plot in HOLDOUT_PLOTS}


def holdout_pictures(holdout: Holdout) -> dict[str, bytes]:
    """Pictures of an evaluated holdout by file name."""
    return {plot.file: plot.draw(holdout) for plot in HOLDOUT_PLOTS}


def write_holdout(folder: Path, key: PartitionKey, holdout: Holdout) -> dict[str, int | None]:
    """Write the evaluation's relation and its scored rows; returns what `Warehouse.write` wants to know."""
    relation = holdout.relation(key)
    pq.write_table(relation, folder / "metrics.parquet")
    pq.write_table(holdout.scores_table(), folder / SCORES_FILE, compression="zstd")
    holdout.deciles.to_csv(folder / "deciles.csv", index=False)
    return {"metrics.parquet": relation.num_rows, SCORES_FILE: None, "deciles.csv": None}


def ablation_table(project: Project, key: PartitionKey, *, progress: Callable[[str], None]) -> pd.DataFrame:
    """Refit a window without one part at a time and compare the variants on its holdout.

    Raises StaleError if one of its days is missing or outdated.
    """
    from ltv_assets.modeling.evaluation.ablation import ablate
    from ltv_assets.training.windows import as_window

    project.lineage().require_ready("histos_train", key)
    rows = WindowRows(project, key)
    return ablate(window_context(project, key), as_window(rows.holdout_rows()), progress=progress)
