"""The command ``dashboard``: its options, and what it prints. The pages are in ``dashboard/``."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any
from urllib.parse import urlparse

import click

from ltv_assets.cli.console import console, err, readable
from ltv_assets.core.errors import TransientError
from ltv_assets.state.project import Project


class _Address(click.ParamType):
    """The address of a web page: http or https, without a password."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        parsed = urlparse(str(value))
        if "@" in parsed.netloc:
            self.fail("expected an address without user and password: it becomes a link on every page", param, ctx)
        if parsed.scheme not in ("http", "https") or not parsed.hostname:
            self.fail(f"{str(value)!r:.80} is not an address such as http://127.0.0.1:3000", param, ctx)
        return str(value).rstrip("/")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen on; anyone who reaches it can read the figures")
@click.option("--port", default=8501, show_default=True, type=click.IntRange(1, 65535), help="port of the pages")
@click.option("--dagster", default="http://127.0.0.1:3000", show_default=True, type=_Address(), help="Dagster's web page, for links")
@click.option("--mlflow", type=_Address(), help="MLflow's web page, for links; by default MLFLOW_TRACKING_URI, else http://127.0.0.1:5000")
@readable
def dashboard(host: str, port: int, dagster: str, mlflow: str | None) -> None:
    """Show the warehouse as pages for people who look rather than query.

    What the newest days will bring, where the money is, whether it can be trusted, how windows compare, why one impression is
    scored as it is. Reads only; runs may go on meanwhile.

    \b
    Example:
      ltv dashboard
      ltv dashboard --port 8600 --dagster http://127.0.0.1:3001
    """
    from ltv_assets.dashboard.app import LOOPBACK, Dashboard, serve
    from ltv_assets.dashboard.pages import Links
    from ltv_assets.dashboard.snapshot import tracking_page

    project = Project.open()
    _require_free(host, port)
    if host not in LOOPBACK:
        err.print(f"[yellow]warning:[/] anyone who reaches {host} can read these pages; there is no password", highlight=False)
    console.print(f"http://{host}:{port}  (warehouse {project.warehouse.root})", markup=False)
    with suppress(KeyboardInterrupt):
        serve(Dashboard(Links(dagster, mlflow or tracking_page())), host, port)


def _require_free(host: str, port: int) -> None:
    """Raise TransientError if the port cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = error.strerror or str(error)
            raise TransientError(f"port {port} on {host}: {reason}; end what uses it, or choose another with --port or --host") from None
