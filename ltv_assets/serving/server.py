"""The processes of a server: uvicorn, its bounds of connections, its workers.

What belongs here: sockets, signals, processes. What does not: requests (``app.py``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.main import STARTUP_FAILURE
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.supervisors import Multiprocess

from ltv_assets.core.config import ServingConfig
from ltv_assets.core.errors import PermanentError
from ltv_assets.serving.app import TOKEN, create_app
from ltv_assets.serving.metrics import SHARED_FOLDER

log = logging.getLogger("ltv.serve")

HEAD_BYTES = 65_536
"""Largest head of a request: its line and headers."""
SWITCH_SECONDS = 0.0005
"""How long a thread that scores a list keeps the event loop waiting, at most."""
WORKER_ANSWER_SECONDS = 20
"""A worker that does not answer its parent for so long is replaced."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(process)d %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
        "ltv": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
    },
}
"""Nothing of a request is logged: neither its line nor its content."""


class BoundedProtocol(HttpToolsProtocol):
    """HTTP whose heads are bounded in bytes and seconds."""

    _head_bytes = 0
    _head_ends: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_is_here()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        if self._head_ends is not None:
            if self._head_bytes > HEAD_BYTES:
                self._give_up()
                return
            self._head_bytes += len(data)
        super().data_received(data)

    def _expect_head(self) -> None:
        self._head_is_here()
        config = self.config
        assert isinstance(config, BoundedConfig)
        self._head_ends = self.loop.call_later(config.head_seconds, self._give_up)

    def _head_is_here(self) -> None:
        if self._head_ends is not None:
            self._head_ends.cancel()
        self._head_ends, self._head_bytes = None, 0

    def _give_up(self) -> None:
        self._head_is_here()
        if not self.transport.is_closing():
            self.transport.close()


class BoundedConfig(uvicorn.Config):
    """uvicorn's configuration with the time that the head of a request may take."""

    def __init__(self, app: Callable[..., Any], *, head_seconds: float, **more: Any) -> None:
        super().__init__(app, **more)
        self.head_seconds = head_seconds


def serve(config: ServingConfig) -> int:
    """Answer requests until a signal ends it; returns the exit code.

    Raises PermanentError if the address cannot be listened on.
    """
    settings = BoundedConfig(
        partial(_create, config),
        head_seconds=config.read_seconds,
        factory=True,
        host=config.host,
        port=config.port,
        workers=config.workers,
        http=BoundedProtocol,
        ws="none",
        access_log=False,
        log_config=LOGGING,
        server_header=False,
        date_header=False,
        limit_concurrency=config.max_connections,
        backlog=max(config.max_connections, 128),
        timeout_keep_alive=max(1, round(config.keep_alive_seconds)),
        timeout_graceful_shutdown=max(1, round(config.stop_seconds)),
        timeout_worker_healthcheck=WORKER_ANSWER_SECONDS,
    )
    try:
        socket = settings.bind_socket()
    except SystemExit:
        raise PermanentError(f"{config.host}:{config.port}: cannot be listened on; choose another --host or --port") from None
    if config.host not in LOOPBACK and not os.environ.get(TOKEN):
        log.warning("%s is open to other machines and %s is not set: everybody may ask", config.host, TOKEN)
    host, port = socket.getsockname()[:2]
    log.info("listening on http://%s:%d with %d process(es)", host, port, config.workers)
    if config.workers == 1:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # the server has handlers of its own, and raises the signal again when it is done
        server = uvicorn.Server(settings)
        server.run(sockets=[socket])
        return 0 if server.started else 1
    with shared_counts():
        parent = Multiprocess(settings, sockets=[socket])
        parent.run()
    return 1 if any(process.exitcode == STARTUP_FAILURE for process in parent.processes) else 0


def _create(config: ServingConfig) -> Any:
    sys.setswitchinterval(SWITCH_SECONDS)
    return create_app(config)


@contextmanager
def shared_counts() -> Iterator[None]:
    """A folder in which processes add up their counts: in memory where the system has such a place, so that no disk can be full."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="ltv-serve-", dir=memory if os.access(memory, os.W_OK) else None) as folder:
        os.environ[SHARED_FOLDER] = folder
        try:
            yield
        finally:
            del os.environ[SHARED_FOLDER]
