"""Single values that cannot be right: rows without key or label are set aside, other values are read as missing and counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltv_assets.state.project import Project
from ltv_assets_tests.faults.catalogue import Fault, fault
from ltv_assets_tests.faults.evidence import nothing_changes
from ltv_assets_tests.faults.world import DAY, ROWS, World, damage_rows, edit, one_table, rows_of, with_column

START = 1759276800
"""2025-10-01 00:00 UTC."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.of(tmp_path, 2)


REPORT = "day <day> (train): <count> rows: "
LONGER = {"iap_revenue_d14": 9.0, "iap_revenue_d28": 9.0}


@fault("values", "row_id null", answer="quarantine", message=REPORT + "row_id missing", inject={"row_id": None})
@fault("values", "row_id empty or blank", answer="quarantine", message=REPORT + "row_id missing", inject={"row_id": "  "})
@fault(
    "values",
    "row_id twice within an hour",
    answer="quarantine",
    message=REPORT + "row_id repeated",
    inject={"row_id": f"{DAY}-1-0"},
)
@fault("values", "row_id twice across hours", answer="quarantine", message=REPORT + "row_id repeated", inject={"row_id": f"{DAY}-0-7"})
@fault("values", "revenue null", answer="quarantine", message=REPORT + "iap_revenue_d7 missing", inject={"iap_revenue_d7": None})
@fault("values", "payer flag null", answer="quarantine", message=REPORT + "buyer_d7 missing", inject={"buyer_d7": None})
@fault("values", "revenue NaN", answer="quarantine", message=REPORT + "iap_revenue_d7 not finite", inject={"iap_revenue_d7": math.nan})
@fault("values", "revenue infinite", answer="quarantine", message=REPORT + "iap_revenue_d7 not finite", inject={"iap_revenue_d7": math.inf})
@fault("values", "revenue negative", answer="quarantine", message=REPORT + "iap_revenue_d7 negative", inject={"iap_revenue_d7": -0.01})
@fault("values", "revenue absurd", answer="quarantine", message=REPORT + "iap_revenue_d7 above 1e+09 USD", inject={"iap_revenue_d7": 2e9})
@fault(
    "values",
    "D14 revenue below D7",
    answer="quarantine",
    message=REPORT + "iap_revenue_d14 below iap_revenue_d7",
    inject={"iap_revenue_d7": 5.0, "iap_revenue_d14": 4.0, "iap_revenue_d28": 9.0},
)
@fault(
    "values",
    "D28 revenue below a shorter horizon",
    answer="quarantine",
    message=REPORT + "iap_revenue_d28 below a shorter horizon",
    inject={"iap_revenue_d7": 5.0, "iap_revenue_d14": 6.0, "iap_revenue_d28": 5.5},
)
def test_row_without_key_or_usable_label_is_set_aside(fault: Fault, world: World) -> None:
    rows = rows_of(1)
    rows[4] |= fault.inject
    world.put(1, rows)
    with nothing_changes(world.data):
        findings = world.check()
    assert fault.told(findings.problems)["count"] == "1"
    table, result = world.flatten()
    assert table.num_rows == 2 * ROWS - 1
    (aside,) = result.quarantine.to_pylist()
    assert (aside["file"], aside["row_number"]) == (str(world.file(1)), 4)
    kept = {r["row_id"] for hour in (0, 1) for i, r in enumerate(rows_of(hour)) if (hour, i) != (1, 4)}
    assert set(table.column("row_id").to_pylist()) == kept


@fault(
    "values",
    "row_id of a training day again on a test day",
    answer="degrade",
    message="day <day>: <count> rows have a row_id that stands on an earlier day, first <id> on <earlier>; deliver each impression once",
)
def test_row_that_trains_and_tests_is_noticed(fault: Fault, world: World) -> None:
    from ltv_assets.defs.asset_checks.features import row_ids_new

    again = rows_of(3, "2025-10-02")
    again[5]["row_id"] = f"{DAY}-1-2"
    world.put(3, again, day="2025-10-02", split="test")
    project = world.project
    for day in (DAY, "2025-10-02"):
        table, _ = world.flatten(day)
        publish(project, day, table)
    assert row_ids_new(project, DAY).passed
    outcome = row_ids_new(project, "2025-10-02")
    assert not outcome.passed
    assert fault.told(outcome.message) == {"day": "2025-10-02", "count": "1", "id": f"'{DAY}-1-2'", "earlier": DAY}


