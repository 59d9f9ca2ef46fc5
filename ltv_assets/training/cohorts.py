"""Forecasts of groups in the warehouse: the rows of a scored day by segment, and what an interval needs of its champion.

What belongs here: reading scores, segments and labels by position, writing the relations. What does not: sums, noise and intervals
(``modeling/cohorts.py``). Next to read: ``evaluation.py``, whose segments these are.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ltv_assets.core.asset_specs import RELATIONS
from ltv_assets.core.errors import StaleError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.features.schema import feature_names
from ltv_assets.modeling.cohorts import (
    CohortNoise,
    KnownRows,
    compared_by_day,
    group_rows,
    inside,
    learn_noise,
    noise_of_level,
    observed,
    out_of_fold_rows,
    same_groups,
    sum_up,
    with_intervals,
)
from ltv_assets.modeling.evaluation.metrics import outcome_figures
from ltv_assets.modeling.evaluation.segments import ALL
from ltv_assets.modeling.folds import make_folds
from ltv_assets.modeling.model_store import read_stage
from ltv_assets.modeling.serialization import from_json
from ltv_assets.state.project import Project
from ltv_assets.storage.manifest import read_files
from ltv_assets.storage.warehouse import SCORES_FILE
from ltv_assets.training.windows import require_mature, window_context

_ARROW = {"VARCHAR": pa.string(), "DOUBLE": pa.float64(), "BIGINT": pa.int64(), "INTEGER": pa.int32(), "BOOLEAN": pa.bool_()}
OUT_OF_FOLD, HOLDOUT = "out of fold", "holdout"
"""Sources of errors: days that other days' models scored, and the day that models trained before it scored."""
NOISE_FILE = "cohort_noise.json"
_MONEY = "revenue_regressor/revenue_regressor.json"
"""File of a served model that tells its cap."""


def summed(project: Project) -> tuple[str, str]:
    """Scores that are added up."""
    return ("buyer_probability", project.contract.scores.expected)


@dataclass(frozen=True)
class CohortForecast:
    """The forecast of a day: `RELATIONS` ``cohort_forecast`` without its day, and what it rests on."""

    day: PartitionKey
    groups: pd.DataFrame
    champion: PartitionKey
    days_ahead: int
    noise: CohortNoise
    cap_usd: float
    tail_factor: float

    @property
    def total(self) -> pd.Series:
        """The day as a whole."""
        return self.groups[self.groups["segment"] == ALL].iloc[0]

    @property
    def reach(self) -> str:
        """In words, what the movement of levels was learnt from."""
        days = self.noise.days
        if not days:
            return "no past day is known to this model: intervals are as wide as levels of other markets suggest"
        return f"movement of levels learnt from {len(days)} days, {days[0]} to {days[-1]}"

    def facts(self) -> dict[str, Any]:
        """What checks and readers want of it without opening the relation."""
        return {
            "champion": self.champion,
            "days_ahead": self.days_ahead,
            "history_days": len(self.noise.days),
            "cap_usd": self.cap_usd,
            "tail_factor": self.tail_factor,
        }


@dataclass(frozen=True)
class WindowErrors:
    """Errors of a window's forecasts: `RELATIONS` ``cohort_errors`` without its window, and the noise that they teach."""

    window: PartitionKey
    errors: pd.DataFrame
    noise: CohortNoise

    @property
    def holdout(self) -> pd.DataFrame:
        """The groups of the holdout day, forecast before it was seen."""
        return self.errors[self.errors["source"] == HOLDOUT].reset_index(drop=True)

    @property
    def coverage(self) -> dict[str, float]:
        """Share of the holdout day's groups whose outcome lies in its interval, for payers and for revenue."""
        held = self.holdout
        return {str(name).replace("_", "_of_holdout_"): float(share) for name, share in inside(held).mean().items()}


