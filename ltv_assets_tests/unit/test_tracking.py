"""Tracking never fails a run and delays it for a bounded time; records that could not be delivered are delivered later."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import dagster as dg
import pytest

from ltv_assets.core.config import Config
from ltv_assets.defs.resources import TrackingResource
from ltv_assets.storage.champion import Champion
from ltv_assets.storage.warehouse import Warehouse
from ltv_assets.tracking.client import PushResult, Tracker
from ltv_assets.tracking.outbox import WINDOW_STAGE, Outbox, Record
from ltv_assets.tracking.records import config_changes, flat_params

WINDOW = "2025-10-06"


def record(stage: str = "stacker", identity: str = "one", **more: object) -> Record:
    return Record(WINDOW, stage, identity, params={"a.b": "1"}, metrics={"rmsle": 0.4, "undefined": float("nan")}, **more)  # type: ignore[arg-type]


def tracker(tmp_path: Path, uri: str | None = None) -> Tracker:
    return Tracker(Config(), Warehouse(tmp_path), uri=uri)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database without a run in it; making one takes seconds, most of what a test of this file would take."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def _prepared_store(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")


@pytest.fixture
def closed() -> Iterator[str]:
    """A server that refuses every connection: its port is taken, so nobody else can, and nothing listens there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_server_is_given_the_configured_time_to_answer_and_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    asked: list[float] = []

    def silent(url: str, *, timeout: float, **more: object) -> None:
        asked.append(timeout)
        raise requests.exceptions.ReadTimeout

    monkeypatch.setattr(requests, "get", silent)
    config = Config.model_validate({"tracking": {"timeout_seconds": 7}})
    result = Tracker(config, Warehouse(tmp_path), uri="http://tracking.invalid").log(record())
    assert asked == [7]
    assert "does not answer (no answer in time)" in (result.problem or "")


def test_closed_server_is_not_handed_to_mlflow_and_loses_nothing(tmp_path: Path, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "_client", lambda self: pytest.fail("MLflow's client would try again and again"))
        result = tracker(tmp_path, closed).log(record(curves={"curve": [0.5, 0.4]}, artifacts={"pictures/p.png": b"png"}))
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


def test_run_that_was_created_and_not_noted_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between creating a run and noting its id: the next delivery resumes it, and another record's run stays its own."""

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    for stage in (WINDOW_STAGE, "stacker"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Outbox, "remember_run", killed)
            tracker(tmp_path).log(record(stage, finished=stage == WINDOW_STAGE))
        assert tracker(tmp_path).push(WINDOW).complete
    assert tracker(tmp_path).log(record("stacker", "two")).complete
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("ltv")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    found = sorted((run.data.tags["identity"], run.data.tags["stage"], run.info.status) for run in runs)
    assert found == [
        ("one", "stacker", "FINISHED"),
        ("one", WINDOW_STAGE, "FINISHED"),
        ("two", "stacker", "FINISHED"),
        ("two", WINDOW_STAGE, "RUNNING"),
    ]


@contextmanager
def silent_server() -> Iterator[tuple[str, list[socket.socket]]]:
    """Accepts every connection and never answers; its address, and the connections so far."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        held: list[socket.socket] = []
        threading.Thread(target=_accept, args=(listening, held), daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", held
        for connection in held:
            connection.close()


def _accept(listening: socket.socket, held: list[socket.socket]) -> None:
    while True:
        try:
            held.append(listening.accept()[0])
        except OSError:
            return


STAGES = ("histos_train", "hhistus_buyers", "buyer_classifier", "buyer_gating", "revenue_regressor", "stacker", WINDOW_STAGE)


@dataclass
class Delivered:
    """Result of a window's run on a remote server: the check, the champion's problem, and how often each was attempted."""

    checked: PushResult
    problem: str | None
    probes: int
    clients: int


def run_of_a_window(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch, **settings: float) -> Delivered:
    """Every asset of a window records, then the check delivers and the champion is mirrored, with the tracker of one run."""
    config = Config.model_validate({"tracking": settings})
    counts = {"_ask_server": 0, "_client": 0}

    def counted(name: str) -> Callable[[Tracker], object]:
        whole = getattr(Tracker, name)

        def call(self: Tracker) -> object:
            counts[name] += 1
            return whole(self)

        return call

    with monkeypatch.context() as patch:
        for name in counts:
            patch.setattr(Tracker, name, counted(name))
        bounded = Tracker(config, Warehouse(tmp_path), uri=uri, bounded=True)
        for stage in STAGES:
            assert not bounded.log(record(stage)).complete
        checked = bounded.push(WINDOW)
        problem = bounded.mirror_champion(Champion(WINDOW, "aaaa", "because"))
    return Delivered(checked, problem, counts["_ask_server"], counts["_client"])


def test_silent_server_is_probed_once_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_server() as (uri, connections):
        run = run_of_a_window(tmp_path, uri, monkeypatch, timeout_seconds=0.2)
        assert len(connections) <= 1, "each connection would take its time"
    assert (run.probes, run.clients) == (1, 0)
    assert set(run.checked.waiting) == set(STAGES)
    for message in (run.checked.problem, run.problem):
        assert "does not answer (no answer in time); run `ltv mlflow-sync` when it is back" in (message or "")


def test_closed_server_is_probed_once_in_a_run(tmp_path: Path, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of_a_window(tmp_path, closed, monkeypatch)
    assert (run.probes, run.clients) == (1, 0)
    assert set(run.checked.waiting) == set(STAGES)
    assert "does not answer" in (run.checked.problem or "") and run.checked.problem == run.problem


class Clock:
    """Seconds that pass only while the server is called."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_slow_server_gets_no_more_calls_once_the_time_of_the_run_is_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A healthy answer to the probe, then nine seconds for each call: 20 seconds allow three calls, and no fourth is made."""
    clock = Clock()
    calls: list[str] = []

    class SlowClient:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            def call(*arguments: Any, **more: Any) -> Any:
                calls.append(name)
                clock.now += 9.0
                return MagicMock()

            return call

    monkeypatch.setattr("ltv_assets.tracking.client.time", clock)
    monkeypatch.setattr(Tracker, "_ask_server", lambda self: None)
    monkeypatch.setattr(Tracker, "_client", lambda self: SlowClient())
    run = run_of_a_window(tmp_path, "http://tracking.invalid", monkeypatch, patience_seconds=20)
    assert len(calls) == 3
    assert set(run.checked.waiting) == set(STAGES)
    assert run.checked.problem == run.problem == "tracking server tracking.invalid is slow; pending records wait for `ltv mlflow-sync`"


