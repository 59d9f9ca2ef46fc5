"""``ltv serve``: its options.

What belongs here: reading them. What does not: the server (``serving/``).
"""

from __future__ import annotations

import sys

import click

from ltv_assets.cli.console import readable


@click.command()
@click.option("--host", default=None, help="address to listen on  [default: serving.host, 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), default=None, help="port to listen on  [default: serving.port, 8000]")
@click.option("--workers", type=click.IntRange(1, 256), default=None, help="processes that answer  [default: serving.workers, 1]")
@readable
def serve(host: str | None, port: int | None, workers: int | None) -> None:
    """Answer bid-time requests with the champion; a promotion or rollback is followed without a restart.

    A bearer token is required where LTV_SERVE_TOKEN is set.

    \b
    Example:
      ltv serve --port 8000
      curl -s http://127.0.0.1:8000/v1/score -d @request.json
    """
    from ltv_assets.core.config import load_config
    from ltv_assets.serving.server import serve as run

    given = {"host": host, "port": port, "workers": workers}
    config = load_config().serving.model_copy(update={name: value for name, value in given.items() if value is not None})
    sys.exit(run(config))
