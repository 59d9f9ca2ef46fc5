"""Commands of operations: ``gc``, ``mlflow-sync``, ``dev``.

What belongs here: their options and output. What does not: their work (``retention.py``, ``tracking/``, Dagster). Next to
read: ``retention.py``.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from contextlib import suppress
from pathlib import Path

import click
from rich.markup import escape

from ltv_assets.cli.console import console, err, readable
from ltv_assets.core.errors import PermanentError, TransientError
from ltv_assets.state.project import Project


@click.command()
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


@click.command("mlflow-sync")
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


@click.command()
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
