"""``ltv``: the command line. It parses, calls one function of the project and prints; every command has an example.

Exit codes: 0 done, 1 a run or a blocking check failed, 2 wrong input or configuration, 130 interrupted.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date, datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ltv_assets import __version__
from ltv_assets.core.config import FIRST_DAY, LAST_DAY
from ltv_assets.core.errors import ConfigError, LtvError, PermanentError, TransientError, explained
from ltv_assets.state.project import Project

if TYPE_CHECKING:
    from ltv_assets.storage.object_store import Lake

PIPED_WIDTH = 180
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPED_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else PIPED_WIDTH)


class _Day(click.DateTime):
    """A day between the first and the last that an impression can be from."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not FIRST_DAY <= found.date() <= LAST_DAY:
            self.fail(f"{value!r} is not between {FIRST_DAY} and {LAST_DAY}.", param, ctx)
        return found


DAY = _Day(formats=["%Y-%m-%d"])
_NO_SUCH_PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENOENT, errno.EISDIR, errno.ELOOP, errno.EINVAL)


def readable(command: Callable[..., Any]) -> Callable[..., Any]:
    """Print the project's own errors as one message and exit 2 (1 for transient ones)."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            _end_by_signals()
            return command(*args, **kwargs)
        except LtvError as error:
            err.print(f"[bold red]error:[/] {escape(str(error))}")
            sys.exit(1 if isinstance(error, TransientError) else 2)
        except BrokenPipeError:
            sys.exit(0)
        except KeyboardInterrupt:
            err.print("interrupted: what was published stays; the same command goes on from there")
            sys.exit(130)
        except Exception as error:
            known = explained(error, _warehouse_root())
            if known is None and isinstance(error, OSError) and error.errno in _NO_SUCH_PATH and error.filename is not None:
                known = PermanentError(f"{error.filename!s:.200}: {error.strerror}; give another path")
            if known is None:
                raise
            err.print(f"[bold red]error:[/] {escape(str(known))}")
            sys.exit(1 if isinstance(known, TransientError) else 2)

    return wrapped


def _end_by_signals() -> None:
    """Let SIGINT and SIGTERM end the command, also one that `nohup` or a script's `&` has started with SIGINT ignored.

    Dagster hands SIGTERM to whatever handles SIGINT; a process that ignores the one could not be ended by the other.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)


def _warehouse_root() -> Path | None:
    from ltv_assets.core.config import load_config

    try:
        return load_config().warehouse.root
    except (LtvError, OSError):
        return None


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=not err.is_terminal,
    )


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


# ------------------------------------------------------------------------------------------------------------- simulate


