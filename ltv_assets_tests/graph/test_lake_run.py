"""A machine with an empty disk continues from the lake where another one stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ltv_assets.core.asset_specs import SHARED_ASSETS
from ltv_assets.storage.object_store import Lake
from ltv_assets.storage.warehouse import Warehouse
from ltv_assets_tests.graph.conftest import Ran


def partitions(root: Path) -> dict[str, bytes]:
    warehouse = Warehouse(root)
    folders = [warehouse.folder(asset, key) for asset in SHARED_ASSETS for key in warehouse.keys(asset)]
    return {p.relative_to(root).as_posix(): p.read_bytes() for folder in folders for p in folder.rglob("*") if p.is_file()}


def test_empty_machine_finds_everything_fresh(ran: Ran, tmp_path: Path) -> None:
    lake = Lake(f"file://{tmp_path}/lake")
    lake.push_all(Warehouse(ran.warehouse))
    config = tmp_path / "config.yaml"
    config.write_text(ran.config.read_text() + f"\nwarehouse: {{lake: '{lake.url}'}}\n")
    done = ran.ltv("run", LTV_WAREHOUSE=str(tmp_path / "warehouse"), LTV_CONFIG=str(config))
    assert done.exit_code == 0, done.stderr
    assert "everything is fresh" in done.stderr
    assert partitions(tmp_path / "warehouse") == partitions(ran.warehouse)
    assert (tmp_path / "warehouse" / "champion.json").read_bytes() == (ran.warehouse / "champion.json").read_bytes()


def test_run_sends_what_it_made(copied: Callable[[], Ran], tmp_path: Path) -> None:
    """The lake lacks the submission; a run that finds it in the warehouse brings it there."""
    lake = Lake(f"file://{tmp_path}/lake")
    run = copied()
    source = Warehouse(run.warehouse)
    [key] = source.keys("submission")
    for asset in SHARED_ASSETS[:2]:
        for day in source.keys(asset):
            lake.push(source, asset, day)
    assert ("submission", key) not in lake.partitions()
    config = tmp_path / "config.yaml"
    config.write_text(run.config.read_text() + f"\nwarehouse: {{lake: '{lake.url}'}}\n")
    done = run.ltv("run", LTV_CONFIG=str(config))
    assert done.exit_code == 0, done.stderr
    assert {("submission", key), ("served_model", source.keys("served_model")[0])} <= set(lake.partitions())
