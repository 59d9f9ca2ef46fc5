"""``ltv predict``: raw impressions in, scored columns out, with a window's served model and without the graph."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from ltv_assets.core.config import DataConfig
from ltv_assets.core.contract import Contract, load_contract
from ltv_assets.core.errors import DataError, StaleError
from ltv_assets.core.files import published_file
from ltv_assets.core.memory import flatten_threads
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.core.time_layout import hour_day, hour_key
from ltv_assets.features.flatten import RawFile, flatten_files
from ltv_assets.features.flatten.moments import days_of_hours, hours_of_rows
from ltv_assets.features.schema import feature_names
from ltv_assets.ingestion.footers import read_footer
from ltv_assets.ingestion.inventory import (
    HOURS,
    DayInventory,
    files_problem,
    find_hours,
    inspect_hours,
    key_of_folder,
    not_an_hour,
    rows_problem,
)
from ltv_assets.ingestion.raw_days import data_files, files_below
from ltv_assets.modeling.model_store import read_served
from ltv_assets.scoring.batch import predictions_schema, scored_batches
from ltv_assets.scoring.submission import refuse_formulas
from ltv_assets.state.project import Project


@dataclass
class Scored:
    """What became of the impressions: rows scored, rows set aside by reason, files set aside, and what else was noticed."""

    rows: int = 0
    rows_aside: Counter[str] = field(default_factory=Counter)
    files_aside: int = 0
    warnings: list[str] = field(default_factory=list)


def inspect_source(source: Path, contract: Contract | None = None) -> tuple[list[DayInventory], list[str]]:
    """(inventories of the days below ``source`` in order, warnings); by the rules of a day of the graph, wherever the hours lie.

    ``source`` is a folder above hourly folders, one hourly folder or one file in it, or a symbolic link to one of them.
    Where the contract has no folders of hours, any parquet file below ``source`` has its rows by the moments it says. Without a
    contract, the shipped one decides. Raises DataError if there is no hour, naming what was expected.
    """
    contract = contract or load_contract()
    source = source.resolve() if source.is_symlink() else source.absolute()
    layout = contract.layout
    if layout is None:
        return _inspect_moments(source, contract), []
    if source.is_file() and key_of_folder(source.parent, layout) is None:
        raise DataError(f"{source}: expected a file in a folder such as {layout.example}, found it in {source.parent.name}")
    single = source.is_file() or key_of_folder(source, layout) is not None
    found, left_out = find_hours(source.parent if source.is_file() else source, contract)
    days: dict[date, list[tuple[str, list[Path]]]] = {}
    for key, folder in sorted(found, key=lambda hour: hour[0]):
        days.setdefault(hour_day(key), []).append((key, [source] if source.is_file() else data_files(folder)))
    if not days:
        raise DataError(f"{source}: no impressions found; expected {layout.spelled}/*.parquet below it")
    root = found[0][1].parent if single else source
    expected = () if single or not layout.has_hours else HOURS
    inventories = [inspect_hours(root, "test", day, hours, expected=expected, contract=contract) for day, hours in sorted(days.items())]
    return inventories, [f"{not_an_hour(path, contract)}; it is left out" for path in left_out]


def _inspect_moments(source: Path, contract: Contract) -> list[DayInventory]:
    """Inventories of the days of files that say the moments of their rows themselves."""
    days: dict[date, dict[Path, int]] = {}
    for path in [source] if source.is_file() else files_below(source):
        footer = read_footer(path)
        if isinstance(footer, str):
            raise DataError(f"{path}: {footer}")
        for day, rows in days_of_hours(hours_of_rows(path, contract)).items():
            days.setdefault(day, {})[path] = len(rows)
    if not days:
        raise DataError(f"{source}: no impressions found; expected *.parquet below it with moments in column {contract.time.column}")
    root = source.parent if source.is_file() else source
    return [
        inspect_hours(root, "test", day, [(hour_key(day, 0), sorted(rows))], expected=(), contract=contract, rows=rows)
        for day, rows in sorted(days.items())
    ]


def predict_folder(
    project: Project, source: Path, target: Path, *, window: PartitionKey | None, progress: Callable[[int, int], None]
) -> Scored:
    """Score every impression below ``source`` into ``target`` (.csv or .parquet).

    Files and rows count, are set aside and refuse their day by the rules of ``ltv run``; one refused day refuses all. The target
    appears only when it is complete. Raises StaleError if there is no champion, DataError for unusable input, an unknown
    file type, or an id that a spreadsheet would execute.
    """
    if target.suffix not in (".csv", ".parquet"):
        raise DataError(f"{target}: expected a file ending in .csv or .parquet")
    refuse_among_impressions(target, project.contract)
    champion = project.lineage().champion()
    if window is None and champion is not None:
        window = champion.window
    if window is None:
        raise StaleError(f"no champion in {project.warehouse.root} yet; run `ltv run` first, or name a window with --window")
    models = read_served(project.warehouse, window)
    features = feature_names(project.registry)
    days, warnings = inspect_source(source, project.contract)
    refuse_unusable(project.config.data, days)
    scored = Scored(warnings=warnings)
    config = project.config.compute
    schema = predictions_schema(models.names)
    with published_file(target) as temporary:
        with (
            tempfile.TemporaryDirectory(prefix="ltv-predict-") as folder,
            _writer(temporary, target.suffix, schema) as writer,
        ):
            for number, day in enumerate(days):
                progress(number, len(days))
                flat = Path(folder) / "day.parquet"
                _flatten(project, day, flat, scored)
                for table in scored_batches(models, [flat], features, chunk_rows=config.chunk_rows, threads=config.threads):
                    if target.suffix == ".csv":
                        refuse_formulas(table["row_id"], str(target))
                    writer.write_table(table)
                    scored.rows += table.num_rows
        progress(len(days), len(days))
    scored.warnings = list(dict.fromkeys(scored.warnings))
    return scored


def refuse_among_impressions(target: Path, contract: Contract | None = None) -> None:
    """Raise DataError if a file would be written into an hourly folder, over impressions or to be read as impressions."""
    layout = (contract or load_contract()).layout
    hour = next((folder for folder in target.resolve().parents if layout is not None and key_of_folder(folder, layout) is not None), None)
    if hour is not None:
        raise DataError(f"{target}: expected a file outside the impressions, found it in the hourly folder {hour.name}; give another --out")


def refuse_unusable(config: DataConfig, days: Sequence[DayInventory]) -> None:
    """Raise DataError if a day has too many unreadable files, or files without a key."""
    problems: list[str] = []
    for day in days:
        aside = [(f.path, f.reason or "") for f in day.quarantined]
        problem = files_problem(day.day, len(day.good), aside, config.max_bad_file_share)
        problems += [*([problem] if problem is not None else []), *map(str, day.schema_errors)]
    _refuse(problems)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more; `ltv check-data` lists them)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}")


def _flatten(project: Project, day: DayInventory, out: Path, scored: Scored) -> None:
    """Flatten one day into a file and add to ``scored`` what was set aside and noticed. Raises DataError for too much of it."""
    config, data = project.config.compute, project.config.data
    result = flatten_files(
        [RawFile(day.root / f.path, f.datetime) for f in day.good],
        registry=project.registry,
        labelled=False,
        out=out,
        threads=flatten_threads(config),
        memory_limit=config.duckdb_limit,
    )
    undecodable = [(str(f.path.relative_to(day.root)), f.reason) for f in result.files_aside]
    aside = [*undecodable, *((f.path, f.reason or "") for f in day.quarantined)]
    problem = files_problem(day.day, len(day.good) - len(undecodable), aside, data.max_bad_file_share)
    problem = problem or rows_problem(day.day, result.rows_in, result.rows_quarantined, data.max_bad_row_share)
    _refuse([problem] if problem is not None else [])
    scored.files_aside += len(aside)
    scored.rows_aside.update(result.rows_quarantined)
    scored.warnings += [*day.warnings, *(f"{path}: quarantined: {reason}" for path, reason in undecodable)]
    scored.warnings += [warning.replace(f"{day.root}/", "") for warning in result.warnings]


def _writer(path: Path, suffix: str, schema: pa.Schema) -> pq.ParquetWriter | pacsv.CSVWriter:
    if suffix == ".parquet":
        return pq.ParquetWriter(path, schema, compression="zstd")
    return pacsv.CSVWriter(path, schema, write_options=pacsv.WriteOptions(quoting_style="needed"))
