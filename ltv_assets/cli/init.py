"""``ltv init``: propose a configuration, a contract and a registry for parquet files of any schema.

What belongs here: its options, the table of guesses, exit codes. What does not: guessing (``ingestion/profile/``). Next to read:
``ingestion/profile/proposal.py``.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from ltv_assets.cli.console import console, err, progress_bar, readable
from ltv_assets.core.config import PROJECT_ROOT
from ltv_assets.core.errors import DataError

if TYPE_CHECKING:
    from ltv_assets.ingestion.profile.proposal import Proposal

STYLE = {"high": "green", "medium": "yellow", "low": "bold red"}


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="folder with the parquet files of one table")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="folder for config.yaml, contract.yaml and features.yaml  [default: config/NAME, NAME being that of the data's folder]",
)
@readable
def init(data: Path, out: Path | None) -> None:
    """Look at parquet files of any schema, and propose how to read them.

    Finds what tells rows apart, when they happened, revenue within a number of days, types, and columns that give the label away.
    Writes three commented files and prints a table of what was guessed, why and how sure that is. Asks nothing, changes no data, and
    overwrites nothing.

    \b
    Exit codes: 0 ready to run, 1 written but an edit that is named is needed first, 2 nothing written.

    \b
    Example:
      ltv init --data /data/customers --out config/customers
      export LTV_CONFIG=config/customers/config.yaml
      ltv check-data /data/customers && ltv run
    """
    from ltv_assets.ingestion.profile.proposal import propose
    from ltv_assets.ingestion.profile.write import FILES, write_proposal

    chosen = out if out is not None else PROJECT_ROOT / "config" / (data.expanduser().resolve().name or "table")
    there = [chosen / name for name in FILES if (chosen / name).exists()]
    if there:  # what would be refused after the look is refused before it
        raise DataError(f"{there[0]}: exists already and is not overwritten; remove it, or give another folder with --out")
    with progress_bar() as bar:
        task = bar.add_task("looking at columns", total=None)
        proposal = propose(data, progress=lambda done, total: bar.update(task, completed=done, total=total))
    written = write_proposal(proposal, chosen)
    console.print(guesses(proposal))
    for path in written:
        console.print(f"written: {_shown(path)}", markup=False)
    for edit in proposal.edits:
        err.print(f"[yellow]before you run:[/] {escape(edit)}")
    for note in proposal.notes:
        err.print(f"[yellow]note:[/] {escape(note)}")
    console.print("next:")
    console.print(f"  export LTV_CONFIG={shlex.quote(str(_shown(written[0])))}", markup=False)
    console.print(f"  ltv check-data {shlex.quote(str(data))} && ltv run", markup=False)
    sys.exit(1 if proposal.edits else 0)


def guesses(proposal: Proposal) -> Table:
    """What was guessed, how sure that is, and why."""
    from ltv_assets.ingestion.profile.write import summary

    title = f"{len(proposal.columns)} columns, about {proposal.rows} rows in {proposal.folders.root.name}"
    table = Table(title=title, title_justify="left")
    for name in ("about", "guess", "sure", "why"):
        table.add_column(name, overflow="fold")
    for guess in summary(proposal):
        style = STYLE[guess.certainty]
        table.add_row(escape(guess.about), escape(guess.choice), f"[{style}]{guess.certainty}[/]", escape(guess.why))
    return table


def _shown(path: Path) -> Path:
    """A path as it is given in a shell: relative to where it runs, if it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