@main.command()
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="folder to write train/, test/ and truth/ into"
)
@click.option("--train-days", default=6, show_default=True, type=click.IntRange(1, 3650), help="days with labels")
@click.option("--test-days", default=2, show_default=True, type=click.IntRange(0, 3650), help="days without labels")
@click.option("--rows-per-hour", default=600, show_default=True, type=click.IntRange(1), help="impressions an hour")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="same seed, same bytes")
@click.option(
    "--law", default="additive", show_default=True, type=click.Choice(["additive", "interactions", "thresholds"]), help="of the labels"
)
@click.option("--first-day", default="2025-10-01", show_default=True, type=DAY, help="first training day")
@readable
def simulate(out: Path, train_days: int, test_days: int, rows_per_hour: int, seed: int, law: Any, first_day: datetime) -> None:
    """Write simulated impressions in the real layout, with the truth beside them.

    \b
    Example:
      ltv simulate --out /tmp/impressions --train-days 3 --test-days 1 --rows-per-hour 200 --law thresholds
    """
    from ltv_assets.simulator import simulate as run

    with _progress() as bar:
        task = bar.add_task("simulating hours", total=None)
        summary = run(
            out,
            train_days=train_days,
            test_days=test_days,
            rows_per_hour=rows_per_hour,
            seed=seed,
            law=law,
            first_day=f"{first_day:%Y-%m-%d}",
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    size = f"{summary.bytes / 1e6:.1f} MB in {summary.files} files"
    console.print(
        f"{summary.train_rows} training and {summary.test_rows} test impressions (law {law}, seed {seed}), {size}: {summary.out}",
        markup=False,
    )


# ------------------------------------------------------------------------------------------------------------------ run


@main.command()
@click.option("--window", type=DAY, default=None, help="holdout day; default: the last labelled day")
@readable
def run(window: datetime | None) -> None:
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
    with _progress() as bar:
        task = bar.add_task("looking", total=None)

        def announce(total: int) -> None:
            bar.update(task, total=total)

        def advance(line: str) -> None:
            bar.update(task, advance=1, description=line[:60])
            if not err.is_terminal:
                err.print(escape(line))

        report = run_everything(project, window=window.date() if window else None, announce=announce, advance=advance)
    for warning in report.warnings:
        err.print(f"[yellow]warning:[/] {escape(warning)}")
    for problem in report.problems:
        err.print(f"[bold red]failed:[/] {escape(problem)}")
    if report.executed:
        err.print(f"{len(report.executed)} partitions made, {report.fresh} already fresh, {report.seconds:.1f} s")
    else:
        err.print(f"everything is fresh: {report.fresh} partitions looked at, nothing to do, {report.seconds:.1f} s")
    _print_headline(project, window.date() if window else None)
    sys.exit(report.exit_code)


def _print_headline(project: Project, window: date | None) -> None:
    from ltv_assets.state.status import HEADLINE, headline_figures

    day = project.window_or_last(window)
    figures = headline_figures(project, str(day))
    if figures:
        table = Table(title=f"holdout {day}", title_justify="left")
        table.add_column("figure")
        table.add_column("value", justify="right")
        table.add_column("95 % interval", justify="right")
        for name, label in HEADLINE:
            row = figures.get(name)
            if row is not None and row["value"] is not None:
                low, high = row["low"], row["high"]
                table.add_row(label, f"{row['value']:.4f}", f"{low:.4f} .. {high:.4f}" if low is not None and high is not None else "")
        console.print(table)
        report = project.warehouse.folder("report", str(day)) / "report.html"
        if report.is_file():
            console.print(f"report: {report}", markup=False)
    if project.horizon.test_days:
        path = project.warehouse.folder("submission", project.submission_key) / "submission.csv"
        if path.is_file():
            console.print(f"submission: {path}", markup=False)


# --------------------------------------------------------------------------------------------------------------- status


IMPRESSION_ASSETS = ("flattened_features", "histos_train", "hhistus_buyers", "predictions", "submission")
STATE_STYLE = {"fresh": "green", "stale": "yellow", "failed": "bold red", "missing": "dim"}


@main.command()
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
    _print_champion(project)


# -------------------------------------------------------------------------------------------------------------- predict


@main.command()
@click.option(
    "--in",
    "source",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="folder of impressions, in any of the layouts, or one parquet file",
)
@click.option("--out", "target", type=click.Path(path_type=Path, dir_okay=False), required=True, help=".csv or .parquet file to write")
@click.option("--window", type=DAY, default=None, help="window whose served model scores; default: the champion")
@readable
def predict(source: Path, target: Path, window: datetime | None) -> None:
    """Score a folder of impressions with the champion, without the graph.

    Files and rows count, are set aside and warned of as in `ltv run`. Exit code 2, and no file, if a day is not usable.

    \b
    Example:
      ltv predict --in data/test --out scores.parquet
      ltv predict --in data/test/datetime=2025-10-08-00-00 --out scores.csv
    """
    from ltv_assets.scoring.predict_files import predict_folder

    project = Project.open()
    with _progress() as bar:
        task = bar.add_task("scoring", total=None)
        scored = predict_folder(
            project,
            source,
            target,
            window=str(window.date()) if window else None,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for warning in scored.warnings:
        err.print(f"[yellow]warning:[/] {escape(warning)}")
    for reason, count in sorted(scored.rows_aside.items()):
        console.print(f"{count} rows set aside: {reason}", markup=False)
    aside = f"{scored.rows_aside.total()} rows and {scored.files_aside} files set aside"
    console.print(f"{scored.rows} rows scored, {aside}: {target}", markup=False)


# ----------------------------------------------------------------------------------------------------------- validation


@main.command("check-data")
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
    with _progress() as bar:
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


@main.command("validate-submission")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--sample",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=None,
    help="sample submission that gives the ids and their order",
)
@readable
def validate_submission(file: Path, sample: Path | None) -> None:
    """Check a submission file line by line; exit code 2 if it is not valid.

    \b
    Example:
      ltv validate-submission warehouse/submissions/2025-10-08_2025-10-09/submission.csv
      ltv validate-submission mine.csv --sample sample_submission.csv
    """
    from ltv_assets.core.config import load_config
    from ltv_assets.scoring.submission import validate_submission as validate

    compute = load_config().compute
    problems = validate(file, sample, threads=compute.threads, memory_limit=compute.duckdb_limit)
    for problem in problems:
        click.echo(f"{file}: {problem}")
    if not problems:
        click.echo(f"{file}: valid", err=True)
    sys.exit(2 if problems else 0)


# ----------------------------------------------------------------------------------------------------------------- lake


@main.group("lake")
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


# ----------------------------------------------------------------------------------------------------------- quarantine


@main.group("quarantine")
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
def quarantine_replay(day: datetime | None) -> None:
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
    report, lines = replay(project, day.date() if day else None, advance=lambda line: err.print(escape(line)))
    for problem in report.problems:
        err.print(f"[bold red]failed:[/] {escape(problem)}")
    for line in lines:
        click.echo(line)
    sys.exit(report.exit_code)


# ------------------------------------------------------------------------------------------------------------- champion


@main.command()
@click.argument("window", type=DAY, required=False)
@click.option("--unpin", is_flag=True, help="let go of a pinned window: the comparisons decide again")
@readable
def promote(window: datetime | None, unpin: bool) -> None:
    """Make WINDOW the champion and keep it until it is let go, or show who was champion when.

    Only a window whose blocking checks passed can be promoted; predictions made by another champion become stale.

    \b
    Example:
      ltv promote                    the champions so far
      ltv promote 2025-10-05         pin this window
      ltv promote --unpin            decide by comparison again
    """
    from ltv_assets.promotion import promotion
    from ltv_assets.storage.champion import read_history

    project = Project.open()
    if window is not None and unpin:
        raise click.UsageError("give a window or --unpin, not both")
    if window is None and not unpin:
        for reign in read_history(project.warehouse):
            console.print(f"{reign.since}  window {reign.window}{' (pinned)' if reign.pinned else ''}: {reign.why}", markup=False)
        _print_champion(project)
        return
    if window is not None:
        promotion.promote(project, str(window.date()))
    else:
        promotion.unpin(project)
    _print_champion(project)
    _tell_of_champion(project)


@main.command()
@readable
def rollback() -> None:
    """Go back to the champion before the present one, and keep it until it is let go.

    \b
    Example:
      ltv rollback
      ltv run                        scores the test days again, with the old champion
      ltv promote --unpin            decide by comparison again
    """
    from ltv_assets.promotion import promotion

    project = Project.open()
    promotion.rollback(project)
    _print_champion(project)
    _tell_of_champion(project)


def _tell_of_champion(project: Project) -> None:
    """Write the model card, and let MLflow's registry know."""
    from ltv_assets.reporting.model_card import describe_champion
    from ltv_assets.tracking.client import Tracker

    champion = project.lineage().champion()
    problems = [describe_champion(project)]
    if champion is not None:
        problems.append(Tracker(project.config, project.warehouse).mirror_champion(champion))
    for problem in problems:
        if problem is not None:
            err.print(f"[yellow]warning:[/] {escape(problem)}")


def _print_champion(project: Project) -> None:
    champion = project.lineage().champion()
    if champion is None:
        console.print("champion: none yet", markup=False)
    else:
        console.print(f"champion: window {champion.window}{', pinned' if champion.pinned else ''} ({champion.why})", markup=False)


# ---------------------------------------------------------------------------------------------------- catalogue, engine


@main.command()
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


@main.command("explain-sql")
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


@main.command()
@click.argument("what", type=click.Choice(["flatten", "train", "score", "run"]))
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="data root, or one split's folder")
@click.option("--threads", type=click.IntRange(1), default=None, help="threads; default: compute.threads of the configuration")
@readable
def bench(what: str, data: Path, threads: int | None) -> None:
    """Measure one stage on a folder of impressions and print one JSON object.

    \b
    Example:
      ltv bench flatten --data /tmp/impressions
    """
    project = Project.open()
    threads = threads or project.config.compute.threads
    figures: Mapping[str, Any]
    if what == "flatten":
        # Without the modelling libraries, whose memory is not flattening's.
        from ltv_assets.cli.flatten_benchmark import bench_flatten

        figures = bench_flatten(data, registry=project.registry, threads=threads, memory_limit=project.config.compute.duckdb_limit)
    else:
        from ltv_assets.cli.benchmark import bench as measure

        figures = measure(what, project, data, threads)
    click.echo(json.dumps(figures, indent=1))


