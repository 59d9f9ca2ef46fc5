"""A service that is down, slow, broken or already there costs a warning or a clear refusal, never a window."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ltv_assets.core.config import Config
from ltv_assets.storage.champion import Champion
from ltv_assets.storage.warehouse import Warehouse
from ltv_assets.tracking.client import Record, Tracker
from ltv_assets_tests.faults.catalogue import Fault, fault
from ltv_assets_tests.faults.evidence import ltv, nothing_changes

WINDOW = "2025-10-03"


@contextmanager
def closed() -> Iterator[int]:
    """A port nobody listens on, nor can while it is looked for."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


@contextmanager
def silent() -> Iterator[int]:
    """A server that accepts and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@contextmanager
def broken() -> Iterator[int]:
    """A server that is well, it says, and refuses every request."""

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            well = self.path == "/health"
            body = b"OK" if well else json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}).encode()
            self.send_response(200 if well else 400)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


DOWN = "tracking server 127.0.0.1:<port> does not answer (<reason>); run `ltv mlflow-sync` when it is back"


@fault("services", "MLflow is down", answer="degrade", message=DOWN, serve=closed)
@fault("services", "MLflow accepts and never answers", answer="degrade", message=DOWN, serve=silent)
@fault(
    "services",
    "MLflow refuses every request",
    answer="degrade",
    message="MLflow refused window of window 2025-10-03: <reason>; run `ltv mlflow-sync`",
    serve=broken,
)
def test_record_waits_until_the_server_is_back(fault: Fault, tmp_path: Path) -> None:
    config = Config.model_validate({"tracking": {"timeout_seconds": 1 if fault.serve is silent else 60}})
    warehouse = Warehouse(tmp_path / "warehouse")
    record = Record(window=WINDOW, stage="window", identity="i", params={"a": "1"}, metrics={"m": 0.5}, finished=True)
    with fault.serve() as port:
        away = Tracker(config, warehouse, uri=f"http://127.0.0.1:{port}")
        away.log(record)
        result = away.push(WINDOW)
    assert not result.complete
    assert result.waiting == ("window",)
    fault.told(result.problem or "")
    back = Tracker(config, warehouse)
    assert back.push(WINDOW).delivered == ("window",)
    assert back.push(WINDOW).complete


@fault(
    "services",
    "tracking address that is none",
    answer="degrade",
    message="tracking address '<uri>': <reason>; set MLFLOW_TRACKING_URI to an address such as http://127.0.0.1:5000; "
    "what is recorded waits for `ltv mlflow-sync`",
)
def test_address_that_is_none_lets_records_wait(fault: Fault, tmp_path: Path) -> None:
    record = Record(window=WINDOW, stage="window", identity="i", finished=True)
    result = Tracker(Config(), Warehouse(tmp_path), uri="http://127.0.0.1:99999").log(record)
    assert result.waiting == ("window",)
    assert fault.told(result.problem or "")["reason"] == "its port is no number between 1 and 65535"
    assert Tracker(Config(), Warehouse(tmp_path)).push(WINDOW).complete


@fault(
    "services",
    "the model registry is empty or cannot be reached",
    answer="degrade",
    message=DOWN,
)
def test_registry_is_a_mirror_that_catches_up(fault: Fault, tmp_path: Path) -> None:
    config = Config()
    warehouse = Warehouse(tmp_path / "warehouse")
    champion = Champion(WINDOW, "f" * 16, "the first window that passed its checks")
    with closed() as port:
        fault.told(Tracker(config, warehouse, uri=f"http://127.0.0.1:{port}").mirror_champion(champion) or "")


@fault(
    "services",
    "port of ltv dev is taken",
    answer="reject",
    message="port <port> on 127.0.0.1: Address already in use; end what uses it, or choose another with --port",
)
def test_taken_port_is_named(fault: Fault, place: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    warehouse = place()
    started: list[object] = []
    monkeypatch.setattr("os.execv", lambda *words: started.append(words))
    ltv("status")
    warehouse.mkdir(exist_ok=True)
    with silent() as port, nothing_changes(warehouse, but=(".staging/*",)):
        code, printed = ltv("dev", "--port", str(port))
    assert code == 1
    assert fault.told(printed)["port"] == str(port)
    assert started == []
