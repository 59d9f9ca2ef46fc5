"""Commands about data: ``simulate``, ``check-data``, ``lake``, ``quarantine``, ``catalog``, ``explain-sql``.

What belongs here: their options and output. What does not: their work (``check_data.py``, ``quarantine.py``, ``simulator/``,
``storage/``). Next to read: ``check_data.py``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from ltv_assets.cli.console import DAY, console, err, progress_bar, readable
from ltv_assets.core.errors import ConfigError
from ltv_assets.core.laws import LAWS
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.state.project import Project

if TYPE_CHECKING:
    from ltv_assets.storage.object_store import Lake


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="folder to write train/, test/ and truth/ into"
)
@click.option("--train-days", default=6, show_default=True, type=click.IntRange(1, 3650), help="days with labels")
@click.option("--test-days", default=2, show_default=True, type=click.IntRange(0, 3650), help="days without labels")
@click.option("--rows-per-hour", default=600, show_default=True, type=click.IntRange(1), help="impressions an hour")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="same seed, same bytes")
@click.option(
    "--law",
    default="additive",
    show_default=True,
    type=click.Choice(LAWS),
    help="of the labels",
)
@click.option(
    "--level-sd",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 2),
    help="standard deviation of the log payer rate from day to day, beside its noise",
)
@click.option("--independent", is_flag=True, help="draw every label for itself; by default they are spread evenly over the rows of an hour")
@click.option("--first-day", default="2025-10-01", show_default=True, type=DAY, help="first training day")
@readable
def simulate(
    out: Path,
    train_days: int,
    test_days: int,
    rows_per_hour: int,
    seed: int,
    law: Any,
    level_sd: float,
    independent: bool,
    first_day: PartitionKey,
) -> None:
    """Write simulated impressions in the real layout, with the truth beside them.

    Evenly spread labels show a law's means on few rows; to judge intervals of sums, draw them with --independent.

    \b
    Example:
      ltv simulate --out /tmp/impressions --train-days 3 --test-days 1 --rows-per-hour 200 --law thresholds
      ltv simulate --out /tmp/moving --level-sd 0.15 --independent
    """
    from ltv_assets.simulator import simulate as run

    with progress_bar() as bar:
        task = bar.add_task("simulating hours", total=None)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if not err.is_terminal and done % 24 == 0 and done:
                err.print(f"simulated {done} of {total} hours")

        summary = run(
            out,
            train_days=train_days,
            test_days=test_days,
            rows_per_hour=rows_per_hour,
            seed=seed,
            law=law,
            level_sd=level_sd,
            independent=independent,
            first_day=first_day,
            progress=tell,
        )
    size = f"{summary.bytes / 1e6:.1f} MB in {summary.files} files"
    console.print(
        f"{summary.train_rows} training and {summary.test_rows} test impressions (law {law}, seed {seed}), {size}: {summary.out}",
        markup=False,
    )


@click.command("check-data")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--rows/--no-rows", default=True, show_default=True, help="also decode every row and look for damaged keys and labels")
@readable
def check_data(folder: Path, rows: bool) -> None:
    """Look at raw data before it is used: one line per problem, exit code 2 if there is any.

    FOLDER is a data root (with train/ and test/) or one split's folder of hourly partitions.

    \b
    Example:
      ltv check-data /data/smadex
      ltv check-data /data/smadex/train --no-rows
    """
    from ltv_assets.cli.check_data import check_folder

    config = Project.open().config
    with progress_bar() as bar:
        task = bar.add_task("checking days", total=None)
        findings = check_folder(config, folder, rows=rows, progress=lambda done, total: bar.update(task, completed=done, total=total))
    for line in (*findings.problems, *findings.warnings):
        click.echo(line)
    click.echo(
        f"{findings.days} days, {findings.files} files, {findings.rows} rows: "
        f"{len(findings.problems)} problems, {len(findings.warnings)} warnings",
        err=True,
    )
    sys.exit(2 if findings.problems else 0)


@click.group("lake")
def lake_group() -> None:
    """Share published partitions through `warehouse.lake`, a URL such as s3://bucket/ltv.

    \b
    Example:
      ltv lake push
      ltv lake pull
    """


def _opened_lake(project: Project) -> Lake:
    if project.lake is None:
        raise ConfigError("warehouse.lake is not set; give it a URL such as s3://bucket/ltv or file:///mnt/lake")
    return project.lake


@lake_group.command("push")
@readable
def lake_push() -> None:
    """Send every partition that differs from the lake's, with its verdicts; the manifest goes last.

    \b
    Example:
      ltv lake push
    """
    project = Project.open()
    lake = _opened_lake(project)
    sent = lake.push_all(project.warehouse, lambda line: err.print(escape(line)))
    console.print(f"{sent} partitions sent to {lake.url}", markup=False)


@lake_group.command("pull")
@readable
def lake_pull() -> None:
    """Fetch every partition that the warehouse lacks, compared with its hashes.

    \b
    Example:
      ltv lake pull
    """
    project = Project.open()
    lake = _opened_lake(project)
    project.warehouse.writable()
    fetched = lake.pull_all(project.warehouse, lambda line: err.print(escape(line)))
    for problem in project.refresh_catalogue():
        err.print(f"[yellow]warning:[/] {escape(problem)}")
    console.print(f"{fetched} partitions fetched from {lake.url}", markup=False)


@click.group("quarantine")
def quarantine_group() -> None:
    """Show what was set aside, and take in what was repaired since.

    \b
    Example:
      ltv quarantine list
      ltv quarantine replay
    """


@quarantine_group.command("list")
@click.option("--json", "as_json", is_flag=True, help="one JSON object per file, and per reason for rows")
@readable
def quarantine_list(as_json: bool) -> None:
    """List every file and the number of rows set aside, with reason and origin.

    The rows themselves are in quarantine/flattened_features/day=D/rows.parquet of the warehouse.

    \b
    Example:
      ltv quarantine list
      ltv quarantine list --json | grep '"zero bytes'
    """
    from ltv_assets.cli.quarantine import listing

    lines = listing(Project.open())
    for line in lines:
        click.echo(
            json.dumps(line) if as_json else f"{line['day']}  {line['what']}: {line['reason']}{line['repaired'] and '  [changed since]'}"
        )
    if not lines:
        err.print("nothing is set aside")


@quarantine_group.command("replay")
@click.argument("day", type=DAY, required=False)
@readable
def quarantine_replay(day: PartitionKey | None) -> None:
    """Make the days (or DAY) again whose set-aside files, or files with set-aside rows, were repaired where they lie.

    Raw files belong to whoever delivers them: repair or replace them in the data root, then replay. What is still broken stays
    set aside. Windows and scores made from a replayed day become stale; `ltv run` makes them again. Exit code 1 if a day fails.

    \b
    Example:
      ltv quarantine replay
      ltv quarantine replay 2025-10-02
    """
    from ltv_assets.cli.quarantine import replay

    project = Project.open()
    report, lines = replay(project, day, advance=lambda line: err.print(escape(line)))
    for problem in report.problems:
        err.print(f"[bold red]failed:[/] {escape(problem)}")
    for line in lines:
        click.echo(line)
    sys.exit(report.exit_code)


@click.command()
@readable
def catalog() -> None:
    """Rebuild ltv.duckdb from what the warehouse holds. Exit code 1 if a partition had to be left out.

    \b
    Example:
      ltv catalog
    """
    project = Project.open()
    problems: list[str] = []
    changed = project.sync_catalogue(rebuild=True, problems=problems)
    for asset, partitions in changed.items():
        console.print(f"{asset}: {partitions} partitions", markup=False)
    console.print(f"catalogue: {project.warehouse.database}", markup=False)
    for problem in problems:
        err.print(f"[yellow]warning:[/] {escape(problem)}")
    sys.exit(1 if problems else 0)


@click.command("explain-sql")
@click.argument("column")
@readable
def explain_sql(column: str) -> None:
    """Print the expression from which one flattened column is computed.

    \b
    Example:
      ltv explain-sql iap_revenue_usd_bundle__own_share
    """
    from ltv_assets.features.sql import explain_sql as explain

    click.echo(explain(Project.open().registry, column))
