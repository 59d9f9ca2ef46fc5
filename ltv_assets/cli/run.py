"""Commands that bring the warehouse up to date and show its state: ``run``, ``status``.

What belongs here: their options and output. What does not: the order of partitions (``runner.py``), freshness
(``state/``). Next to read: ``runner.py``.
"""

from __future__ import annotations

import json
import sys

import click
from rich.markup import escape
from rich.table import Table

from ltv_assets.cli.champion import print_champion
from ltv_assets.cli.console import DAY, console, err, progress_bar, readable
from ltv_assets.core.asset_specs import IMPRESSION_ASSETS
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.state.project import Project


@click.command()
@click.option("--window", type=DAY, default=None, help="holdout day; default: the last labelled day")
@readable
def run(window: PartitionKey | None) -> None:
    """Bring everything the configuration asks for up to date, and say what was done.

    Days are inventoried and flattened, the window is trained, evaluated and refitted, test days are scored, the
    submission is written. What is fresh is skipped. Exit code 1 if a run or a blocking check failed.

    \b
    Example:
      LTV_DATA_ROOT=/data/smadex LTV_CONFIG=config/config.yaml ltv run
      ltv run --window 2025-10-05
    """
    from ltv_assets.cli.runner import run_everything

    project = Project.open()
    with progress_bar() as bar:
        task = bar.add_task("looking", total=None)

        def announce(total: int) -> None:
            bar.update(task, total=total)

        def advance(line: str) -> None:
            bar.update(task, advance=1, description=line[:60])
            if not err.is_terminal:
                err.print(escape(line))

        report = run_everything(project, window=window, announce=announce, advance=advance)
    for warning in report.warnings:
        err.print(f"[yellow]warning:[/] {escape(warning)}")
    for problem in report.problems:
        err.print(f"[bold red]failed:[/] {escape(problem)}")
    if report.executed:
        err.print(f"{len(report.executed)} partitions made, {report.fresh} already fresh, {report.seconds:.1f} s")
    else:
        err.print(f"everything is fresh: {report.fresh} partitions looked at, nothing to do, {report.seconds:.1f} s")
    _print_headline(project, window)
    sys.exit(report.exit_code)


def _print_headline(project: Project, window: PartitionKey | None) -> None:
    from ltv_assets.modeling.evaluation.segments import headline_of
    from ltv_assets.state.status import headline_figures

    day = project.window_or_last(window)
    figures = headline_figures(project, day)
    if figures:
        table = Table(title=f"holdout {day}", title_justify="left")
        table.add_column("figure")
        table.add_column("value", justify="right")
        table.add_column("95 % interval", justify="right")
        for name, label in headline_of(project.contract.scores):
            row = figures.get(name)
            if row is not None and row["value"] is not None:
                low, high = row["low"], row["high"]
                table.add_row(label, f"{row['value']:.4f}", f"{low:.4f} .. {high:.4f}" if low is not None and high is not None else "")
        console.print(table)
        report = project.warehouse.folder("report", day) / "report.html"
        if report.is_file():
            console.print(f"report: {report}", markup=False)
    if project.horizon.test_days:
        path = project.warehouse.folder("submission", project.submission_key) / "submission.csv"
        if path.is_file():
            console.print(f"submission: {path}", markup=False)


STATE_STYLE = {"fresh": "green", "stale": "yellow", "failed": "bold red", "missing": "dim"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="one JSON object per partition")
@click.option("--verify", is_flag=True, help="first read every file and compare it with its hash; what differs becomes stale")
@readable
def status(as_json: bool, verify: bool) -> None:
    """Say of every asset and partition whether it is fresh, stale (and why), failed or missing.

    \b
    Example:
      ltv status
      ltv status --json | grep '"stale"'
      ltv status --verify && ltv run
    """
    from ltv_assets.state.status import partition_states, verify_everything

    project = Project.open()
    if verify:
        verify_everything(project)
    rows = partition_states(project)
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    if not rows:
        console.print(f"no day found under {project.config.data.root}; run `ltv simulate` or set LTV_DATA_ROOT", markup=False)
        return
    table = Table()
    for name in ("asset", "partition", "state", "rows", "quarantined", "why"):
        table.add_column(name, justify="right" if name in ("rows", "quarantined") else "left", overflow="fold", no_wrap=name != "why")
    for row in rows:
        style = STATE_STYLE[row["state"]]
        # An inventory counts files, and a model's rows are those of its tables: neither says how many impressions there are.
        rows_of_impressions = row["rows"] if row["asset"] in IMPRESSION_ASSETS else None
        cells = [
            row["asset"],
            row["partition"],
            f"[{style}]{row['state']}[/]",
            rows_of_impressions,
            row["quarantined"] or "",
            escape(row["why"]),
        ]
        table.add_row(*("" if c is None else str(c) for c in cells))
    console.print(table)
    print_champion(project)