def window_errors(project: Project, key: PartitionKey) -> WindowErrors:
    """How far the forecasts of a window's groups were off, and the noise of later forecasts that follows.

    The intervals of the holdout day rest on the training days alone, so whether they held is a test of them.
    """
    warehouse, sizes = project.warehouse, _sizes(project)
    days = [PartitionKey(day) for day in project.horizon.training_days(key.day)]
    classifier, gating, regressor = (
        read_stage(warehouse, stage, key) for stage in ("buyer_classifier", "buyer_gating", "revenue_regressor")
    )
    cap_usd = regressor.expected.cap_usd
    segments, revenue, day = _labelled(project, days)
    if len(revenue) != len(gating.oof["capped_probability"]):  # of a large window only some rows are scored out of fold
        chosen = window_context(project, key).design.auxiliary
        segments, revenue, day = segments.iloc[chosen], revenue[chosen], day[chosen]
    past = out_of_fold_rows(classifier, gating, regressor, segments, revenue, make_folds(day, project.config.models.folds))
    amounts = past.amounts(cap_usd)
    before = compared_by_day(past, day, days, amounts, cap_usd, **sizes).assign(source=OUT_OF_FOLD)
    noise = noise_of_level(before, amounts, gating.level)
    scores = pd.read_parquet(io.BytesIO(warehouse.artifacts("holdout_metrics", key)[SCORES_FILE]))
    columns = (*summed(project), project.contract.scores.observed)
    holdout = KnownRows(segment_frame(project, key), *(scores[name].to_numpy() for name in columns))
    seen = holdout.compared(amounts, cap_usd, **sizes).assign(day=key, source=HOLDOUT, ahead=True)
    ends = with_intervals(seen, noise, (key.day - days[-1].day).days)
    errors = pd.concat([before, seen.join(ends[ends.columns.difference(seen.columns)])], ignore_index=True)
    return WindowErrors(key, errors, noise_of_level(errors, amounts, gating.level))


def _sizes(project: Project) -> dict[str, int]:
    settings = project.config.evaluation
    return {"min_rows": settings.min_segment_rows, "max_segments": settings.max_segments}


def _labelled(project: Project, days: Sequence[PartitionKey]) -> tuple[pd.DataFrame, NDArray[np.float64], NDArray[np.int64]]:
    """Segments, revenue (USD) and number of the day of every row of labelled days."""
    labels = [_read(project, "flattened_features", [day], project.contract.revenue[:1]).to_numpy(np.float64)[:, 0] for day in days]
    return segment_frame(project, *days), np.concatenate(labels), np.repeat(np.arange(len(days)), [len(label) for label in labels])


def write_errors(folder: Path, found: WindowErrors) -> dict[str, int | None]:
    """Write the relation and the noise; returns what `Warehouse.write` wants to know."""
    (folder / NOISE_FILE).write_bytes(found.noise.to_json())
    return {
        NOISE_FILE: None,
        "errors.parquet": write_relation(folder / "errors.parquet", "cohort_errors", found.errors.assign(window_key=found.window)),
    }


def champions_noise(project: Project, champion: PartitionKey) -> CohortNoise:
    """What a champion's forecasts miss by: learnt from its own window, and from holdout days of the windows before it.

    Without errors of its own window it is as wide as for a market nobody knows.
    """
    keys = project.lineage().history("cohort_errors")
    if champion not in keys:
        return CohortNoise()
    own = CohortNoise.from_json(project.warehouse.artifacts("cohort_errors", champion)[NOISE_FILE])
    tables = {key: pd.concat([pd.read_parquet(f) for f in project.warehouse.files("cohort_errors", key)]) for key in keys}
    errors = pd.concat([t if key == champion else t[t["source"] == HOLDOUT] for key, t in sorted(tables.items())], ignore_index=True)
    return learn_noise(
        errors.assign(ahead=errors["source"] == HOLDOUT), own.amounts, followed=own.followed, lasting_share=own.lasting_share
    )


