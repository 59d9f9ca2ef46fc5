"""A lake behind fsspec holds the old partition or the new one, whatever is interrupted, and gives back what it was given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner

from ltv_assets.cli.app import main
from ltv_assets.core.errors import ModelFileError, PermanentError, StaleError, TransientError
from ltv_assets.storage.object_store import Lake
from ltv_assets.storage.warehouse import Verdict, Warehouse

DAY = "2025-10-01"
ASSETS = (("flattened_features", DAY), ("buyer_classifier", DAY), ("submission", f"{DAY}_2025-10-02"))


@pytest.fixture(params=["memory", "disk"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    return Lake(f"memory://{tmp_path.name}/ltv" if request.param == "memory" else f"file://{tmp_path}/lake")


def publish(warehouse: Warehouse, asset: str, key: str, content: str = "one") -> None:
    def fill(folder: Path) -> dict[str, int | None]:
        (folder / "deep").mkdir()
        (folder / "rows.parquet").write_text(f"rows {content}")
        (folder / "deep" / "model.json").write_text(f"model {content}")
        return {"rows.parquet": 3, "deep/model.json": None}

    warehouse.write(asset, key, fill, code_version="1", config="c", inputs={})


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file() and ".staging" not in p.parts}


def objects(lake: Lake) -> set[str]:
    return set(lake._find(""))


@pytest.fixture
def here(tmp_path: Path) -> Warehouse:
    warehouse = Warehouse(tmp_path / "here")
    for asset, key in ASSETS:
        publish(warehouse, asset, key)
    for passed in (True,):
        warehouse.record_verdict(Verdict("buyer_classifier", DAY, "no_label_in_model", passed, True, "f", "b", "fine"))
    (warehouse.root / "champion.json").write_text("{}")
    (warehouse.root / "comparisons" / "a").mkdir(parents=True)
    (warehouse.root / "comparisons" / "a" / "b.json").write_text("{}")
    return warehouse


def test_what_is_pushed_is_pulled_elsewhere_byte_for_byte(lake: Lake, here: Warehouse, tmp_path: Path) -> None:
    assert lake.push_all(here) == len(ASSETS)
    assert lake.partitions() == sorted(ASSETS)
    there = Warehouse(tmp_path / "there")
    assert lake.pull_all(there) == len(ASSETS)
    assert tree(there.root) == tree(here.root)
    assert there.files("flattened_features", DAY)[0].read_text() == "rows one"


def test_second_push_and_pull_move_nothing(lake: Lake, here: Warehouse, tmp_path: Path) -> None:
    lake.push_all(here)
    before = {name: lake.fs.cat_file(f"{lake.root}/{name}") for name in objects(lake)}
    assert lake.push_all(here) == 0
    assert {name: lake.fs.cat_file(f"{lake.root}/{name}") for name in objects(lake)} == before
    assert lake.pull_all(here) == 0


@pytest.mark.parametrize("until", [0, 1, 2])
def test_push_that_is_cut_off_leaves_the_old_partition(
    lake: Lake, here: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: int
) -> None:
    """Cut off before the first file, between the files, and between the last file and the manifest."""
    lake.push(here, *ASSETS[0])
    publish(here, *ASSETS[0], content="two")
    sent, commit = 0, lake._commit

    def send(*arguments: Any) -> None:
        nonlocal sent
        if sent == until:
            raise ConnectionError("cable pulled")
        sent += 1
        Lake._send(lake, *arguments)

    def commit_nothing(*arguments: Any) -> None:
        raise ConnectionError("cable pulled")

    monkeypatch.setattr(lake, "_send", send)
    monkeypatch.setattr(lake, "_commit", commit_nothing if until == 2 else commit)
    with pytest.raises(TransientError, match="cable pulled; nothing was published, try again"):
        lake.push(here, *ASSETS[0])
    there = Warehouse(tmp_path / "there")
    lake.pull(there, *ASSETS[0])
    assert there.files("flattened_features", DAY)[0].read_text() == "rows one"
    monkeypatch.undo()
    assert lake.push(here, *ASSETS[0])
    lake.pull(there, *ASSETS[0])
    assert there.files("flattened_features", DAY)[0].read_text() == "rows two"
    assert tree(there.folder(*ASSETS[0])) == tree(here.folder(*ASSETS[0]))


def test_reader_of_the_manifest_before_finds_its_files_and_older_ones_are_deleted(lake: Lake, here: Warehouse) -> None:
    counts = []
    for content in ("one", "two", "three", "four"):
        publish(here, *ASSETS[0], content=content)
        lake.push(here, *ASSETS[0])
        counts.append(len(objects(lake)))
    assert counts == [3, 5, 5, 5]  # a manifest, two files of this generation, two of the one before


def test_file_that_was_torn_in_the_lake_is_not_published(lake: Lake, here: Warehouse, tmp_path: Path) -> None:
    lake.push(here, *ASSETS[0])
    [name] = [n for n in objects(lake) if n.endswith(".parquet")]
    lake.fs.pipe_file(f"{lake.root}/{name}", b"rows xxx")
    there = Warehouse(tmp_path / "there")
    with pytest.raises(ModelFileError, match=r"rows-.*parquet"):
        lake.pull(there, *ASSETS[0])
    assert there.keys("flattened_features") == ()
    assert list((there.root / ".staging").glob("*")) == []


def test_damaged_partition_is_not_sent(lake: Lake, here: Warehouse) -> None:
    here.files("flattened_features", DAY)[0].write_text("rows xxx")
    told: list[str] = []
    assert lake.push_all(here, told.append) == len(ASSETS) - 1
    assert any("flattened_features 2025-10-01 is left out" in line for line in told)
    assert not [n for n in objects(lake) if n.startswith("lake/")]


@pytest.mark.parametrize("name", ["../../escaped", "/escaped"])
def test_manifest_from_outside_cannot_leave_the_partition(lake: Lake, here: Warehouse, tmp_path: Path, name: str) -> None:
    lake.push(here, *ASSETS[0])
    manifest = f"{lake.root}/lake/flattened_features/day={DAY}/manifest.json"
    content = json.loads(lake.fs.cat_file(manifest))
    content["files"][0]["name"] = name
    lake.fs.pipe_file(manifest, json.dumps(content).encode())
    with pytest.raises(ModelFileError, match="leaves the partition's folder"):
        lake.pull(Warehouse(tmp_path / "there"), *ASSETS[0])


def test_partition_that_is_not_there_names_the_remedy(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(StaleError, match=r"not in the lake .*; run `ltv lake push` where it was made"):
        lake.pull(Warehouse(tmp_path / "there"), *ASSETS[0])


def test_unknown_kind_of_url_is_one_line() -> None:
    with pytest.raises(PermanentError, match="nosuch://x: not a URL that fsspec knows"):
        Lake("nosuch://x")


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(url: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(PermanentError, match="s3://bucket/ltv: Install s3fs to access S3"):
        Lake("s3://bucket/ltv")


def test_commands_send_and_fetch_what_the_configuration_says(here: Warehouse, tmp_path: Path, place: Callable[..., Path]) -> None:
    there = place(config=f"warehouse: {{lake: 'file://{tmp_path}/lake'}}\ndata: {{root: {tmp_path}}}\n")
    here.root.rename(there)
    sent = CliRunner().invoke(main, ["lake", "push"])
    assert (sent.exit_code, sent.stdout) == (0, f"3 partitions sent to file://{tmp_path}/lake\n")
    there.rename(tmp_path / "lost")
    fetched = CliRunner().invoke(main, ["lake", "pull"])
    assert (fetched.exit_code, fetched.stdout.splitlines()[-1]) == (0, f"3 partitions fetched from file://{tmp_path}/lake")
    assert Warehouse(there).keys("flattened_features") == (DAY,)


def test_commands_without_a_lake_name_the_key(place: Callable[..., Path]) -> None:
    place(config="seed: 0\n")
    for word in ("push", "pull"):
        answer = CliRunner().invoke(main, ["lake", word])
        assert answer.exit_code == 2
        assert "warehouse.lake is not set" in answer.output