def publish(project: Project, day: str, table: pa.Table, facts: dict[str, Any] | None = None) -> None:
    project.warehouse.write("flattened_features", day, one_table(table), code_version="1", config="", inputs={}, facts=facts or {})


@fault(
    "labels and windows",
    "holdout day without rows",
    answer="reject",
    message="day <day>: 0 rows, fewer than min_rows_per_day = 1",
)
def test_day_without_rows_is_refused(fault: Fault, tmp_path: Path) -> None:
    from ltv_assets.defs.asset_checks.features import flattened_rows_reconciled
    from ltv_assets.defs.assets.ingestion import inventory_facts

    world = World(tmp_path)
    edit(world.put(0), lambda table: table.slice(0, 0))
    project = world.project
    facts = inventory_facts(world.inspect())
    project.warehouse.write("raw_partitions", DAY, lambda _: {}, code_version="1", config="", inputs={}, facts=facts)
    table, _ = world.flatten()
    publish(project, DAY, table, {"rows_quarantined": {}, "rows_sampled_out": 0})
    outcome = flattened_rows_reconciled(project, DAY)
    assert not outcome.passed
    assert fault.told(outcome.message) == {"day": DAY}


def of_row(column: str, value: Any) -> Callable[[World], None]:
    def inject(world: World) -> None:
        rows = [{**row, column: None} for row in rows_of(1)]
        rows[4][column] = value
        world.put(0, [{**row, column: None} for row in rows_of(0)])
        world.put(1, rows)

    return inject


def contradiction(world: World) -> None:
    rows = rows_of(1)
    rows[4] |= {"buyer_d7": 0, "iap_revenue_d7": 3.0, **LONGER}
    world.put(1, rows)


def bad_text(world: World) -> None:
    raw = pa.array([b"caf\xe9", *[b"ok"] * (ROWS - 1)], pa.binary())
    text = pa.Array.from_buffers(pa.string(), ROWS, raw.buffers())
    edit(world.file(1), lambda table: with_column(table, "carrier", text))


@fault(
    "values",
    "payer flag and revenue that disagree",
    answer="degrade",
    message="buyer_d7: <count> rows say 0 although iap_revenue_d7 is positive",
    inject=contradiction,
)
@fault(
    "values",
    "timestamp before 2000",
    answer="degrade",
    message="last_buy: <count> timestamps before 2000, taken as missing",
    inject=of_row("last_buy", 5),
)
@fault(
    "values",
    "timestamp after the impression (a leak)",
    answer="degrade",
    message="last_buy: <count> timestamps after the impression's hour began, taken as missing",
    inject=of_row("last_buy", START + 3 * 3600),
)
@fault(
    "values",
    "NaN or infinite value in a feature",
    answer="degrade",
    message="cpm: <count> NaN or infinite values, taken as missing",
    inject=of_row("cpm", [("a", math.inf)]),
)
@fault(
    "values",
    "text that is not UTF-8",
    answer="degrade",
    message="carrier: <count> values that are not UTF-8, their unreadable bytes replaced by U+FFFD",
    inject=bad_text,
)
def test_single_value_that_cannot_be_used_is_counted(fault: Fault, world: World) -> None:
    fault.inject(world)
    findings = world.check()
    assert findings.problems == []
    assert fault.told(findings.warnings)["count"] == "1"
    assert world.flatten()[0].num_rows == 2 * ROWS


