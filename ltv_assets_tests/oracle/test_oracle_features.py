"""Every feature agrees with a second derivation in plain Python, on simulated and on awkward rows, in every layout."""

from __future__ import annotations

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

from ltv_assets.features import arrays, sql, statistics
from ltv_assets.features.flatten import FlattenResult, RawFile, flatten_files
from ltv_assets.features.registry import Registry, load_registry
from ltv_assets.simulator import simulate
from ltv_assets_tests.oracle.awkward_rows import Layout, Row, awkward_rows, write_hour
from ltv_assets_tests.oracle.row_by_row import features_of

HOUR = "2025-10-01-05-00"
LATER = "2025-10-01-17-00"
ROWS = 1_000
CONFIG = Path(__file__).parents[2] / "config" / "features.yaml"


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry(CONFIG)


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Row]]:
    return {hour: awkward_rows(ROWS, seed, seconds(hour)) for seed, hour in ((1, HOUR), (2, LATER))}


@pytest.fixture(scope="module")
def expected(rows: dict[str, list[Row]]) -> list[dict[str, Any]]:
    return [features_of(row, hour) for hour, members in rows.items() for row in members]


def seconds(hour: str) -> int:
    return int(datetime.strptime(hour, "%Y-%m-%d-%H-00").replace(tzinfo=UTC).timestamp())


def flatten(
    folder: Path, rows: dict[str, list[Row]], registry: Registry, layouts: dict[str, dict[str, Any]]
) -> tuple[pa.Table, FlattenResult]:
    files = []
    for hour, members in rows.items():
        path = folder / f"datetime={hour}" / "part-0.parquet"
        write_hour(members, path, **layouts.get(hour, {}))
        files.append(RawFile(path, hour))
    result = flatten_files(files, registry=registry, labelled=True, out=folder / "day.parquet")
    return pq.read_table(folder / "day.parquet"), result


def disagreements(table: pa.Table, registry: Registry, expected: list[dict[str, Any]]) -> dict[str, str]:
    """Return feature -> first disagreement beyond 1e-6 relative (1e-9 absolute, where a difference cancels to nearly nothing)."""
    assert table.num_rows == len(expected)
    found = {}
    for feature in registry.features:
        theirs = [row[feature.name] for row in expected]
        ours = table.column(feature.name).to_pylist()
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            same = (
                a == b
                if isinstance(a, str) or isinstance(b, str) or a is None or b is None
                else math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
            )
            if not same:
                found[feature.name] = f"row {i}: {a!r}, expected {b!r}"
                break
    return found


def test_awkward_rows_agree_with_the_oracle(
    tmp_path: Path, registry: Registry, rows: dict[str, list[Row]], expected: list[dict[str, Any]]
) -> None:
    assert len(expected) >= 2_000
    table, result = flatten(tmp_path, rows, registry, {})
    assert disagreements(table, registry, expected) == {}
    assert result.rows_in == result.rows_out == len(expected)


@pytest.mark.parametrize("layout", ["entries", "json_object", "json_pairs", "json_entries"])
def test_every_layout_agrees_with_the_oracle(
    tmp_path: Path, registry: Registry, rows: dict[str, list[Row]], expected: list[dict[str, Any]], layout: Layout
) -> None:
    table, result = flatten(tmp_path, rows, registry, {hour: {"layout": layout} for hour in rows})
    assert disagreements(table, registry, expected) == {}
    assert not result.lost_values


def test_hours_that_disagree_in_types_and_layout_give_the_uniform_days_features(
    tmp_path: Path, registry: Registry, rows: dict[str, list[Row]]
) -> None:
    uniform, counted = flatten(tmp_path / "uniform", rows, registry, {})
    mixed, counted_mixed = flatten(tmp_path / "mixed", rows, registry, {LATER: {"layout": "entries", "wide_numbers": True}})
    other, _ = flatten(tmp_path / "other", rows, registry, {HOUR: {"wide_numbers": True}, LATER: {"layout": "json_object"}})
    for name in uniform.column_names:
        assert_same(uniform.column(name), mixed.column(name))
        assert_same(uniform.column(name), other.column(name))
    assert counted_mixed.future_timestamps == counted.future_timestamps
    assert counted_mixed.ancient_timestamps == counted.ancient_timestamps
    assert counted_mixed.nonfinite_values == counted.nonfinite_values


def assert_same(a: pa.ChunkedArray, b: pa.ChunkedArray) -> None:
    if pa.types.is_floating(a.type):
        np.testing.assert_allclose(a.to_numpy(), b.to_numpy(), rtol=1e-6, atol=1e-9)
    else:
        assert a.to_pylist() == b.to_pylist()


def test_simulated_rows_agree_with_the_oracle(tmp_path: Path, registry: Registry) -> None:
    simulate(tmp_path / "data", train_days=1, test_days=0, rows_per_hour=50, seed=5)
    paths = sorted((tmp_path / "data" / "train").glob("datetime=*/*.parquet"))
    files = [RawFile(path, path.parent.name.removeprefix("datetime=")) for path in paths]
    result = flatten_files(files, registry=registry, labelled=True, out=tmp_path / "day.parquet")
    expected = [features_of(row, file.datetime_key) for file in files for row in pq.read_table(file.path, partitioning=None).to_pylist()]
    assert disagreements(pq.read_table(tmp_path / "day.parquet"), registry, expected) == {}
    assert result.future_timestamps == {} and result.nonfinite_values == {}


