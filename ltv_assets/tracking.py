"""MLflow tracking that cannot hurt a run: an outbox in the warehouse, pushed when a server answers.

Every asset of a window writes one *record* (parameters, figures, curves, pictures) into ``tracking/window=D/<stage>/``.
`Tracker.push` then tries to deliver whatever has not been delivered: one MLflow run per window, created once and resumed
by id, with one nested run per stage. A server that is down, slow or wrong costs a short probe; the outbox stays, and the
next run or ``ltv mlflow-sync`` catches up. MLflow is imported only when something is pushed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from ltv_assets.champion import Champion
from ltv_assets.config import Config
from ltv_assets.storage.files import write_atomic
from ltv_assets.storage.warehouse import Warehouse

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

WINDOW_STAGE = "window"
_RUN_FILE = "run.json"
_RECORD_FILE = "record.json"
_PUSHED_FILE = "pushed.json"
_CHAMPION_FILE = "champion.json"
CHAMPION_ALIAS = "champion"


@dataclass(frozen=True, slots=True)
class Record:
    """What one stage of one window tells MLflow.

    ``identity`` is the hash of the data and configuration the window was made from: a new identity starts a new MLflow
    run. ``curves`` are per-iteration series; ``pictures`` and ``texts`` are artifacts by file name. The record of stage
    ``window`` describes the window itself and goes to the parent run.
    """

    window: str
    stage: str
    identity: str
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    finished: bool = False

    def to_json(self) -> bytes:
        """Canonical bytes without the artifacts' content."""
        plain = asdict(self)
        plain["pictures"] = {k: hashlib.sha256(v).hexdigest() for k, v in self.pictures.items()}
        plain["curves"] = {k: [float(x) for x in v] for k, v in self.curves.items()}
        plain["metrics"] = {k: float(v) for k, v in self.metrics.items() if v is not None and float(v) == float(v)}
        return json.dumps(plain, sort_keys=True, indent=1).encode()


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a push did: delivered stages, what still waits, and why."""

    delivered: tuple[str, ...]
    waiting: tuple[str, ...]
    problem: str | None
    run_id: str | None = None

    @property
    def complete(self) -> bool:
        """True when nothing waits."""
        return not self.waiting


class Tracker:
    """Writes records and pushes them; one instance per asset execution."""

    def __init__(self, config: Config, warehouse: Warehouse, *, uri: str | None = None) -> None:
        self.settings = config.tracking
        self.warehouse = warehouse
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{warehouse.root / 'mlflow.db'}"
        self.artifact_root = None if uri or os.environ.get("MLFLOW_TRACKING_URI") else (warehouse.root / "mlartifacts").as_uri()

    # ----------------------------------------------------------------------------------------------------------- outbox

    def _window_folder(self, window: str) -> Path:
        return self.warehouse.root / "tracking" / f"window={window}"

    def write(self, record: Record) -> None:
        """Put a record into the outbox; a new identity of the window clears what the old one left there."""
        folder = self._window_folder(record.window)
        state = _read_json(folder / _RUN_FILE)
        if state.get("identity") not in (None, record.identity):
            shutil.rmtree(folder, ignore_errors=True)
            state = {}
        if not state:
            write_atomic(folder / _RUN_FILE, json.dumps({"identity": record.identity}).encode())
        stage = folder / record.stage
        for name, data in record.pictures.items():
            write_atomic(stage / name, data)
        for name, text in record.texts.items():
            write_atomic(stage / name, text.encode())
        write_atomic(stage / _RECORD_FILE, record.to_json())

    def log(self, record: Record) -> PushResult:
        """Write a record and try to deliver the window's outbox. Never raises for a tracking server's sake."""
        if not self.settings.enabled:
            return PushResult((), (), None)
        self.write(record)
        return self.push(record.window)

    def windows(self) -> tuple[str, ...]:
        """Windows that have an outbox."""
        base = self.warehouse.root / "tracking"
        return tuple(sorted(p.name.removeprefix("window=") for p in base.glob("window=*"))) if base.is_dir() else ()

    def waiting(self, window: str) -> tuple[str, ...]:
        """Stages of a window whose present record was not delivered to the present server."""
        folder = self._window_folder(window)
        stages = []
        for record in sorted(folder.glob(f"*/{_RECORD_FILE}")):
            pushed = _read_json(record.parent / _PUSHED_FILE)
            digest = hashlib.sha256(record.read_bytes()).hexdigest()
            if (pushed.get("record"), pushed.get("uri")) != (digest, _without_secrets(self.uri)):
                stages.append(record.parent.name)
        return tuple(sorted(stages, key=lambda s: (s != WINDOW_STAGE, s)))

    # ------------------------------------------------------------------------------------------------------------- push

    def probe(self) -> str | None:
        """Why the server cannot be used, or None; takes at most ``tracking.timeout_seconds``."""
        parsed = urlparse(self.uri)
        if parsed.scheme not in ("http", "https"):
            return None
        port = parsed.port or (443 if parsed.scheme == "https" else 80)
        try:
            with socket.create_connection((parsed.hostname or "", port), timeout=self.settings.timeout_seconds):
                return None
        except OSError as error:
            return f"tracking server {parsed.hostname}:{port} does not answer ({error}); run `ltv mlflow-sync` when it is back"

    def push(self, window: str) -> PushResult:
        """Deliver what waits for one window; returns what happened instead of raising."""
        waiting = self.waiting(window)
        if not waiting:
            return PushResult((), (), None, self.run_id(window))
        problem = self.probe()
        if problem is not None:
            return PushResult((), waiting, problem)
        delivered: list[str] = []
        try:
            client = self._client()
            for stage in waiting:
                self._deliver(client, window, stage)
                delivered.append(stage)
        except Exception as error:  # whatever a tracking server does must not stop training; it is reported by a check
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            left = tuple(s for s in waiting if s not in delivered)
            return PushResult(tuple(delivered), left, f"MLflow refused {left[0]} of window {window}: {reason:.300}; run `ltv mlflow-sync`")
        return PushResult(tuple(delivered), (), None, self.run_id(window))

    # --------------------------------------------------------------------------------------------------------- registry

    def mirror_champion(self, champion: Champion) -> str | None:
        """Let the registry's alias ``champion`` name the champion's window; returns a problem or None, and never raises.

        Each served model is one version of the registered model, whose source is its folder in the warehouse and whose tags
        say window and content hash. The record stays ``champion.json``; a registry that cannot be reached catches up with
        the next window, or by ``ltv mlflow-sync``.
        """
        if not self.settings.enabled:
            return None
        path = self.warehouse.root / "tracking" / _CHAMPION_FILE
        wanted = {"uri": _without_secrets(self.uri), "window": champion.window, "fingerprint": champion.fingerprint}
        if _read_json(path) == wanted:
            return None
        problem = self.probe()
        if problem is not None:
            return problem
        try:
            client = self._client()
            version = self._model_version(client, champion)
            client.set_registered_model_alias(self.settings.registered_model, CHAMPION_ALIAS, version)
        except Exception as error:  # the registry is a mirror; whatever it does must not stop a promotion
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            return f"the registry does not know champion {champion.window}: {reason:.300}; run `ltv mlflow-sync`"
        write_atomic(path, json.dumps(wanted, sort_keys=True).encode())
        return None

    def _model_version(self, client: MlflowClient, champion: Champion) -> str:
        """Version of the registered model that stands for one served model; created if it is not there yet."""
        name = self.settings.registered_model
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name, description="7-day revenue; each version is the served model of one window")
        for version in client.search_model_versions(f"name = '{name}'"):
            if version.tags.get("fingerprint") == champion.fingerprint:
                return str(version.version)
        tags = {"window": champion.window, "fingerprint": champion.fingerprint}
        source = self.warehouse.folder("served_model", champion.window).as_uri()
        created = client.create_model_version(name, source, run_id=self.run_id(champion.window), tags=tags)
        return str(created.version)

    # ----------------------------------------------------------------------------------------------------------- forget

    def forget(self, window: str) -> str | None:
        """Delete a window's runs on the present server, artifacts of the default store included; returns a problem or None.

        Runs on another server are left to that server. The outbox itself is not touched.
        """
        state = _read_json(self._window_folder(window) / _RUN_FILE)
        runs = dict(state.get("runs", {})) if state.get("uri") == _without_secrets(self.uri) else {}
        if not runs:
            return None
        problem = self.probe()
        if problem is not None:
            return f"MLflow runs of window {window} stay: {problem}"
        try:
            client = self._client()
            for run_id in runs.values():
                client.delete_run(run_id)
                if self.artifact_root is not None:
                    shutil.rmtree(self.warehouse.root / "mlartifacts" / run_id, ignore_errors=True)
        except Exception as error:  # whatever a tracking server does must not stop the rest of the clean-up
            return f"MLflow runs of window {window} stay: {type(error).__name__}: {str(error)[:200]}"
        return None

    def run_id(self, window: str) -> str | None:
        """MLflow run of a window, if one was created on the present server."""
        state = _read_json(self._window_folder(window) / _RUN_FILE)
        return state.get("runs", {}).get(WINDOW_STAGE) if state.get("uri") == _without_secrets(self.uri) else None

    def _client(self) -> MlflowClient:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(max(1, int(self.settings.timeout_seconds))))
        os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        import logging

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        return MlflowClient(self.uri)

    def _experiment(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(self.settings.experiment)
        if found is not None:
            return str(found.experiment_id)
        return str(client.create_experiment(self.settings.experiment, artifact_location=self.artifact_root))

    def _run(self, client: MlflowClient, window: str, stage: str) -> str:
        """Run id of a stage: resumed if it exists on this server, else created below the window's run."""
        path = self._window_folder(window) / _RUN_FILE
        state = _read_json(path)
        uri = _without_secrets(self.uri)
        if state.get("uri") != uri:
            state = {"identity": state.get("identity"), "uri": uri, "runs": {}}
        runs: dict[str, str] = state["runs"]
        if stage not in runs:
            tags = {"window": window, "stage": stage, "identity": str(state["identity"])}
            if stage != WINDOW_STAGE:
                tags["mlflow.parentRunId"] = self._run(client, window, WINDOW_STAGE)
                state = _read_json(path)
                runs = state["runs"]
            name = f"window {window}" if stage == WINDOW_STAGE else stage
            runs[stage] = client.create_run(self._experiment(client), run_name=name, tags=tags).info.run_id
            write_atomic(path, json.dumps(state, sort_keys=True).encode())
        return runs[stage]

    def _deliver(self, client: MlflowClient, window: str, stage: str) -> None:
        from mlflow.entities import Metric, Param, RunTag

        folder = self._window_folder(window) / stage
        data = (folder / _RECORD_FILE).read_bytes()
        record = json.loads(data)
        run_id = self._run(client, window, stage)
        now = int(time.time() * 1000)
        metrics = [Metric(_metric_name(k), v, now, 0) for k, v in record["metrics"].items()]
        metrics += [Metric(_metric_name(k), v, now, i) for k, series in record["curves"].items() for i, v in enumerate(series)]
        known = set(client.get_run(run_id).data.params)
        params = [Param(k, v[:5000]) for k, v in record["params"].items() if k not in known]
        tags = [RunTag(k, v) for k, v in record["tags"].items()]
        for start in range(0, len(metrics), 1000):
            client.log_batch(run_id, metrics=metrics[start : start + 1000])
        for start in range(0, len(params), 100):
            client.log_batch(run_id, params=params[start : start + 100])
        client.log_batch(run_id, tags=tags)
        for name in (*record["pictures"], *record["texts"]):
            client.log_artifact(run_id, str(folder / name))
        if record["finished"] or stage != WINDOW_STAGE:
            client.set_terminated(run_id)
        pushed = {"record": hashlib.sha256(data).hexdigest(), "uri": _without_secrets(self.uri), "run_id": run_id}
        write_atomic(folder / _PUSHED_FILE, json.dumps(pushed, sort_keys=True).encode())


def flat_params(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested configuration as flat dotted parameters, the form MLflow's run table compares."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flat_params(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, (list, tuple)) else str(value)
    return flat


def _metric_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)


def _without_secrets(uri: str) -> str:
    parsed = urlparse(uri)
    if parsed.password or parsed.username:
        return parsed._replace(netloc=f"{parsed.hostname or ''}{f':{parsed.port}' if parsed.port else ''}").geturl()
    return uri


def _read_json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}
