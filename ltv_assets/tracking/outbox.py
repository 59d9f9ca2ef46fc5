"""Records for MLflow as files in the warehouse: written by every asset of a window, delivered whenever a server answers.

    tracking/settings.json                     the configuration recorded last, and the one before it
    tracking/window=D/current.json             identity of the window's present models
    tracking/window=D/<identity>/run.json      its MLflow runs by stage, and the server they are on
    tracking/window=D/<identity>/<stage>/      record.json, its artifacts, and delivered.json once a server has it

What does not belong here: the network and MLflow itself. Next to read: ``client.py``, the delivery.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ltv_assets.core.hashing import sha256_hex
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.storage.files import write_atomic

WINDOW_STAGE = "window"
_SETTINGS_FILE = "settings.json"
_CURRENT_FILE, _RUN_FILE, _RECORD_FILE, _DELIVERED_FILE = "current.json", "run.json", "record.json", "delivered.json"


@dataclass(frozen=True, slots=True)
class Input:
    """Data that was used, named without being read: ``context`` says for what (training, evaluation)."""

    name: str
    digest: str
    source: str
    context: str
    rows: int


@dataclass(frozen=True, slots=True)
class Record:
    """MLflow record of one stage of one window.

    ``identity`` is the hash of the data and configuration the window was made from: a new identity starts a new MLflow run.
    ``curves`` are per-iteration series; ``artifacts`` are files by relative path. The record of stage ``window`` describes the
    window itself and goes to the parent run, which ends when it is ``finished``. ``name`` is the run's name, ``seconds`` how
    long the stage took.
    """

    window: PartitionKey
    stage: str
    identity: str
    name: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    artifacts: Mapping[str, bytes] = field(default_factory=dict)
    inputs: Sequence[Input] = ()
    seconds: float = 0.0
    finished: bool = False

    def content(self) -> dict[str, Any]:
        """The record as plain values; artifacts by their hashes, undefined figures left out."""
        plain = asdict(self)
        plain["artifacts"] = {k: sha256_hex(v) for k, v in self.artifacts.items()}
        plain["curves"] = {k: [float(x) for x in v] for k, v in self.curves.items()}
        plain["metrics"] = {k: float(v) for k, v in self.metrics.items() if v is not None and float(v) == float(v)}
        return plain


@dataclass(frozen=True, slots=True)
class PendingRecord:
    """A stored record: ``digest`` of its file, its content, and when its stage first began and it was written (ms since 1970)."""

    folder: Path
    window: PartitionKey
    identity: str
    stage: str
    digest: str
    content: Mapping[str, Any]

    @property
    def time_ms(self) -> int:
        """When the record was written."""
        return int(self.content["time_ms"])

    @property
    def began_ms(self) -> int:
        """When the stage began that was recorded here first."""
        return int(self.content["began_ms"])

    def delivered_to(self, server: str) -> bool:
        """Whether this version of the record was delivered to a server."""
        mark = read_json(self.folder / _DELIVERED_FILE)
        return (mark.get("record"), mark.get("server")) == (self.digest, server)

    def mark_delivered(self, server: str, run_id: str) -> None:
        """Store that the record was delivered to a server."""
        mark = {"record": self.digest, "server": server, "run_id": run_id}
        write_atomic(self.folder / _DELIVERED_FILE, json.dumps(mark, sort_keys=True).encode())


class Outbox:
    """The records of one warehouse."""

    def __init__(self, root: Path) -> None:
        self.root = root / "tracking"

    def folder(self, window: PartitionKey) -> Path:
        """Everything recorded for one window."""
        return self.root / f"window={window}"

    def windows(self) -> tuple[PartitionKey, ...]:
        """Windows that have records."""
        return PartitionKey.among(p.name.removeprefix("window=") for p in self.root.glob("window=*"))

    def has(self, window: PartitionKey, identity: str, stage: str) -> bool:
        """Whether a stage was recorded for this identity."""
        return (self.folder(window) / identity / stage / _RECORD_FILE).is_file()

    def write(self, record: Record) -> None:
        """Store a record. One that says the same as the stored one leaves it, and its time, untouched."""
        base = self.folder(record.window)
        stage = base / record.identity / record.stage
        content = record.content()
        known = read_json(stage / _RECORD_FILE)
        volatile = {name: known.pop(name, None) for name in ("time_ms", "began_ms")}
        same = json.dumps({**known, "seconds": 0}, sort_keys=True) == json.dumps({**content, "seconds": 0}, sort_keys=True)
        if not (known and same):
            for name, data in record.artifacts.items():
                write_atomic(stage / name, data)
            now = time.time_ns() // 1_000_000
            content |= {"time_ms": now, "began_ms": volatile["began_ms"] or now - int(1000 * record.seconds)}
            write_atomic(stage / _RECORD_FILE, json.dumps(content, sort_keys=True, indent=1).encode())
        if read_json(base / _CURRENT_FILE).get("identity") != record.identity:
            write_atomic(base / _CURRENT_FILE, json.dumps({"identity": record.identity}).encode())

    def differences(self, settings: Mapping[str, str]) -> list[str]:
        """``key before -> now`` of the settings that differ from the configuration recorded before this one, whatever the window."""
        path = self.root / _SETTINGS_FILE
        state = read_json(path)
        if state.get("now") != settings:
            state = {"before": state.get("now"), "now": dict(settings)}
            write_atomic(path, json.dumps(state, sort_keys=True).encode())
        before = state["before"]
        if not before:
            return []
        keys = [*settings, *sorted(before.keys() - settings.keys())]
        return [f"{k} {before.get(k)} -> {settings.get(k)}" for k in keys if before.get(k) != settings.get(k)]

    def current(self, window: PartitionKey) -> str | None:
        """Identity of the window's present models."""
        found = read_json(self.folder(window) / _CURRENT_FILE).get("identity")
        return str(found) if found else None

    def identities(self, window: PartitionKey) -> tuple[str, ...]:
        """Every identity with records, the oldest first."""
        names = [p.name for p in self.folder(window).glob("*/")]
        return tuple(sorted(names, key=lambda i: (min((x.time_ms for x in self._read(window, i)), default=0), i)))

    def records(self, window: PartitionKey, identity: str) -> tuple[PendingRecord, ...]:
        """Stored records of one identity, the window's own first, the others in the order they were written."""
        return tuple(sorted(self._read(window, identity), key=lambda x: (x.stage != WINDOW_STAGE, x.time_ms, x.stage)))

    def _read(self, window: PartitionKey, identity: str) -> Iterator[PendingRecord]:
        for path in (self.folder(window) / identity).glob(f"*/{_RECORD_FILE}"):
            data = path.read_bytes()
            digest = sha256_hex(data)
            yield PendingRecord(path.parent, window, identity, path.parent.name, digest, json.loads(data))

    def waiting(self, window: PartitionKey, server: str) -> tuple[PendingRecord, ...]:
        """Records not yet delivered to a server, older identities first."""
        return tuple(x for i in self.identities(window) for x in self.records(window, i) if not x.delivered_to(server))

    def runs(self, window: PartitionKey, identity: str, server: str) -> dict[str, str]:
        """{stage: MLflow run id} on one server."""
        state = read_json(self.folder(window) / identity / _RUN_FILE)
        return dict(state.get("runs", {})) if state.get("server") == server else {}

    def remember_run(self, window: PartitionKey, identity: str, server: str, stage: str, run_id: str) -> None:
        """Remember the run of a stage; runs on another server are forgotten."""
        runs = {**self.runs(window, identity, server), stage: run_id}
        data = json.dumps({"server": server, "runs": runs}, sort_keys=True).encode()
        write_atomic(self.folder(window) / identity / _RUN_FILE, data)

    def forget_delivery(self, window: PartitionKey, identity: str) -> None:
        """Make the records of an identity pending again and forget their runs."""
        for record in self.records(window, identity):
            (record.folder / _DELIVERED_FILE).unlink(missing_ok=True)
        (self.folder(window) / identity / _RUN_FILE).unlink(missing_ok=True)

    def tidy(self, window: PartitionKey, server: str) -> None:
        """Drop the artifacts of delivered records of earlier identities; which runs they became stays known."""
        for identity in self.identities(window):
            if identity == self.current(window):
                continue
            for record in self.records(window, identity):
                if record.delivered_to(server):
                    shutil.rmtree(record.folder, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if the file is missing or damaged."""
    try:
        loaded = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}