@main.command()
@click.option("--window", type=DAY, default=None, help="holdout day; default: the last labelled day")
@click.option("--out", "target", type=click.Path(path_type=Path, dir_okay=False), default=None, help="also write the table as CSV")
@readable
def ablate(window: datetime | None, target: Path | None) -> None:
    """Refit the window without one part at a time and compare on the same holdout.

    The table is kept in the warehouse and becomes part of the window's report.

    \b
    Example:
      ltv ablate --window 2025-10-06 --out ablation.csv
    """
    from ltv_assets.reporting.report import store_ablation
    from ltv_assets.training.evaluation import ablation_table

    project = Project.open()
    if target is not None:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with _progress() as bar:
        task = bar.add_task("ablating", total=None)
        day = project.window_or_last(window.date() if window else None)
        frame = ablation_table(project, day, progress=lambda name: bar.update(task, advance=1, description=name))
    table = Table()
    for name in frame.columns:
        table.add_column(str(name), justify="left" if frame[name].dtype == object or str(frame[name].dtype).startswith("str") else "right")
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row))
    console.print(table)
    if target is not None:
        frame.to_csv(target, index=False)
    store_ablation(project, str(day), frame)


@main.command()
@click.option("--window", type=DAY, default=None, help="holdout day; default: the last labelled day")
@readable
def report(window: datetime | None) -> None:
    """Write the report of an evaluated window again from the warehouse and print its path.

    `ltv run` writes it by itself; this brings back a deleted one, or one made by an older version.

    \b
    Example:
      ltv report --window 2025-10-06
    """
    from ltv_assets.reporting.report import write_report

    project = Project.open()
    day = project.window_or_last(window.date() if window else None)
    console.print(str(write_report(project, str(day))), markup=False)


