"""Forecasts of groups in the warehouse: the rows of a scored day by segment, and what an interval needs of its champion.

What belongs here: reading scores, segments and labels by position, writing the relations. What does not: sums, noise and intervals
(``modeling/cohorts.py``). Next to read: ``evaluation.py``, whose segments these are.
"""

from __future__ import annotations

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
from ltv_assets.features.schema import feature_names
from ltv_assets.ingestion.calendar import parse_day
from ltv_assets.modeling.cohorts import CohortNoise, group_rows, sum_up, with_intervals
from ltv_assets.modeling.evaluation.segments import ALL
from ltv_assets.modeling.serialization import from_json
from ltv_assets.state.project import Project
from ltv_assets.storage.manifest import read_files

_ARROW = {"VARCHAR": pa.string(), "DOUBLE": pa.float64(), "BIGINT": pa.int64()}
_MONEY = "revenue_regressor/revenue_regressor.json"
"""File of a served model that tells its cap."""


@dataclass(frozen=True)
class CohortForecast:
    """The forecast of a day: `RELATIONS` ``cohort_forecast`` without its day, and what it rests on."""

    day: str
    groups: pd.DataFrame
    champion: str
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


def forecast_day(project: Project, day: str) -> CohortForecast:
    """Add up a scored day by group and put intervals around the sums.

    Raises StaleError if scores and flattened rows of the day do not belong together.
    """
    scores = _read(project, "predictions", day, ["buyer_probability", project.contract.scores.expected])
    champion = str(project.warehouse.require("predictions", day, "materialize it first").facts["champion"])
    segments = segment_frame(project, day)
    if len(segments) != len(scores):
        raise StaleError(
            f"cohort_forecast {day}: {len(scores)} scores of {len(segments)} flattened rows; materialize predictions {day} again"
        )
    settings, noise = project.config.evaluation, CohortNoise()
    groups = group_rows(segments, min_rows=settings.min_segment_rows, max_segments=settings.max_segments)
    sums = sum_up(groups, scores["buyer_probability"].to_numpy(), scores[project.contract.scores.expected].to_numpy(), noise.amounts)
    ahead = max(1, (parse_day(day) - parse_day(champion)).days + (0 if project.config.models.refit else 1))
    money = money_terms(project, champion)
    return CohortForecast(day, with_intervals(sums, noise, ahead), champion, ahead, noise, money["cap_usd"], money["tail_factor"])


def write_forecast(folder: Path, forecast: CohortForecast) -> dict[str, int | None]:
    """Write the relation; returns what `Warehouse.write` wants to know."""
    return {"forecast.parquet": write_relation(folder / "forecast.parquet", "cohort_forecast", forecast.groups.assign(day=forecast.day))}


def write_relation(path: Path, asset: str, frame: pd.DataFrame) -> int:
    """Write a frame with the columns of an asset's relation as parquet; returns its rows."""
    schema = pa.schema([(c.name, _ARROW[c.type]) for c in RELATIONS[asset]])
    pq.write_table(pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False), path)
    return len(frame)


def segment_frame(project: Project, day: str) -> pd.DataFrame:
    """The columns by whose values the rows of a flattened day are grouped, in the order of its rows."""
    named = [c for c in project.contract.segments if c in feature_names(project.registry)]
    frame = _read(project, "flattened_features", day, ["datetime", *named])
    return frame[named].assign(hour=_hours(frame["datetime"])) if project.contract.has_hours else frame[named]


def _hours(datetimes: pd.Series) -> NDArray[Any]:
    hours = datetimes.astype("category")
    return np.array([str(key)[11:13] for key in hours.cat.categories], dtype=object)[hours.cat.codes]


def _read(project: Project, asset: str, day: str, columns: list[str]) -> pd.DataFrame:
    tables = [pq.read_table(f, columns=columns) for f in project.warehouse.files(asset, day)]
    return pa.concat_tables(tables).unify_dictionaries().to_pandas()


def money_terms(project: Project, champion: str) -> dict[str, float]:
    """``cap_usd`` and ``tail_factor`` of a served model."""
    warehouse = project.warehouse
    manifest = warehouse.require("served_model", champion, f"run `ltv run --window {champion}`")
    files = read_files(warehouse.folder("served_model", champion), manifest, [f for f in manifest.files if f.name == _MONEY])
    expected = from_json(files, _MONEY)["expected_revenue"]
    return {name: float(expected[name]) for name in ("cap_usd", "tail_factor")}