def forecast_day(project: Project, day: PartitionKey) -> CohortForecast:
    """Add up a scored day by group and put intervals around the sums.

    Raises StaleError if scores and flattened rows of the day do not belong together.
    """
    scores = _read(project, "predictions", [day], summed(project))
    champion = PartitionKey(project.warehouse.require("predictions", day, "materialize it first").facts["champion"])
    segments = segment_frame(project, day)
    if len(segments) != len(scores):
        raise StaleError(
            f"cohort_forecast {day}: {len(scores)} scores of {len(segments)} flattened rows; materialize predictions {day} again"
        )
    noise, groups = champions_noise(project, champion), group_rows(segments, **_sizes(project))
    probability, expected = (scores[name].to_numpy() for name in summed(project))
    sums = sum_up(groups, probability, expected, noise.amounts)
    ahead = max(1, (day.day - champion.day).days + (0 if project.config.models.refit else 1))
    money = money_terms(project, champion)
    return CohortForecast(day, with_intervals(sums, noise, ahead), champion, ahead, noise, money["cap_usd"], money["tail_factor"])


@dataclass(frozen=True)
class CohortOutcome:
    """A forecast beside what came: `RELATIONS` ``cohort_outcome`` without its day."""

    day: PartitionKey
    groups: pd.DataFrame
    champion: PartitionKey
    cap_usd: float

    @property
    def figures(self) -> dict[str, float]:
        """Coverage, bias and weighted error of the day's groups, and what it brought as a whole."""
        total = self.groups.iloc[0]
        came = {name: float(total[name]) for name in ("payers", "revenue_capped_usd", "revenue_usd")}
        return {**came, **outcome_figures(self.groups)}


def compare_day(project: Project, day: PartitionKey) -> CohortOutcome:
    """What came of a forecast day, by the groups of its forecast. Raises StaleError if the day's labels are not final."""
    require_mature(project.config, [day.day])
    forecast, facts = stored_forecast(project, day)
    segments, revenue, _ = _labelled(project, [day])
    named = forecast.groupby("segment", sort=False)["value"].agg(list).to_dict()
    groups = same_groups(segments, {str(s): tuple(values) for s, values in named.items()})
    came = observed(groups, revenue, float(facts["cap_usd"]))
    segment, value = groups.listed()
    came = came.assign(segment=segment, value=value, rows_labelled=groups.add_up(np.ones(len(revenue)), 1.0).astype(np.int64))
    compared = forecast.merge(came, on=["segment", "value"], how="left", validate="one_to_one")
    champion = PartitionKey(facts["champion"])
    age = (day.day - champion.day).days
    compared = compared.join(inside(compared)).assign(model_window=champion, model_age_days=age)
    return CohortOutcome(day, compared, champion, float(facts["cap_usd"]))


def past_outcomes(project: Project, until: str = "9999-12-31", days: int | None = None) -> pd.DataFrame:
    """Rows of ``cohort_outcome`` of the newest ``days`` up to ``until``, forecast by models that had not seen them.

    Days whose labels came for other rows than were scored are left out: what they brought is not what was forecast.
    """
    keys = [key for key in project.warehouse.keys("cohort_outcome") if key <= until]
    tables: list[pd.DataFrame] = []
    for key in reversed(keys):
        rows = pd.concat([pd.read_parquet(f) for f in project.warehouse.files("cohort_outcome", key)], ignore_index=True)
        if rows["model_age_days"].iloc[0] > 0 and rows["rows"].iloc[0] == rows["rows_labelled"].iloc[0] and len(tables) != days:
            tables.append(rows)
    return pd.concat(reversed(tables), ignore_index=True) if tables else pd.DataFrame(columns=[c.name for c in RELATIONS["cohort_outcome"]])


