"""Columns that are missing, of other types or laid out otherwise: equivalents are read alike, keys and labels are required."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltv_assets.core.columns import RAW_COLUMNS
from ltv_assets.core.contract import load_contract
from ltv_assets.features.naming import contract_names
from ltv_assets_tests.faults.catalogue import Fault, fault
from ltv_assets_tests.faults.evidence import nothing_changes
from ltv_assets_tests.faults.world import DAY, ROWS, World, edit, rows_of, with_column

HOUR_1 = f"train/datetime={DAY}-01-00/part-0.parquet"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.of(tmp_path, 2)


def drop(name: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.drop_columns([name])


@fault(
    "schema",
    "row_id missing",
    answer="reject",
    message="<file>: required column row_id is missing; expected it in every file of train/; deliver the file again",
    inject="row_id",
)
@fault(
    "schema",
    "revenue label missing",
    answer="reject",
    message="<file>: required column iap_revenue_d7 is missing; expected it in every file of train/; deliver the file again",
    inject="iap_revenue_d7",
)
@fault(
    "schema",
    "payer flag missing",
    answer="reject",
    message="<file>: required column buyer_d7 is missing; expected it in every file of train/; deliver the file again",
    inject="buyer_d7",
)
def test_missing_key_or_label_refuses_the_day(fault: Fault, world: World) -> None:
    from ltv_assets.defs.asset_checks.ingestion import schema_contract
    from ltv_assets.defs.assets.ingestion import inventory_facts

    edit(world.file(1), drop(fault.inject))
    with nothing_changes(world.data):
        findings = world.check()
    assert fault.told(findings.problems)["file"] == HOUR_1
    project = world.project
    facts = inventory_facts(world.inspect())
    project.warehouse.write("raw_partitions", DAY, lambda _: {}, code_version="1", config="", inputs={}, facts=facts)
    outcome = schema_contract(project, DAY)
    assert not outcome.passed
    assert fault.told(outcome.message)["file"] == HOUR_1


def as_list(table: pa.Table) -> pa.Table:
    return with_column(table, "iap_revenue_d7", pa.array([[1.0]] * table.num_rows))


def as_struct(table: pa.Table) -> pa.Table:
    return with_column(table, "row_id", pa.array([{"id": 1}] * table.num_rows))


@fault(
    "schema",
    "key of a type that cannot be read",
    answer="reject",
    message="<file>: column row_id: expected string, found <type>; without it no row of the file can be used",
    inject=as_struct,
)
@fault(
    "schema",
    "label of a type that cannot be read",
    answer="reject",
    message="<file>: column iap_revenue_d7: expected double, found <type>; without it no row of the file can be used",
    inject=as_list,
)
def test_key_or_label_of_an_unreadable_type_refuses_the_day(fault: Fault, world: World) -> None:
    edit(world.file(1), fault.inject)
    findings = world.check()
    assert fault.told(findings.problems)["file"].endswith(HOUR_1)


@fault(
    "schema",
    "a feature column missing in every file",
    answer="degrade",
    message="column <column> is missing in every file: read as NULL; <place>: columns.<number>.name expects <written>: "
    "if no file will have it, correct its name or source there, or remove it there and in the features",
    inject=(0, 1),
)
@fault(
    "schema",
    "a feature column missing in some files",
    answer="degrade",
    message="column <column> is missing in <count> of <files> files, first <file>: read as NULL",
    inject=(1,),
)
def test_missing_feature_column_is_read_as_missing(fault: Fault, world: World) -> None:
    whole, _ = world.flatten()
    for hour in fault.inject:
        edit(world.file(hour), drop("bcat"))
    findings = world.check()
    assert findings.problems == []
    assert fault.told(findings.warnings)["column"] == "bcat"
    assert sum(warning.startswith("column bcat ") for warning in findings.warnings) == 1
    table, _ = world.flatten()
    lost = slice(0 if 0 in fault.inject else ROWS, None)
    assert np.isnan(table.column("bcat__sum").to_numpy()[lost]).all()
    assert others_equal(table, whole, "bcat", "missing__")


def others_equal(one: pa.Table, other: pa.Table, *but: str) -> bool:
    """Every statistic of a single column equal, save of the columns that begin with one of ``but``."""
    names = [n for n in one.column_names if "__" in n and not n.startswith(but) and but[0] not in n]
    return one.select(names).equals(other.select(names))


@fault("schema", "an unexpected column", answer="degrade", message="unexpected columns are ignored: <columns>")
def test_unexpected_column_is_named_and_ignored(fault: Fault, world: World) -> None:
    whole, _ = world.flatten()
    for name in ("surprise", "hour_start", "filename", "datetime"):
        edit(world.file(1), lambda table, name=name: table.append_column(name, pa.array(range(table.num_rows))))
    findings = world.check()
    assert findings.problems == []
    assert fault.told(findings.warnings) == {"columns": "filename, hour_start, surprise"}
    assert world.inspect().columns_unexpected == ("filename", "hour_start", "surprise")
    assert world.flatten()[0].equals(whole)


@fault(
    "schema",
    "the hour as a column of the file too",
    answer="degrade",
    message="column datetime is ignored: the hour of an impression is that of its folder's name",
)
def test_hour_of_a_column_is_named_and_ignored(fault: Fault, world: World) -> None:
    whole, _ = world.flatten()
    edit(world.file(1), lambda table: table.append_column("datetime", pa.array([f"{DAY}-09-00"] * table.num_rows)))
    findings = world.check()
    assert findings.problems == []
    fault.told(findings.warnings)
    assert world.flatten()[0].equals(whole)


@fault(
    "schema",
    "a column that hides one of the engine's",
    answer="quarantine",
    message="<file>: column <column> has a name that is reserved; deliver the file without it",
)
def test_reserved_column_sets_its_file_aside(fault: Fault, world: World) -> None:
    edit(world.file(1), lambda table: table.append_column("file_index", pa.array(range(table.num_rows))))
    assert fault.told(world.check().problems) == {"file": HOUR_1, "column": "file_index"}


@fault("schema", "label columns in test/", answer="degrade", message="label columns in test/ are ignored: <columns>")
def test_labels_of_test_days_are_ignored(fault: Fault, tmp_path: Path) -> None:
    world = World(tmp_path)
    world.put(0, split="test", labels=True)
    findings = world.check()
    assert findings.problems == []
    assert fault.told(findings.warnings)["columns"].startswith("buy_d14, buy_d28")
    assert world.flatten()[0].column("iap_revenue_d7").null_count == ROWS


@fault(
    "schema",
    "a feature of a type that cannot be read",
    answer="degrade",
    message="cpm (<type>): type cannot be read, taken as missing, in <count> of <files> files, first <file>",
)
def test_unreadable_feature_is_missing_in_its_file_alone(fault: Fault, world: World) -> None:
    whole, _ = world.flatten()
    edit(world.file(1), lambda table: with_column(table, "cpm", pa.array(range(table.num_rows))))
    findings = world.check()
    assert findings.problems == []
    assert fault.told(findings.warnings)["file"] == str(world.file(1))
    table, _ = world.flatten()
    assert table.column("cpm__sum")[:ROWS].equals(whole.column("cpm__sum")[:ROWS])
    assert table.column("cpm__sum")[ROWS:].null_count == ROWS


@fault(
    "schema",
    "a column twice in one file",
    answer="quarantine",
    message="<file>: column cpm stands 2 times; deliver the file again",
)
def test_column_that_stands_twice_sets_its_file_aside(fault: Fault, world: World) -> None:
    edit(world.file(1), lambda table: table.append_column("cpm", table.column("cpm")))
    findings = world.check()
    assert fault.told(findings.problems)["file"] == HOUR_1
    assert world.flatten()[0].num_rows == ROWS


# ----------------------------------------------------------------------------------------------------------- names of columns


@fault("schema", "names of columns in capitals", answer="degrade", message="column <written> is read as <column> in every file")
def test_columns_in_capitals_are_there_and_said_to_be(fault: Fault, world: World) -> None:
    for hour in (0, 1):
        edit(world.file(hour), lambda table: table.rename_columns([name.upper() for name in table.column_names]))
    inventory = world.inspect()
    assert inventory.schema_errors == inventory.columns_missing == inventory.columns_unexpected == ()
    renamed = [w for w in inventory.warnings if "is read as" in w]
    assert len(renamed) == len(RAW_COLUMNS) - 1
    assert fault.told([w for w in renamed if "wifi" in w]) == {"written": "WIFI_RATIO", "column": "wifi_ratio"}


@fault(
    "schema",
    "two columns that differ only in case",
    answer="quarantine",
    message="<file>: columns WIFI_RATIO and wifi_ratio differ only in case; deliver the file with one of them",
)
def test_columns_that_differ_only_in_case_set_their_file_aside(fault: Fault, world: World) -> None:
    edit(world.file(1), lambda table: table.append_column("WIFI_RATIO", table.column("wifi_ratio")))
    findings = world.check()
    assert fault.told(findings.problems)["file"] == HOUR_1
    assert world.flatten()[0].num_rows == ROWS


@fault(
    "schema",
    "a renamed column",
    answer="degrade",
    message="column wifi_ratio is missing in <where>: read as NULL; wifi-ratio has a similar name, and is ignored",
)
def test_missing_column_is_said_together_with_the_one_it_may_have_become(fault: Fault, world: World) -> None:
    edit(world.file(1), lambda table: table.rename_columns([name.replace("_ratio", "-ratio") for name in table.column_names]))
    warnings = world.check().warnings
    assert fault.told(warnings)["where"] == f"1 of 2 files, first {HOUR_1}"
    assert any(w.startswith("unexpected columns are ignored: ") and "wifi-ratio" in w for w in warnings)


def test_names_of_a_file_are_matched_whatever_their_case() -> None:
    names = partial(contract_names, contract=load_contract())
    assert names(["ROW_ID", "Carrier", "cpm", "extra"]) == ({"row_id": "ROW_ID", "carrier": "Carrier", "cpm": "cpm"}, [])
    assert names(["cpm", "cpm"]) == ({}, ["column cpm stands 2 times; deliver the file again"])
    assert names(["extra", "EXTRA"]) == ({}, [])
    assert names([]) == ({}, [])


# ---------------------------------------------------------------------------------------- the same data, laid out otherwise


def rewrite(world: World, **options: Any) -> None:
    world.put(1, **options)


def dictionaries(world: World) -> None:
    kind = pa.dictionary(pa.int32(), pa.string())
    edit(world.file(1), lambda table: with_column(table, "country", table.column("country").cast(kind)))


def reordered(world: World) -> None:
    edit(world.file(1), lambda table: table.select(table.column_names[::-1]))


def nanoseconds(world: World) -> None:
    stamp = pa.timestamp("ns")
    edit(world.file(1), lambda table: with_column(table, "last_buy", table.column("last_buy").cast(pa.timestamp("s")).cast(stamp)))


@fault("schema", "whole numbers as DOUBLE", answer="accept", message="", inject=lambda w: rewrite(w, rows=plain(), wide_numbers=True))
@fault("schema", "a map as LIST of STRUCT", answer="accept", message="", inject=lambda w: rewrite(w, rows=plain(), layout="entries"))
@fault("schema", "a map as a JSON object", answer="accept", message="", inject=lambda w: rewrite(w, rows=plain(), layout="json_object"))
@fault("schema", "a map as JSON pairs", answer="accept", message="", inject=lambda w: rewrite(w, rows=plain(), layout="json_pairs"))
@fault("schema", "a map as JSON entries", answer="accept", message="", inject=lambda w: rewrite(w, rows=plain(), layout="json_entries"))
@fault("schema", "dictionary-encoded text", answer="accept", message="", inject=dictionaries)
@fault("schema", "another order of columns", answer="accept", message="", inject=reordered)
@fault("schema", "another unit of timestamps", answer="accept", message="", inject=nanoseconds)
def test_the_same_values_in_another_layout_are_the_same(fault: Fault, world: World) -> None:
    world.put(1, plain())
    whole, _ = world.flatten()
    fault.inject(world)
    findings = world.check()
    table, _ = world.flatten()
    fault.silent(findings.problems)
    assert table.schema.equals(whole.schema)
    for name in whole.column_names:
        one, other = table.column(name).to_pylist(), whole.column(name).to_pylist()
        same = [
            a == b or (isinstance(a, float) and isinstance(b, float) and np.isclose(a, b, rtol=1e-6))
            for a, b in zip(one, other, strict=True)
        ]
        assert all(same), name


def plain() -> list[dict[str, Any]]:
    """Rows without numbers JSON cannot say."""
    rows = rows_of(1)
    for row in rows:
        for name, value in row.items():
            row[name] = _finite(value)
    return rows


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < 1e15 else 2.0
    if isinstance(value, list):
        return [(item[0], _finite(item[1])) if isinstance(item, tuple) else item for item in value]
    return value


@fault("schema", "different types in the hours of one day", answer="accept", message="")
def test_one_hours_type_never_decides_anothers(fault: Fault, world: World) -> None:
    """DuckDB that is given both files takes the first one's INT and turns 1.5 into 2."""
    ages = [0.5 + i for i in range(ROWS)]
    edit(world.file(0), lambda table: with_column(table, "weekday", pa.array([1] * ROWS, pa.int32())))
    edit(world.file(1), lambda table: with_column(table, "weekday", pa.array(ages, pa.float64())))
    fault.silent(world.check().problems)
    for first, second in ((0, 1), (1, 0)):
        table, _ = world.flatten()
        by_hour = {h: [] for h in (f"{DAY}-00-00", f"{DAY}-01-00")}
        for key, value in zip(table.column("datetime").to_pylist(), table.column("weekday").to_pylist(), strict=True):
            by_hour[key].append(value)
        assert sorted(by_hour.values()) == sorted([[1.0] * ROWS, ages]), (first, second)
        one, other = pq.read_table(world.file(0), partitioning=None), pq.read_table(world.file(1), partitioning=None)
        pq.write_table(other, world.file(0))
        pq.write_table(one, world.file(1))