@main.command()
@click.option(
    "--trials", default=None, type=click.IntRange(1), help="stop when the study holds this many trials  [default: 20, unless --minutes]"
)
@click.option("--minutes", default=None, type=click.FloatRange(0, min_open=True), help="begin no trial after this many minutes")
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["classifier", "regressor", "stacker"]),
    help="search this part only; may be given more than once  [default: all]",
)
@click.option(
    "--windows", default=2, show_default=True, type=click.IntRange(1), help="windows a trial is judged on, the newest before the last"
)
@click.option(
    "--out",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="file for the YAML snippet; default: tuning/best.yaml",
)
@readable
def tune(trials: int | None, minutes: float | None, parts: tuple[str, ...], windows: int, target: Path | None) -> None:
    """Search better hyperparameters on walk-forward windows; the same command goes on where it stopped.

    The newest window is not searched: it compares the best settings with the present ones at the end. Needs Optuna:
    pip install 'ltv-assets[tune]'.

    \b
    Example:
      ltv tune --trials 20
      ltv tune --minutes 30 --part classifier --out classifier.yaml
    """
    from ltv_assets.cli.tune import SPACE
    from ltv_assets.cli.tune import tune as search
    from ltv_assets.storage.files import write_atomic

    if minutes is not None and math.isnan(minutes):
        raise click.BadParameter("nan is no number of minutes.", param_hint="--minutes")
    project = Project.open()
    found = search(
        project,
        parts=parts or tuple(SPACE),
        windows=windows,
        trials=trials,
        minutes=minutes,
        report=lambda line: err.print(line, markup=False),
    )
    target = target or project.warehouse.root / "tuning" / "best.yaml"
    write_atomic(target, found.snippet().encode())
    click.echo(found.snippet(), nl=False)
    console.print(f"to paste into the configuration: {target}", markup=False)
    if found.problem is not None:
        err.print(f"[yellow]warning:[/] {escape(found.problem)}")


