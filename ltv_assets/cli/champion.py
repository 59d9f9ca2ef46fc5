"""Commands about the champion: ``promote``, ``rollback``.

What belongs here: their options and output. What does not: the comparison and the record (``promotion/``,
``storage/champion.py``). Next to read: ``promotion/promotion.py``.
"""

from __future__ import annotations

import click
from rich.markup import escape

from ltv_assets.cli.console import DAY, console, err, readable
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.state.project import Project


@click.command()
@click.argument("window", type=DAY, required=False)
@click.option("--unpin", is_flag=True, help="let go of a pinned window: the comparisons decide again")
@readable
def promote(window: PartitionKey | None, unpin: bool) -> None:
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
        print_champion(project)
        return
    if window is not None:
        promotion.promote(project, window)
    else:
        promotion.unpin(project)
    print_champion(project)
    _report_champion(project)


@click.command()
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
    print_champion(project)
    _report_champion(project)


def _report_champion(project: Project) -> None:
    """Write the model card and update the registry of MLflow."""
    from ltv_assets.reporting.model_card import describe_champion
    from ltv_assets.tracking.client import Tracker

    champion = project.lineage().champion()
    problems = [describe_champion(project)]
    if champion is not None:
        problems.append(Tracker(project.config, project.warehouse).mirror_champion(champion))
    for problem in problems:
        if problem is not None:
            err.print(f"[yellow]warning:[/] {escape(problem)}")


def print_champion(project: Project) -> None:
    """Print the champion in use."""
    champion = project.lineage().champion()
    if champion is None:
        console.print("champion: none yet", markup=False)
    else:
        console.print(f"champion: window {champion.window}{', pinned' if champion.pinned else ''} ({champion.why})", markup=False)
