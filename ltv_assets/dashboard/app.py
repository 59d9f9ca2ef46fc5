"""The pages over HTTP: routes, headers, refreshing, and the server of `ltv dashboard`.

What belongs here: taking requests apart, rendering, security. What does not: content (``pages.py``). Starlette and uvicorn are there
already, with Dagster's webserver. Everything a page needs comes from this server: the content security policy forbids anything else,
scripts and styles inside the page included.

Pages are drawn on the server from one `Snapshot` at a time. A browser asks for ``/state``, a few bytes, every few seconds and fetches the
page again when it differs. One request is answered at a time, which bounds memory; figures are read again only where a partition changed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ltv_assets.core.errors import LtvError
from ltv_assets.core.memory import release_memory
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.dashboard import charts, words
from ltv_assets.dashboard.pages import PAGES, Links
from ltv_assets.dashboard.reading import PublishedWarehouse
from ltv_assets.dashboard.snapshot import Snapshot
from ltv_assets.state.project import Project

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
MAX_PASTED_BYTES = 1 << 20
LEAST_SECONDS = 2.0
"""A snapshot is kept this long, and ten times as long as it took to read, even if something was published meanwhile."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'self'",
        "script-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; sandbox"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
IMPRESSION = ("One impression", "/impression")


class Dashboard:
    """The pages of one warehouse."""

    def __init__(self, links: Links, opener: Callable[[], Project] = Project.open) -> None:
        self.links = links
        self._open = opener
        self._lock = threading.Lock()
        self._warehouse: PublishedWarehouse | None = None
        self._snapshot: Snapshot | None = None
        self._good_until = 0.0
        self._explainer: tuple[str, Any] | None = None
        self._environment = _environment()

    # ---------------------------------------------------------------------------------------------------------- snapshot

    def _opened(self) -> Project:
        """The project as it is now, on a warehouse that is only read. Raises ConfigError if the configuration is wrong."""
        project = self._open()
        if self._warehouse is None or self._warehouse.root != project.warehouse.root:
            self._warehouse = PublishedWarehouse(project.warehouse.root)
        return Project(project.config, project.horizon, self._warehouse)

    def _present(self) -> Snapshot:
        """The snapshot to show: the last one while it is young or nothing changed."""
        now = time.monotonic()
        if self._snapshot is not None and (now < self._good_until or self._snapshot.warehouse.state() == self._snapshot.state):
            return self._snapshot
        project = self._opened()
        warehouse = self._warehouse
        assert warehouse is not None
        self._snapshot = Snapshot(project, warehouse, warehouse.state())
        self._good_until = now + LEAST_SECONDS
        return self._snapshot

    def state(self) -> str:
        """State of the warehouse, for browsers that wait for a change."""
        try:
            warehouse = self._warehouse or self._opened().warehouse
            return warehouse.state() if isinstance(warehouse, PublishedWarehouse) else ""
        except LtvError:
            return ""

    # ------------------------------------------------------------------------------------------------------------- pages

    def page(self, name: str, choices: Mapping[str, str]) -> str:
        """HTML of a page; one that says what is wrong if the configuration cannot be read."""
        with self._lock:
            began = time.monotonic()
            try:
                snap = self._present()
                content = PAGES[name][2](snap, choices, self.links)
            except LtvError as error:
                return self._render("problem.html", name, None, {"problem": str(error)})
            text = self._render(f"{name}.html", name, snap, content)
            self._good_until = max(self._good_until, time.monotonic() + 10 * (time.monotonic() - began))
            return text

    def impression(self, choices: Mapping[str, str], pasted: str | None) -> str:
        """HTML of the page about one impression: pasted, picked, or the choice of one."""
        from ltv_assets.dashboard import impression as one

        with self._lock:
            try:
                snap = self._present()
            except LtvError as error:
                return self._render("problem.html", "impression", None, {"problem": str(error)})
            days = sorted(snap.warehouse.keys("predictions"), reverse=True)
            day = next((known for known in days if known == choices.get("day")), days[0] if days else None)
            row_id = choices.get("row", "")
            content: dict[str, Any] = {
                "days": days,
                "day": day or "",
                "row_id": row_id,
                "pasted": pasted,
                "example": one.example(snap.project.contract),
                "offered": (),
                "explained": None,
                "stored": None,
                "fault": "",
                "champion": snap.champion,
                "alike": ", ".join(words.segment_words(name) for name in snap.project.contract.segments),
            }
            try:
                names = content["names"] = snap.project.contract.scores
                content["offered"] = one.offered_rows(snap.warehouse, day, names) if day else ()
                if snap.champion is not None and (pasted is not None or (row_id and day)):
                    explainer = self._explaining(snap)
                    features = explainer.pasted(pasted) if pasted is not None else explainer.picked(day, row_id)
                    content["explained"] = explainer.explain(features)
                    content["stored"] = one.stored_score(snap.warehouse, day, row_id, names) if pasted is None and day else None
            except LtvError as error:
                content["fault"] = str(error)
            return self._render("impression.html", "impression", snap, content)

    def _explaining(self, snap: Snapshot) -> Any:
        from ltv_assets.dashboard.impression import Explainer

        assert snap.champion is not None
        identity = f"{snap.champion.window} {snap.champion.fingerprint}"
        if self._explainer is None or self._explainer[0] != identity:
            self._explainer = None  # the models of two windows need not be in memory at once
            self._explainer = (identity, Explainer(snap.project, snap.warehouse, snap.champion.window))
        return self._explainer[1]

    def report(self, window: str) -> bytes | None:
        """The report of a window, None if there is none or no such window."""
        with self._lock:
            try:
                return self._present().document("report", PartitionKey(window), ".html") or None
            except LtvError:
                return None

    def _render(self, template: str, name: str, snap: Snapshot | None, content: Mapping[str, Any]) -> str:
        pages = [(page, title, path) for page, (title, path, _) in PAGES.items()] + [("impression", *IMPRESSION)]
        title = next(t for page, t, _ in pages if page == name)
        said = {"pages": pages, "name": name, "title": title, "snap": snap, "links": self.links, **content}
        if snap is not None:
            said |= {"scores": snap.project.contract.scores, "terms": words.terms(snap.project.contract.scores)}
        text = self._environment.get_template(template).render(said)
        release_memory()
        return text


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ltv_assets.dashboard"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    names = ("count", "decimal", "few", "cents", "usd", "percent", "signed_percent", "factor", "segment_words", "plural", "age")
    environment.filters |= {name: getattr(words, name) for name in names}
    environment.globals |= {
        "push_bar": charts.push_bar,
        "column_words": words.column_words,
        "nothing": words.NOTHING,
        "plural": words.plural,
    }
    return environment


