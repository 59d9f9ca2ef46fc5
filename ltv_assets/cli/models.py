"""Commands about models: ``predict``, ``forecast``, ``report``, ``ablate``, ``validate-submission``, ``bench``, ``tune``.

What belongs here: their options and output. What does not: their work (``benchmark.py``, ``tune.py``, ``scoring/``,
``training/``, ``reporting/``). Next to read: ``tune.py``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from ltv_assets.cli.console import DAY, console, err, progress_bar, readable
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.modeling.evaluation.segments import ALL
from ltv_assets.state.project import Project

if TYPE_CHECKING:
    import pandas as pd


@click.command()
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
def predict(source: Path, target: Path, window: PartitionKey | None) -> None:
    """Score a folder of impressions with the champion, without the graph.

    Files and rows count, are set aside and warned of as in `ltv run`. Exit code 2, and no file, if a day is not usable.

    \b
    Example:
      ltv predict --in data/test --out scores.parquet
      ltv predict --in data/test/datetime=2025-10-08-00-00 --out scores.csv
    """
    from ltv_assets.scoring.predict_files import predict_folder

    project = Project.open()
    with progress_bar() as bar:
        task = bar.add_task("scoring", total=None)
        scored = predict_folder(
            project,
            source,
            target,
            window=window,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for warning in scored.warnings:
        err.print(f"[yellow]warning:[/] {escape(warning)}")
    for reason, count in sorted(scored.rows_aside.items()):
        console.print(f"{count} rows set aside: {reason}", markup=False)
    aside = f"{scored.rows_aside.total()} rows and {scored.files_aside} files set aside"
    console.print(f"{scored.rows} rows scored, {aside}: {target}", markup=False)


@click.command()
@click.option("--day", type=DAY, default=None, help="day of the impressions; default: the newest that was forecast")
@click.option("--out", "target", type=click.Path(path_type=Path, dir_okay=False), default=None, help="also write every group as CSV")
@readable
def forecast(day: PartitionKey | None, target: Path | None) -> None:
    """What the impressions of a scored day will bring, as a whole and by group, with 80 % intervals.

    `ltv run` makes the forecast; this shows it, and what was recorded once the day's labels have arrived. The file has the columns of
    the relation cohort_forecast, then the window of the model, the cap of a row's revenue (USD), and revenue over capped revenue of
    the rows it was trained on.

    \b
    Example:
      ltv forecast
      ltv forecast --day 2025-10-08 --out forecast.csv
    """
    from ltv_assets.training.cohorts import stored_forecast, stored_outcome

    project = Project.open()
    groups, facts = stored_forecast(project, day)
    name, days = PartitionKey(groups["day"].iloc[0]), facts["history_days"]
    if target is not None:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        added = {"model_window": facts["champion"], "cap_usd": facts["cap_usd"], "tail_factor": facts["tail_factor"]}
        groups.assign(**added).to_csv(target, index=False)
    table = Table(title=f"forecast of {name}: within {project.contract.scores.within}, by the model of window {facts['champion']}")
    for column in ("group", "rows", "expected payers", "80 % interval", "expected USD, capped", "80 % interval"):
        table.add_column(column, justify="left" if column == "group" else "right")
    for row in groups.itertuples():
        table.add_row(
            escape(row.segment if row.segment == row.value else f"{row.segment} = {row.value}"),
            f"{row.rows:,}",
            f"{row.expected_payers:,.1f}",
            f"{row.payers_low:,.1f} .. {row.payers_high:,.1f}",
            f"{row.expected_revenue_usd:,.2f}",
            f"{row.revenue_low_usd:,.2f} .. {row.revenue_high_usd:,.2f}",
        )
    console.print(table)
    history = f"learnt from {days} past days" if days else "not known yet: intervals are wide, and narrow as outcomes arrive"
    console.print(f"how far levels of days and groups move is {history}")
    console.print(
        f"revenue of a row counts up to {facts['cap_usd']:,.2f} USD, the model's cap; "
        f"all revenue of its training days was {facts['tail_factor']:.2f} times what counts so"
    )
    outcome = stored_outcome(project, name)
    if outcome is not None:
        total = outcome[outcome["segment"] == ALL].iloc[0]
        payers, revenue = ("inside" if total[f"{what}_inside"] else "outside" for what in ("payers", "revenue"))
        console.print(f"recorded: {total['payers']:,} payers, {payers} the interval; {total['revenue_capped_usd']:,.2f} USD, {revenue} it")
    if target is not None:
        console.print(f"{len(groups)} groups: {target}", markup=False)


@click.command("validate-submission")
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
    from ltv_assets.core.contract import contract_of
    from ltv_assets.scoring.submission import validate_submission as validate

    config = load_config()
    compute = config.compute
    problems = validate(file, sample, threads=compute.threads, memory_limit=compute.duckdb_limit, contract=contract_of(config))
    for problem in problems:
        click.echo(f"{file}: {problem}")
    if not problems:
        click.echo(f"{file}: valid", err=True)
    sys.exit(2 if problems else 0)


@click.command()
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


@click.command()
@click.option("--window", type=DAY, default=None, help="holdout day; default: the last labelled day")
@click.option("--out", "target", type=click.Path(path_type=Path, dir_okay=False), default=None, help="also write the table as CSV")
@readable
def ablate(window: PartitionKey | None, target: Path | None) -> None:
    """Refit the window without one part at a time and compare on the same holdout.

    The table is kept in the warehouse and becomes part of the window's report.

    \b
    Example:
      ltv ablate --window 2025-10-06 --out ablation.csv
    """
    from ltv_assets.modeling.evaluation.ablation import VARIANTS
    from ltv_assets.reporting.report import store_ablation
    from ltv_assets.training.evaluation import ablation_table

    project = Project.open()
    if target is not None:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with progress_bar() as bar:
        task = bar.add_task("ablating", total=len(VARIANTS) + 1)

        def say(name: str) -> None:
            bar.update(task, advance=1, description=name)
            if not err.is_terminal:
                err.print(name)

        day = project.window_or_last(window)
        frame = ablation_table(project, day, progress=say)
    console.print(_ablation(frame))
    if target is not None:
        frame.to_csv(target, index=False)
    store_ablation(project, day, frame)


def _ablation(frame: pd.DataFrame) -> Table:
    """The lines of an ablation, differences with their intervals in one column; the file has them apart."""
    table = Table("variant", "RMSLE")
    for words in ("minus reference", "minus all parts", "CPU seconds", "RMSLE gated", "AUC", "ECE", "expected / observed"):
        table.add_column(words, justify="right")

    def figure(value: float, form: str = ".4f") -> str:
        return "" if math.isnan(value) else f"{value:{form}}"

    for line in frame.to_dict("records"):
        differences = (
            f"{line[name]:+.4f} ({line[f'{name}_low']:+.4f} .. {line[f'{name}_high']:+.4f})"
            for name in ("minus_reference", "minus_all_parts")
        )
        others = (figure(line[name]) for name in ("rmsle_gated", "auc", "ece", "expected_revenue_ratio"))
        table.add_row(line["variant"], figure(line["rmsle"]), *differences, figure(line["cpu_seconds"], ".1f"), *others)
    return table


@click.command()
@click.option("--window", type=DAY, default=None, help="holdout day; default: the last labelled day")
@readable
def report(window: PartitionKey | None) -> None:
    """Write the report of an evaluated window again from the warehouse and print its path.

    `ltv run` writes it by itself; this brings back a deleted one, or one made by an older version.

    \b
    Example:
      ltv report --window 2025-10-06
    """
    from ltv_assets.reporting.report import write_report

    project = Project.open()
    day = project.window_or_last(window)
    console.print(str(write_report(project, day)), markup=False)


@click.command()
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
