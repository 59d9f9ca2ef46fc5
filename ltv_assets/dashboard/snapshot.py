"""What the warehouse has to show, read once for one state of it.

What belongs here: the figures of the pages, each from where it is published: relations, verdicts, manifests, records. What does not:
how they are shown (``pages.py``), one impression (``impression.py``). Everything is read when a page asks for it; what a partition holds is
read again only when the partition changed.
"""

from __future__ import annotations

import io
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ltv_assets.core.asset_specs import ASSET_NAMES, SPECS
from ltv_assets.core.errors import LtvError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.dashboard.reading import PublishedWarehouse, by_partition
from ltv_assets.modeling.evaluation import metrics
from ltv_assets.modeling.evaluation.segments import ALL
from ltv_assets.state.project import Project
from ltv_assets.state.status import partition_states
from ltv_assets.storage.champion import Champion, Reign, read_history
from ltv_assets.storage.warehouse import SCORES_FILE, Verdict
from ltv_assets.tracking.outbox import WINDOW_STAGE, Outbox, read_json

MAX_CURVE_ROWS = 1_000_000
"""Rows of a holdout that curves are drawn from; of more, every n-th is taken."""
WHOLE = "all"
"""Segment of the forecast that is the whole day."""
DRIFT_CHECKS = {"drift": "largest_psi", "adversarial_drift": "auc"}

Figures = Mapping[tuple[str, str], tuple[float | None, float | None, float | None]]


@dataclass(frozen=True)
class Curves:
    """Of a scored holdout: revenue caught against impressions bought (by the score, and at best), and calibration in bins."""

    rows: int
    taken: int
    share: list[float]
    caught: list[float]
    best: list[float]
    mean_probability: list[float]
    rate: list[float]
    rate_low: list[float]
    rate_high: list[float]


