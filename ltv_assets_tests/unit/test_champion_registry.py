"""The registry's alias follows the champion, and a registry that is down or wrong never stops a promotion."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from ltv_assets.core.config import Config
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.scoring import mlflow_model as registered
from ltv_assets.storage.champion import Champion
from ltv_assets.storage.warehouse import Warehouse
from ltv_assets.tracking.client import CHALLENGER_ALIAS, CHAMPION_ALIAS, Tracker

OLD, NEW = Champion(PartitionKey("2025-10-05"), "aaaa", "because"), Champion(PartitionKey("2025-10-06"), "bbbb", "because")


@pytest.fixture(autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where versions have their files. Real models are tested elsewhere; here a version only has to have a file."""
    root = tmp_path_factory.mktemp("models")

    def publish(client: object, run_id: str, config: Config, warehouse: Warehouse, window: str) -> str:
        (root / run_id / window).mkdir(parents=True)
        (root / run_id / window / "MLmodel").touch()
        return (root / run_id / window).as_uri()

    monkeypatch.setattr(registered, "publish", publish)
    return root


def test_alias_names_the_champion_and_goes_back_with_it(tmp_path: Path, models: Path) -> None:
    from mlflow.tracking import MlflowClient

    tracker = Tracker(Config(), Warehouse(tmp_path))
    client = MlflowClient(tracker.uri)
    for champion in (OLD, NEW, NEW, OLD):
        assert tracker.mirror_champion(champion) is None
        version = client.get_model_version_by_alias("ltv", CHAMPION_ALIAS)
        assert version.tags == {"window": champion.window, "fingerprint": champion.fingerprint}
        assert version.source == (models / version.run_id / champion.window).as_uri()
    assert len(client.search_model_versions("name = 'ltv'")) == 2, "a rollback makes no new version"


def test_model_card_goes_to_the_run_and_its_beginning_to_the_version(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    warehouse = Warehouse(tmp_path)
    tracker = Tracker(Config(), warehouse)
    client = MlflowClient(tracker.uri)
    path = warehouse.folder("model_card", NEW.window) / "model_card.md"
    path.parent.mkdir(parents=True)
    for why in ("because", "promoted by hand"):
        path.write_text(f"# Model card\n\nWhy: {why}\n\n## Intended use\n\n- bids\n")
        assert tracker.mirror_champion(NEW) is None
        version = client.get_model_version_by_alias("ltv", CHAMPION_ALIAS)
        assert version.description == f"# Model card\n\nWhy: {why}"
        stored = client.download_artifacts(version.run_id, "model_card.md", str(tmp_path))
        assert Path(stored).read_text() == path.read_text()
    assert len(client.search_model_versions("name = 'ltv'")) == 1, "another reason is no other model"


def test_challenger_is_the_newest_window_that_passed_but_did_not_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setattr("ltv_assets.tracking.client.eligible_windows", lambda warehouse: (OLD.window, NEW.window))
    monkeypatch.setattr(Warehouse, "fingerprint", lambda self, asset, key: NEW.fingerprint)
    tracker = Tracker(Config(), Warehouse(tmp_path))
    assert tracker.mirror_champion(OLD) is None
    client = MlflowClient(tracker.uri)
    named = client.get_registered_model("ltv").aliases
    assert {alias: client.get_model_version("ltv", v).tags["window"] for alias, v in named.items()} == {
        CHAMPION_ALIAS: OLD.window,
        CHALLENGER_ALIAS: NEW.window,
    }
    assert tracker.mirror_champion(NEW) is None
    assert set(client.get_registered_model("ltv").aliases) == {CHAMPION_ALIAS}, "the champion has no challenger that is older"


def test_registry_that_is_down_is_reported_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed, monkeypatch.context() as patch:
        closed.bind(("127.0.0.1", 0))
        patch.setattr(Tracker, "_client", lambda self: pytest.fail("MLflow's client would try again and again"))
        tracker = Tracker(Config(), Warehouse(tmp_path), uri=f"http://127.0.0.1:{closed.getsockname()[1]}")
        problem = tracker.mirror_champion(NEW)
    assert problem is not None and "run `ltv mlflow-sync`" in problem
    assert not (tmp_path / "tracking" / "champion.json").exists()
    assert Tracker(Config(), Warehouse(tmp_path)).mirror_champion(NEW) is None
    assert json.loads((tmp_path / "tracking" / "champion.json").read_text())["champion"] == [NEW.window, NEW.fingerprint]


def test_known_champion_costs_no_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(Config(), Warehouse(tmp_path))
    assert tracker.mirror_champion(NEW) is None
    monkeypatch.setattr(Tracker, "_client", lambda self: pytest.fail("asked the registry for what it knows"))
    assert tracker.mirror_champion(NEW) is None


def test_tracking_that_is_off_mirrors_nothing(tmp_path: Path) -> None:
    config = Config.model_validate({"tracking": {"enabled": False}})
    assert Tracker(config, Warehouse(tmp_path), uri="http://127.0.0.1:9").mirror_champion(NEW) is None