def test_run_shares_one_tracker(tmp_path: Path, closed: str) -> None:
    """Assets of one Dagster run get the same tracker, so a server that is down is probed once; the next run probes it again."""
    project = SimpleNamespace(config=Config(), warehouse=Warehouse(tmp_path))
    opened: list[Tracker] = []

    @dg.op
    def first(tracking: TrackingResource) -> int:
        opened.append(tracking.open(project))  # type: ignore[arg-type]
        return 1

    @dg.op
    def second(tracking: TrackingResource, number: int) -> None:
        opened.append(tracking.open(project))  # type: ignore[arg-type]

    @dg.job(executor_def=dg.in_process_executor, resource_defs={"tracking": TrackingResource(uri=closed)})
    def both() -> None:
        second(first())

    for _ in range(2):
        assert both.execute_in_process().success
    assert opened[0] is opened[1] and opened[2] is opened[3]
    assert opened[0] is not opened[2]
    assert opened[0].seconds_left == Config().tracking.patience_seconds


def test_default_store_and_explicit_commands_have_no_limit_of_time(tmp_path: Path, closed: str) -> None:
    assert Tracker(Config(), Warehouse(tmp_path), bounded=True).seconds_left == float("inf")
    assert tracker(tmp_path, closed).seconds_left == float("inf")


def test_outage_keeps_the_records_of_an_earlier_configuration(tmp_path: Path, closed: str) -> None:
    from mlflow.tracking import MlflowClient

    for identity in ("one", "two"):
        assert not tracker(tmp_path, closed).log(record(WINDOW_STAGE, identity, finished=True)).complete
    assert tracker(tmp_path).push(WINDOW).complete
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("ltv")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {r.data.tags["identity"] for r in runs} == {"one", "two"}
    assert tracker(tmp_path).run_id(WINDOW) == next(r.info.run_id for r in runs if r.data.tags["identity"] == "two")


def test_cut_off_delivery_is_repeated_without_doubling_a_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    def fail(self: object, *args: object) -> None:
        raise ConnectionError("cut off")

    curve = [0.5, 0.4, 0.3]
    with monkeypatch.context() as cut:
        cut.setattr(MlflowClient, "log_artifact", fail)
        first = tracker(tmp_path).log(record(curves={"curve": curve}, artifacts={"a.txt": b"a"}))
    assert first.waiting == ("stacker",) and "cut off" in (first.problem or "")
    assert tracker(tmp_path).push(WINDOW).complete
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run = Outbox(tmp_path).runs(WINDOW, "one", tracker(tmp_path).server)["stacker"]
    assert [m.value for m in client.get_metric_history(run, "curve")] == curve


def test_what_was_changed_is_compared_with_the_configuration_before(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    assert outbox.differences({"a": "1", "b": "2"}) == []
    for _ in range(2):  # every window of the new configuration says the same
        assert outbox.differences({"a": "1", "b": "3", "c": "4"}) == ["b 2 -> 3", "c None -> 4"]
    assert outbox.differences({"a": "1"}) == ["b 3 -> None", "c 4 -> None"]


def test_changes_are_told_against_the_defaults_of_the_configuration() -> None:
    assert config_changes(Config()) == []
    changed = Config.model_validate({"seed": 7, "models": {"stacker": {"enabled": False}}, "compute": {"threads": 1}})
    assert config_changes(changed) == ["seed=7", "models.stacker.enabled=False"]


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


def test_moved_warehouse_goes_on_with_its_runs(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    assert tracker(before).log(record(artifacts={"pictures/early.png": b"png"})).complete
    parent = tracker(before).run_id(WINDOW)
    before.rename(after)
    assert tracker(after).waiting(WINDOW) == ()
    pushed = tracker(after).log(record("buyer_classifier", artifacts={"pictures/p.png": b"png"}))
    assert (pushed.delivered, pushed.run_id) == (("buyer_classifier",), parent)
    assert not before.exists()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{after}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("ltv").experiment_id])  # type: ignore[union-attr]
    pictures = {a.path for run in runs for a in client.list_artifacts(run.info.run_id, "pictures")}
    assert pictures == {"pictures/early.png", "pictures/p.png"}