@main.command()
@click.option("--apply", is_flag=True, help="delete; without it the plan is only shown")
@readable
def gc(apply: bool) -> None:
    """Show, or with --apply delete, what the retention rule lets go: old windows, days, submissions, tracking runs, orphans.

    The champion, the champion before it and what both were made from always stay. Raw data is never touched.

    \b
    Example:
      ltv gc
      ltv gc --apply
    """
    from ltv_assets.cli.retention import collect, plan

    project = Project.open()
    doomed = plan(project)
    for item in doomed:
        console.print(f"{item.kind} {item.key}: {item.bytes / 1e6:.1f} MB, {item.why}", markup=False)
    total = sum(item.bytes for item in doomed) / 1e6
    if not apply:
        console.print(f"{len(doomed)} things, {total:.1f} MB would be deleted; `ltv gc --apply` deletes them", markup=False)
        return
    problems = collect(project, doomed)
    console.print(f"{len(doomed)} things, {total:.1f} MB deleted", markup=False)
    for problem in problems:
        err.print(f"[yellow]warning:[/] {escape(problem)}")
    sys.exit(1 if problems else 0)


@main.command("mlflow-sync")
@readable
def mlflow_sync() -> None:
    """Deliver to MLflow whatever could not be delivered when it was recorded: windows, trials of `ltv tune`, the champion.

    What was deleted on the server since, runs or the registered model, is made again.

    \b
    Example:
      MLFLOW_TRACKING_URI=http://127.0.0.1:5000 ltv mlflow-sync
    """
    from ltv_assets.cli.tune import deliver_trials
    from ltv_assets.tracking.client import Tracker

    project = Project.open()
    tracker = Tracker(project.config, project.warehouse)
    tracker.follow_warehouse()
    champion = project.lineage().champion()
    for line in tracker.notice_deletions(champion):
        console.print(line, markup=False)
    results = {f"window {window}": tracker.push(window) for window in tracker.windows()}
    try:
        results |= {f"study {name}": result for name, result in deliver_trials(project).items()}
    except PermanentError as error:
        console.print(f"trials were left out: {error}", markup=False)
    for name, result in results.items():
        line = f"{name}: {len(result.delivered)} delivered, {len(result.waiting)} waiting"
        console.print(line + (f" ({_without_this_command(result.problem)})" if result.problem else ""), markup=False)
    waiting = any(result.waiting for result in results.values())
    if not results:
        console.print("nothing was recorded yet; run `ltv run`", markup=False)
    problem = tracker.mirror_champion(champion) if champion is not None and not waiting else None
    if problem is not None:
        console.print(f"champion: {_without_this_command(problem)}", markup=False)
    sys.exit(1 if waiting or problem else 0)


def _without_this_command(problem: str) -> str:
    """A problem of delivery without the advice to run the command that has just been run."""
    return problem.removesuffix("; run `ltv mlflow-sync`")


@main.command()
@click.option("--port", default=3000, show_default=True, type=click.IntRange(1, 65535), help="port of the web page, on 127.0.0.1")
@readable
def dev(port: int) -> None:
    """Start Dagster's web page and daemon on this warehouse.

    \b
    Example:
      LTV_WAREHOUSE=/data/warehouse ltv dev --port 3001
    """
    from ltv_assets.defs.instance import end_orphaned_runs, write_instance_config

    project = Project.open()
    project.warehouse.writable()
    _require_free(port)
    for run_id in end_orphaned_runs(project.warehouse.root):
        console.print(f"run {run_id} was killed together with the server that had started it; it counts as failed now", markup=False)
    os.environ["DAGSTER_HOME"] = str(write_instance_config(project.warehouse.root))
    program = shutil.which("dagster", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        err.print("[bold red]error:[/] the `dagster` command is not installed in this environment; run `make install`")
        sys.exit(2)
    console.print(f"http://127.0.0.1:{port}  (warehouse {project.warehouse.root})", markup=False)
    with suppress(KeyboardInterrupt):
        os.execv(program, [program, "dev", "-m", "ltv_assets.definitions", "--host", "127.0.0.1", "--port", str(port)])


def _require_free(port: int) -> None:
    """Raise TransientError if another program listens on a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise TransientError(f"port {port} on 127.0.0.1: {error.strerror}; end what uses it, or choose another with --port") from None


if __name__ == "__main__":
    main()
