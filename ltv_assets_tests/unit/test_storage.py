"""The warehouse: old or new, never mixed; nothing believed without a hash."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltv_assets.core.errors import DataError, ModelFileError, StaleError, TransientError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.storage import files as storage_files
from ltv_assets.storage.files import file_lock, publish_folder, recover_folder, staging, sweep_staging, write_atomic
from ltv_assets.storage.manifest import MANIFEST_NAME
from ltv_assets.storage.warehouse import Verdict, Warehouse

KEY = "2025-10-01"


def fill_with(value: int):
    def fill(folder: Path) -> dict[str, int | None]:
        pq.write_table(pa.table({"x": [value] * 3}), folder / "part.parquet")
        (folder / "note.json").write_text(json.dumps(value))
        return {"part.parquet": 3, "note.json": None}

    return fill


def publish(warehouse: Warehouse, value: int, key: str = KEY):
    return warehouse.write("flattened_features", key, fill_with(value), code_version="1", config="c", inputs={"raw_partitions/x": "f"})


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_publishing_twice_leaves_identical_bytes(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    first = publish(warehouse, 1)
    before = tree(tmp_path / "lake")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "lake").rglob("*") if p.is_file()}
    assert publish(warehouse, 1) == first
    assert tree(tmp_path / "lake") == before
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "lake").rglob("*") if p.is_file()} == stamps


def test_new_content_replaces_every_file_of_the_old(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    old = publish(warehouse, 1)
    new = publish(warehouse, 2)
    assert new.fingerprint != old.fingerprint
    (path,) = warehouse.files("flattened_features", KEY)
    assert pq.read_table(path)["x"].to_pylist() == [2, 2, 2]
    assert {p.name for p in path.parent.iterdir()} == {MANIFEST_NAME, "note.json", path.name}
    assert not list((tmp_path / ".staging").iterdir())


def test_failed_fill_leaves_the_old_partition(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    publish(warehouse, 1)
    before = tree(tmp_path)

    def broken(folder: Path) -> dict[str, int | None]:
        (folder / "part.parquet").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        warehouse.write("flattened_features", KEY, broken, code_version="1", config="c", inputs={})
    assert tree(tmp_path) == before


def _write_until_killed(root: str, ready) -> None:
    warehouse = Warehouse(Path(root))
    value = 0
    while True:
        value += 1
        publish(warehouse, value % 7)
        ready.set()


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.011, 0.02, 0.031])
def test_killed_writer_leaves_a_whole_partition_and_no_orphan(tmp_path: Path, delay: float) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_write_until_killed, args=(str(tmp_path), ready))
    process.start()
    assert ready.wait(600)
    time.sleep(delay)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(600)
    warehouse = Warehouse(tmp_path)
    (path,) = warehouse.files("flattened_features", KEY)
    values = set(pq.read_table(path)["x"].to_pylist())
    assert values == {json.loads(warehouse.artifacts("flattened_features", KEY)["note.json"])}
    warehouse.sweep()
    assert not list((tmp_path / ".staging").iterdir())


def test_sweep_spares_the_living(tmp_path: Path) -> None:
    with staging(tmp_path, "alive") as folder:
        (folder / "x").write_text("1")
        assert sweep_staging(tmp_path) == []
        assert (folder / "x").exists()


def test_two_step_fallback_recovers_from_a_crash_in_its_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_files, "_exchange", lambda one, other: False)
    final = tmp_path / "final"
    for text in ("old", "new"):
        staged = tmp_path / f"staged-{text}"
        staged.mkdir()
        (staged / "f").write_text(text)
        publish_folder(staged, final)
    assert (final / "f").read_text() == "new"
    final.rename(storage_files.previous_of(final))
    recover_folder(final)
    assert (final / "f").read_text() == "new"


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_file_is_named_before_anybody_reads_it(tmp_path: Path, damage: str) -> None:
    warehouse = Warehouse(tmp_path)
    publish(warehouse, 1)
    (path,) = warehouse.files("flattened_features", KEY)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    elif damage == "truncate":
        path.write_bytes(bytes(data[:-3]))
    else:
        path.unlink()
    with pytest.raises(ModelFileError, match=f"{path.name}.*which makes flattened_features {KEY} again"):
        warehouse.files("flattened_features", KEY)
    publish(warehouse, 1)
    assert warehouse.files("flattened_features", KEY)


def test_foreign_manifest_is_refused(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    publish(warehouse, 1)
    (warehouse.folder("flattened_features", KEY) / MANIFEST_NAME).write_text("{}")
    with pytest.raises(ModelFileError, match="expected manifest version 1"):
        warehouse.manifest("flattened_features", KEY)


NO_KEYS = ["../x", "2025-10-01/../../x", "", "day", "2025-10-01_", "2025-10-01_..", "2025-10-1", "2025-13-45", "2025-10-01\n"]


@pytest.mark.parametrize("key", NO_KEYS)
def test_partition_key_cannot_leave_the_warehouse(key: str) -> None:
    with pytest.raises(DataError, match=r"partition key .* expected a day"):
        PartitionKey(key)


def test_partition_key_is_its_own_text_and_knows_its_day() -> None:
    day, submission = PartitionKey(date(2025, 10, 8)), PartitionKey("2025-10-07_2025-10-08")
    assert (day, day.day, submission.day) == ("2025-10-08", date(2025, 10, 8), date(2025, 10, 8))
    assert json.dumps({day: [submission]}) == '{"2025-10-08": ["2025-10-07_2025-10-08"]}'
    assert PartitionKey.among(["junk", submission, "2025-10-08"]) == (submission, day)


def test_verdict_counts_only_for_the_content_it_judged(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    manifest = publish(warehouse, 1)
    verdict = Verdict("flattened_features", KEY, "rows_reconciled", True, True, manifest.fingerprint, "b", "fine")
    warehouse.record_verdict(verdict)
    assert warehouse.verdicts("flattened_features", KEY) == (verdict,)
    publish(warehouse, 2)
    assert warehouse.verdicts("flattened_features", KEY) == ()


def test_absent_partition_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StaleError, match="materialize predictions for 2025-10-01 first"):
        Warehouse(tmp_path).files("predictions", KEY)


def test_atomic_write_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.json", b"1")
    write_atomic(tmp_path / "a.json", b"2")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == b"2"


def _hold(path: str, ready) -> None:
    with file_lock(Path(path), timeout_seconds=1, what="test"):
        ready.set()
        time.sleep(3600)


def test_lock_waits_a_bounded_time_and_dies_with_its_holder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path / "lock"), ready))
    process.start()
    assert ready.wait(600)
    with (
        pytest.raises(TransientError, match="the thing is held by another process"),
        file_lock(tmp_path / "lock", timeout_seconds=0.2, what="the thing"),
    ):
        pass
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(600)
    with file_lock(tmp_path / "lock", timeout_seconds=600, what="the thing"):
        pass
