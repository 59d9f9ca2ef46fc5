"""``ltv``: the command line. It parses, calls one function of the project and prints; every command has an example.

What belongs here: the group of all commands. What does not: a command (``run.py``, ``data.py``, ``models.py``,
``champion.py``, ``dashboard.py``, ``maintenance.py``), what all of them use (``console.py``). Next to read: ``run.py``.

Exit codes: 0 done, 1 a run or a blocking check failed, 2 wrong input or configuration, 130 interrupted.
"""

from __future__ import annotations

import click

from ltv_assets import __version__
from ltv_assets.cli import champion, dashboard, data, init, maintenance, models, run, serve
from ltv_assets.defs import asset_checks as asset_checks


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ltv")
def main() -> None:
    """7-day in-app-purchase revenue of ad impressions.

    \b
    Example:
      ltv simulate --out warehouse/simulated
      ltv run
      ltv status
    """


for command in (
    run.run,
    run.status,
    init.init,
    data.simulate,
    data.check_data,
    data.lake_group,
    data.quarantine_group,
    data.catalog,
    data.explain_sql,
    models.predict,
    models.forecast,
    models.validate_submission,
    models.bench,
    models.ablate,
    models.report,
    models.tune,
    champion.promote,
    champion.rollback,
    serve.serve,
    maintenance.gc,
    maintenance.mlflow_sync,
    maintenance.dev,
    dashboard.dashboard,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
