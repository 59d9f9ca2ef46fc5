"""Tracking never fails or delays a run; what could not be delivered waits and is delivered later."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

from ltv_assets.config import Config
from ltv_assets.outbox import WINDOW_STAGE, Record
from ltv_assets.recording import flat_params
from ltv_assets.storage.warehouse import Warehouse
from ltv_assets.tracking import Tracker

WINDOW = "2025-10-06"


def record(stage: str = "stacker", identity: str = "one", **more: object) -> Record:
    return Record(WINDOW, stage, identity, params={"a.b": "1"}, metrics={"rmsle": 0.4, "undefined": float("nan")}, **more)  # type: ignore[arg-type]


def tracker(tmp_path: Path, uri: str | None = None) -> Tracker:
    return Tracker(Config(), Warehouse(tmp_path), uri=uri)


def closed_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_closed_server_costs_little_and_loses_nothing(tmp_path: Path) -> None:
    started = time.monotonic()
    result = tracker(tmp_path, f"http://127.0.0.1:{closed_port()}").log(
        record(curves={"curve": [0.5, 0.4]}, artifacts={"pictures/p.png": b"png"})
    )
    assert time.monotonic() - started < 5
    assert result.waiting == ("stacker",)
    assert "does not answer" in (result.problem or "")
    assert "ltv mlflow-sync" in (result.problem or "")
    later = tracker(tmp_path).push(WINDOW)
    assert later.complete
    assert later.delivered == ("stacker",)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("ltv")
    assert experiment is not None
    (nested,) = client.search_runs([experiment.experiment_id], "tags.stage = 'stacker'")
    assert nested.data.metrics == {"rmsle": 0.4, "curve": 0.4}
    assert [m.value for m in client.get_metric_history(nested.info.run_id, "curve")] == [0.5, 0.4]
    assert {a.path for a in client.list_artifacts(nested.info.run_id, "pictures")} == {"pictures/p.png"}


def test_server_that_accepts_and_never_answers_is_given_up_soon(tmp_path: Path) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        held: list[socket.socket] = []
        thread = threading.Thread(target=lambda: _accept(listening, held), daemon=True)
        thread.start()
        started = time.monotonic()
        result = tracker(tmp_path, f"http://127.0.0.1:{listening.getsockname()[1]}").log(record())
        assert time.monotonic() - started < 20
        assert result.waiting == ("stacker",)
        for connection in held:
            connection.close()


def _accept(listening: socket.socket, held: list[socket.socket]) -> None:
    while True:
        try:
            held.append(listening.accept()[0])
        except OSError:
            return


def test_one_run_per_window_is_resumed_by_every_stage(tmp_path: Path) -> None:
    for stage in ("buyer_classifier", "stacker", WINDOW_STAGE):
        assert tracker(tmp_path).log(record(stage, finished=stage == WINDOW_STAGE)).complete
    assert tracker(tmp_path).log(record("stacker")).delivered == ()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("ltv")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(r.data.tags["stage"] for r in runs) == ["buyer_classifier", "stacker", "window"]
    parent = tracker(tmp_path).run_id(WINDOW)
    assert {r.data.tags.get("mlflow.parentRunId") for r in runs} == {None, parent}


def test_new_data_or_configuration_starts_a_new_run(tmp_path: Path) -> None:
    assert tracker(tmp_path).log(record(identity="one")).complete
    first = tracker(tmp_path).run_id(WINDOW)
    assert tracker(tmp_path).log(record(identity="two")).complete
    assert tracker(tmp_path).run_id(WINDOW) not in (None, first)


def test_secrets_of_the_address_are_not_stored(tmp_path: Path) -> None:
    tracker(tmp_path, f"http://user:hunter2@127.0.0.1:{closed_port()}").log(record())
    stored = b"".join(p.read_bytes() for p in (tmp_path / "tracking").rglob("*") if p.is_file())
    assert b"hunter2" not in stored


def test_switched_off_tracking_writes_nothing(tmp_path: Path) -> None:
    config = Config().model_copy(update={"tracking": Config().tracking.model_copy(update={"enabled": False})})
    assert Tracker(config, Warehouse(tmp_path)).log(record()).complete
    assert not (tmp_path / "tracking").exists()


def test_parameters_are_flat_and_dotted() -> None:
    assert flat_params({"models": {"stacker": {"enabled": True}, "penalties": [0.1, 1]}, "seed": 0}) == {
        "models.stacker.enabled": "True",
        "models.penalties": "[0.1, 1]",
        "seed": "0",
    }
