"""MLflow tracking: records go to the outbox first and are then delivered to a server, if it answers.

`Tracker.log` stores a record and delivers what is pending: one MLflow run per window and identity, created once and resumed
by id, with one nested run per stage. A server that is down, silent or slow never fails a run: it is probed for at most
``tracking.timeout_seconds``, deliveries take at most ``tracking.patience_seconds`` in all, and after either is exceeded the
tracker makes no further attempt. Pending records stay for the next run or ``ltv mlflow-sync``. MLflow is imported only when
something is delivered. Next to read: ``outbox.py``, the records; ``records.py``, their content.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import entry_points
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlparse

from ltv_assets.core.config import Config
from ltv_assets.core.contract import contract_of
from ltv_assets.core.errors import TransientError
from ltv_assets.core.hashing import sha256_hex
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.storage.champion import Champion, eligible_windows
from ltv_assets.storage.files import file_lock, write_atomic
from ltv_assets.storage.warehouse import Warehouse
from ltv_assets.tracking.outbox import WINDOW_STAGE, Outbox, PendingRecord, Record, read_json
from ltv_assets.tracking.store_repair import relocate_artifacts

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Experiment
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

CHAMPION_ALIAS, CHALLENGER_ALIAS = "champion", "challenger"
COMPARED_METRICS = ("rmsle", "rmsle_minus_reference", "attained_share", "auc")
COMPARED_TAGS = ("against_reference", "changed_from_before", "data", "training_days")
"""Columns of the table of runs that say which run is better, and what was different about it."""
LONGEST_DESCRIPTION = 5000
"""Characters MLflow's database keeps of a model version's description."""
_VIEW = "comparison"
_STORE_FILE, _ARTIFACTS_FOLDER = "mlflow.db", "mlartifacts"
_CHAMPION_FILE = "champion.json"
_LOCK_FILE, _LOCK_SECONDS = "tracking.lock", 60.0
_CALL_SECONDS = 30.0
_LOCAL_SCHEMES = ("sqlite", "file", "")
_SCHEMES = ("http", "https", "file", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc", "uc")
_USER_IN_URL = re.compile(r"://[^/\s]*@")


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a delivery did: delivered stages, what still waits, and why."""

    delivered: tuple[str, ...]
    waiting: tuple[str, ...]
    problem: str | None
    run_id: str | None = None

    @property
    def complete(self) -> bool:
        """True when nothing waits."""
        return not self.waiting