@dataclass
class Snapshot:
    """One state of one warehouse. ``problems`` collects what could not be read; pages show it."""

    project: Project
    warehouse: PublishedWarehouse
    state: str
    taken: datetime = field(default_factory=lambda: datetime.now(UTC))
    problems: list[str] = field(default_factory=list)

    # -------------------------------------------------------------------------------------------------- freshness and checks

    @cached_property
    def partitions(self) -> list[dict[str, Any]]:
        """State of every partition, as `ltv status` has it."""
        return self._try(lambda: partition_states(self.project), [])

    @cached_property
    def champion(self) -> Champion | None:
        """The champion in use."""
        return self._try(lambda: self.project.lineage().champion(), None)

    @cached_property
    def reigns(self) -> tuple[Reign, ...]:
        """Champions so far, oldest first."""
        return self._try(lambda: read_history(self.warehouse), ())

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Stored results of all checks on present content, newest partitions first."""
        found = [
            v
            for a in ASSET_NAMES
            for key in self.warehouse.keys(a)
            for v in self._try(lambda a=a, k=key: self.warehouse.verdicts(a, k), ())
        ]
        return sorted(found, key=lambda v: (v.partition, v.asset, v.check), reverse=True)

    @cached_property
    def in_the_making(self) -> tuple[str, ...]:
        """Partitions that were being written when this was read."""
        return self.warehouse.in_the_making()

    @cached_property
    def drift(self) -> dict[str, dict[str, float]]:
        """{day: {largest_psi, auc}} as the checks of the days measured them."""
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for verdict in self.verdicts:
            name = DRIFT_CHECKS.get(verdict.check, "")
            if verdict.asset == "flattened_features" and name in verdict.figures:
                found[verdict.partition][name] = float(verdict.figures[name])
        return dict(sorted(found.items()))

    @cached_property
    def reasons_to_retrain(self) -> tuple[str, ...]:
        """What the retraining sensor would say now."""
        from ltv_assets.monitoring.retraining import look, watched

        def made() -> tuple[str, ...]:
            identity = repr(watched(self.project))
            return self.warehouse.recalled(f"retraining {identity}", lambda: look(self.project).reasons)

        return self._try(made, ())

    # --------------------------------------------------------------------------------------------------------- forecasts

    @cached_property
    def forecasts(self) -> Mapping[PartitionKey, list[dict[str, Any]]]:
        """{day: rows of ``cohort_forecast``}."""
        return self._relation("cohort_forecast")

    @cached_property
    def outcomes(self) -> Mapping[PartitionKey, list[dict[str, Any]]]:
        """{day: rows of ``cohort_outcome``}."""
        return self._relation("cohort_outcome")

    def total(self, day: PartitionKey) -> dict[str, Any] | None:
        """The forecast of a whole day."""
        return next((row for row in self.forecasts.get(day, ()) if row["segment"] == WHOLE), None)

    def outcome_total(self, day: PartitionKey) -> dict[str, Any] | None:
        """What a whole day brought."""
        return next((row for row in self.outcomes.get(day, ()) if row["segment"] == WHOLE), None)

    # ----------------------------------------------------------------------------------------------------------- windows

    @cached_property
    def windows(self) -> dict[PartitionKey, Figures]:
        """{window: {(metric, segment): (value, low, high)}} of every evaluated window."""
        found = by_partition(self.warehouse, "holdout_metrics", self.problems)
        return {key: {(r["metric"], r["segment"]): (r["value"], r["low"], r["high"]) for r in rows} for key, rows in found.items()}

    def figure(self, window: PartitionKey | None, metric: str, segment: str = ALL) -> tuple[float | None, float | None, float | None]:
        """Value and interval of a figure; None where there is none."""
        return tuple(_number(v) for v in (self.windows.get(window, {}) if window else {}).get((metric, segment), (None, None, None)))  # type: ignore[return-value]

    def curves(self, window: PartitionKey | None) -> Curves | None:
        """Curves of a window's holdout; None if it has none."""
        if "holdout_metrics" not in SPECS or window is None or window not in self.windows:
            return None
        return self._try(lambda: self.warehouse.remembered("curves", "holdout_metrics", window, lambda: self._curves(window)), None)

    def _curves(self, window: PartitionKey) -> Curves:
        names = self.project.contract.scores
        columns = (names.observed, names.ltv[0], "buyer_probability")
        table = self.warehouse.columns("holdout_metrics", window, columns, name=SCORES_FILE)
        rows = table.num_rows
        step = max(1, -(-rows // MAX_CURVE_ROWS))
        revenue, ltv, probability = (table[c].to_numpy()[::step] for c in columns)
        share, caught = metrics.gain_curve(revenue, ltv, points=101)
        _, best = metrics.gain_curve(revenue, revenue, points=101)
        bins = metrics.reliability(revenue > 0, probability, 10)
        lists = (share, caught, best, bins.mean_probability, bins.rate, bins.low, bins.high)
        return Curves(rows, len(revenue), *(values.tolist() for values in lists))

    @cached_property
    def zero_rates(self) -> dict[str, dict[str, float]]:
        """{day: {predicted, observed}}: shares of impressions set to zero in ``predictions``, and without revenue on holdout days."""
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for key in self.windows:
            for name, metric in (("observed", "zero_rate_observed"), ("holdout", "zero_rate_predicted")):
                value = self.figure(key, metric)[0]
                if value is not None:
                    found[key][name] = value
        for key in self.warehouse.keys("predictions"):
            share = self._try(lambda k=key: self.warehouse.remembered("zero rate", "predictions", k, lambda: self._zero_rate(k)), None)
            if share is not None:
                found[key]["predicted"] = share
        return dict(sorted(found.items()))

    def _zero_rate(self, key: PartitionKey) -> float | None:
        def counted(files: list[Any]) -> tuple[int, int]:
            zeros = rows = 0
            for path in files:
                with pq.ParquetFile(path) as file:
                    for batch in file.iter_batches(1 << 18, columns=["predicted_zero"], use_threads=False):
                        zeros += pc.sum(batch.column(0)).as_py() or 0
                        rows += batch.num_rows
            return zeros, rows

        zeros, rows = self.warehouse.read("predictions", key, counted)
        return zeros / rows if rows else None

    # ------------------------------------------------------------------------------------------------- records and documents

    def settings(self, window: PartitionKey) -> dict[str, str]:
        """Settings that shaped a window's models, as they were recorded for MLflow; empty if tracking was off."""
        outbox = Outbox(self.warehouse.root)
        identity = outbox.current(window)
        if identity is None:
            return {}
        found = read_json(outbox.folder(window) / identity / WINDOW_STAGE / "record.json").get("params", {})
        return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}

    def tracked_run(self, window: PartitionKey) -> str | None:
        """MLflow's run of a window's models, if one was made."""
        outbox = Outbox(self.warehouse.root)
        identity = outbox.current(window)
        runs = read_json(outbox.folder(window) / identity / "run.json").get("runs", {}) if identity else {}
        found = runs.get(WINDOW_STAGE) if isinstance(runs, dict) else None
        return str(found) if found else None

    @cached_property
    def comparisons(self) -> list[dict[str, Any]]:
        """Comparisons of challengers with champions, newest challengers first."""
        found = []
        for path in self.warehouse.comparisons_of():
            try:
                row = json.loads(path.read_bytes())
                wanted = ("challenger", "champion", "rmsle_challenger", "rmsle_champion", "difference_low", "difference_high")
                found.append({name: row[name] for name in wanted})
            except (OSError, ValueError, KeyError, TypeError) as error:
                self.problems.append(f"comparison {path.name}: cannot be read ({error})")
        return sorted(found, key=lambda row: (row["challenger"], row["champion"]), reverse=True)

    def ablation(self, window: PartitionKey) -> list[dict[str, Any]]:
        """Rows of a window's ablation; empty if none was made."""
        if self.warehouse.manifest("ablation", window) is None:
            return []
        data = self.document("ablation", window, ".csv")
        return pa_csv.read_csv(io.BytesIO(data)).to_pylist() if data else []

    def document(self, kind: str, window: PartitionKey, suffix: str) -> bytes:
        """The file of a window's document (report, ablation, model card) that ends so; empty if there is none."""
        files = self._try(lambda: self.warehouse.artifacts(kind, window), {}) if window in self.warehouse.keys(kind) else {}
        return next((data for name, data in sorted(files.items()) if name.endswith(suffix)), b"")

    # ----------------------------------------------------------------------------------------------------------- helpers

    def _relation(self, asset: str) -> Mapping[PartitionKey, list[dict[str, Any]]]:
        return by_partition(self.warehouse, asset, self.problems) if asset in SPECS else {}

    def _try(self, make: Any, otherwise: Any) -> Any:
        try:
            return make()
        except LtvError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return otherwise


def _number(value: Any) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


def tracking_page() -> str:
    """Where MLflow's pages are: the server runs are recorded on, else where `mlflow ui` starts by default."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return uri.rstrip("/") if uri.startswith(("http://", "https://")) and "@" not in uri else "http://127.0.0.1:5000"
