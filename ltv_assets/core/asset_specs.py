"""The assets: one declaration each, from which every other list of assets is made.

What belongs here: name, clock, inputs, code version, configuration keys, columns and where an asset is shown. What does not: how it is
made (``defs/assets/``), which checks judge it (``defs/asset_checks/``). Read next: ``../state/freshness.py``.

An asset is added in two places: its row in `ASSETS`, and the function that makes it in ``defs/assets/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ltv_assets.core.contract import ROW_ID, Contract, load_contract

Clock = Literal["day", "window", "submission"]
Days = Literal["same", "training", "training and holdout", "test", "champion", "history", "published"]


@dataclass(frozen=True, slots=True)
class OutputColumn:
    """One column of a published relation; ``type`` is a DuckDB type."""

    name: str
    type: str
    description: str
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Upstream:
    """One input of an asset, and which of its partitions: the one of the same key, days of the window, the champion's window, windows up
    to the champion's as far as there are any (``history``), or the one of the same key as it was published, fresh or not.
    """

    asset: str
    days: Days = "same"


@dataclass(frozen=True, slots=True)
class AssetSpec:
    """Everything about an asset but the function that makes it.

    ``code_version``: raised by hand when the meaning of the output changes; older partitions then count as stale.
    ``config_keys``: configuration that changes the bytes; paths and bounds of checks are not among it.
    ``relation``: its columns; empty where they follow from the feature registry.
    ``view``: a row is an impression, so the catalog has a view of the files; otherwise they are few and copied into a table.
    ``shared``: sent to the object store. ``automated``: made without a click when its inputs are ready.
    ``tracked_sections``: sections of ``models`` that MLflow shows as its parameters.
    """

    name: str
    partitions: Clock
    group: str
    folder: Literal["lake", "models", "submissions"]
    code_version: str
    description: str
    kinds: tuple[str, ...]
    upstream: tuple[Upstream, ...] = ()
    config_keys: tuple[str, ...] = ()
    relation: tuple[OutputColumn, ...] = ()
    view: bool = False
    shared: bool = True
    automated: bool = True
    tracked_sections: tuple[str, ...] = ()

    @property
    def job(self) -> str:
        """The job that makes it."""
        if self.partitions == "day":
            return {"ingestion": "ingest_days", "evaluation": "observe_days"}.get(self.group, "score_days")
        return "train_window" if self.partitions == "window" else "make_submission"


_WINDOW_KEY = OutputColumn("window_key", "VARCHAR", "holdout day of the window, YYYY-MM-DD")
_PLAN_ROW = (
    _WINDOW_KEY,
    OutputColumn("day", "VARCHAR", "training day, YYYY-MM-DD"),
    OutputColumn("file", "INTEGER", "position of the flattened file in its manifest"),
    OutputColumn("row_number", "BIGINT", "position of the row in the flattened file, from 0"),
    OutputColumn("bin", "SMALLINT", "histogram bin of log1p(revenue) within the shortest horizon; 0 is revenue 0"),
)
_STAGE_METRICS = (
    _WINDOW_KEY,
    OutputColumn("metric", "VARCHAR", "name of the figure, measured out of fold inside the training days"),
    OutputColumn("value", "DOUBLE", "its value"),
)

_GROUP = (
    OutputColumn("segment", "VARCHAR", "column the rows are grouped by; all: the day as a whole"),
    OutputColumn("value", "VARCHAR", "value of that column; (other): its rarer values together, (missing): rows without one"),
    OutputColumn("rows", "BIGINT", "impressions of the group"),
)
_FORECAST = (
    OutputColumn("expected_payers", "DOUBLE", "expected number of impressions with revenue", "rows"),
    OutputColumn("payers_low", "DOUBLE", "lower end of the 80 % interval of payers", "rows"),
    OutputColumn("payers_high", "DOUBLE", "upper end of the 80 % interval of payers", "rows"),
    OutputColumn("expected_revenue_usd", "DOUBLE", "expected sum of min(revenue, cap_usd)", "USD"),
    OutputColumn("revenue_low_usd", "DOUBLE", "lower end of the 80 % interval of that sum", "USD"),
    OutputColumn("revenue_high_usd", "DOUBLE", "upper end of the 80 % interval of that sum", "USD"),
)
_CAME = (
    OutputColumn("payers", "BIGINT", "impressions with revenue", "rows"),
    OutputColumn("revenue_capped_usd", "DOUBLE", "sum of min(revenue, cap_usd)", "USD"),
    OutputColumn("revenue_usd", "DOUBLE", "sum of revenue", "USD"),
)

_TRAINING_DAYS = Upstream("flattened_features", "training")
_WINDOW_DAYS = Upstream("flattened_features", "training and holdout")
_BOOSTING_KEYS = ("compute.engine", "compute.threads", "compute.max_memory_gb")


def _predictions(contract: Contract) -> tuple[OutputColumn, ...]:
    scores = contract.scores
    others = [f"{days} days" for days in scores.horizons[1:]]
    target, shortest = scores.target, f"revenue_d{scores.horizons[0]}"
    longer = [
        OutputColumn(name, "DOUBLE", text, "USD")
        for name, text in zip(
            scores.ltv[1:],
            (
                f"the same law {f'as {scores.ltv[0]} ' if k == 0 else ''}at {days}, never below {'it' if k == 0 else scores.ltv[k]}"
                for k, days in enumerate(others)
            ),
            strict=True,
        )
    ]
    return (
        OutputColumn(ROW_ID, "VARCHAR", "the impression"),
        OutputColumn("day", "VARCHAR", "its day, YYYY-MM-DD"),
        OutputColumn("buyer_probability", "DOUBLE", f"calibrated P({shortest} > 0)", "0..1"),
        OutputColumn("log_revenue_if_buyer", "DOUBLE", f"E[log1p({shortest}) | {shortest} > 0]", "log USD"),
        OutputColumn(scores.ltv[0], "DOUBLE", "expm1(score), RMSLE-optimal, ungated", "USD"),
        OutputColumn(scores.expected, "DOUBLE", f"E[min({shortest}, cap_usd)]: money that adds up", "USD"),
        *longer,
        OutputColumn("predicted_zero", "BOOLEAN", "the gate's verdict"),
        OutputColumn(target, "DOUBLE", f"0 where predicted_zero, else {scores.ltv[0]}: the submission's column", "USD"),
    )


def _submission(contract: Contract) -> tuple[OutputColumn, ...]:
    return (
        OutputColumn(contract.identifier, "VARCHAR", "the test impression"),
        OutputColumn(contract.target, "DOUBLE", "predicted revenue", "USD"),
    )


ASSETS: tuple[AssetSpec, ...] = (
    AssetSpec(
        "raw_partitions",
        "day",
        "ingestion",
        "lake",
        code_version="2",
        description="Inventory of one day's raw files: rows, schema fingerprint, hash and verdict per file. Nothing is copied.",
        kinds=("parquet",),
        config_keys=("data.{split}.max_partitions",),
        relation=(
            OutputColumn("day", "VARCHAR", "day of the impressions, YYYY-MM-DD"),
            OutputColumn("split", "VARCHAR", "train (with labels) or test"),
            OutputColumn("datetime", "VARCHAR", "hour of the impressions, YYYY-MM-DD-HH-00"),
            OutputColumn("path", "VARCHAR", "file, relative to the data root"),
            OutputColumn("rows", "BIGINT", "rows the file's footer declares; NULL if it has none"),
            OutputColumn("bytes", "BIGINT", "size", "bytes"),
            OutputColumn("schema_fingerprint", "VARCHAR", "hash of the file's column names and physical types"),
            OutputColumn("sha256", "VARCHAR", "hash of the file's content"),
            OutputColumn("verdict", "VARCHAR", "good or quarantined"),
            OutputColumn("reason", "VARCHAR", "why a file was quarantined; NULL for good files"),
        ),
        automated=False,
    ),
    AssetSpec(
        "flattened_features",
        "day",
        "ingestion",
        "lake",
        code_version="4",
        description=(
            "One row per impression: keys, labels and flat features of every nested column. "
            "Rows without key or label are set aside with their reason and counted."
        ),
        kinds=("duckdb", "parquet"),
        upstream=(Upstream("raw_partitions"),),
        config_keys=(
            "seed",
            "features",
            "data.{split}.sampling_fraction",
        ),
        view=True,
        automated=False,
    ),
    AssetSpec(
        "histos_train",
        "window",
        "sampling",
        "lake",
        code_version="1",
        description="HistOS plan for the classifier: how often each training row is shown. Rows are never copied.",
        kinds=("parquet",),
        upstream=(_TRAINING_DAYS,),
        config_keys=(
            "seed",
            "sampling",
        ),
        relation=(*_PLAN_ROW, OutputColumn("multiplicity", "INTEGER", "how often HistOS shows the row to the classifier, at least 1")),
        view=True,
    ),
    AssetSpec(
        "hhistus_buyers",
        "window",
        "sampling",
        "lake",
        code_version="1",
        description="HHISTUS plan for the regressor: which payers are kept and with which weight; whales always are.",
        kinds=("parquet",),
        upstream=(_TRAINING_DAYS,),
        config_keys=(
            "seed",
            "sampling",
        ),
        relation=(
            *_PLAN_ROW,
            OutputColumn("weight", "FLOAT", "weight of the kept payer, 1 / keep probability; dropped payers are absent"),
        ),
        view=True,
    ),
    AssetSpec(
        "buyer_classifier",
        "window",
        "models",
        "models",
        code_version="5",
        description=(
            "P(revenue > 0) within the shortest horizon: LightGBM on the HistOS plan, corrected for its prior and calibrated at the "
            "natural rate out of fold."
        ),
        kinds=("lightgbm",),
        upstream=(
            _TRAINING_DAYS,
            Upstream("histos_train"),
        ),
        config_keys=(
            "seed",
            "sampling",
            "models",
            *_BOOSTING_KEYS,
        ),
        relation=_STAGE_METRICS,
        tracked_sections=("buyer_classifier", "calibration"),
    ),
    AssetSpec(
        "buyer_gating",
        "window",
        "models",
        "models",
        code_version="6",
        description="Cap of the probability, whale classifier and the zero rate to be met: buyer_threshold.json and buyer_gating.json.",
        kinds=("lightgbm",),
        upstream=(
            _TRAINING_DAYS,
            Upstream("buyer_classifier"),
        ),
        config_keys=(
            "seed",
            "models",
            *_BOOSTING_KEYS,
        ),
        relation=_STAGE_METRICS,
        tracked_sections=("whale_classifier", "gating"),
    ),
    AssetSpec(
        "revenue_regressor",
        "window",
        "models",
        "models",
        code_version="6",
        description=(
            "E[log1p(revenue) | payer] within the shortest horizon, non-negative log increments to the longer ones, expected revenue "
            "and the pinned reference."
        ),
        kinds=("lightgbm",),
        upstream=(
            _TRAINING_DAYS,
            Upstream("hhistus_buyers"),
            Upstream("buyer_classifier"),
            Upstream("buyer_gating"),
        ),
        config_keys=(
            "seed",
            "sampling",
            "models",
            *_BOOSTING_KEYS,
        ),
        relation=_STAGE_METRICS,
        tracked_sections=("revenue_head", "increments", "cap_quantile"),
    ),
    AssetSpec(
        "stacker",
        "window",
        "models",
        "models",
        code_version="10",
        description="The final score: base learners under a LightGBM meta learner, out of fold by time, with the gate that belongs to it.",
        kinds=("lightgbm",),
        upstream=(
            _TRAINING_DAYS,
            Upstream("buyer_classifier"),
            Upstream("buyer_gating"),
            Upstream("revenue_regressor"),
        ),
        config_keys=(
            "seed",
            "models",
            "compute.threads",
            "compute.max_memory_gb",
        ),
        relation=_STAGE_METRICS,
        tracked_sections=("stacker", "boosting", "forest", "linear"),
    ),
    AssetSpec(
        "holdout_metrics",
        "window",
        "evaluation",
        "lake",
        code_version="2",
        description="Every figure of the window's models on its holdout day, overall and by segment, with intervals.",
        kinds=("duckdb", "mlflow"),
        upstream=(
            _WINDOW_DAYS,
            Upstream("buyer_classifier"),
            Upstream("buyer_gating"),
            Upstream("revenue_regressor"),
            Upstream("stacker"),
        ),
        config_keys=(
            "seed",
            "evaluation",
        ),
        relation=(
            _WINDOW_KEY,
            OutputColumn("metric", "VARCHAR", "name of the figure"),
            OutputColumn("segment", "VARCHAR", "all, or column=value"),
            OutputColumn("value", "DOUBLE", "its value; NULL where it is undefined"),
            OutputColumn("low", "DOUBLE", "lower end of its bootstrap interval, where one is made"),
            OutputColumn("high", "DOUBLE", "upper end of its bootstrap interval, where one is made"),
        ),
    ),
    AssetSpec(
        "cohort_errors",
        "window",
        "evaluation",
        "lake",
        code_version="2",
        description=(
            "How far forecasts of groups were off: on the training days out of fold, on the holdout day by the models trained before it. "
            "Intervals of later forecasts rest on it."
        ),
        kinds=("parquet",),
        upstream=(
            _WINDOW_DAYS,
            Upstream("buyer_classifier"),
            Upstream("buyer_gating"),
            Upstream("revenue_regressor"),
            Upstream("holdout_metrics"),
        ),
        config_keys=(
            "seed",
            "models",
            "evaluation.min_segment_rows",
            "evaluation.max_segments",
        ),
        relation=(
            _WINDOW_KEY,
            OutputColumn("day", "VARCHAR", "day of the impressions, YYYY-MM-DD"),
            OutputColumn("source", "VARCHAR", "out of fold: scored by models fitted on other days; holdout: by those trained before it"),
            *_GROUP,
            *_FORECAST,
            *_CAME,
            OutputColumn("payers_2", "DOUBLE", "variance of the number of payers at a known level: sum of p (1 - p)", "rows squared"),
            OutputColumn("amount_variance", "DOUBLE", "variance of capped revenue that amounts make, given who pays", "USD squared"),
        ),
    ),
    AssetSpec(
        "served_model",
        "window",
        "evaluation",
        "models",
        code_version="7",
        description="The window's models fitted again with the holdout day included; becomes champion unless it was measured to be worse.",
        kinds=("lightgbm",),
        upstream=(
            _WINDOW_DAYS,
            Upstream("stacker"),
            Upstream("holdout_metrics"),
        ),
        config_keys=(
            "seed",
            "sampling",
            "models",
            *_BOOSTING_KEYS,
        ),
        relation=_STAGE_METRICS,
    ),
    AssetSpec(
        "predictions",
        "day",
        "scoring",
        "lake",
        code_version="3",
        description="Every impression of a day scored with the champion: probability, log revenue, LTV at every horizon, the gate.",
        kinds=("lightgbm", "parquet"),
        upstream=(
            Upstream("flattened_features"),
            Upstream("served_model", "champion"),
        ),
        relation=_predictions(load_contract()),
        view=True,
    ),
    AssetSpec(
        "cohort_forecast",
        "day",
        "scoring",
        "lake",
        code_version="2",
        description=(
            "What the impressions of a scored day will bring within the shortest horizon, as a whole and by segment: expected payers and "
            "revenue with 80 % intervals. Groups of a segment add up to the total."
        ),
        kinds=("parquet",),
        upstream=(
            Upstream("flattened_features"),
            Upstream("predictions"),
            Upstream("cohort_errors", "history"),
        ),
        config_keys=(
            "evaluation.min_segment_rows",
            "evaluation.max_segments",
        ),
        relation=(
            OutputColumn("day", "VARCHAR", "day of the impressions, YYYY-MM-DD"),
            *_GROUP,
            *_FORECAST,
        ),
    ),
    AssetSpec(
        "cohort_outcome",
        "day",
        "evaluation",
        "lake",
        code_version="1",
        description=(
            "Forecast and outcome of a scored day side by side, made when its labels have come and are final: what came by group, and "
            "whether it lies in the interval. The forecast is the one that was published before."
        ),
        kinds=("parquet",),
        upstream=(
            Upstream("flattened_features"),
            Upstream("cohort_forecast", "published"),
        ),
        relation=(
            OutputColumn("day", "VARCHAR", "day of the impressions, YYYY-MM-DD"),
            *_GROUP,
            OutputColumn("rows_labelled", "BIGINT", "impressions of the group whose labels came"),
            OutputColumn("model_window", "VARCHAR", "window of the model that made the forecast, YYYY-MM-DD"),
            OutputColumn("model_age_days", "INTEGER", "days from that window to the day; 0 or less: the model had seen the day", "days"),
            *_FORECAST,
            *_CAME,
            OutputColumn("payers_inside", "BOOLEAN", "payers lie in their interval, ends included"),
            OutputColumn("revenue_inside", "BOOLEAN", "capped revenue lies in its interval, ends included"),
        ),
    ),
    AssetSpec(
        "submission",
        "submission",
        "scoring",
        "submissions",
        code_version="1",
        description="submission.csv (gated) and submission_ungated.csv for every row of the configured test days.",
        kinds=("csv",),
        upstream=(Upstream("predictions", "test"),),
        config_keys=("data.sample_submission",),
        relation=_submission(load_contract()),
        view=True,
    ),
)
"""Every asset, each after what it is made from."""

SPECS: dict[str, AssetSpec] = {a.name: a for a in ASSETS}
ASSET_NAMES: tuple[str, ...] = tuple(SPECS)


def _of_clock(clock: Clock) -> tuple[str, ...]:
    return tuple(a.name for a in ASSETS if a.partitions == clock)


DAY_ASSETS, WINDOW_ASSETS = _of_clock("day"), _of_clock("window")
INGESTED_ASSETS = tuple(a.name for a in ASSETS if a.group == "ingestion")
"""What the raw files of a day alone decide."""
MODEL_ASSETS = tuple(a.name for a in ASSETS if a.group == "models")
SHARED_ASSETS = tuple(name for name in (*DAY_ASSETS, *WINDOW_ASSETS, *_of_clock("submission")) if SPECS[name].shared)
AUTOMATED_ASSETS = tuple(a.name for a in ASSETS if a.automated)
IMPRESSION_ASSETS = tuple(a.name for a in ASSETS if a.view)
"""Assets whose rows are impressions."""
JOBS: dict[str, tuple[str, ...]] = {job: tuple(a.name for a in ASSETS if a.job == job) for job in dict.fromkeys(a.job for a in ASSETS)}
"""Assets of each job that makes partitions, in the order in which the jobs run."""

RELATIONS: dict[str, tuple[OutputColumn, ...]] = {a.name: a.relation for a in ASSETS if a.relation}
"""Columns of every relation of the warehouse but ``flattened_features``, whose columns follow from the feature registry; under the
shipped contract, see `relations`."""


def relations(contract: Contract) -> dict[str, tuple[OutputColumn, ...]]:
    """`RELATIONS` under any contract: its identifier, horizons and target name columns of scores."""
    return {**RELATIONS, "predictions": _predictions(contract), "submission": _submission(contract)}


CODE_VERSIONS: dict[str, str] = {a.name: a.code_version for a in ASSETS}
CONFIG_KEYS: dict[str, tuple[str, ...]] = {a.name: a.config_keys for a in ASSETS}
WINDOW_UPSTREAM: dict[str, tuple[str, ...]] = {
    name: tuple(u.asset for u in SPECS[name].upstream if u.days == "same") for name in WINDOW_ASSETS
}
"""Assets of the same window that each window asset reads, next to the flattened days."""