# ----------------------------------------------------------------------------------------------------------------- HTTP


def make_app(dashboard: Dashboard, *, hosts: tuple[str, ...] = LOOPBACK) -> Starlette:
    """The application; requests for a host that is not among ``hosts`` are refused (``*`` allows all)."""

    # Pages are drawn in one thread: glibc keeps the memory of every thread that ever worked.
    drawing, looking = ThreadPoolExecutor(1, "page"), ThreadPoolExecutor(1, "state")

    async def state(request: Request) -> Response:
        found = await asyncio.get_running_loop().run_in_executor(looking, dashboard.state)
        return JSONResponse({"state": found}, headers=HEADERS)

    async def drawn(of: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(drawing, of, *arguments)

    def route(name: str, path: str) -> Route:
        async def answer(request: Request) -> Response:
            return _html(await drawn(dashboard.page, name, dict(request.query_params)))

        return Route(path, answer, name=name)

    async def impression(request: Request) -> Response:
        pasted = None
        if request.method == "POST":
            body = await _limited(request)
            if body is None:
                return Response("an impression of more than 1 MiB is not read; paste one impression\n", 413, HEADERS, "text/plain")
            pasted = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=4).get("impression", [""])[0]
        return _html(await drawn(dashboard.impression, dict(request.query_params), pasted))

    async def report(request: Request) -> Response:
        found = await drawn(dashboard.report, request.path_params["window"])
        if found is None:
            return Response("no report of this window; `ltv report` writes it\n", 404, HEADERS, "text/plain")
        return Response(found, 200, {**HEADERS, "Content-Security-Policy": REPORT_POLICY}, "text/html")

    async def missing(request: Request, error: Exception) -> Response:
        return Response("there is no such page; the pages are listed at /\n", 404, HEADERS, "text/plain")

    async def broken(request: Request, error: Exception) -> Response:
        text = f"this page failed ({type(error).__name__}: {error!s:.300}); the other pages work, and the log has the whole story\n"
        return Response(text, 500, HEADERS, "text/plain")

    routes = [
        *(route(name, path) for name, (_, path, _) in PAGES.items()),
        Route(IMPRESSION[1], impression, methods=["GET", "POST"]),
        Route("/report/{window}", report),
        Route("/state", state),
        Mount("/static", StaticFiles(packages=[("ltv_assets.dashboard", "static")])),
    ]
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return Starlette(routes=routes, middleware=[guard], exception_handlers={404: missing, 500: broken})


def _html(text: str) -> Response:
    return HTMLResponse(text, headers={**HEADERS, "Content-Security-Policy": POLICY})


async def _limited(request: Request) -> bytes | None:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_PASTED_BYTES:
            return None
    return body


def serve(dashboard: Dashboard, host: str, port: int) -> None:
    """Answer requests until the process is told to end."""
    import pyarrow as pa
    import uvicorn

    pa.set_cpu_count(1)
    hosts = LOOPBACK if host in LOOPBACK else ("*",)
    uvicorn.run(
        make_app(dashboard, hosts=hosts),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="off",
    )
