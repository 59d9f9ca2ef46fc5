"""What is set aside is recorded with reason and origin, counted, listed, and taken in again once it is repaired."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from ltv_assets.cli.runner import replay_days
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.state.project import Project
from ltv_assets.storage import quarantine
from ltv_assets.storage.files import staging
from ltv_assets_tests.faults.catalogue import Fault, fault
from ltv_assets_tests.faults.evidence import ltv, nothing_changes, tree
from ltv_assets_tests.faults.world import DAY, ROWS, World, damage_rows, data_page, rows_of


@pytest.fixture
def world(tmp_path: Path, place: Callable[..., Path]) -> World:
    world = World.of(tmp_path, 4)
    place(world.data, "data: {max_bad_row_share: 0.5}\n")
    return world


def ingest(day: str = DAY) -> Project:
    replay_days(Project.open(), [PartitionKey(day)], advance=lambda line: None)
    return Project.open()


@fault(
    "files",
    "flipped byte in a data page",
    answer="quarantine",
    message="<file>: its rows cannot be decoded (<detail>); deliver the file again",
)
def test_repaired_files_and_rows_come_back(fault: Fault, world: World) -> None:
    whole = {hour: world.file(hour).read_bytes() for hour in range(4)}
    world.file(0).write_bytes(b"")
    damage_rows(world.file(1))
    broken = rows_of(2)
    broken[3]["row_id"] = None
    world.put(2, broken)
    assert fault.told(world.check().problems)["file"] == f"train/datetime={DAY}-01-00/part-0.parquet"

    with nothing_changes(world.data):
        project = ingest()
    raw, flat = (project.warehouse.manifest(asset, DAY) for asset in ("raw_partitions", "flattened_features"))
    assert raw is not None and flat is not None
    assert (raw.facts["rows"], flat.rows) == (3 * ROWS, 2 * ROWS - 1)
    assert flat.facts["rows_in_files_quarantined"] == ROWS
    assert project.lineage().status("flattened_features", DAY).state == "fresh"
    states = [json.loads(line) for line in ltv("status", "--json")[1].splitlines()]
    counted = {row["asset"]: row["quarantined"] for row in states if row["partition"] == DAY}
    assert (counted["raw_partitions"], counted["flattened_features"]) == (1, 2)

    code, text = ltv("quarantine", "list")
    assert code == 0
    assert [line.split("  ")[1].split(":")[0] for line in text.splitlines()] == [
        f"train/datetime={DAY}-01-00/part-0.parquet",
        "1 rows",
        f"train/datetime={DAY}-00-00/part-0.parquet",
    ]
    assert "[changed since]" not in text
    fault.told(text)
    rows = pq.read_table(project.warehouse.root / "quarantine" / "flattened_features" / f"day={DAY}" / "rows.parquet").to_pylist()
    assert [(r["file"], r["row_number"], r["reason"]) for r in rows] == [(str(world.file(2)), 3, "row_id missing")]

    world.file(1).write_bytes(whole[1])
    world.file(2).write_bytes(whole[2])
    text = ltv("quarantine", "list")[1]
    assert [line.endswith("[changed since]") for line in text.splitlines()] == [True, True, False]
    code, text = ltv("quarantine", "replay")
    assert code == 0, text
    assert f"day {DAY}: 1 files and 1 rows put back, 1 files and 0 rows still set aside" in text
    world.file(0).write_bytes(whole[0])
    code, text = ltv("quarantine", "replay", DAY)
    assert f"day {DAY}: 1 files and 0 rows put back, 0 files and 0 rows still set aside" in text
    assert "nothing is set aside" in ltv("quarantine", "list")[1]
    assert not (project.warehouse.root / "quarantine" / "raw_partitions" / f"day={DAY}").exists()

    flat = Project.open().warehouse.manifest("flattened_features", DAY)
    assert flat is not None
    assert flat.rows == 4 * ROWS
    with duckdb.connect(str(project.warehouse.database), read_only=True) as connection:
        assert connection.execute("SELECT count(DISTINCT row_id) FROM flattened_features").fetchone() == (4 * ROWS,)


@fault(
    "process",
    "killed between what was set aside and the publication",
    answer="recover",
    message="orphan quarantine/flattened_features/day=<day>: <size> MB, "
    "a record of rows or files that the day's present publication did not set aside",
)
def test_gc_lets_go_of_records_of_other_publications_only(fault: Fault, world: World) -> None:
    """The day's present publication keeps its record; that of one that never came to be, or is gone, goes."""
    world.file(0).write_bytes(b"")
    world.put(1, [{**row, "row_id": None} if i == 3 else row for i, row in enumerate(rows_of(1))])
    warehouse = ingest().warehouse
    with nothing_changes(warehouse.root / "quarantine"):
        assert ltv("gc", "--apply")[0] == 0

    record = warehouse.root / "quarantine" / "flattened_features" / f"day={DAY}"
    before = tree(record)
    rows = pq.read_table(record / "rows.parquet")
    quarantine.record(warehouse, "flattened_features", DAY, rows=rows, reasons={"row_id missing": 2})
    with staging(warehouse.root, f"flattened_features-{DAY}"):
        assert "quarantine" not in ltv("gc")[1], "somebody may be about to publish the day"
    code, text = ltv("gc", "--apply")
    assert (code, fault.told(text)["day"]) == (0, DAY)
    assert not record.exists()
    (warehouse.folder("flattened_features", DAY) / "manifest.json").unlink()
    ingest()
    assert tree(record) == before

    shutil.rmtree(warehouse.folder("raw_partitions", DAY))
    shutil.rmtree(warehouse.folder("flattened_features", DAY))
    assert ltv("gc", "--apply")[0] == 0
    assert not (warehouse.root / "quarantine").exists() or not tree(warehouse.root / "quarantine")


