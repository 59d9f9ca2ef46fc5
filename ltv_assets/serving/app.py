"""The ASGI application: scores for impressions, and what a server says of itself.

What belongs here: the routes. What does not: bounds (``limits.py``), the exchange of models (``champion.py``), processes
(``server.py``). Next to read: ``limits.py``.

One impression is scored in the event loop: it takes less time than handing it to a thread. Lists and large bodies are scored in
threads, so that one impression need not wait for them.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ltv_assets import __version__
from ltv_assets.core.config import ServingConfig
from ltv_assets.core.contract import contract_of
from ltv_assets.scoring.online import ERROR_COLUMN, Answer
from ltv_assets.serving.champion import Served, ServedChampion
from ltv_assets.serving.limits import Bodies, Disconnected, Refusal, Token, too_busy
from ltv_assets.serving.metrics import CONTENT_TYPE, Metrics
from ltv_assets.serving.openapi import DESCRIPTION, routes
from ltv_assets.serving.requests import BadRequest, Request, encode, parse
from ltv_assets.state.project import Project

log = logging.getLogger("ltv.serve")

TOKEN = "LTV_SERVE_TOKEN"
"""Environment variable of the bearer token."""
INLINE_BYTES = 65_536
"""Bodies up to this size are read in the event loop."""
INLINE_ROWS = 4
"""Up to so many impressions are scored in the event loop."""
THREADS = 2
"""Lists that are scored at once; most of it runs on one core."""
JSON = "application/json"


class Scorer:
    """`POST /v1/score` as a plain ASGI application: what is counted, bounded and answered."""

    def __init__(self, config: ServingConfig, champion: ServedChampion, metrics: Metrics) -> None:
        self._config, self._champion, self._metrics = config, champion, metrics
        self._bodies = Bodies(config)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="score")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: tuple[tuple[str, str], ...] = ()
        try:
            body = await self._bodies.read(scope["headers"], receive)
            status, content = 200, await self._answer(body)
        except Disconnected:
            return
        except Refusal as refusal:
            status, content, headers = refusal.status, refusal.body(), refusal.headers
            self._metrics.errors.labels(refusal.kind).inc()
        self._metrics.requests.labels(str(status)).inc()
        await respond(send, status, content, headers)

    async def _answer(self, body: bytes) -> bytes:
        metrics = self._metrics
        if metrics.in_flight >= self._config.max_concurrent:
            raise too_busy(f"the server is working on {metrics.in_flight} requests, the most it takes; ask again")
        metrics.in_flight += 1
        began = time.perf_counter()
        try:
            # Requests that arrived at the same moment are counted before the first of them is worked on.
            await asyncio.sleep(0)
            served = self._champion.current
            if served is None:
                raise Refusal(503, "no_model", self._champion.problem or "no model is loaded yet", headers=(("retry-after", "2"),))
            if len(body) <= INLINE_BYTES:
                request = self._parsed(body)
                if len(request.rows) <= INLINE_ROWS:
                    content = self._scored(served, request)
                else:
                    content = await self._in_thread(partial(self._scored, served, request))
            else:
                request, content = await self._in_thread(partial(self._parsed_and_scored, served, body))
        except (Refusal, asyncio.CancelledError):
            raise
        except Exception as error:
            # Its text may quote the request, which is nobody's business.
            log.error("a request failed: %s in %s", type(error).__name__, _place(error))
            raise Refusal(500, "failed", "the request could not be answered; the server's log says where") from None
        finally:
            metrics.in_flight -= 1
        metrics.seconds.labels("one" if request.single else "list").observe(time.perf_counter() - began)
        return content

    async def _in_thread(self, work: Any) -> Any:
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.wait_for(future, self._config.timeout_seconds)
        except TimeoutError:
            raise Refusal(504, "timeout", f"no answer within {self._config.timeout_seconds:g} s; send fewer rows at a time") from None

    def _parsed(self, body: bytes) -> Request:
        try:
            request = parse(body)
        except BadRequest as error:
            raise Refusal(400, "bad_request", str(error)) from None
        if len(request.rows) > self._config.max_rows:
            raise Refusal(413, "too_many_rows", f"{len(request.rows)} rows in a request; at most {self._config.max_rows} are taken")
        return request

    def _parsed_and_scored(self, served: Served, body: bytes) -> tuple[Request, bytes]:
        request = self._parsed(body)
        return request, self._scored(served, request)

    def _scored(self, served: Served, request: Request) -> bytes:
        before = served.model.by_engine
        answers = served.model.answers(request.rows)
        named = {"window": served.window, "fingerprint": served.fingerprint}
        for answer in answers:
            answer |= named
        self._count(answers, served.model.by_engine - before)
        return encode(answers[0] if request.single else answers)

    def _count(self, answers: Sequence[Answer], by_engine: int) -> None:
        malformed = sum(answer[ERROR_COLUMN] is not None for answer in answers)
        if malformed:
            self._metrics.rows.labels("malformed").inc(malformed)
        self._metrics.rows.labels("scored").inc(len(answers) - malformed)
        if by_engine > 0:
            self._metrics.engine_rows.inc(by_engine)


class Gate:
    """The outermost application: requires the token, and answers scores without the way through the framework."""

    def __init__(self, app: ASGIApp, scorer: Scorer, token: Token) -> None:
        self._app, self._scorer, self._token = app, scorer, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._token.require(scope["path"], scope["headers"])
        except Refusal as refusal:
            await respond(send, refusal.status, refusal.body(), refusal.headers)
            return
        scores = scope["path"] == "/v1/score" and scope["method"] == "POST"
        await (self._scorer if scores else self._app)(scope, receive, send)


async def respond(send: Send, status: int, content: bytes, headers: Sequence[tuple[str, str]] = ()) -> None:
    """Send a whole JSON answer."""
    pairs = [(b"content-type", JSON.encode()), (b"content-length", str(len(content)).encode())]
    pairs += [(name.encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})


def create_app(config: ServingConfig | None = None) -> ASGIApp:
    """The application of one process, for the project that the environment describes.

    ``config`` replaces the section ``serving`` of the configuration. Raises ConfigError if the configuration is wrong.
    """
    project = Project.open()
    config = config or project.config.serving
    metrics = Metrics()
    champion = ServedChampion(project.config, project.warehouse, metrics)

    async def watch() -> None:
        while True:
            await asyncio.sleep(config.poll_seconds)
            await asyncio.to_thread(champion.refresh)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Everything that is imported lives as long as the process: the collector need not walk it again and again.
        gc.collect()
        gc.freeze()
        await asyncio.to_thread(champion.refresh)
        watching = asyncio.create_task(watch())
        yield
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        gc.unfreeze()

    app = FastAPI(title="ltv serve", version=__version__, description=DESCRIPTION, lifespan=lifespan, redoc_url=None)
    scorer = Scorer(config, champion, metrics)
    described = routes(contract_of(project.config))

    @app.post("/v1/score", **described["score"])
    async def score(_: HttpRequest) -> Response:
        # Here for the description only: `Gate` stands in front of the framework and answers these requests itself.
        raise NotImplementedError("answered by the gate before it comes here")

    @app.get("/healthz", **described["healthz"])
    async def healthz() -> Response:
        return Response(b'{"alive":true}', media_type=JSON)

    @app.get("/readyz", **described["readyz"])
    async def readyz() -> Response:
        state = {"ready": champion.current is not None, "problem": champion.problem}
        return Response(encode(state), status_code=200 if champion.current is not None else 503, media_type=JSON)

    @app.get("/v1/model", **described["model"])
    async def model() -> Response:
        served = champion.current
        if served is None:
            refusal = Refusal(503, "no_model", champion.problem or "no model is loaded yet")
            return Response(refusal.body(), status_code=503, media_type=JSON)
        facts = {
            "window": served.window,
            "fingerprint": served.fingerprint,
            "pinned": served.champion.pinned,
            "why": served.champion.why,
            "loaded_at": served.loaded_at.isoformat(timespec="seconds"),
            "problem": champion.problem,
        }
        return Response(encode(facts), media_type=JSON)

    @app.get("/metrics", **described["metrics"])
    async def exposed() -> Response:
        return Response(metrics.exposition(champion), media_type=CONTENT_TYPE)

    return Gate(app, scorer, Token(os.environ.get(TOKEN)))


def _place(error: BaseException) -> str:
    """The file and line that raised."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return f"{os.path.basename(at.tb_frame.f_code.co_filename)}:{at.tb_lineno}" if at is not None else "no place"  # noqa: PTH119
