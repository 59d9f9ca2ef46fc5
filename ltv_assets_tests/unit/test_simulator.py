"""What the simulator promises about its files: layout, types, determinism, consistency, and a truth that can be recomputed."""

from __future__ import annotations

import json
import math
import re
import uuid
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ltv_assets.cli import data as commands
from ltv_assets.core.columns import BY_NAME, INPUTS, LABEL_NAMES, RAW_COLUMNS
from ltv_assets.core.errors import ConfigError, DataError
from ltv_assets.simulator import LAWS, attained_share, oracle_metrics, simulate
from ltv_assets.simulator.facts import COLUMN_ORDER
from ltv_assets.simulator.population import FAMILIES
from ltv_assets.simulator.writer import rows_in_hour

pytestmark = pytest.mark.contest

PHYSICAL = {
    "int32": pa.int32(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "string": pa.string(),
    "list<string>": pa.list_(pa.string()),
    "map<string,double>": pa.map_(pa.string(), pa.float64()),
    "map<string,int64>": pa.map_(pa.string(), pa.int64()),
    "map<string,map<string,int64>>": pa.map_(pa.string(), pa.map_(pa.string(), pa.int64())),
}
SMALL: dict[str, Any] = {"train_days": 2, "test_days": 1, "rows_per_hour": 40, "seed": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated")
    simulate(out, **SMALL)
    return out


@pytest.fixture(scope="module")
def train(root: Path) -> pa.Table:
    return pa.concat_tables([pq.ParquetFile(f).read() for f in files(root, "train")])


def files(root: Path, split: str) -> list[Path]:
    return sorted((root / split).glob("datetime=*/*.parquet"))


def test_layout_is_the_real_one(root: Path) -> None:
    for split, days in (("train", ["2025-10-01", "2025-10-02"]), ("test", ["2025-10-04"])):
        folders = sorted(p.name for p in (root / split).iterdir())
        assert folders == [f"datetime={day}-{hour:02d}-00" for day in days for hour in range(24)]
        for path in files(root, split):
            assert re.fullmatch(r"part-00000-[0-9a-f]{8}\.c000\.snappy\.parquet", path.name)
    assert sorted(p.name for p in (root / "truth").iterdir()) == ["law.json", "test.parquet", "train.parquet"]
    assert not [p for p in root.rglob("*") if p.name.startswith(".") or p.suffix == ".tmp"]


def test_every_column_has_the_contracts_type(root: Path) -> None:
    assert set(COLUMN_ORDER) | {"datetime"} == {column.name for column in RAW_COLUMNS}
    for split, names in (("train", COLUMN_ORDER), ("test", tuple(n for n in COLUMN_ORDER if n not in LABEL_NAMES))):
        for path in files(root, split):
            schema = pq.read_schema(path)
            assert schema.names == list(names)
            for field in schema:
                assert field.type == PHYSICAL[BY_NAME[field.name].type], field


def test_same_call_gives_identical_bytes(root: Path, tmp_path: Path) -> None:
    simulate(tmp_path, **SMALL)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        assert (tmp_path / path.relative_to(root)).read_bytes() == path.read_bytes(), path


def test_more_days_leave_earlier_hours_as_they_were(root: Path, tmp_path: Path) -> None:
    simulate(tmp_path, **{**SMALL, "train_days": 1, "test_days": 0})
    assert not (tmp_path / "truth" / "test.parquet").exists()
    for path in files(tmp_path, "train"):
        assert (root / path.relative_to(tmp_path)).read_bytes() == path.read_bytes(), path


def test_laws_share_their_impressions_and_seeds_share_nothing(root: Path, tmp_path: Path) -> None:
    first: dict[str, Any] = {"train_days": 1, "test_days": 0, "rows_per_hour": 40}
    simulate(tmp_path / "law", seed=3, law="thresholds", **first)
    simulate(tmp_path / "seed", seed=4, **first)
    plain, law, seed = (pq.ParquetFile(files(folder, "train")[5]).read() for folder in (root, tmp_path / "law", tmp_path / "seed"))
    features = [name for name in COLUMN_ORDER if name not in LABEL_NAMES]
    assert plain.select(features).equals(law.select(features))
    assert not set(plain["row_id"].to_pylist()) & set(seed["row_id"].to_pylist())
    assert not set(plain["advertiser_bundle"].to_pylist()) & set(seed["advertiser_bundle"].to_pylist())


def test_row_ids_are_unique_uuids_and_match_the_truth(root: Path) -> None:
    seen: list[str] = []
    for split in ("train", "test"):
        ids = [i for f in files(root, split) for i in pq.ParquetFile(f).read(["row_id"])["row_id"].to_pylist()]
        assert ids == pd.read_parquet(root / "truth" / f"{split}.parquet")["row_id"].tolist()
        seen += ids
    assert len(set(seen)) == len(seen) == 3 * 24 * 40
    assert all(str(uuid.UUID(i)) == i and uuid.UUID(i).version == 4 for i in seen)


def test_hours_of_a_day_add_up_and_vary_by_a_fifth() -> None:
    for rows in (1, 40, 600, 120_000):
        hours = [rows_in_hour(rows, hour) for hour in range(24)]
        assert sum(hours) == 24 * rows
        assert max(hours) <= 1.2 * rows + 1 and min(hours) >= 0.8 * rows - 1
    assert max(hours) > 1.15 * rows and min(hours) < 0.85 * rows


def test_labels_agree_with_each_other(train: pa.Table, root: Path) -> None:
    t = train.select(list(LABEL_NAMES)).to_pandas()
    for longer, shorter in ((7, 1), (14, 7), (28, 14)):
        assert (t[f"buyer_d{longer}"] >= t[f"buyer_d{shorter}"]).all()
    for longer, shorter in ((14, 7), (28, 14)):
        assert (t[f"iap_revenue_d{longer}"] >= t[f"iap_revenue_d{shorter}"]).all()
        assert (t[f"buy_d{longer}"] >= t[f"buy_d{shorter}"]).all()
    for days in (7, 14, 28):
        payer = t[f"iap_revenue_d{days}"] > 0
        assert (t.loc[payer, f"buyer_d{days}"] == 1).all()
        assert ((t[f"buy_d{days}"] > 0) == (t[f"buyer_d{days}"] == 1)).all()
    assert ((t["buyer_d7"] == 1) & (t["iap_revenue_d7"] == 0)).any(), "zero-revenue buyers"
    assert ((t["iap_revenue_d7"] == 0) & (t["iap_revenue_d14"] > 0)).any(), "late payers"
    truth = pd.read_parquet(root / "truth" / "train.parquet")
    for label, known in (("iap_revenue_d7", "revenue"), ("iap_revenue_d14", "revenue_d14"), ("iap_revenue_d28", "revenue_d28")):
        assert np.array_equal(t[label], truth[known])
    active = t.dropna(subset=["retention_d1"])
    assert (active["retention_d1_to_d7"] >= active[["retention_d1", "retention_d3", "retentiond7", "retention_d3_to_d7"]].max(axis=1)).all()
    assert (active["retention_d3_to_d7"] >= active[["retention_d3", "retentiond7"]].max(axis=1)).all()


def test_co_missing_groups_are_missing_together(train: pa.Table) -> None:
    by_rate: dict[float, list[str]] = {}
    for column in RAW_COLUMNS:
        if column.missing_rate and column.name != "datetime":
            by_rate.setdefault(column.missing_rate, []).append(column.name)
    groups = [names for names in by_rate.values() if len(names) > 1]
    assert sum(map(len, groups)) >= 40
    for names in groups:
        first = pc.is_null(train[names[0]])
        assert 0 < pc.sum(first).as_py() < len(train)
        for name in names[1:]:
            assert pc.is_null(train[name]).equals(first), (names[0], name)


def test_timestamps_are_seconds_before_the_impression(root: Path) -> None:
    first_ok = datetime(2000, 1, 1, tzinfo=UTC).timestamp()
    checked = 0
    for path in files(root, "train"):
        start = datetime.strptime(path.parent.name, "datetime=%Y-%m-%d-%H-00").replace(tzinfo=UTC).timestamp()
        t = pq.ParquetFile(path).read()
        for column in RAW_COLUMNS:
            if column.meaning != "timestamp" or column.name == "datetime":
                continue
            values = t[column.name].combine_chunks()
            while pa.types.is_map(values.type):
                values = values.items
            values = values.drop_null()
            checked += len(values)
            if len(values):
                low, high = pc.min_max(values).as_py().values()
                assert first_ok < low and high < start, column.name
    assert checked > 10_000


def test_map_keys_are_unique_and_own_keys_occur(train: pa.Table) -> None:
    with_own = set()
    for column in RAW_COLUMNS:
        if not column.type.startswith("map"):
            continue
        own = train["advertiser_bundle"].to_pylist() if column.keyed_by == "bundle" else [None] * len(train)
        for row, bundle in zip(train[column.name].to_pylist(), own, strict=True):
            keys = [key for key, _ in row or ()]
            assert len(set(keys)) == len(keys), column.name
            if bundle in keys:
                with_own.add(column.name)
    assert with_own == {c.name for c in RAW_COLUMNS if c.type.startswith("map") and c.keyed_by == "bundle"}


def test_category_columns_are_sums_of_the_app_columns(train: pa.Table) -> None:
    for by_app, by_group in (
        ("iap_revenue_usd_bundle", "iap_revenue_usd_category"),
        ("num_buys_bundle", "num_buys_category_bottom_taxonomy"),
    ):
        for apps, groups in zip(train[by_app].to_pylist(), train[by_group].to_pylist(), strict=True):
            if apps is not None:
                assert math.isclose(sum(v for _, v in apps), sum(v for _, v in groups), rel_tol=1e-12)
    for apps, newest in zip(train["last_buy_ts_bundle"].to_pylist(), train["last_buy"].to_pylist(), strict=True):
        assert (apps is None and newest is None) or max(v for _, v in apps) == newest
    for all_apps, recent in zip(train["user_bundles"].to_pylist(), train["user_bundles_l28d"].to_pylist(), strict=True):
        assert all_apps is None or set(recent) <= set(all_apps)


def _statistic(row: dict[str, Any], column: str, statistic: str, now: float) -> float | None:
    """One signal of one row, straight from its raw columns: a second derivation that shares no code with the simulator."""
    value = row[column]
    if value is None:
        return None
    if statistic == "value":
        return float(value)
    if statistic == "days_ago":
        return (now - value) / 86_400
    own = {"bundle": "advertiser_bundle", "category": "advertiser_category"}.get(BY_NAME[column].keyed_by or "", "")
    if statistic == "length":
        return float(len(value))
    if statistic == "has_own":
        return float(row[own] in value)
    pairs = dict(value)
    if statistic in ("total", "own_total"):
        totals = {app: float(sum(n for _, n in actions)) for app, actions in value}
        return sum(totals.values()) if statistic == "total" else totals.get(row[own])
    if statistic == "own":
        return pairs.get(row[own])
    if statistic == "own_days_ago":
        return (now - pairs[row[own]]) / 86_400 if row[own] in pairs else None
    if statistic == "entropy":
        total = sum(pairs.values())
        return -sum(v / total * math.log(v / total) for v in pairs.values())
    numbers = list(pairs.values())
    return {"sum": sum(numbers), "max": max(numbers, default=None), "mean": sum(numbers) / max(len(numbers), 1)}[statistic]


def _unforeseen_terms(row: dict[str, Any], law: dict[str, Any], z: dict[str, float], now: float) -> tuple[float, float]:
    """What saturation, gaps and own shares add to f and g of one row of raw columns."""
    place = {s["name"]: (s["column"], s["statistic"]) for s in law["signals"]}

    def raw(name: str) -> float | None:
        return _statistic(row, *place.get(name, (name, "value")), now)

    def null(name: str) -> bool:
        return row[name] is None if name in row else raw(name) is None

    f, g = 0.0, 0.0
    for effect in law.get("saturations", ()):
        total = 0.0
        for dose in effect["doses"]:
            x, half, potency = raw(dose["signal"]), dose["half"], dose["potency"]
            if x is not None:
                total += potency * x / (x + half) if potency > 0 else -potency * half / (x + half)
        f, g = f + effect["buy"] * -math.expm1(-total), g + effect["spend"] * -math.expm1(-total)
    for pattern in law.get("patterns", ()):
        if all(map(null, pattern["missing"])) and not any(map(null, pattern["present"])):
            f, g = f + pattern["buy"], g + pattern["spend"]
    for name, column, on_f, on_g in law.get("slopes", ()):
        if null(column):
            f, g = f + on_f * z[name], g + on_g * z[name]
    for column, total_name, on_f, on_g in law.get("own_shares", ()):
        own, entries = _statistic(row, column, "own", now), row[column]
        if own is not None:
            part = own / sum(value for _, value in entries) * z[total_name]
            f, g = f + on_f * part, g + on_g * part
    return f, g


def _p_and_oracle(row: dict[str, Any], law: dict[str, Any], start: datetime) -> tuple[float, float]:
    """P(payer) and E[log1p(revenue)] of one row of raw columns, from law.json."""
    effects = {what: {c: t.get(row[c], 0.0) for c, t in law["effects"][what].items()} for what in ("buy", "spend")}
    z: dict[str, float] = {}
    for s in law["signals"]:
        x = _statistic(row, s["column"], s["statistic"], start.timestamp())
        x = math.log1p(x) if x is not None and s["transform"] == "log1p" else x
        z[s["name"]] = 0.0 if x is None else max(-law["clip"], min(law["clip"], (x - s["centre"]) / s["scale"]))
    calendar, day = law["calendar"], date(start.year, start.month, start.day)
    f = sum(effects["buy"].values()) + sum(s["buy"] * z[s["name"]] for s in law["signals"])
    f += calendar["hour"] * math.sin(2 * math.pi * (start.hour - 14) / 24) + calendar["weekend"] * (day.weekday() >= 5)
    f += calendar["day"] * math.sin(2 * math.pi * day.toordinal() / 17)
    f += sum(weight for group, weight in law["presence"].items() if row[group] is not None)
    g = sum(effects["spend"].values()) + sum(s["spend"] * z[s["name"]] for s in law["signals"])
    z |= {column: effects["buy"][column] / scale for column, scale in law["effect_scale"].items()}
    for left, right, on_f, on_g in law["interactions"]:
        product = max(-4.0, min(4.0, z[left] * z[right]))
        f, g = f + on_f * product, g + on_g * product
    for conditions, on_f, on_g in law["rules"]:
        if all(above < z[name] <= up_to for name, above, up_to in conditions):
            f, g = f + on_f, g + on_g
    more_f, more_g = _unforeseen_terms(row, law, z, start.timestamp())
    f, g = f + more_f, g + more_g
    c = law["calibration"]
    p = 1 / (1 + math.exp(-(c["intercept"] + c["slope"] * f)))
    return p, p * c["ticket"] * math.exp(max(-0.8, min(0.8, g)))


@pytest.mark.parametrize("law", LAWS)
def test_truth_is_a_function_of_the_raw_columns(law: str, tmp_path: Path) -> None:
    simulate(tmp_path, train_days=1, test_days=0, rows_per_hour=100, seed=5, law=law)  # type: ignore[arg-type]
    constants = json.loads((tmp_path / "truth" / "law.json").read_text())
    truth = pd.read_parquet(tmp_path / "truth" / "train.parquet").set_index("row_id")
    for path in files(tmp_path, "train")[::5]:
        start = datetime.strptime(path.parent.name, "datetime=%Y-%m-%d-%H-00").replace(tzinfo=UTC)
        rows = pq.ParquetFile(path).read().to_pylist()
        expected = np.array([_p_and_oracle(row, constants, start) for row in rows])
        found = truth.loc[[row["row_id"] for row in rows], ["p", "oracle_log"]].to_numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_command_knows_every_law() -> None:
    """The command line lists the laws itself, because the simulator takes long to import."""
    (option,) = (option for option in commands.simulate.params if option.name == "law")
    assert isinstance(option.type, click.Choice) and tuple(option.type.choices) == LAWS


def test_foreign_files_are_refused(root: Path) -> None:
    with pytest.raises(DataError, match="another simulation"):
        simulate(root, **{**SMALL, "seed": 9})
    with pytest.raises(DataError, match="2025-10-02"):
        simulate(root, **{**SMALL, "train_days": 1, "test_days": 0})


def test_interrupted_simulation_leaves_only_whole_files_and_can_be_resumed(root: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 72
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path, **SMALL, progress=stop)
    assert len(files(tmp_path, "train")) == 30
    assert not list(tmp_path.rglob("*.tmp")) and not (tmp_path / "truth" / "train.parquet").exists()
    simulate(tmp_path, **SMALL)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        assert (tmp_path / path.relative_to(root)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"law": "cubic"}, "law"),
        ({"seed": -1}, "seed"),
        ({"rows_per_hour": 0}, "rows_per_hour"),
        ({"first_day": "1.10.2025"}, "first_day"),
        ({"train_days": 0}, "train_days"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())


def test_families_name_every_co_missing_group_once() -> None:
    rates = [BY_NAME[name].missing_rate for name in FAMILIES]
    assert len(set(rates)) == len(rates)
    behaviour = {c.missing_rate for c in INPUTS if c.group != "context"}
    assert behaviour == set(rates)


def test_oracle_figures_follow_their_definition() -> None:
    truth = pd.DataFrame({"revenue": np.expm1([0.0, 0.0, 1.0, 3.0]), "oracle_log": [0.0, 0.5, 1.0, 2.0]})
    found = oracle_metrics(truth)
    assert found["rmsle_zero"] == pytest.approx(math.sqrt(10 / 4))
    assert found["msle_constant"] == pytest.approx(10 / 4 - 1)
    assert found["msle_oracle"] == pytest.approx((0.25 + 1) / 4)
    assert (found["rows"], found["payer_rate"]) == (4, 0.5)
    assert attained_share(1.5, 1.5, 0.5) == 0 and attained_share(1.5, 0.5, 0.5) == 1
    with pytest.raises(ValueError, match="not below"):
        attained_share(0.2, 0.2, 0.2)
