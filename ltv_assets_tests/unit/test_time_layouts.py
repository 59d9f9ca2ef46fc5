"""Folders of any layout, or none at all: every row comes to its day, and nothing is lost on the way."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltv_assets.core.config import Config
from ltv_assets.core.contract import contract_of
from ltv_assets.core.errors import DataError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.features.flatten import RawFile, flatten_files
from ltv_assets.features.flatten import sources as raw_sources
from ltv_assets.features.registry import load_registry
from ltv_assets.ingestion import inventory
from ltv_assets.ingestion.arrivals import landings
from ltv_assets.ingestion.calendar import discover, uncovered_hours
from ltv_assets.ingestion.inventory import HashCache, inspect_day, unknown_entries
from ltv_assets.scoring.predict_files import inspect_source
from ltv_assets.state.freshness import hash_cache_path
from ltv_assets.storage.files import sha256_file
from ltv_assets.storage.warehouse import Warehouse
from ltv_assets_tests.foreign.contracts import CONTRACTS
from ltv_assets_tests.foreign.tables import FIRST_DAY, FOREIGN, Foreign, read

DAYS = [FIRST_DAY + timedelta(days=i) for i in range(3)]


def opened(root: Path, name: str, *, contract: str | None = None, **data: object) -> Config:
    """A configuration of a foreign table, in files beside it."""
    text, features, folder = CONTRACTS[name]
    (root / "contract.yaml").write_text(contract or text)
    (root / "features.yaml").write_text(features)
    (root / "warehouse").mkdir(exist_ok=True)
    shared = {"train_folder": folder, "test_folder": folder} if folder else {}
    said = {"root": str(root / "data"), **shared, **data}
    files = {"contract": str(root / "contract.yaml"), "features": str(root / "features.yaml")}
    return Config.model_validate({**files, "data": said, "warehouse": {"root": str(root / "warehouse")}})


def flattened(config: Config, day: date, out: Path) -> tuple[pa.Table, object]:
    """The rows of a day as the graph flattens them, and the accounting."""
    inventory = inspect_day(config, discover(config), day)
    result = flatten_files(
        [RawFile(config.data.root / f.path, f.datetime) for f in inventory.good],
        registry=load_registry(config.features, contract_of(config)),
        labelled=inventory.split == "train",
        out=out,
    )
    assert result.rows_in == inventory.rows
    return pq.read_table(out, partitioning=None), result


@pytest.mark.parametrize("name", FOREIGN)
def test_each_day_has_its_rows_and_a_day_without_labels_is_to_be_scored(name: str, tmp_path: Path) -> None:
    table = FOREIGN[name](tmp_path / "data", train_days=2, test_days=1, rows=300)
    config = opened(tmp_path, name)
    horizon = discover(config)
    assert (horizon.train_days, horizon.test_days) == (table.train_days, table.test_days)
    assert uncovered_hours(config, horizon) == unknown_entries(config, "train") == ()
    seen: set[str] = set()
    for day in DAYS:
        rows, result = flattened(config, day, tmp_path / "day.parquet")
        assert (rows.num_rows, result.rows_quarantined) == (300, {})
        assert {key[:10] for key in rows["datetime"].cast(pa.string()).to_pylist()} == {str(day)}
        seen |= set(rows["row_id"].to_pylist())
        for label in table.labels.values():
            assert rows[label].null_count == (0 if day in table.train_days else 300)
    assert seen == set(read(table, [table.identifier])[table.identifier].to_pylist())


def test_rows_of_files_without_folders_have_their_own_hour(tmp_path: Path) -> None:
    """Files of three days: each row is read once, under the hour it says, and days are counted back from that hour."""
    table = FOREIGN["game"](tmp_path / "data", train_days=2, test_days=1, rows=300)
    config = opened(tmp_path, "game")
    raw = read(table, ["install_id", "installed_at", "account_created_at"]).to_pylist()
    truth = {row["install_id"]: row for row in raw}
    for day in DAYS:
        rows, _ = flattened(config, day, tmp_path / "day.parquet")
        for row in rows.select(["row_id", "datetime", "created__days_ago"]).to_pylist():
            said = truth[row["row_id"]]
            hour = said["installed_at"].replace(minute=0, second=0, microsecond=0)
            assert row["datetime"] == hour.strftime("%Y-%m-%d-%H-00")
            ago = (hour.timestamp() - said["account_created_at"]) / 86_400
            assert row["created__days_ago"] == (pytest.approx(ago, rel=1e-5) if ago >= 0 else None)


def test_days_count_from_their_start_where_folders_have_no_hour(tmp_path: Path) -> None:
    table = FOREIGN["shop"](tmp_path / "data", train_days=1, test_days=1, rows=200)
    rows, _ = flattened(opened(tmp_path, "shop"), FIRST_DAY, tmp_path / "day.parquet")
    signed_up = dict(zip(*read(table, ["customer_ref", "signed_up"]).to_pydict().values(), strict=True))
    for row in rows.select(["row_id", "datetime", "signed_up__days_ago"]).to_pylist():
        assert row["datetime"] == f"{FIRST_DAY}-00-00"
        assert row["signed_up__days_ago"] == (FIRST_DAY - date.fromisoformat(signed_up[row["row_id"]])).days


def test_day_of_a_file_in_small_row_groups_is_the_same_as_of_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FOREIGN["game"](tmp_path / "data", train_days=2, test_days=1, rows=300)
    config = opened(tmp_path, "game")
    whole, _ = flattened(config, DAYS[1], tmp_path / "whole.parquet")
    for path in (tmp_path / "data").glob("*.parquet"):
        pq.write_table(pq.read_table(path), path, row_group_size=37)
    monkeypatch.setattr("ltv_assets.features.flatten.files.BLOCK_ROWS", 50)
    assert any(len(raw_sources.divided_by_row_groups([source], 50)) > 1 for source in sources(config, DAYS[1]))
    parts, _ = flattened(config, DAYS[1], tmp_path / "parts.parquet")
    assert parts.equals(whole)


def sources(config: Config, day: date) -> list[raw_sources.Source]:
    inventory = inspect_day(config, discover(config), day)
    return [
        raw_sources.inspect_file(RawFile(config.data.root / f.path, f.datetime), inventory.split == "train", contract_of(config))
        for f in inventory.good
    ]


def test_rows_without_a_moment_are_set_aside_with_their_place_in_the_file(tmp_path: Path) -> None:
    table = FOREIGN["game"](tmp_path / "data", train_days=2, test_days=1, rows=200)
    path = tmp_path / "data" / "installs-0.parquet"
    rows = pq.read_table(path)
    lost = {3, rows.num_rows - 1}
    moments = pa.array([None if i in lost else m for i, m in enumerate(rows["installed_at"].to_pylist())], pa.timestamp("us", "UTC"))
    pq.write_table(
        rows.set_column(rows.column_names.index("installed_at"), "installed_at", pa.array(moments, pa.timestamp("us", "UTC"))), path
    )
    config = opened(tmp_path, "game")
    results = [flattened(config, day, tmp_path / "day.parquet") for day in DAYS]
    assert [result.rows_quarantined for _, result in results] == [{"installed_at missing": 2}, {}, {}]
    aside = results[0][1].quarantine.to_pylist()
    assert {(row["file"], row["row_number"]) for row in aside} == {(str(path), place) for place in lost}
    assert sum(result.rows_in for _, result in results) == 600
    assert table.train_days == tuple(DAYS[:2])


FORMS: dict[str, Callable[[datetime], object]] = {
    "text": lambda m: m.strftime("%Y-%m-%d %H:%M:%S"),
    "text with an offset": lambda m: m.isoformat(),
    "unix seconds": lambda m: int(m.timestamp()),
    "seconds as a double": lambda m: m.timestamp(),
    "local timestamps of milliseconds": lambda m: m.replace(tzinfo=None, microsecond=0),
}


@pytest.mark.parametrize("form", FORMS)
def test_moments_are_read_in_any_form(form: str, tmp_path: Path) -> None:
    FOREIGN["game"](tmp_path / "data", train_days=1, test_days=1, rows=60)
    expected, _ = flattened(opened(tmp_path, "game"), FIRST_DAY, tmp_path / "expected.parquet")
    for path in (tmp_path / "data").glob("*.parquet"):
        rows = pq.read_table(path)
        moments = pa.array([FORMS[form](m) for m in rows["installed_at"].to_pylist()])
        pq.write_table(rows.set_column(rows.column_names.index("installed_at"), "installed_at", moments), path)
    found, _ = flattened(opened(tmp_path, "game"), FIRST_DAY, tmp_path / "found.parquet")
    assert found.equals(expected)


def test_a_file_whose_moments_are_milliseconds_is_named_with_the_remedy(tmp_path: Path) -> None:
    FOREIGN["game"](tmp_path / "data", train_days=2, test_days=1, rows=60)
    path = tmp_path / "data" / "installs-1.parquet"
    rows = pq.read_table(path)
    milliseconds = pa.array([int(m.timestamp() * 1000) for m in rows["installed_at"].to_pylist()])
    pq.write_table(rows.set_column(rows.column_names.index("installed_at"), "installed_at", milliseconds), path)
    (message,) = unknown_entries(opened(tmp_path, "game"), "train")
    assert message.startswith(f"{path}: column installed_at: expected moments between 2000 and 2199")
    assert "deliver seconds, not milliseconds" in message


def test_files_say_their_days_once_and_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FOREIGN["game"](tmp_path / "data", train_days=2, test_days=1, rows=60)
    config = opened(tmp_path, "game")
    expected = discover(config)
    from ltv_assets.ingestion import raw_days

    opens: list[Path] = []
    real = raw_days.hours_of_rows
    monkeypatch.setattr(raw_days, "hours_of_rows", lambda path, contract: (opens.append(path), real(path, contract))[1])
    monkeypatch.setattr(raw_days.Memory, "_open", {})  # as another process, which knows only what is stored
    assert discover(config) == expected
    assert opens == []
    changed = tmp_path / "data" / "installs-2.parquet"
    pq.write_table(pq.read_table(changed).slice(1), changed)
    discover(config)
    assert opens == [changed]


def test_days_of_a_shared_root_land_and_change_like_others(tmp_path: Path) -> None:
    FOREIGN["shop"](tmp_path / "data", train_days=2, test_days=1, rows=60)
    config = opened(tmp_path, "shop")
    before = landings(config, discover(config))
    assert [(landing.day, landing.split, landing.hours) for landing in before] == [
        (DAYS[0], "train", 1),
        (DAYS[1], "train", 1),
        (DAYS[2], "test", 1),
    ]
    assert all(landing.waiting_for(config, landing.changed_at + 3600) is None for landing in before)
    shutil.copy(tmp_path / f"data/date={DAYS[1]}/part-0.parquet", tmp_path / f"data/date={DAYS[1]}/part-1.parquet")
    after = landings(config, discover(config))
    assert [a.fingerprint == b.fingerprint for a, b in zip(after, before, strict=True)] == [True, False, True]


def test_labels_of_a_shared_root_may_be_empty_instead_of_absent(tmp_path: Path) -> None:
    FOREIGN["shop"](tmp_path / "data", train_days=2, test_days=1, rows=60)
    path = tmp_path / f"data/date={DAYS[2]}/part-0.parquet"
    rows = pq.read_table(path, partitioning=None)
    for empty in (pa.nulls(60), pa.nulls(60, pa.float64()), pa.array(np.full(60, np.nan))):
        pq.write_table(rows.append_column("revenue_d30", empty), path)
        assert discover(opened(tmp_path, "shop")).test_days == (DAYS[2],)
    pq.write_table(rows.append_column("revenue_d30", pa.array([0.0, *[None] * 59])), path)
    assert discover(opened(tmp_path, "shop")).test_days == ()


def test_folders_of_another_pattern_are_named_with_the_one_that_is_expected(tmp_path: Path) -> None:
    FOREIGN["shop"](tmp_path / "data", train_days=1, test_days=1, rows=20)
    text = CONTRACTS["shop"][0].replace("date=%Y-%m-%d", "dt=%Y%m%d")
    config = opened(tmp_path, "shop", contract=text)
    assert unknown_entries(config, "train") == tuple(
        f"{tmp_path}/data/date={day}: not a folder of a day; expected a name such as dt=20251001" for day in DAYS[:2]
    )


def source_rows(table: Foreign, name: str, tmp_path: Path, below: str) -> int:
    days, _ = inspect_source(table.root / below, contract_of(opened(tmp_path, name)))
    return sum(day.rows for day in days)


@pytest.mark.parametrize(
    ("name", "below", "rows"),
    [
        ("shop", "", 120),
        ("shop", f"date={FIRST_DAY}", 60),
        ("shop", f"date={FIRST_DAY}/part-0.parquet", 60),
        ("subscriptions", "", 120),
        ("subscriptions", f"train/dt={FIRST_DAY}", 60),
        ("game", "", 120),
    ],
)
def test_a_folder_to_be_scored_may_be_any_part_of_the_tree(name: str, below: str, rows: int, tmp_path: Path) -> None:
    table = FOREIGN[name](tmp_path / "data", train_days=1, test_days=1, rows=60)
    assert source_rows(table, name, tmp_path, below) == rows


def test_a_file_outside_the_layout_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    table = FOREIGN["shop"](tmp_path / "data", train_days=1, test_days=1, rows=20)
    lone = shutil.copy(table.root / f"date={FIRST_DAY}" / "part-0.parquet", tmp_path / "lone.parquet")
    with pytest.raises(DataError, match=r"expected a file in a folder such as date=2025-10-01, found it in"):
        inspect_source(Path(lone), contract_of(opened(tmp_path, "shop")))


def test_hours_below_days_are_hours(tmp_path: Path) -> None:
    FOREIGN["subscriptions"](tmp_path / "data", train_days=1, test_days=1, rows=40)
    config = opened(tmp_path, "subscriptions")
    inventory = inspect_day(config, discover(config), FIRST_DAY)
    assert {f.datetime for f in inventory.files} == {f"{FIRST_DAY}-06-00", f"{FIRST_DAY}-18-00"}
    assert len(inventory.missing_hours) == 22
    assert datetime(2024, 3, 1, tzinfo=UTC).date() == FIRST_DAY


@pytest.mark.parametrize("processes", ["one process", "one for each day"])
def test_file_with_rows_of_many_days_is_hashed_once(processes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every day looks at every file; within a process and from one to the next a hash is kept as long as its file is the same."""
    FOREIGN["game"](tmp_path / "data", train_days=2, test_days=1, rows=300)
    config = opened(tmp_path, "game")
    horizon, contract = discover(config), contract_of(config)
    warehouse = Warehouse(tmp_path / "warehouse")
    hashed: list[Path] = []
    monkeypatch.setattr(inventory, "sha256_file", lambda path: hashed.append(path) or sha256_file(path))

    def look() -> int:
        seen = 0
        for day in DAYS:
            if processes == "one for each day":
                inventory._digest.cache_clear()
            seen += len(inspect_day(config, horizon, day, HashCache.load(hash_cache_path(warehouse, PartitionKey(day), contract))).files)
        return seen

    files = sorted((tmp_path / "data").rglob("*.parquet"))
    assert look() > len(files) == len(hashed) == len(set(hashed))
    assert look() and len(hashed) == len(files)
    os.utime(files[0], ns=(1, 1))
    assert look() and hashed[len(files) :] == files[:1]
    files[0].unlink()
    horizon = discover(config)
    os.utime(files[1], ns=(1, 1))
    look()
    stored = json.loads(hash_cache_path(warehouse, PartitionKey(DAYS[0]), contract).read_text())
    assert sorted(map(Path, stored)) == files[1:]