@fault("files", "nothing to replay", answer="reject", message="day <day>: nothing of it is set aside; `ltv quarantine list` shows what is")
def test_replay_of_a_whole_day_says_so(fault: Fault, world: World) -> None:
    code, text = ltv("quarantine", "replay", DAY)
    assert code == 2
    assert fault.told(text)["day"] == DAY


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x55
    path.write_bytes(bytes(raw))


@fault(
    "files",
    "flipped byte in the lake",
    answer="degrade",
    message="content differs from its recorded hash <hash>, it was changed or torn; "
    "run `ltv run`, which makes flattened_features <day> again",
)
def test_flipped_byte_in_the_lake_is_seen_and_healed(fault: Fault, world: World) -> None:
    project = ingest()
    (path,) = project.warehouse.files("flattened_features", DAY)
    before = path.read_bytes()
    flip(path, len(before) // 2)
    code, text = ltv("status", "--verify", "--json")
    assert code == 0
    assert fault.told(text)["day"] == DAY
    assert Project.open().lineage().status("flattened_features", DAY).state == "stale"
    with nothing_changes(project.warehouse.root / "lake" / "raw_partitions"):
        project = ingest()
    assert project.lineage().status("flattened_features", DAY).state == "fresh"
    assert path.read_bytes() == before
    assert project.warehouse.damaged() == ()


@fault(
    "files",
    "unreadable manifest in the lake",
    answer="degrade",
    message="flattened_features <day> is left out of the catalogue: <file>: not a readable manifest (<detail>); "
    "run `ltv run`, which makes the partition again",
)
def test_one_unreadable_manifest_does_not_stop_the_catalogue(fault: Fault, world: World) -> None:
    world.put(0, day="2025-10-02")
    ingest("2025-10-02")
    project = ingest()
    manifest = project.warehouse.folder("flattened_features", DAY) / "manifest.json"
    manifest.write_text('{"asset": "flattened_')
    code, text = ltv("catalog")
    assert code == 1
    assert fault.told(text)["day"] == DAY
    with duckdb.connect(str(project.warehouse.database), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM flattened_features").fetchone() == (ROWS,)
    assert ltv("status")[0] == 0
    project = ingest()
    assert ltv("catalog")[0] == 0
    assert project.lineage().status("flattened_features", DAY).state == "fresh"


@fault(
    "files",
    "torn parquet in the lake",
    answer="degrade",
    message="raw_partitions <day> is left out of the catalogue: <file>: expected <size> bytes, found <found>; "
    "run `ltv status --verify`, then `ltv run`",
)
def test_torn_file_of_the_lake_is_left_out_of_the_catalogue(fault: Fault, world: World) -> None:
    project = ingest()
    (path,) = project.warehouse.files("raw_partitions", DAY)
    path.write_bytes(path.read_bytes()[:-9])
    code, text = ltv("catalog")
    assert code == 1
    fault.told(text)
    assert "waschangedortorn" in re.sub(r"[\W_]", "", ltv("status")[1])  # a cell of the table, broken where the path is long
    ingest()
    assert ltv("catalog")[0] == 0


def test_damage_that_decodes_is_caught_by_the_fingerprint(world: World) -> None:
    """The hash taken when the file was first read tells that it is another file now."""
    project = ingest()
    flip(world.file(1), data_page(world.file(1), "weekday"))
    status = Project.open().lineage().status("raw_partitions", DAY)
    assert (status.state, status.why) == ("stale", f"file train/datetime={DAY}-01-00/part-0.parquet was rewritten")
    assert project.warehouse.manifest("flattened_features", DAY) is not None
