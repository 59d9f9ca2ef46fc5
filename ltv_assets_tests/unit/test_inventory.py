"""The inventory sets broken files aside with a reason each, and keeps the rest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltv_assets.cli.check_data import check_folder
from ltv_assets.core.config import Config
from ltv_assets.ingestion.calendar import Horizon, discover
from ltv_assets.ingestion.inventory import HashCache, files_problem, inspect_day
from ltv_assets_tests.foreign.contracts import CONTRACTS
from ltv_assets_tests.foreign.tables import FOREIGN

DAY = date(2025, 10, 1)


@pytest.fixture
def data(tmp_path: Path, simulated_small: Path) -> Path:
    """Hours 0 to 3 of one real-looking day, free to be damaged."""
    for hour in range(4):
        name = f"datetime=2025-10-01-{hour:02d}-00"
        shutil.copytree(simulated_small / "train" / name, tmp_path / "data" / "train" / name)
    return tmp_path / "data"


def inspect(data: Path, **changes: object):
    config = Config()
    config = config.model_copy(update={"data": config.data.model_copy(update={"root": data, **changes})})
    horizon: Horizon = discover(config)
    return inspect_day(config, horizon, DAY)


def part(data: Path, hour: int) -> Path:
    return next((data / "train" / f"datetime=2025-10-01-{hour:02d}-00").glob("*.parquet"))


def spliced(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(b"PAR1" + data[-len(data) // 4 :])


def test_footer_of_other_bytes_is_set_aside(data: Path) -> None:
    spliced(part(data, 2))
    (bad,) = inspect(data).quarantined
    assert "lies beyond the data" in (bad.reason or "") or "not a readable parquet" in (bad.reason or "")


def test_same_part_twice_is_read_once(data: Path) -> None:
    shutil.copy(part(data, 1), part(data, 1).with_name("part-00001.copy.parquet"))
    inventory = inspect(data)
    assert len(inventory.good) == 4
    (bad,) = inventory.quarantined
    assert "same content as" in (bad.reason or "")


def test_markers_and_hidden_files_are_no_data(data: Path) -> None:
    folder = part(data, 0).parent
    for name in ("_SUCCESS", ".part.crc", "_metadata"):
        (folder / name).write_bytes(b"x")
    assert len(inspect(data).files) == 4


def test_missing_and_empty_hours_are_named(data: Path) -> None:
    part(data, 3).unlink()
    inventory = inspect(data)
    assert inventory.empty_hours == ("2025-10-01-03-00",)
    assert len(inventory.missing_hours) == 20
    assert any("20 of 24 hours are missing: 2025-10-01-04-00" in w for w in inventory.warnings)


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path, partitioning=None)), path)


def test_missing_label_rejects_and_missing_feature_degrades(data: Path) -> None:
    rewrite(part(data, 0), lambda t: t.drop_columns(["iap_revenue_d7"]))
    rewrite(part(data, 1), lambda t: t.drop_columns(["carrier"]).append_column("extra", pa.array([1] * t.num_rows)))
    inventory = inspect(data)
    assert len(inventory.schema_errors) == 1
    assert "required column iap_revenue_d7 is missing" in inventory.schema_errors[0].text
    assert "datetime=2025-10-01-00-00" in inventory.schema_errors[0].path
    assert inventory.columns_missing == ("carrier",)
    assert inventory.columns_unexpected == ("extra",)


@pytest.mark.parametrize(
    ("table", "column", "fatal"),
    [("shop", "device", False), ("subscriptions", "nps", False), ("subscriptions", "ltv_365", True), ("shop", "revenue_d30", False)],
)
def test_column_that_no_file_has_is_said_once_with_the_line_of_the_contract_and_the_remedy(
    table: str, column: str, fatal: bool, tmp_path: Path
) -> None:
    """A name misspelt in the contract, by ltv check-data over several days. Where labels tell days apart, none is a training day then."""
    FOREIGN[table](tmp_path / "data", train_days=2, test_days=1, rows=40)
    text, features, folder = CONTRACTS[table]
    contract = text.replace(f"{{name: {column},", f"{{name: {column}, source: {column}_EUR,")
    (tmp_path / "contract.yaml").write_text(contract)
    (tmp_path / "features.yaml").write_text(features)
    files = {name: str(tmp_path / f"{name}.yaml") for name in ("contract", "features")}
    shared = {"train_folder": folder, "test_folder": folder} if folder else {}
    config = Config.model_validate({**files, "data": {"root": str(tmp_path), **shared}})
    found = check_folder(config, tmp_path / "data", rows=False, progress=lambda done, total: None)
    (line,) = (number for number, text in enumerate(contract.splitlines(), 1) if f"{column}_EUR" in text)
    said, silent = (found.problems, found.warnings) if fatal else (found.warnings, found.problems)
    (told,) = (text for text in said if f"{column}_EUR" in text)
    assert f"{tmp_path}/contract.yaml:{line}: columns." in told and "correct its name or source there" in told
    assert not any(f"{column}_EUR" in text for text in silent)


def test_type_change_changes_the_schema_fingerprint_and_order_does_not(data: Path) -> None:
    before = [f.schema_fingerprint for f in inspect(data).files]
    rewrite(part(data, 0), lambda t: t.select(t.column_names[::-1]))
    rewrite(part(data, 1), lambda t: t.set_column(t.column_names.index("weekday"), "weekday", t["weekday"].cast(pa.float64())))
    after = [f.schema_fingerprint for f in inspect(data).files]
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert after[2:] == before[2:]


def test_partition_cap_takes_the_earliest_hours(data: Path) -> None:
    config = Config()
    inventory = inspect(data, train=replace_split(config, 2))
    assert [f.datetime[-5:-3] for f in inventory.files] == ["00", "01"]


def replace_split(config: Config, most: int) -> object:
    return config.data.train.model_copy(update={"max_partitions": most})


def test_hash_cache_notices_a_rewrite_and_survives_damage(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    cache = HashCache.load(tmp_path / "cache.json")
    first = cache.digest(file)
    cache.save()
    file.write_bytes(b"two!")
    assert HashCache.load(tmp_path / "cache.json").digest(file) != first
    (tmp_path / "cache.json").write_text("{broken")
    assert HashCache.load(tmp_path / "cache.json").digest(file) != first


def test_empty_file_list_is_refused(data: Path) -> None:
    inventory = replace(inspect(data), files=())
    assert "no readable file" in (files_problem(DAY, len(inventory.good), [], 0.5) or "")


def test_repair_that_keeps_the_size_is_seen(data: Path) -> None:
    """A damaged footer of the right length is known by its hash, so that mending it in place counts as a change."""
    whole = part(data, 0).read_bytes()
    part(data, 0).write_bytes(whole[:-8] + b"\0" * 8)
    broken = next(f for f in inspect(data).files if f.datetime.endswith("00-00"))
    part(data, 0).write_bytes(whole)
    mended = next(f for f in inspect(data).files if f.datetime.endswith("00-00"))
    assert (broken.verdict, mended.verdict) == ("quarantined", "good")
    assert broken.bytes == mended.bytes
    assert broken.sha256 is not None
    assert broken.sha256 != mended.sha256