def summary(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Coverage, bias and weighted error of outcomes by segment and age of the model, all segments' groups together at the end."""
    if outcomes.empty:
        return pd.DataFrame()
    parts = outcomes.assign(model_age_days=outcomes["model_age_days"].astype(int)).groupby(["segment", "model_age_days"], sort=False)
    rows = [{"segment": s, "model_age_days": age, "days": part["day"].nunique(), **outcome_figures(part)} for (s, age), part in parts]
    whole = {"segment": "every group", "model_age_days": "any", "days": outcomes["day"].nunique(), **outcome_figures(outcomes)}
    return pd.DataFrame([*rows, whole])


def write_outcome(folder: Path, outcome: CohortOutcome) -> dict[str, int | None]:
    """Write the relation; returns what `Warehouse.write` wants to know."""
    return {"outcome.parquet": write_relation(folder / "outcome.parquet", "cohort_outcome", outcome.groups.assign(day=outcome.day))}


def write_forecast(folder: Path, forecast: CohortForecast) -> dict[str, int | None]:
    """Write the relation; returns what `Warehouse.write` wants to know."""
    return {"forecast.parquet": write_relation(folder / "forecast.parquet", "cohort_forecast", forecast.groups.assign(day=forecast.day))}


def stored_forecast(project: Project, day: PartitionKey | None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The published forecast of a day (None: the newest), and its facts. Raises StaleError if there is none."""
    keys = project.warehouse.keys("cohort_forecast")
    day = day or (keys[-1] if keys else None)
    if day is None:
        raise StaleError(f"no day was forecast yet in the warehouse {project.warehouse.root}; run `ltv run`")
    remedy = f"forecast days are {', '.join(keys)}" if keys else "run `ltv run`"
    manifest = project.warehouse.require("cohort_forecast", day, remedy)
    return pd.concat([pd.read_parquet(f) for f in project.warehouse.files("cohort_forecast", day)], ignore_index=True), manifest.facts


def stored_outcome(project: Project, day: PartitionKey) -> pd.DataFrame | None:
    """The published outcome of a forecast day, None while its labels have not arrived."""
    if day not in project.warehouse.keys("cohort_outcome"):
        return None
    return pd.concat([pd.read_parquet(f) for f in project.warehouse.files("cohort_outcome", day)], ignore_index=True)


def write_relation(path: Path, asset: str, frame: pd.DataFrame) -> int:
    """Write a frame with the columns of an asset's relation as parquet; returns its rows."""
    schema = pa.schema([(c.name, _ARROW[c.type]) for c in RELATIONS[asset]])
    pq.write_table(pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False), path)
    return len(frame)


def segment_frame(project: Project, *days: PartitionKey) -> pd.DataFrame:
    """The columns by whose values the rows of flattened days are grouped, in the order of these rows."""
    named = [c for c in project.contract.segments if c in feature_names(project.registry)]
    frame = _read(project, "flattened_features", days, ["datetime", *named])
    if not project.contract.has_hours:
        return frame[named]
    keys = frame["datetime"].astype("category").cat
    names, place = np.unique([str(key)[11:13] for key in keys.categories], return_inverse=True)
    return frame[named].assign(hour=pd.Categorical.from_codes(place[keys.codes], names))


def _read(project: Project, asset: str, days: Sequence[PartitionKey], columns: Sequence[str]) -> pd.DataFrame:
    tables = [pq.read_table(f, columns=list(columns)) for day in days for f in project.warehouse.files(asset, day)]
    return pa.concat_tables(tables).unify_dictionaries().to_pandas()


def money_terms(project: Project, champion: PartitionKey) -> dict[str, float]:
    """``cap_usd`` and ``tail_factor`` of a served model."""
    warehouse = project.warehouse
    manifest = warehouse.require("served_model", champion, f"run `ltv run --window {champion}`")
    files = read_files(warehouse.folder("served_model", champion), manifest, [f for f in manifest.files if f.name == _MONEY])
    expected = from_json(files, _MONEY)["expected_revenue"]
    return {name: float(expected[name]) for name in ("cap_usd", "tail_factor")}
