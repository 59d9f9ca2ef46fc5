"""What a server counts, for Prometheus.

What belongs here: names, labels and meaning of the metrics, and their text form over one or several processes. What does not:
where they are counted. Next to read: ``docs/serving.md``, which lists them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from ltv_assets.serving.champion import ServedChampion

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of the Prometheus client: where the processes of a server add up their counts."""
BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.008, 0.012, 0.018, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds; a bidder's few milliseconds need narrow ones."""
CONTENT_TYPE = CONTENT_TYPE_LATEST

DESCRIPTIONS = {
    "ltv_serve_request_seconds": "histogram: seconds from a whole request to its answer, by kind: one (impression), list",
    "ltv_serve_requests_total": "answers to requests for scores by status",
    "ltv_serve_rows_total": "impressions by outcome: scored, malformed",
    "ltv_serve_errors_total": "requests that were refused or failed, by kind",
    "ltv_serve_engine_rows_total": "single impressions that needed the engine after all, which takes far longer",
    "ltv_serve_swaps_total": "exchanges of the model by outcome: swapped, refused",
    "ltv_serve_in_flight": "requests that the answering process is working on",
    "ltv_serve_ready": "1 while the answering process has a model",
    "ltv_serve_model_info": "1, with the window and the fingerprint of the model in use",
    "ltv_serve_model_loaded_seconds": "seconds since the answering process loaded its model",
    "ltv_serve_model_age_seconds": "seconds since the end of the newest day that the model in use was trained on",
    "ltv_serve_champion_mismatch": "1 while the champion of record is not the model in use",
}
"""Every metric and its meaning."""


class Metrics:
    """The counts of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.seconds = Histogram(*self._named("ltv_serve_request_seconds"), ["kind"], buckets=BUCKETS, registry=self.registry)
        self.requests = Counter(*self._named("ltv_serve_requests_total"), ["status"], registry=self.registry)
        self.rows = Counter(*self._named("ltv_serve_rows_total"), ["outcome"], registry=self.registry)
        self.errors = Counter(*self._named("ltv_serve_errors_total"), ["kind"], registry=self.registry)
        self.engine_rows = Counter(*self._named("ltv_serve_engine_rows_total"), registry=self.registry)
        self.swaps = Counter(*self._named("ltv_serve_swaps_total"), ["outcome"], registry=self.registry)
        self.in_flight = 0

    @staticmethod
    def _named(name: str) -> tuple[str, str]:
        return name.removesuffix("_total"), DESCRIPTIONS[name]

    def exposition(self, champion: ServedChampion) -> bytes:
        """The text form: counts of all processes of the server, the model of the answering one."""
        shown = CollectorRegistry()
        if SHARED_FOLDER in os.environ:
            MultiProcessCollector(shown)
        else:
            shown.register(_Only(self.registry))
        shown.register(_State(self, champion))
        return generate_latest(shown)


class _Only(Collector):
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        return iter(self._registry.collect())


class _State(Collector):
    """What the answering process is doing at this moment, and its model."""

    def __init__(self, metrics: Metrics, champion: ServedChampion) -> None:
        self._metrics, self._champion = metrics, champion

    def collect(self) -> Iterator[Metric]:
        served = self._champion.current
        yield _gauge("ltv_serve_in_flight", self._metrics.in_flight)
        yield _gauge("ltv_serve_ready", float(served is not None))
        yield _gauge("ltv_serve_champion_mismatch", float(self._champion.problem is not None))
        if served is not None:
            info = GaugeMetricFamily("ltv_serve_model_info", DESCRIPTIONS["ltv_serve_model_info"], labels=["window", "fingerprint"])
            info.add_metric([served.window, served.fingerprint], 1.0)
            yield info
            ended = datetime.fromisoformat(served.window).replace(tzinfo=UTC).timestamp() + 86_400
            yield _gauge("ltv_serve_model_loaded_seconds", time.time() - served.loaded_at.timestamp())
            yield _gauge("ltv_serve_model_age_seconds", time.time() - ended)


def _gauge(name: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, DESCRIPTIONS[name], value=value)
