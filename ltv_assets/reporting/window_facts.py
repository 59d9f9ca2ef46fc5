"""Facts about one evaluated window, read from the warehouse when they are asked for. What does not belong here: sentences."""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ltv_assets.core.asset_specs import CODE_VERSIONS
from ltv_assets.core.contract import Scores
from ltv_assets.core.errors import StaleError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.modeling.cohorts import inside
from ltv_assets.modeling.evaluation.segments import ALL
from ltv_assets.modeling.model_set import WindowModels
from ltv_assets.modeling.model_store import read_evaluated
from ltv_assets.state.project import Project

ABLATION_FILE = "ablation.csv"


@dataclass(frozen=True)
class WindowFacts:
    """Facts of the evaluated window ``key``."""

    project: Project
    key: PartitionKey

    @property
    def scores(self) -> Scores:
        """Names of the predicted columns and their horizons."""
        return self.project.contract.scores

    @property
    def is_contest(self) -> bool:
        """Whether the rows are the contest's impressions, of which more can be said than of those of another table."""
        return self.project.contract.is_shipped

    @property
    def noun(self) -> str:
        """What the rows are called."""
        return "impressions" if self.is_contest else "rows"

    @property
    def within(self) -> str:
        """The shortest horizon in words."""
        return self.scores.within

    @cached_property
    def figures(self) -> pd.DataFrame:
        """Rows of ``holdout_metrics``: metric, segment, value, low, high."""
        files = self.project.warehouse.files("holdout_metrics", self.key)
        return pd.concat([pq.read_table(f).to_pandas() for f in files], ignore_index=True)

    def segment(self, name: str = ALL) -> dict[str, Any]:
        """{metric: row} of one segment."""
        rows = self.figures[self.figures["segment"] == name]
        return {row.metric: row for row in rows.itertuples()}

    def value(self, metric: str, segment: str = ALL) -> float:
        """One figure; NaN where it is undefined or was not measured."""
        row = self.segment(segment).get(metric)
        return float("nan") if row is None else float(row.value)

    @cached_property
    def training_days(self) -> tuple[PartitionKey, ...]:
        """Days the window's models were trained on, as the manifest of its evaluation says."""
        days = self.project.warehouse.require("holdout_metrics", self.key, "run `ltv run`").made_from("flattened_features")
        return tuple(day for day in days if day != self.key)

    @cached_property
    def missing_days(self) -> tuple[str, ...]:
        """Days between the first training day and the holdout that did not train."""
        first, last = self.training_days[0].day, self.key.day
        between: list[date] = [first + timedelta(days=i) for i in range((last - first).days)]
        return tuple(str(day) for day in between if str(day) not in self.training_days)

    @cached_property
    def models(self) -> WindowModels:
        """The evaluated models."""
        return read_evaluated(self.project.warehouse, self.key)

    @cached_property
    def ablation(self) -> pd.DataFrame | None:
        """The ablation of this window, if one was made from the same days and settings."""
        try:
            manifest = self.project.warehouse.manifest("ablation", self.key)
            if manifest is None:
                return None
            if (manifest.code_version, manifest.config, manifest.inputs) != ablation_identity(self.project, self.key):
                return None
        except StaleError:
            return None
        return pd.read_csv(io.BytesIO(self.project.warehouse.artifacts("ablation", self.key)[ABLATION_FILE]))

    @cached_property
    def forecast(self) -> pd.DataFrame:
        """Groups of the holdout day, forecast and observed: the day, then by what was expected. ``cohort_errors`` publishes the same."""
        from ltv_assets.training.cohorts import HOLDOUT, window_errors

        warehouse, evaluated = self.project.warehouse, f"holdout_metrics/{self.key}"
        manifest = warehouse.manifest("cohort_errors", self.key)
        if manifest is not None and manifest.inputs.get(evaluated) == warehouse.fingerprint("holdout_metrics", self.key):
            errors = pd.concat([pq.read_table(f).to_pandas() for f in warehouse.files("cohort_errors", self.key)], ignore_index=True)
        else:
            errors = window_errors(self.project, self.key).errors
        groups = errors[errors["source"] == HOLDOUT]
        groups = groups.join(inside(groups))
        order = np.lexsort((groups["value"], groups["segment"], -groups["expected_revenue_usd"], groups["segment"] != ALL))
        return groups.iloc[order].reset_index(drop=True)

    @cached_property
    def days(self) -> tuple[dict[str, Any], ...]:
        """One dictionary per training day and the holdout: rows, payers, what was set aside, and what checks said of it."""
        return tuple(self._day(day) for day in (*self.training_days, self.key))

    def _day(self, day: PartitionKey) -> dict[str, Any]:
        warehouse = self.project.warehouse
        raw = warehouse.require("raw_partitions", day, "run `ltv run`").facts
        manifest = warehouse.require("flattened_features", day, "run `ltv run`")
        target = self.project.contract.target
        revenue = [pq.read_table(f, columns=[target])[target] for f in warehouse.files("flattened_features", day)]
        verdicts = {v.check: v for v in warehouse.verdicts("flattened_features", day)}
        drift, adversarial = verdicts.get("drift"), verdicts.get("adversarial_drift")
        return {
            "day": day,
            "raw": raw,
            "facts": manifest.facts,
            "files_aside": [*raw["files_quarantined"], *manifest.facts.get("files_quarantined", [])],
            "rows": manifest.rows,
            "payers": sum(pc.sum(pc.greater(column, 0)).as_py() or 0 for column in revenue),
            "psi": float(drift.figures["largest_psi"]) if drift and "largest_psi" in drift.figures else float("nan"),
            "auc": float(adversarial.figures["auc"]) if adversarial and "auc" in adversarial.figures else float("nan"),
            "remarks": [v.message for v in (drift, adversarial) if v is not None and not v.passed],
        }

    @property
    def simulated(self) -> bool:
        """True if the truth behind the holdout is known, which only a simulation can offer."""
        return "rmsle_oracle" in self.segment()

    @property
    def remarks(self) -> list[str]:
        """One line for everything that is missing, set aside, read as missing or drifted, in order of days."""
        lines = [
            f"{day}: did not train; it is a gap in `data.gap_days`, or kept out by `windows.embargo_days`" for day in self.missing_days
        ]
        for day in self.days:
            raw, facts = day["raw"], day["facts"]
            lines += [f"{day['day']}: file `{path}` set aside: {reason}" for path, reason in day["files_aside"]]
            lines += [f"{day['day']}: {n} rows set aside: {reason}" for reason, n in sorted(facts["rows_quarantined"].items())]
            if raw["columns_missing"]:
                lines.append(f"{day['day']}: columns read as missing: {', '.join(raw['columns_missing'])}")
            lines += [f"{day['day']}: {warning}" for warning in facts["warnings"]]
            lines += [message if message.startswith("day ") else f"{day['day']}: {message}" for message in day["remarks"]]
        return lines


def ablation_identity(project: Project, key: PartitionKey) -> tuple[str, str, dict[str, str]]:
    """Code version, configuration and inputs an ablation is valid for: those of the window's models and its holdout day."""
    lineage = project.lineage()
    inputs = lineage.inputs("histos_train", key) | {
        f"flattened_features/{key}": project.warehouse.fingerprint("flattened_features", key) or ""
    }
    return CODE_VERSIONS["stacker"], lineage.config_hash("revenue_regressor", key), dict(sorted(inputs.items()))