def test_new_data_or_configuration_starts_a_new_run(tmp_path: Path) -> None:
    assert tracker(tmp_path).log(record(identity="one")).complete
    first = tracker(tmp_path).run_id(WINDOW)
    assert tracker(tmp_path).log(record(identity="two")).complete
    assert tracker(tmp_path).run_id(WINDOW) not in (None, first)


def test_secrets_of_the_address_are_not_stored(tmp_path: Path, closed: str) -> None:
    tracker(tmp_path, closed.replace("://", "://user:hunter2@")).log(record())
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


ADDRESSES = [
    ("http://h:99999", "its port is no number between 1 and 65535"),
    ("http://h:0", "its port is no number between 1 and 65535"),
    ("http://h:abc", "its port is no number between 1 and 65535"),
    ("http://[::1:5000", "it is no URL (Invalid IPv6 URL)"),
    ("http://", "it names no host"),
    ("http:///path", "it names no host"),
    ("foo://x", "MLflow has no store for the scheme 'foo', expected one of "),
    ("localhost:5000", "MLflow has no store for the scheme 'localhost'"),
    ("127.0.0.1:5000", "it has no scheme"),
    ("http://user:hunter2@h:99999", "its port is no number between 1 and 65535"),
]


@pytest.mark.parametrize("bounded", [False, True], ids=["by hand", "in a run"])
@pytest.mark.parametrize(("uri", "reason"), ADDRESSES)
def test_address_that_is_none_costs_one_message_and_loses_nothing(tmp_path: Path, uri: str, reason: str, bounded: bool) -> None:
    away = Tracker(Config(), Warehouse(tmp_path), uri=uri, bounded=bounded)
    settled, champion = away.log(record()), away.mirror_champion(Champion(WINDOW, "aaaa", "because"))
    assert settled.waiting == ("stacker",)
    assert settled.problem == champion, "said once, whoever says it"
    assert reason in (champion or "") and "set MLFLOW_TRACKING_URI to an address such as" in (champion or "")
    assert "hunter2" not in (champion or "") and "\n" not in (champion or "")
    assert tracker(tmp_path).push(WINDOW).complete


@pytest.mark.parametrize("uri", ["  ", "", "\t"])
def test_address_of_blanks_is_none_given(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert Tracker(Config(), Warehouse(tmp_path)).uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_blank_behind_an_address_does_not_belong_to_it(tmp_path: Path) -> None:
    assert tracker(tmp_path, "http://127.0.0.1:5000 ").uri == "http://127.0.0.1:5000"


def test_runs_deleted_on_the_server_are_noticed_and_made_again(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    for stage in ("stacker", WINDOW_STAGE):
        assert tracker(tmp_path).log(record(stage, artifacts={"a.txt": b"a"}, finished=stage == WINDOW_STAGE)).complete
    assert tracker(tmp_path).notice_deletions(None) == []
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    client.delete_run(tracker(tmp_path).run_id(WINDOW) or "")
    assert tracker(tmp_path).notice_deletions(None) == [f"window {WINDOW}: 1 of its 2 runs were deleted on the server; made again"]
    assert tracker(tmp_path).push(WINDOW).delivered == (WINDOW_STAGE, "stacker")
    experiment = client.get_experiment_by_name("ltv")
    assert experiment is not None
    runs = {run.data.tags["stage"]: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["stacker", WINDOW_STAGE]
    assert runs["stacker"].data.tags["mlflow.parentRunId"] == tracker(tmp_path).run_id(WINDOW) == runs[WINDOW_STAGE].info.run_id
    assert tracker(tmp_path).notice_deletions(None) == []


def test_experiment_deleted_on_the_server_is_brought_back(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    assert tracker(tmp_path).log(record(WINDOW_STAGE, finished=True)).complete
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("ltv")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    assert len(tracker(tmp_path).notice_deletions(None)) == 1
    assert tracker(tmp_path).push(WINDOW).complete
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_server_that_cannot_be_asked_is_no_proof_of_a_deletion(tmp_path: Path, closed: str) -> None:
    assert tracker(tmp_path).log(record()).complete
    assert tracker(tmp_path, closed).notice_deletions(Champion(WINDOW, "aaaa", "because")) == []
    assert tracker(tmp_path).waiting(WINDOW) == ()
