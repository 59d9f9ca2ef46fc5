"""The smallest data a fault can be put into: awkward rows, two hours a day, and a project that reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ltv_assets.cli.check_data import Findings, check_folder
from ltv_assets.core.config import PROJECT_ROOT, Config
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.features.flatten import FlattenResult, RawFile, flatten_files
from ltv_assets.features.registry import load_registry
from ltv_assets.ingestion.calendar import discover
from ltv_assets.ingestion.inventory import DayInventory, inspect_day
from ltv_assets.state.project import Project
from ltv_assets.storage.warehouse import Warehouse
from ltv_assets_tests.oracle.awkward_rows import Row, awkward_rows, write_hour

DAY = PartitionKey("2025-10-01")
ROWS = 12
FEATURES = PROJECT_ROOT / "config" / "features.yaml"


def hour_key(hour: int, day: str = DAY) -> str:
    return f"{day}-{hour:02d}-00"


def rows_of(hour: int, day: str = DAY, n: int = ROWS) -> list[Row]:
    """The same awkward rows for the same hour, with ids nobody else has and labels that agree."""
    start = int(datetime.strptime(hour_key(hour, day), "%Y-%m-%d-%H-00").replace(tzinfo=UTC).timestamp())
    return [{**row, "row_id": f"{day}-{hour}-{i}"} for i, row in enumerate(awkward_rows(n, hour, start))]


Fill = Callable[[Path], dict[str, int | None]]
"""What `Warehouse.write` is given to fill a partition."""


def notes(**texts: str) -> Fill:
    """Fill a partition with one JSON file per name, none of them part of its relation."""

    def fill(folder: Path) -> dict[str, int | None]:
        for name, text in texts.items():
            (folder / f"{name}.json").write_text(text)
        return {f"{name}.json": None for name in texts}

    return fill


def one_table(table: pa.Table) -> Fill:
    """Fill a partition with one parquet file."""

    def fill(folder: Path) -> dict[str, int | None]:
        pq.write_table(table, folder / "part.parquet")
        return {"part.parquet": table.num_rows}

    return fill


@dataclass(frozen=True)
class World:
    """A data root and a warehouse below one folder."""

    root: Path

    @classmethod
    def of(cls, root: Path, hours: int) -> World:
        """A world with the first hours of one day."""
        world = cls(root)
        for hour in range(hours):
            world.put(hour)
        return world

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def config(self) -> Config:
        config = Config()
        return config.model_copy(
            update={
                "features": FEATURES,
                "data": config.data.model_copy(update={"root": self.data}),
                "warehouse": config.warehouse.model_copy(update={"root": self.root / "warehouse"}),
            }
        )

    @property
    def project(self) -> Project:
        return Project(self.config, discover(self.config), Warehouse(self.root / "warehouse"))

    def file(self, hour: int, day: str = DAY, split: str = "train", name: str = "part-0.parquet") -> Path:
        path = self.data / split / f"datetime={hour_key(hour, day)}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def put(self, hour: int, rows: list[Row] | None = None, *, day: str = DAY, split: str = "train", **options: Any) -> Path:
        """Write one hour (test hours without labels); returns its file."""
        path = self.file(hour, day, split)
        write_hour(rows if rows is not None else rows_of(hour, day), path, **{"labels": split == "train", **options})
        return path

    def inspect(self, day: str = DAY) -> DayInventory:
        return inspect_day(self.config, discover(self.config), date.fromisoformat(day))

    def check(self) -> Findings:
        """What ``ltv check-data`` finds."""
        return check_folder(self.config, self.data, rows=True, progress=lambda done, total: None)

    def flatten(self, day: str = DAY) -> tuple[pa.Table, FlattenResult]:
        """Flatten what the inventory calls good, and hold the books together."""
        inventory = self.inspect(day)
        out = self.root / f"{day}.parquet"
        files = [RawFile(self.data / f.path, f.datetime) for f in inventory.good]
        result = flatten_files(files, registry=load_registry(FEATURES), labelled=inventory.split == "train", out=out)
        table = pq.read_table(out)
        aside = sum(result.rows_quarantined.values()) + sum(f.rows for f in result.files_aside)
        assert result.rows_in == inventory.rows == result.rows_out + aside
        assert table.num_rows == result.rows_out
        return table, result


def edit(path: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    """Rewrite one file."""
    pq.write_table(change(pq.read_table(path, partitioning=None)), path)
    return path


def with_column(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The table with one column replaced, or added at the end."""
    index = table.schema.get_field_index(name)
    return table.set_column(index, name, values) if index >= 0 else table.append_column(name, values)


def column_chunks(path: Path) -> list[pq.ColumnChunkMetaData]:
    """The column chunks of a file's first row group."""
    group = pq.read_metadata(path).row_group(0)
    return [group.column(i) for i in range(group.num_columns)]


def damage_rows(path: Path) -> None:
    """Make the rows of a file undecodable without touching the footer or a page's header: the end of a compressed page."""
    chunk = next(c for c in column_chunks(path) if c.path_in_schema.startswith("user_bundles."))
    end = (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size
    raw = bytearray(path.read_bytes())
    raw[end - 12 : end] = b"\xff" * 12
    path.write_bytes(bytes(raw))


def data_page(path: Path, column: str) -> int:
    """Offset of the middle of a column's first data page."""
    chunk = next(c for c in column_chunks(path) if c.path_in_schema.split(".")[0] == column)
    return int(chunk.data_page_offset + chunk.total_compressed_size // 2)