class Tracker:
    """Stores records and delivers them.

    ``bounded``: all calls to a remote server together take at most ``tracking.patience_seconds`` (for the tracker of a run).
    """

    def __init__(self, config: Config, warehouse: Warehouse, *, uri: str | None = None, bounded: bool = False) -> None:
        self.config = config
        self.settings = config.tracking
        self.warehouse = warehouse
        self.outbox = Outbox(warehouse.root)
        chosen, own = (uri or os.environ.get("MLFLOW_TRACKING_URI") or "").strip(), f"sqlite:///{warehouse.root / _STORE_FILE}"
        self.uri = chosen or own
        self.fault = _address_fault(self.uri)
        self.artifact_root = None if chosen else (warehouse.root / _ARTIFACTS_FOLDER).as_uri()
        # The warehouse's own store stays the same one when both are moved.
        self.server = _STORE_FILE if self.uri == own else "" if self.fault else _without_secrets(self.uri)
        remote = not self.fault and urlparse(self.uri).scheme not in _LOCAL_SCHEMES
        self.seconds_left = self.settings.patience_seconds if bounded and remote else math.inf
        self._outage: str | None = None

    # ---------------------------------------------------------------------------------------------------------- records

    def log(self, record: Record) -> PushResult:
        """Store a record and deliver the pending records of its window. A tracking server never makes it raise."""
        if not self.settings.enabled:
            return PushResult((), (), None)
        self.outbox.write(record)
        return self.push(record.window)

    def waiting(self, window: PartitionKey) -> tuple[str, ...]:
        """Stages of a window with records that the present server has not got."""
        return tuple(record.stage for record in self.outbox.waiting(window, self.server))

    def windows(self) -> tuple[PartitionKey, ...]:
        """Windows that have an outbox."""
        return self.outbox.windows()

    def run_id(self, window: PartitionKey) -> str | None:
        """MLflow run of a window's present models, if one was created on the present server."""
        identity = self.outbox.current(window)
        return self.outbox.runs(window, identity, self.server).get(WINDOW_STAGE) if identity else None

    # ------------------------------------------------------------------------------------------------------------- push

    def probe(self) -> str | None:
        """Reason why the server cannot be used, or None.

        Takes little more than ``tracking.timeout_seconds``. A server that failed once is not asked again by this tracker.
        """
        if self._outage is None:
            self._outage = self._ask_server()
        return self._outage

    def _ask_server(self) -> str | None:
        if self.fault:
            return f"{self.fault}; what is recorded waits for `ltv mlflow-sync`"
        if urlparse(self.uri).scheme not in ("http", "https"):
            return None
        import requests

        try:
            requests.get(f"{self.uri.rstrip('/')}/health", timeout=self.settings.timeout_seconds, stream=True).close()
        except requests.exceptions.SSLError:
            return None  # it answers; whether its certificate is good enough is for MLflow's own settings to say
        except Exception as error:  # requests lets some complaints of its libraries about an address through as they are
            reason = "no answer in time" if isinstance(error, requests.exceptions.Timeout) else type(error).__name__
            return f"tracking server {_host(self.uri)} does not answer ({reason}); run `ltv mlflow-sync` when it is back"
        return None

    def push(self, window: PartitionKey) -> PushResult:
        """Deliver the pending records of one window; returns problems instead of raising."""
        result = self.deliver(
            f"window {window}",
            lambda: [(record.stage, partial(self._deliver, record=record)) for record in self.outbox.waiting(window, self.server)],
        )
        if result.delivered and result.complete:
            self.outbox.tidy(window, self.server)
        return replace(result, run_id=self.run_id(window))

    def deliver(self, owner: str, waiting: Callable[[], Sequence[tuple[str, Callable[[MlflowClient], None]]]]) -> PushResult:
        """Run the delivery jobs that ``waiting`` lists for ``owner``, in order; returns problems instead of raising.

        ``waiting`` is called again after a failure, so each job must store that it was done.
        """
        delivered: list[str] = []
        if not waiting():
            return PushResult((), (), None)
        problem = self.probe()
        if problem is None:
            # Two deliveries at once would each begin a run for the same thing.
            longest = min(_LOCK_SECONDS, max(self.seconds_left, 0.0))
            lock = file_lock(self.warehouse.root / _LOCK_FILE, timeout_seconds=longest, what="the delivery to MLflow")
            try:
                with lock, self._session() as client:
                    for name, job in waiting():
                        job(client)
                        delivered.append(name)
            except TransientError as error:
                problem = str(error)
            except Exception as error:  # whatever a tracking server does must not stop training; it is reported by a check
                refused = next((name for name, _ in waiting()), "the end")
                problem = f"MLflow refused {refused} of {owner}: {_reason(error)}; run `ltv mlflow-sync`"
        return PushResult(tuple(delivered), tuple(name for name, _ in waiting()), problem)

    def _deliver(self, client: MlflowClient, record: PendingRecord) -> None:
        from mlflow.entities import Metric, Param, RunTag

        content, now = record.content, record.time_ms
        run_id = self._run(client, record)
        known = client.get_run(run_id).data
        # Points carry the record's time, so that a delivery that was cut off and starts again repeats itself exactly.
        series = {**{k: [v] for k, v in content["metrics"].items()}, **content["curves"]}
        points = [
            Metric(_metric_name(name), value, now, step)
            for name, values in series.items()
            if values and known.metrics.get(_metric_name(name)) != values[-1]
            for step, value in enumerate(values)
        ]
        params = [Param(k, v[:5000]) for k, v in content["params"].items() if k not in known.params]
        for start in range(0, len(points), 1000):
            client.log_batch(run_id, metrics=points[start : start + 1000])
        for start in range(0, len(params), 100):
            client.log_batch(run_id, params=params[start : start + 100])
        client.log_batch(run_id, tags=[RunTag(k, v[:5000]) for k, v in content["tags"].items()])
        if content["inputs"]:
            client.log_inputs(run_id, datasets=[_dataset(**described) for described in content["inputs"]])
        for name in content["artifacts"]:
            folder = PurePosixPath(name).parent.as_posix()
            client.log_artifact(run_id, str(record.folder / name), None if folder == "." else folder)
        if content["finished"] or record.stage != WINDOW_STAGE:
            client.set_terminated(run_id, end_time=now)
        record.mark_delivered(self.server, run_id)

    def _run(self, client: MlflowClient, record: PendingRecord) -> str:
        """Run id of a record: resumed if it exists on this server, else created below the window's run."""
        window, identity, stage = record.window, record.identity, record.stage
        known = self.outbox.runs(window, identity, self.server)
        if stage in known:
            return known[stage]
        tags = {"window": window, "stage": stage, "identity": identity}
        if stage != WINDOW_STAGE:
            if WINDOW_STAGE not in known:
                known[WINDOW_STAGE] = self._create(client, record, f"window {window}", {**tags, "stage": WINDOW_STAGE}, WINDOW_STAGE)
            tags["mlflow.parentRunId"] = known[WINDOW_STAGE]
        return self._create(client, record, record.content["name"] or (f"window {window}" if stage == WINDOW_STAGE else stage), tags, stage)

    def _create(self, client: MlflowClient, record: PendingRecord, name: str, tags: dict[str, str], stage: str) -> str:
        experiment = self._experiment(client)
        wanted = [f"tags.{key} = '{tags[key]}'" for key in ("window", "identity", "stage")]
        # A process that was killed before it noted the run it had created left one behind; its start tells it from a namesake's.
        found = client.search_runs([experiment], " and ".join([*wanted, f"attributes.start_time = {record.began_ms}"]), max_results=1)
        run = found[0] if found else client.create_run(experiment, start_time=record.began_ms, run_name=name, tags=tags)
        run_id = str(run.info.run_id)
        if found and "mlflow.parentRunId" in tags:
            client.set_tag(run_id, "mlflow.parentRunId", tags["mlflow.parentRunId"])
        self.outbox.remember_run(record.window, record.identity, self.server, stage, run_id)
        return run_id

    def experiment(self, client: MlflowClient, name: str) -> Experiment:
        """An experiment by name; created if it is not there yet."""
        found = client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage != "active":
            client.restore_experiment(found.experiment_id)  # MLflow keeps the name of a deleted one
            return client.get_experiment(found.experiment_id)
        return found or client.get_experiment(client.create_experiment(name, artifact_location=self.artifact_root))

    def _experiment(self, client: MlflowClient) -> str:
        """Id of the windows' experiment, with a view that shows the columns people compare by."""
        found = self.experiment(client, self.settings.experiment)
        experiment, known = str(found.experiment_id), found.tags
        for key, value in _experiment_tags(experiment).items():
            if known.get(key) != value:
                client.set_experiment_tag(experiment, key, value)
        return experiment

    @contextmanager
    def _session(self) -> Iterator[MlflowClient]:
        """An MLflow client; its calls raise TransientError once the tracker's time is spent."""
        client = self._client()
        started = time.monotonic()
        try:
            yield cast("MlflowClient", _BoundedClient(client, self._check_time, started)) if self.seconds_left < math.inf else client
        finally:
            self.seconds_left -= time.monotonic() - started

    def _check_time(self, started: float) -> None:
        if time.monotonic() - started > self.seconds_left:
            self._outage = f"tracking server {_host(self.uri)} is slow; pending records wait for `ltv mlflow-sync`"
            raise TransientError(self._outage)

    def _client(self) -> MlflowClient:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(max(1, math.ceil(min(_CALL_SECONDS, self.seconds_left)))))
        os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        import logging

        for name in ("mlflow.store.db.utils", "mlflow.store.model_registry.abstract_store", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        self.follow_warehouse()
        return MlflowClient(self.uri)

    def follow_warehouse(self) -> None:
        """Repair the artifact locations of the default store after the warehouse was moved; MLflow stores absolute paths."""
        if self.artifact_root is not None:
            relocate_artifacts(self.warehouse.root / _STORE_FILE, self.artifact_root)

    # ------------------------------------------------------------------------------------------------ deleted elsewhere

    def notice_deletions(self, champion: Champion | None) -> list[str]:
        """Look whether what was delivered is still on the server, so that what was deleted there is made again.

        Returns a line for each window whose runs are gone, and for a champion that the registry does not know any more. Both are
        then as if they had never been delivered. A server that cannot be asked is left to the delivery to complain about.
        """
        if not self.settings.enabled or self.probe() is not None:
            return []
        lines = []
        with suppress(Exception):
            client = self._client()
            for window in self.windows():
                for identity in self.outbox.identities(window):
                    runs, records = self.outbox.runs(window, identity, self.server), self.outbox.records(window, identity)
                    gone = self.missing(runs.values()) if records else []
                    if gone:
                        self.outbox.forget_delivery(window, identity)
                        lines.append(f"window {window}: {len(gone)} of its {len(runs)} runs were deleted on the server; made again")
            known = read_json(self.outbox.root / _CHAMPION_FILE)
            if champion is not None and known.get("server") == self.server and not self._registry_knows(client, champion):
                (self.outbox.root / _CHAMPION_FILE).unlink(missing_ok=True)
                name = self.settings.registered_model
                lines.append(f"champion {champion.window}: its version of the registered model {name} was deleted; registered again")
        return lines

    def missing(self, run_ids: Iterable[str]) -> list[str]:
        """Those of the runs that the server does not have any more, or only in its bin; raises whatever the server raises."""
        from mlflow.exceptions import MlflowException

        client, gone = self._client(), []
        for run_id in run_ids:
            try:
                if client.get_run(run_id).info.lifecycle_stage != "active":
                    gone.append(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                gone.append(run_id)
        return gone

    def _registry_knows(self, client: MlflowClient, champion: Champion) -> bool:
        wanted = {CHAMPION_ALIAS: (champion.window, champion.fingerprint), CHALLENGER_ALIAS: self._challenger(champion)}
        versions = {version.version: version for version in self._versions(client)}
        if not versions:
            return False
        aliases = client.get_registered_model(self.settings.registered_model).aliases
        for alias, model in wanted.items():
            version = versions.get(aliases.get(alias, ""))
            if model is not None and (version is None or version.tags.get("fingerprint") != model[1] or not _has_files(version)):
                return False
        return True

    # --------------------------------------------------------------------------------------------------------- registry

    def mirror_champion(self, champion: Champion) -> str | None:
        """Let the registry's aliases name the champion and its challenger; returns a problem or None, and never raises.

        Each served model is one version of the registered model, stored among the artifacts of its window's run; its tags say
        window and content hash. The challenger is the newest window that passed its checks after the champion's and did
        not take its place. The record stays ``champion.json``; a registry that cannot be reached catches up with the next
        window, or by ``ltv mlflow-sync``.
        """
        if not self.settings.enabled:
            return None
        wanted = {CHAMPION_ALIAS: (champion.window, champion.fingerprint), CHALLENGER_ALIAS: self._challenger(champion)}
        card = self._card(champion.window)
        state = {"server": self.server, **{alias: list(model) if model else None for alias, model in wanted.items()}}
        state["card"] = sha256_hex(card.encode()) if card else None
        if read_json(self.outbox.root / _CHAMPION_FILE) == state:
            return None

        problem = self.probe()
        if problem is not None:
            return problem
        try:
            with self._session() as client:
                self._set_aliases(client, wanted)
                if card:
                    self._describe_champion(client, card)
        except TransientError as error:
            return str(error)
        except Exception as error:  # the registry is a mirror; whatever it does must not stop a promotion
            return f"the registry does not know champion {champion.window}: {_reason(error)}; run `ltv mlflow-sync`"
        write_atomic(self.outbox.root / _CHAMPION_FILE, json.dumps(state, sort_keys=True).encode())
        return None

    def _challenger(self, champion: Champion) -> tuple[PartitionKey, str] | None:
        newer = [w for w in eligible_windows(self.warehouse) if w > champion.window]
        return (newer[-1], self.warehouse.fingerprint("served_model", newer[-1]) or "") if newer else None

    def _set_aliases(self, client: MlflowClient, wanted: dict[str, tuple[PartitionKey, str] | None]) -> None:
        name = self.settings.registered_model
        if not client.search_registered_models(f"name = '{name}'"):
            within = contract_of(self.config).scores.within
            client.create_registered_model(name, description=f"Revenue within {within}; each version is the served model of one window")
        known = client.get_registered_model(name).aliases
        for alias, model in wanted.items():
            if model is not None:
                client.set_registered_model_alias(name, alias, self._model_version(client, *model))
            elif alias in known:
                client.delete_registered_model_alias(name, alias)

    def _card(self, window: PartitionKey) -> str:
        """The champion's model card; empty before one was written."""
        path = self.warehouse.folder("model_card", window) / "model_card.md"
        return path.read_text() if path.is_file() else ""

    def _describe_champion(self, client: MlflowClient, card: str) -> None:
        """Put the card among the artifacts of the champion's run, and its beginning on the page of the model version."""
        version = client.get_model_version_by_alias(self.settings.registered_model, CHAMPION_ALIAS)
        if version.run_id:
            client.log_text(version.run_id, card, "model_card.md")
        beginning = card.partition("\n## Intended use")[0].strip()
        client.update_model_version(version.name, version.version, description=beginning[:LONGEST_DESCRIPTION])

    def _model_version(self, client: MlflowClient, window: PartitionKey, fingerprint: str) -> str:
        """Version of the registered model that stands for one served model; published and created if it is not there yet."""
        from ltv_assets.scoring import mlflow_model as registered

        for version in self._versions(client):
            if version.tags.get("fingerprint") == fingerprint and _has_files(version):
                return str(version.version)
        tags = {"window": window, "stage": WINDOW_STAGE}
        run_id = self.run_id(window) or client.create_run(self._experiment(client), run_name=f"window {window}", tags=tags).info.run_id
        source = registered.publish(client, run_id, self.config, self.warehouse, window)
        tags = {"window": window, "fingerprint": fingerprint}
        return str(client.create_model_version(self.settings.registered_model, source, run_id=run_id, tags=tags).version)

    def _versions(self, client: MlflowClient) -> list[ModelVersion]:
        return list(client.search_model_versions(f"name = '{self.settings.registered_model}'"))

    # ----------------------------------------------------------------------------------------------------------- forget

    def forget(self, window: PartitionKey) -> str | None:
        """Delete a window's runs and model versions on the present server; returns a problem or None, and never raises.

        Artifacts go with them where they lie in the default store. Runs on another server are left to that server. The outbox
        itself is not touched.
        """
        runs = [r for i in self.outbox.identities(window) for r in self.outbox.runs(window, i, self.server).values()]
        if not runs:
            return None
        problem = self.probe()
        if problem is not None:
            return f"MLflow runs of window {window} stay: {problem}"
        try:
            client = self._client()
            for version in self._versions(client):
                if version.tags.get("window") == window:
                    client.delete_model_version(version.name, version.version)
            for run_id in runs:
                client.delete_run(run_id)
                if self.artifact_root is not None:
                    shutil.rmtree(self.warehouse.root / _ARTIFACTS_FOLDER / run_id, ignore_errors=True)
        except Exception as error:  # whatever a tracking server does must not stop the rest of the clean-up
            return f"MLflow runs of window {window} stay: {_reason(error)}"
        return None


def comparison_path(experiment: str) -> str:
    """Where MLflow's pages show the windows of an experiment with the columns they are compared by."""
    return f"/#/experiments/{experiment}/runs?viewStateShareKey={_VIEW}"


def _experiment_tags(experiment: str) -> dict[str, str]:
    """Kind, description and shared view of the experiment, in the form MLflow's pages read them."""
    columns = [f"metrics.`{name}`" for name in COMPARED_METRICS] + [f"tags.`{name}`" for name in COMPARED_TAGS]
    view = {"searchFilter": f"tags.stage = '{WINDOW_STAGE}'", "selectedColumns": columns, "runsHiddenMode": "SHOW_ALL"}
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": f"One run per window and configuration, [side by side]({comparison_path(experiment)[1:]}).",
        f"mlflow.sharedViewState.{_VIEW}": json.dumps(view),
    }


class _BoundedClient:
    """An MLflow client that calls ``check(started)`` before each of its calls."""

    def __init__(self, client: MlflowClient, check: Callable[[float], None], started: float) -> None:
        self._client, self._check, self._started = client, check, started

    def __getattr__(self, name: str) -> Any:
        self._check(self._started)
        return getattr(self._client, name)


def _has_files(version: ModelVersion) -> bool:
    """Whether the files of a model version are still where the registry says."""
    from mlflow.artifacts import list_artifacts

    try:
        return bool(list_artifacts(artifact_uri=version.source))
    except Exception:  # a store that cannot be looked into from here is no proof that anything is gone
        return True


def _dataset(name: str, digest: str, source: str, context: str, rows: int) -> DatasetInput:
    """A dataset input from its description, without opening the data."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    described = Dataset(name, digest, "local", json.dumps({"uri": source}), profile=json.dumps({"num_rows": rows}))
    return DatasetInput(described, [InputTag("mlflow.data.context", context)])


def _metric_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)


def _reason(error: Exception) -> str:
    """First line of what a server or library says, without the user and password that its URLs may hold."""
    first = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {_USER_IN_URL.sub('://', first):.300}"


def _address_fault(uri: str) -> str | None:
    """Why nothing can be reached at an address, in one line without its user and password; None if something might be."""
    try:
        parsed = urlparse(uri)
        reason = _scheme_fault(parsed.scheme, parsed.path)
        if parsed.scheme in ("http", "https") and not parsed.hostname:
            reason = "it names no host"
        elif parsed.port == 0:
            reason = "its port is no number between 1 and 65535"
    except ValueError as error:
        reason = "its port is no number between 1 and 65535" if "port" in str(error).lower() else f"it is no URL ({error})"
    if not reason:
        return None
    shown = _USER_IN_URL.sub("://", uri)
    return f"tracking address {shown[:200]!r}: {reason}; set MLFLOW_TRACKING_URI to an address such as http://127.0.0.1:5000"


def _scheme_fault(scheme: str, path: str) -> str:
    known = {*_SCHEMES, *(entry.name for entry in entry_points(group="mlflow.tracking_store"))}
    if scheme.partition("+")[0] in known:
        return ""
    if not scheme:
        return "it has no scheme" if re.match(r"[\w.-]+:[0-9]+(/|$)", path) else ""
    return f"MLflow has no store for the scheme {scheme!r}, expected one of {', '.join(sorted(known))}"


def _host(uri: str) -> str:
    parsed = urlparse(uri)
    host = str(parsed.hostname)[:100]
    return f"{host}:{parsed.port}" if parsed.port else host


def _without_secrets(uri: str) -> str:
    parsed = urlparse(uri)
    if parsed.password or parsed.username:
        return parsed._replace(netloc=f"{parsed.hostname or ''}{f':{parsed.port}' if parsed.port else ''}").geturl()
    return uri