def test_unusable_values_are_counted_exactly(tmp_path: Path, registry: Registry, rows: dict[str, list[Row]]) -> None:
    _, result = flatten(tmp_path, rows, registry, {})
    pairs = [(hour, row) for hour, members in rows.items() for row in members]
    future = sum(v is not None and v > seconds(hour) for hour, row in pairs for _, v in row["last_buy_ts_bundle"] or [])
    ancient = sum(v is not None and v < 946684800 for hour, row in pairs for _, v in row["last_buy_ts_bundle"] or [])
    nonfinite = sum(v is not None and not abs(v) <= 3.4028234663852886e38 for _, row in pairs for _, v in row["cpm"] or [])
    nested = sum(
        v is not None and v > seconds(hour)
        for hour, row in pairs
        for _, inner in row["user_actions_bundles_action_last_timestamp"] or []
        for _, v in inner or []
    )
    assert result.future_timestamps["last_buy_ts_bundle"] == future > 0
    assert result.ancient_timestamps["last_buy_ts_bundle"] == ancient > 0
    assert result.nonfinite_values["cpm"] == nonfinite > 0
    assert result.future_timestamps["user_actions_bundles_action_last_timestamp"] == nested > 0


def _first_own_entry(self: arrays.Entries, own: arrays.OwnKey) -> np.ndarray:
    hit = self.code == own.codes_in(self.dictionary)[self.row]
    seen = np.zeros(self.size, bool)
    for i in np.flatnonzero(hit):
        hit[i] = not seen[self.row[i]]
        seen[self.row[i]] = True
    return hit


ARRAY_SABOTAGE: dict[str, tuple[str, Callable[..., Any]]] = {
    "cpm__own": ("is_own", _first_own_entry),
    "cpm__n_keys": ("n_entries", lambda self: arrays.Sparse(self.present_rows, np.maximum(self.lengths[self.present_rows] - 1, 0))),
}


@pytest.mark.parametrize("feature", ARRAY_SABOTAGE)
def test_the_oracle_notices_a_broken_reduction(
    tmp_path: Path,
    registry: Registry,
    rows: dict[str, list[Row]],
    expected: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    feature: str,
) -> None:
    name, broken = ARRAY_SABOTAGE[feature]
    monkeypatch.setattr(arrays.Entries, name, broken)
    table, _ = flatten(tmp_path, rows, registry, {})
    assert feature in disagreements(table, registry, expected)


SQL_SABOTAGE = {
    "cpm__std": ("number_map", "std", "list_stddev_samp(finite_{c})"),
    "cpm__mean": ("number_map", "mean", "sum_{c} / len(raw_{c}_keys)"),
    "country_hist__top1_share": ("histogram", "top1_share", "max_{c} / nullif(count_{c}, 0)"),
    "last_buy__days_ago": ("timestamp", "days_ago", "(hour_start - valid_{c}) / 86000.0"),
}


def by_sql(folder: Path, rows: dict[str, list[Row]], registry: Registry, monkeypatch: pytest.MonkeyPatch) -> pa.Table:
    """Every feature by the one query that people read, over files of the contract's types."""
    for hour, members in rows.items():
        write_hour(members, folder / "train" / f"datetime={hour}" / "part-0.parquet")
    monkeypatch.chdir(folder)
    table = duckdb.sql(sql.flatten_sql(registry)).to_arrow_table()
    place = {row_id: i for i, row_id in enumerate(table.column("row_id").to_pylist())}
    return table.take([place[row["row_id"]] for members in rows.values() for row in members])


def test_the_printed_query_agrees_with_the_oracle_on_every_feature(
    tmp_path: Path, registry: Registry, rows: dict[str, list[Row]], expected: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert disagreements(by_sql(tmp_path, rows, registry, monkeypatch), registry, expected) == {}


@pytest.mark.parametrize("feature", SQL_SABOTAGE)
def test_the_oracle_notices_a_broken_statistic_in_the_sql(
    tmp_path: Path,
    registry: Registry,
    rows: dict[str, list[Row]],
    expected: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    feature: str,
) -> None:
    kind, name, broken = SQL_SABOTAGE[feature]
    whole = statistics.STATISTICS[kind][name]  # type: ignore[index]
    changed = statistics.Statistic(broken, whole.description, whole.unit, whole.needs_own)
    monkeypatch.setitem(statistics.STATISTICS[kind], name, changed)  # type: ignore[index]
    assert feature in disagreements(by_sql(tmp_path, rows, registry, monkeypatch), registry, expected)


def test_printed_sql_computes_the_flattened_column(
    tmp_path: Path, registry: Registry, rows: dict[str, list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    table, _ = flatten(tmp_path / "train", rows, registry, {})
    monkeypatch.chdir(tmp_path)
    ours = dict(zip(table.column("row_id").to_pylist(), range(table.num_rows), strict=True))
    for name in (
        "iap_revenue_usd_bundle__own_share",
        "last_buy_ts_category__own_days_ago",
        "purchase_frequency_x_recency",
        "dev_osv__version",
    ):
        printed = duckdb.sql(sql.explain_sql(registry, name)).to_arrow_table()
        order = [ours[row_id] for row_id in printed.column("row_id").to_pylist()]
        np.testing.assert_allclose(printed.column(name).to_numpy(), table.column(name).to_numpy()[order], rtol=1e-6, atol=1e-9)
