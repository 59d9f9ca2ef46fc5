"""Rows without a key or a usable label are set aside with the reason; nothing else is lost, and nothing is silent."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltv_assets.cli.flatten_benchmark import bench_flatten, peak_memory
from ltv_assets.core.errors import DataError
from ltv_assets.core.memory import release_memory
from ltv_assets.features.flatten import FlattenResult, RawFile, flatten_files
from ltv_assets.features.flatten.accounting import Seen
from ltv_assets.features.flatten.engine import _joined
from ltv_assets.features.registry import Registry, load_registry
from ltv_assets.features.schema import feature_names, flattened_schema
from ltv_assets.monitoring.psi import population_stability
from ltv_assets.simulator import Simulator
from ltv_assets_tests.oracle.awkward_rows import Row, awkward_rows, write_hour

pytestmark = pytest.mark.contest

HOUR, NEXT = "2025-10-01-05-00", "2025-10-01-06-00"
START = 1759294800


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry(Path(__file__).parents[2] / "config" / "features.yaml")


def write(folder: Path, name: str, rows: list[Row], hour: str = HOUR, **options: Any) -> RawFile:
    path = folder / f"datetime={hour}" / name
    write_hour(rows, path, **options)
    return RawFile(path, hour)


def flatten(files: list[RawFile], registry: Registry, out: Path, *, labelled: bool = True) -> tuple[pa.Table, FlattenResult]:
    result = flatten_files(files, registry=registry, labelled=labelled, out=out)
    table = pq.read_table(out)
    assert result.rows_in == result.rows_out + sum(result.rows_quarantined.values())
    assert result.rows_out == table.num_rows
    return table, result


def rewritten(file: RawFile, change: Callable[[pa.Table], pa.Table]) -> RawFile:
    pq.write_table(change(pq.read_table(file.path, partitioning=None)), file.path)
    return file


BROKEN = {
    "row_id missing": {"row_id": None},
    "iap_revenue_d7 missing": {"iap_revenue_d7": None},
    "iap_revenue_d7 not finite": {"iap_revenue_d7": math.nan},
    "iap_revenue_d7 negative": {"iap_revenue_d7": -0.01},
    "iap_revenue_d7 above 1e+09 USD": {"iap_revenue_d7": 2e9},
    "buyer_d7 missing": {"buyer_d7": None},
    "iap_revenue_d14 below iap_revenue_d7": {"iap_revenue_d7": 5.0, "iap_revenue_d14": 4.0, "iap_revenue_d28": 6.0},
    "iap_revenue_d28 below a shorter horizon": {"iap_revenue_d7": 5.0, "iap_revenue_d14": 7.0, "iap_revenue_d28": 6.0},
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_row_without_key_or_usable_label_is_set_aside_with_its_reason(tmp_path: Path, registry: Registry, reason: str) -> None:
    rows = awkward_rows(5, 0, START)
    rows[3] |= BROKEN[reason]
    table, result = flatten([write(tmp_path, "part-0.parquet", rows)], registry, tmp_path / "day.parquet")
    assert result.rows_quarantined == {reason: 1}
    assert table.column("row_id").to_pylist() == [row["row_id"] for i, row in enumerate(rows) if i != 3]
    (aside,) = result.quarantine.to_pylist()
    assert (aside["row_number"], aside["reason"], aside["row_id"]) == (3, reason, rows[3]["row_id"])
    assert aside["file"].endswith("part-0.parquet")


def test_the_first_of_repeated_row_ids_is_kept_across_files(tmp_path: Path, registry: Registry) -> None:
    first, second = awkward_rows(4, 0, START), awkward_rows(4, 1, START)
    second[1]["row_id"], second[3]["row_id"] = first[2]["row_id"], second[0]["row_id"]
    files = [write(tmp_path, "part-0.parquet", first), write(tmp_path, "part-0.parquet", second, NEXT, layout="entries")]
    table, result = flatten(files, registry, tmp_path / "day.parquet")
    assert result.rows_quarantined == {"row_id repeated": 2}
    assert table.column("row_id").to_pylist() == [r["row_id"] for r in first] + [second[0]["row_id"], second[2]["row_id"]]
    assert [(item["row_number"], item["value"]) for item in result.quarantine.to_pylist()] == [
        (1, first[2]["row_id"]),
        (3, second[0]["row_id"]),
    ]


def test_a_repeated_row_id_is_found_however_the_day_is_divided_into_blocks(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = [awkward_rows(6, number, START) for number in range(5)]
    hours[1][2]["row_id"] = hours[4][0]["row_id"] = hours[0][5]["row_id"]
    hours[3][1]["row_id"] = hours[3][4]["row_id"] = hours[2][0]["row_id"]
    files = [write(tmp_path, "part-0.parquet", rows, f"2025-10-01-{5 + number:02d}-00") for number, rows in enumerate(hours)]
    whole, result = flatten(files, registry, tmp_path / "whole.parquet")
    assert result.rows_quarantined == {"row_id repeated": 4}
    monkeypatch.setattr("ltv_assets.features.flatten.files.SMALL_BLOCK", 1)
    monkeypatch.setattr("ltv_assets.features.flatten.files.BLOCK_ROWS", 6)
    divided, other = flatten(files, registry, tmp_path / "divided.parquet")
    assert divided.equals(whole)
    assert other.quarantine.equals(result.quarantine)


def test_a_hash_counts_as_seen_whichever_block_brought_it() -> None:
    random = np.random.default_rng(0)
    hashes = np.unique(random.integers(0, 2**64, 5000, dtype=np.uint64))
    random.shuffle(hashes)
    blocks = np.array_split(hashes, np.sort(random.integers(0, len(hashes), 30)))
    for late in (*hashes[:3], *hashes[-400::80]):
        seen = Seen()
        assert [seen.again(block) for block in blocks] == [False] * len(blocks)
        assert seen.again(np.array([late]))
    assert Seen().again(hashes[[0, 1, 0]])


def test_a_sample_has_the_same_rows_in_whatever_files_they_come(tmp_path: Path, registry: Registry) -> None:
    rows = [{**row, "row_id": f"r{i}"} for i, row in enumerate(awkward_rows(400, 0, START))]
    rows[7]["row_id"] = None
    whole = [write(tmp_path / "whole", "part-0.parquet", rows)]
    parts = [write(tmp_path / "parts", f"part-{i}.parquet", rows[i * 100 : i * 100 + 100]) for i in range(4)]
    options: dict[str, Any] = {"registry": registry, "labelled": True, "sampling_fraction": 0.3}
    result = flatten_files(whole, out=tmp_path / "whole.parquet", seed=1, **options)
    assert (result.rows_in, result.rows_quarantined) == (400, {"row_id missing": 1})
    assert result.rows_out + result.rows_sampled_out == 399
    assert 80 <= result.rows_out <= 160
    flatten_files(parts, out=tmp_path / "parts.parquet", seed=1, **options)
    flatten_files(whole, out=tmp_path / "other.parquet", seed=2, **options)
    ids = {name: pq.read_table(tmp_path / f"{name}.parquet").column("row_id").to_pylist() for name in ("whole", "parts", "other")}
    assert ids["whole"] == ids["parts"] != ids["other"]


def test_missing_longer_horizons_are_kept(tmp_path: Path, registry: Registry) -> None:
    rows = awkward_rows(4, 0, START)
    for row in rows:
        row |= {"iap_revenue_d14": None, "iap_revenue_d28": None}
    file = write(tmp_path, "part-0.parquet", rows)
    rewritten(file, lambda table: table.drop_columns(["iap_revenue_d28"]))
    table, result = flatten([file], registry, tmp_path / "day.parquet")
    assert result.rows_quarantined == {}
    assert table.column("iap_revenue_d28").null_count == 4


def test_a_payer_flag_that_contradicts_revenue_is_a_warning(tmp_path: Path, registry: Registry) -> None:
    rows = awkward_rows(4, 0, START)
    rows[0] |= {"buyer_d7": 0, "iap_revenue_d7": 3.0, "iap_revenue_d14": 3.0, "iap_revenue_d28": 3.0}
    _, result = flatten([write(tmp_path, "part-0.parquet", rows)], registry, tmp_path / "day.parquet")
    assert result.rows_out == 4
    assert "buyer_d7: 1 rows say 0 although iap_revenue_d7 is positive" in result.warnings


def test_recency_and_age_are_counted_from_the_impressions_own_hour(tmp_path: Path, registry: Registry) -> None:
    row = awkward_rows(1, 0, START)[0] | {"row_id": "a", "last_buy": START - 86_400, "release_date": "2025_july"}
    files = [write(tmp_path, "part-0.parquet", [row]), write(tmp_path, "part-0.parquet", [row | {"row_id": "b"}], NEXT)]
    table, _ = flatten(files, registry, tmp_path / "day.parquet")
    assert table.column("last_buy__days_ago").to_pylist() == pytest.approx([1.0, 1.0 + 1 / 24])
    assert table.column("release_date__age_months").to_pylist() == [3.0, 3.0]
    assert table.column("datetime").to_pylist() == [HOUR, NEXT]


def test_a_year_beyond_any_calendar_costs_its_own_value_only(tmp_path: Path, registry: Registry) -> None:
    odd = ["2147483647_july", "2025_july", "99999999999999999999_july", "-1_july", "2147483647.2147483647.2147483647"]
    rows = [row | {"release_date": text, "dev_osv": text} for row, text in zip(awkward_rows(len(odd), 0, START), odd, strict=True)]
    table, result = flatten([write(tmp_path, "part-0.parquet", rows)], registry, tmp_path / "day.parquet")
    assert result.rows_out == len(odd) and table.column("dev_osv__version").to_pylist()[-1] == 2147483648.0
    assert table.column("release_date__age_months").to_pylist() == [None, 3.0, None, 24_315.0, None]


def test_a_text_that_cannot_be_taken_apart_is_counted_with_the_first_of_its_kind(tmp_path: Path, registry: Registry) -> None:
    texts = [["2025_july", "", None], ["July 2025", "2025_july", "unknown"]]
    files = []
    for number, of_file in enumerate(texts):
        rows = awkward_rows(len(of_file), 0, START)
        rows = [
            row | {"row_id": f"{number}{text}", "release_date": text, "dev_osv": "17.4"} for row, text in zip(rows, of_file, strict=True)
        ]
        files.append(write(tmp_path, f"part-{number}.parquet", rows))
    table, result = flatten(files, registry, tmp_path / "day.parquet")
    assert table.column("release_date__age_months").to_pylist() == [3.0, None, None, None, 3.0, None]
    ((name, (count, first)),) = result.unlike_texts.items()
    assert (name, count) == ("release_date__age_months", 2)
    assert first.startswith("'July 2025' in ") and first.endswith("part-1.parquet")
    assert any(w.startswith("release_date__age_months: 2 texts have another form") for w in result.warnings)


def test_days_without_labels_need_none_and_ignore_any(tmp_path: Path, registry: Registry) -> None:
    rows = awkward_rows(4, 0, START)
    files = [write(tmp_path, "part-0.parquet", rows, labels=False), write(tmp_path, "part-0.parquet", awkward_rows(4, 1, START), NEXT)]
    table, result = flatten(files, registry, tmp_path / "day.parquet", labelled=False)
    assert table.column("iap_revenue_d7").null_count == 8
    assert any("iap_revenue_d7: label column on a day without labels" in warning for warning in result.warnings)


def test_an_absent_feature_column_degrades_to_missing_with_a_warning(tmp_path: Path, registry: Registry) -> None:
    rows = awkward_rows(6, 0, START)
    whole, _ = flatten([write(tmp_path, "part-0.parquet", rows)], registry, tmp_path / "whole.parquet")
    file = write(tmp_path, "part-0.parquet", rows)
    rewritten(file, lambda table: table.drop_columns(["bcat", "country"]).append_column("surprise", pa.array(range(6))))
    table, _ = flatten([file], registry, tmp_path / "day.parquet")
    assert table.schema.equals(whole.schema, check_metadata=True)
    assert table.column("bcat__sum").null_count == table.column("country").null_count == 6
    assert table.column("cpm__sum").equals(whole.column("cpm__sum"))


def test_an_unreadable_type_degrades_to_missing_with_a_warning(tmp_path: Path, registry: Registry) -> None:
    file = write(tmp_path, "part-0.parquet", awkward_rows(6, 0, START))

    def replace(table: pa.Table) -> pa.Table:
        return table.set_column(table.schema.get_field_index("cpm"), "cpm", pa.array(range(6)))

    table, result = flatten([rewritten(file, replace)], registry, tmp_path / "day.parquet")
    assert table.column("cpm__sum").null_count == 6
    assert any(warning.startswith("cpm (int64): type cannot be read") for warning in result.warnings)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamps_of_any_unit_are_the_same_moment(tmp_path: Path, registry: Registry, unit: str) -> None:
    rows = awkward_rows(50, 0, START)
    seconds = write(tmp_path, "part-0.parquet", rows)
    expected, _ = flatten([seconds], registry, tmp_path / "seconds.parquet")

    def stamped(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index("last_buy")
        table = table.set_column(index, "last_buy", table.column("last_buy").cast(pa.timestamp("s")).cast(pa.timestamp(unit)))
        index = table.schema.get_field_index("last_buy_ts_bundle")
        maps = [None if row["last_buy_ts_bundle"] is None else [(k, v) for k, v in row["last_buy_ts_bundle"]] for row in rows]
        return table.set_column(
            index,
            "last_buy_ts_bundle",
            pa.array(maps, pa.map_(pa.string(), pa.timestamp("s"))).cast(pa.map_(pa.string(), pa.timestamp(unit))),
        )

    table, _ = flatten([rewritten(seconds, stamped)], registry, tmp_path / "stamps.parquet")
    for name in ("last_buy__days_ago", "last_buy_ts_bundle__days_ago_min", "last_buy_ts_bundle__own_days_ago"):
        np.testing.assert_allclose(table.column(name).to_numpy(), expected.column(name).to_numpy(), rtol=1e-6)


def test_text_that_is_no_json_is_missing_and_counted(tmp_path: Path, registry: Registry) -> None:
    file = write(tmp_path, "part-0.parquet", awkward_rows(4, 0, START), layout="json_object")

    def spoil(table: pa.Table) -> pa.Table:
        return table.set_column(table.schema.get_field_index("cpm"), "cpm", pa.array(["{'a': 1}", "[1", '{"a": 2}', None]))

    table, result = flatten([rewritten(file, spoil)], registry, tmp_path / "day.parquet")
    assert table.column("cpm__sum").to_pylist() == [None, None, 2.0, None]
    assert result.lost_values == {"cpm": (2, f"'{{'a': 1}}' in {file.path}")}


def test_dictionary_and_large_strings_read_as_text(tmp_path: Path, registry: Registry) -> None:
    rows = awkward_rows(20, 0, START)
    expected, _ = flatten([write(tmp_path, "part-0.parquet", rows)], registry, tmp_path / "a.parquet")

    def encode(table: pa.Table) -> pa.Table:
        for name, kind in (
            ("country", pa.dictionary(pa.int32(), pa.string())),
            ("advertiser_bundle", pa.large_string()),
            ("dev_os", pa.binary()),
        ):
            table = table.set_column(table.schema.get_field_index(name), name, table.column(name).cast(kind))
        return table

    table, _ = flatten([rewritten(write(tmp_path, "part-0.parquet", rows), encode)], registry, tmp_path / "b.parquet")
    assert table.equals(expected)


def test_text_that_is_not_utf8_does_not_stop_the_day(tmp_path: Path, registry: Registry) -> None:
    rows = awkward_rows(3, 0, START)
    file = write(tmp_path, "part-0.parquet", rows)

    def spoil(table: pa.Table) -> pa.Table:
        raw = pa.array([b"caf\xe9", b"ok", None], pa.binary())
        text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
        return table.set_column(table.schema.get_field_index("carrier"), "carrier", text)

    table, _ = flatten([rewritten(file, spoil)], registry, tmp_path / "day.parquet")
    assert table.column("carrier").to_pylist() == ["caf\ufffd", "ok", None]


def test_a_map_of_ten_thousand_keys_is_one_row(tmp_path: Path, registry: Registry) -> None:
    rows = awkward_rows(3, 0, START)
    rows[1]["cpm"] = [(f"k{i}", 1.0) for i in range(10_000)]
    table, _ = flatten([write(tmp_path, "part-0.parquet", rows)], registry, tmp_path / "day.parquet")
    assert table.column("cpm__n_keys")[1].as_py() == 10_000
    assert table.column("cpm__entropy")[1].as_py() == pytest.approx(math.log(10_000), rel=1e-6)


def test_a_file_that_cannot_be_read_is_named_and_leaves_nothing(tmp_path: Path, registry: Registry) -> None:
    good = write(tmp_path, "part-0.parquet", awkward_rows(3, 0, START))
    torn = tmp_path / f"datetime={NEXT}" / "part-0.parquet"
    torn.parent.mkdir()
    torn.write_bytes(good.path.read_bytes()[:-100])
    with pytest.raises(DataError, match=str(torn)):
        flatten_files([good, RawFile(torn, NEXT)], registry=registry, labelled=True, out=tmp_path / "day.parquet")
    assert not (tmp_path / "day.parquet").exists()


def test_row_groups_of_a_file_make_no_difference(tmp_path: Path, registry: Registry) -> None:
    file = write(tmp_path, "part-0.parquet", awkward_rows(200, 0, START))
    expected, _ = flatten([file], registry, tmp_path / "one.parquet")
    pq.write_table(pq.read_table(file.path, partitioning=None), file.path, row_group_size=30)
    table, _ = flatten([file], registry, tmp_path / "seven.parquet")
    assert table.equals(expected)


def test_a_missing_label_column_is_refused(tmp_path: Path, registry: Registry) -> None:
    file = rewritten(write(tmp_path, "part-0.parquet", awkward_rows(3, 0, START)), lambda table: table.drop_columns(["buyer_d7"]))
    with pytest.raises(DataError, match="buyer_d7"):
        flatten_files([file], registry=registry, labelled=True, out=tmp_path / "day.parquet")


def test_a_day_of_empty_hours_has_the_schema_and_no_rows(tmp_path: Path, registry: Registry) -> None:
    file = rewritten(write(tmp_path, "part-0.parquet", awkward_rows(3, 0, START)), lambda table: table.slice(0, 0))
    table, result = flatten([file], registry, tmp_path / "day.parquet")
    assert table.num_rows == result.rows_in == 0
    assert table.schema.names == flattened_schema(registry).names


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, registry: Registry) -> None:
    files = [write(tmp_path, f"part-{i}.parquet", awkward_rows(200, i, START)) for i in range(3)]
    digests = set()
    for threads in (1, 2, 2):
        flatten_files(files, registry=registry, labelled=True, out=tmp_path / "day.parquet", threads=threads)
        digests.add(hashlib.sha256((tmp_path / "day.parquet").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_large_file_is_divided_between_its_row_groups_without_changing_the_day(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = awkward_rows(600, 0, START)
    rows[450]["row_id"], rows[451]["row_id"] = rows[3]["row_id"], None
    whole = write(tmp_path, "part-0.parquet", rows)
    pq.write_table(pq.read_table(whole.path, partitioning=None), whole.path, row_group_size=100)
    after = write(tmp_path, "part-1.parquet", awkward_rows(50, 7, START))
    expected = flatten([whole, after], registry, tmp_path / "whole.parquet")
    monkeypatch.setattr("ltv_assets.features.flatten.files.BLOCK_ROWS", 250)
    divided = flatten([whole, after], registry, tmp_path / "divided.parquet")
    assert (tmp_path / "divided.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert divided[1].quarantine.equals(expected[1].quarantine)
    assert {3, 450, 451} & set(divided[1].quarantine["row_number"].to_pylist()) == {450, 451}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_hours_of_a_day(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    table, files = Simulator(rows_per_hour=10_000).hour(datetime(2025, 10, 1, 5, tzinfo=UTC))[0], []
    at = table.column_names.index("row_id")
    for number in range(12):
        ids = pa.array([f"{number}-{i}" for i in range(table.num_rows)])
        path = tmp_path / f"datetime=2025-10-01-{number:02}-00" / "part-0.parquet"
        path.parent.mkdir()
        pq.write_table(table.set_column(at, "row_id", ids), path)
        files.append(RawFile(path, path.parent.name.removeprefix("datetime=")))
    monkeypatch.setattr("ltv_assets.features.flatten.files.BLOCK_ROWS", 10_000)
    monkeypatch.setattr("ltv_assets.features.flatten.row_group_writer.ROW_GROUP", 10_000)
    peaks = {}
    for hours in (3, 3, 12):  # the first time also pays for imports and caches
        release_memory()
        with peak_memory() as peak:
            result = flatten_files(files[:hours], registry=registry, labelled=True, out=tmp_path / "day.parquet")
        assert result.rows_out == hours * table.num_rows
        peaks[hours] = peak[0]
    block = table.num_rows * len(registry.features) * 4
    assert peaks[12] < peaks[3] + 6 * block, "nine more hours are held in memory"


def test_names_with_brackets_and_quotes_are_files_not_patterns(tmp_path: Path, registry: Registry) -> None:
    folder = tmp_path / "it's [odd] *"
    table, _ = flatten([write(folder, "part-[0].parquet", awkward_rows(3, 0, START))], registry, tmp_path / "day.parquet")
    assert table.num_rows == 3


LIMITS: dict[str, Any] = {"threads": 2, "memory_limit": "1GB"}


def test_stability_is_zero_against_itself_and_sees_a_shift(tmp_path: Path, registry: Registry) -> None:
    rows = awkward_rows(400, 0, START)
    flatten([write(tmp_path, "part-0.parquet", rows)], registry, tmp_path / "a.parquet")
    for row in rows:
        row["country"] = "br"
        row["cpm"] = None if row["cpm"] is None else [(k, None if v is None else v * 100) for k, v in row["cpm"]]
    flatten([write(tmp_path, "part-0.parquet", rows)], registry, tmp_path / "b.parquet")
    same = population_stability([tmp_path / "a.parquet"], [tmp_path / "a.parquet"], feature_names(registry), **LIMITS)
    assert same["psi"].abs().max() < 1e-12 and len(same) == len(registry.features)
    moved = population_stability([tmp_path / "a.parquet"], [tmp_path / "b.parquet"], feature_names(registry), **LIMITS).set_index("feature")
    assert moved.loc["country", "psi"] > 0.25 and moved.loc["cpm__sum", "psi"] > 0.25
    assert moved.loc["bcat__sum", "psi"] < 1e-12
    assert moved.loc["country", "missing_current"] == 0


def test_stability_follows_its_formula(tmp_path: Path) -> None:
    for name, values in (("a", [1.0] * 50 + [None] * 50), ("b", [1.0] * 20 + [None] * 80)):
        pq.write_table(
            pa.table({"row_id": [f"{name}{i}" for i in range(100)], "x": pa.array(values, pa.float32())}), tmp_path / f"{name}.parquet"
        )
    (psi,) = population_stability([tmp_path / "a.parquet"], [tmp_path / "b.parquet"], ["x"], **LIMITS)["psi"]
    shares = [((50.5) / 101, (20.5) / 101), ((50.5) / 101, (80.5) / 101)]
    assert psi == pytest.approx(sum((c - r) * math.log(c / r) for r, c in shares))


def test_bench_reports_speed_against_a_full_scan(tmp_path: Path, registry: Registry) -> None:
    write(tmp_path / "train", "part-0.parquet", awkward_rows(300, 0, START))
    figures = bench_flatten(tmp_path, registry=registry, **LIMITS)
    assert figures["rows"] == 300
    assert figures["ratio"] == pytest.approx(figures["rows_per_second"] / figures["scan_rows_per_second"], rel=0.02)
    assert 0 < figures["peak_rss_mb"] < 4096


def test_flattened_days_are_readable_by_duckdb(tmp_path: Path, registry: Registry) -> None:
    flatten([write(tmp_path, "part-0.parquet", awkward_rows(5, 0, START))], registry, tmp_path / "day.parquet")
    assert duckdb.sql(f"SELECT count(*), any_value(datetime) FROM '{tmp_path}/day.parquet'").fetchall() == [(5, HOUR)]


def test_damaged_dictionary_code_is_told_at_any_depth_before_chunks_are_joined() -> None:
    """Joining follows codes without looking, so a code beyond the words would become another text."""
    words, good = pa.array(["a", "b"]), pa.array([0, None, 1], pa.int32())
    bad = pa.DictionaryArray.from_arrays(pa.array([0, None, 2], pa.int32()), words, safe=False)
    fine = pa.DictionaryArray.from_arrays(good, words)
    offsets, keys = pa.array([0, 1, 2, 3], pa.int32()), pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.int32()), words)
    deep = [pa.MapArray.from_arrays(offsets, keys, values) for values in (fine, bad)]
    assert _joined([fine, fine]).to_pylist() == ["a", None, "b"] * 2
    for chunks in ([fine, bad], [pa.ListArray.from_arrays(offsets, part) for part in (fine, bad)], deep):
        with pytest.raises(pa.ArrowInvalid, match="expected 0 to 1, found from 0 to 2"):
            _joined(chunks)