def as_text(*values: bytes) -> pa.Array:
    """A column that calls itself text, whatever its bytes are."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def unreadable_keys(table: pa.Table) -> pa.Table:
    """Two keys of the hour are no text, the ninth and the last."""
    keys = [str(key).encode() for key in table.column("row_id").to_pylist()]
    keys[8], keys[-1] = b"\xff\xfe8", b"id\xc3("
    return with_column(table, "row_id", as_text(*keys))


@fault("values", "row_id that is not UTF-8", answer="quarantine", message=REPORT + "row_id is not UTF-8")
def test_key_that_is_not_text_sets_its_row_aside_and_no_other(fault: Fault, world: World) -> None:
    world.put(2)
    whole, _ = world.flatten()
    edit(world.file(1), unreadable_keys)
    assert fault.told(world.check().problems)["count"] == "2"
    table, result = world.flatten()
    assert result.files_aside == []
    assert result.quarantine.to_pylist() == [
        {"row_id": None, "file": str(world.file(1)), "row_number": row, "reason": "row_id is not UTF-8", "value": value}
        for row, value in ((8, "\\xff\\xfe8"), (11, "id\\xc3("))
    ]
    others = [row for row in range(3 * ROWS) if row not in (ROWS + 8, 2 * ROWS - 1)]
    assert table.equals(whole.take(others)), "every other row is what it is without them"
    assert [path.name for path in world.root.iterdir() if "copies" in path.name] == []


@fault(
    "values",
    "row_id that is not UTF-8 in a file that cannot be decoded besides",
    answer="quarantine",
    message="<file>: its rows cannot be decoded (<detail>); deliver the file again",
)
def test_unreadable_keys_do_not_hide_other_damage(fault: Fault, world: World) -> None:
    damage_rows(edit(world.file(1), unreadable_keys))
    assert fault.told(world.check().problems)["file"] == f"train/datetime={DAY}-01-00/part-0.parquet"
    assert world.flatten()[0].num_rows == ROWS


def null_column(world: World) -> None:
    for hour in (0, 1):
        edit(world.file(hour), lambda table: with_column(table, "carrier", pa.nulls(ROWS, pa.string())))


def constant_column(world: World) -> None:
    for hour in (0, 1):
        edit(world.file(hour), lambda table: with_column(table, "carrier", pa.array(["same"] * ROWS)))


@fault("values", "emoji and every script", answer="accept", message="", inject=of_row("carrier", "Movistar 🎮 テスト"))
@fault("values", "empty map", answer="accept", message="", inject=of_row("cpm", []))
@fault("values", "null value in a map", answer="accept", message="", inject=of_row("cpm", [("a", None), ("b", 2.0)]))
@fault("values", "column of nulls", answer="accept", message="", inject=null_column)
@fault("values", "constant column", answer="accept", message="", inject=constant_column)
def test_unusual_values_are_values(fault: Fault, world: World) -> None:
    fault.inject(world)
    findings = world.check()
    fault.silent(findings.problems)
    table, _ = world.flatten()
    assert table.num_rows == 2 * ROWS
    if fault.case.startswith("emoji"):
        assert "Movistar 🎮 テスト" in table.column("carrier").to_pylist()
    if fault.case.startswith("null value"):
        assert [v for v in table.column("cpm__sum").to_pylist() if v is not None] == [2.0]


# ------------------------------------------------------------------------------------------- values that conversion loses


def written(column: str, value: Any, kind: pa.DataType | None = None) -> Callable[[World], None]:
    """The column of hour 1 holds the value in its fifth row and nothing else."""

    def inject(world: World) -> None:
        values = pa.array([None] * 4 + [value] + [None] * (ROWS - 5), kind)
        edit(world.file(1), lambda table: with_column(table, column, values))

    return inject


def lost(
    case: str, column: str, kind: str, value: Any, physical: pa.DataType | None = None, *, example: str | None = None
) -> Callable[[Any], Any]:
    message = f"{column}: <count> values cannot be read as {kind}, taken as missing; first '{example or value}' in <file>"
    return fault("values", case, answer="degrade", message=message, inject=written(column, value, physical), column=column)


@lost("number with a currency sign", "release_msrp", "a number", "$199.99")
@lost("number with a decimal comma", "wifi_ratio", "a number", "0,5")
@lost("number that says it is not there", "avg_act_days", "a number", "N.A.")
@lost("number with a separator of thousands", "weeks_since_first_seen", "a number", "1_000")
@lost("empty text for a number", "weekend_ratio", "a number", "")
@lost("weekday by its name", "weekday", "a number", "Monday")
@lost("hour as a time of day", "hour", "a number", "07:00")
@lost("date in the order of one country", "last_buy", "a moment", "01/09/2025")
@lost("date that is not in the calendar", "last_ins", "a moment", "2025-02-30")
@lost("map value with a decimal comma", "cpm", "a map of numbers", [("a", "1,5")], pa.map_(pa.string(), pa.string()), example="1,5")
@lost("map as the text of a program", "ctr", "a map of numbers", "{'a': 1}")
@lost("map as empty text", "cpm", "a map of numbers", "")
@lost("map as JSON with entries named otherwise", "bcat", "a map of numbers", '[{"k": "a", "v": 1}]', example='{"k":"a","v":1}')
@lost("map as JSON with a list of small objects", "bcat", "a map of numbers", '[{"app": 1.5}]', example='{"app":1.5}')
@lost("map as JSON with true for a number", "cpm", "a map of numbers", '{"a": true}', example="true")
@lost("map as JSON with an object for a number", "cpm", "a map of numbers", '{"a": {"b": 1}}', example='{"b":1}')
@lost("map as JSON that is a number", "cpm", "a map of numbers", "5")
@lost("list as JSON with an object in it", "bundles_ins", "a list of texts", '["a", {"b": 1}]', example='{"b":1}')
@lost("list as JSON that is an object", "new_bundles", "a list of texts", '{"a": 1}')
@lost(
    "nested map as JSON with a number for the inner map",
    "user_actions_bundles_action_count",
    "a map of maps of numbers",
    '{"a": 5}',
    example="5",
)
@lost("map entry without a key", "cpm", "a map of numbers", [{"key": None, "value": 2.5}], example="2.5")
def test_value_that_is_there_and_cannot_be_read_is_counted_with_an_example(fault: Fault, world: World) -> None:
    fault.inject(world)
    findings = world.check()
    assert findings.problems == []
    told = fault.told(findings.warnings)
    assert (told["count"], told["file"].removeprefix(f"{world.data}/")) == ("1", f"train/datetime={DAY}-01-00/part-0.parquet")
    table, result = world.flatten()
    assert table.num_rows == 2 * ROWS
    assert {name: count for name, (count, _) in result.lost_values.items()} == {fault.column: 1}


def test_readable_data_lose_nothing(world: World) -> None:
    assert world.flatten()[1].lost_values == {}
    assert not any("cannot be read" in warning for warning in world.check().warnings)


def test_lost_values_fail_a_warning_check_that_shows_them(world: World) -> None:
    from ltv_assets.defs.asset_checks.features import values_read
    from ltv_assets.defs.assets.ingestion import FlattenedDay

    written("wifi_ratio", "0,5")(world)
    project = world.project
    table, result = world.flatten()
    day = FlattenedDay(project, DAY)
    day.result = result
    publish(project, DAY, table, day.facts())
    outcome = values_read(project, DAY)
    file = f"train/datetime={DAY}-01-00/part-0.parquet"
    assert not outcome.passed
    assert "wifi_ratio (1), first '0,5' in " + file in outcome.message
    assert outcome.rows == [{"column": "wifi_ratio", "values": 1, "first": f"'0,5' in {file}"}]


# ----------------------------------------------------------------------------------------------- moments and missing values


@pytest.mark.parametrize(
    ("text", "days_ago"),
    [
        ("2025-10-01T06:30:00+05:30", 0.0),
        ("2025-09-30T20:00:00-05:00", 0.0),
        ("2025-10-01T00:00:00Z", 1 / 24),
        ("2025-10-01 00:00:00 UTC", 1 / 24),
        ("2025-09-30", 1 + 1 / 24),
        ("2025-10-01T00:00:00-07:00", None),
    ],
)
def test_text_with_an_offset_is_an_instant(world: World, text: str, days_ago: float | None) -> None:
    """In scalars, map values and JSON alike; what lies after the hour began is the future, however early its clock is."""
    written("last_buy", text)(world)
    written("last_buy_ts_bundle", [("a", text)], pa.map_(pa.string(), pa.string()))(world)
    written("last_install_ts_bundle", f'{{"a": "{text}"}}')(world)
    table, result = world.flatten()
    for feature in ("last_buy__days_ago", "last_buy_ts_bundle__days_ago_min", "last_install_ts_bundle__days_ago_min"):
        found = table.column(feature).to_pylist()[ROWS + 4]
        assert found == (None if days_ago is None else pytest.approx(days_ago, abs=1e-6)), feature
    assert result.lost_values == {}


@pytest.mark.parametrize("missing", [math.nan, math.inf, -math.inf, 1e39])
def test_not_finite_is_missing_for_the_value_and_for_its_indicator(world: World, missing: float) -> None:
    doubles = ("avg_act_days", "release_msrp", "weekend_ratio", "wifi_ratio", "weeks_since_first_seen", "avg_days_ins")

    def put(value: float | None) -> pa.Table:
        world.put(1, [{**row, **dict.fromkeys(doubles, value)} for row in rows_of(1)])
        return world.flatten()[0]

    assert put(missing).equals(put(None))
    assert put(missing).column("missing__device_price").to_pylist()[ROWS:] == [1.0] * ROWS


@pytest.mark.parametrize(
    ("d7", "d14", "d28"),
    [
        (0.1 + 0.2, 0.3, 0.3),
        (19.99, 19.989999771118164, 19.989999771118164),
        (3.014, 3.01, 3.01),
        (123456.78, 123456.7, 123456.7),
        (5.0, 5.0, 5.0 - 1e-9),
    ],
)
def test_horizons_that_differ_by_rounding_are_one_value(world: World, d7: float, d14: float, d28: float) -> None:
    labels = {"buyer_d7": 1, "iap_revenue_d7": d7, "iap_revenue_d14": d14, "iap_revenue_d28": d28}
    world.put(1, [{**row, **labels} for row in rows_of(1)])
    table, result = world.flatten()
    assert result.rows_quarantined == {}
    assert sum(result.rounded_labels.values()) >= ROWS
    last = table.slice(ROWS)
    assert last.column("iap_revenue_d7").to_pylist() == [d7] * ROWS
    assert last.column("iap_revenue_d14").to_pylist() == last.column("iap_revenue_d28").to_pylist() == [max(d7, d14)] * ROWS


def test_revenue_below_zero_by_rounding_is_zero(world: World) -> None:
    world.put(1, [{**row, "iap_revenue_d7": -2.8e-17} for row in rows_of(1)])
    table, result = world.flatten()
    assert (result.rows_quarantined, result.rounded_labels) == ({}, {"iap_revenue_d7": ROWS})
    assert table.column("iap_revenue_d7").to_pylist() == [0.0] * (2 * ROWS)


def test_longer_horizons_written_as_nan_are_not_known_yet(world: World) -> None:
    world.put(1, [{**row, "iap_revenue_d14": math.nan, "iap_revenue_d28": math.nan} for row in rows_of(1)])
    table, result = world.flatten()
    assert result.rows_quarantined == {}
    assert table.column("iap_revenue_d28").null_count == ROWS


# --------------------------------------------------------------------------------------------------------------- bounds

MAX_MEMORY = 400 << 20


def wide_map(world: World) -> None:
    of_row("cpm", [(f"key-{i}", 1.0) for i in range(10_000)])(world)


def long_text(world: World) -> None:
    of_row("carrier", "x" * 5_000_000)(world)


def many_categories(world: World) -> None:
    table = pq.read_table(world.file(1), partitioning=None)
    rows = 100_000
    big = table.take(pa.array([i % ROWS for i in range(rows)]))
    big = with_column(big, "row_id", pa.array([f"r{i}" for i in range(rows)]))
    big = with_column(big, "carrier", pa.array([f"carrier number {i}" for i in range(rows)]))
    keep = ("row_id", "carrier", "iap_revenue_d7", "buyer_d7", "country")
    pq.write_table(big.select(list(keep)), world.file(1))


@fault("values", "10,000-key map", answer="accept", message="", inject=wide_map, rows=2 * ROWS)
@fault("values", "5 MB string", answer="accept", message="", inject=long_text, rows=2 * ROWS)
@fault("values", "100,000 distinct categories in one day", answer="accept", message="", inject=many_categories, rows=100_000 + ROWS)
def test_oversized_values_cost_bounded_memory(fault: Fault, world: World) -> None:
    world.flatten()
    fault.inject(world)
    process = psutil.Process()
    before = process.memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the peak from now on
    table, result = world.flatten()
    fault.silent()
    assert (table.num_rows, result.rows_quarantined) == (fault.rows, {})
    peak = next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert peak - before < MAX_MEMORY
    if fault.case.startswith("10,000"):
        assert max(v for v in table.column("cpm__n_keys").to_pylist() if v is not None) == 10_000
