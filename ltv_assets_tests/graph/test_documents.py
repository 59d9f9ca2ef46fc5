"""What a run leaves for readers: the report of its window and the model card of its champion."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.modeling.evaluation.ablation import COLUMNS
from ltv_assets.storage.files import sha256_file
from ltv_assets_tests.graph.conftest import Ran

KEY = PartitionKey("2025-10-03")


def opened(run: Ran, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    from ltv_assets.state.project import Project

    for name in ("LTV_DATA_ROOT", "LTV_WAREHOUSE", "LTV_CONFIG"):
        monkeypatch.setenv(name, run.environment()[name])
    return Project.open()


def report_of(run: Ran) -> Path:
    return run.warehouse / "reports" / f"window={KEY}" / "report.html"


def card_of(run: Ran) -> Path:
    return run.warehouse / "champions" / f"window={KEY}" / "model_card.md"


@pytest.mark.parametrize("path", [report_of, card_of])
def test_document_is_listed_in_its_manifest_with_its_hash(ran: Ran, path: Callable[[Ran], Path]) -> None:
    file = path(ran)
    manifest = json.loads((file.parent / "manifest.json").read_text())
    assert {f["name"]: f["sha256"] for f in manifest["files"]}[file.name] == sha256_file(file)
    present = {p.name for p in file.parent.iterdir()} - {"manifest.json"}
    assert present == {f["name"] for f in manifest["files"]}
    assert f"report: {report_of(ran)}" in ran.output


def test_report_written_again_from_the_warehouse_has_the_same_bytes(copied: Callable[[], Ran]) -> None:
    run = copied()
    before = {p.name: p.read_bytes() for p in report_of(run).parent.iterdir()}
    report_of(run).unlink()
    (report_of(run).parent / "manifest.json").unlink()
    done = run.ltv("report")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == str(report_of(run))
    assert {p.name: p.read_bytes() for p in report_of(run).parent.iterdir()} == before


def test_next_run_writes_the_documents_a_killed_run_left_out(copied: Callable[[], Ran]) -> None:
    run = copied()
    before = {path: path(run).read_bytes() for path in (report_of, card_of)}
    for path in before:
        shutil.rmtree(path(run).parent)
    done = run.ltv("run")
    assert done.exit_code == 0, done.stderr
    assert "everything is fresh" in done.stderr
    assert {path: path(run).read_bytes() for path in before} == before


def test_ablation_joins_the_report_and_leaves_when_the_settings_change(copied: Callable[[], Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    from ltv_assets.reporting.report import store_ablation, write_report

    run = copied()
    assert f"ltv ablate --window {KEY}" in report_of(run).read_text()
    table = pd.DataFrame([dict.fromkeys(COLUMNS, 0.01) | {"variant": "no HistOS", "rmsle": 0.4321}])
    project = opened(run, monkeypatch)
    store_ablation(project, KEY, table)
    assert "0.4321" in report_of(run).read_text()
    assert {project.lineage().status("served_model", KEY).state, project.lineage().status("holdout_metrics", KEY).state} == {"fresh"}
    config = run.warehouse.parent / "other.yaml"
    config.write_text(run.config.read_text() + "\nseed: 1\n")
    write_report(opened(replace(run, config=config), monkeypatch), KEY)
    assert "0.4321" not in report_of(run).read_text()


def test_model_card_names_the_model_its_figures_its_checks_and_its_limits(ran: Ran) -> None:
    card, champion = card_of(ran).read_text(), json.loads((ran.warehouse / "champion.json").read_text())
    assert champion["window"] == KEY
    for words in (champion["fingerprint"], champion["why"], "simulated", "| RMSLE of ltv_d7 (ungated) |", "| `rmsle` | passed |"):
        assert words in card
    for heading in ("What it is", "Intended use", "Data", "Figures", "Calibration and gate", "Checks", "Limits", "With care"):
        assert f"## {heading}\n" in card


def test_promotion_by_hand_is_said_in_the_card(copied: Callable[[], Ran]) -> None:
    run = copied()
    assert run.ltv("promote", KEY).exit_code == 0
    assert "Why it is champion: promoted by hand." in card_of(run).read_text()


def test_asset_pages_link_report_and_card(ran: Ran) -> None:
    from dagster import AssetKey, DagsterInstance

    with DagsterInstance.from_config(str(ran.warehouse / "dagster")) as instance:
        found = {}
        for asset in ("holdout_metrics", "served_model"):
            event = instance.get_latest_materialization_event(AssetKey(asset))
            assert event is not None
            assert event.asset_materialization is not None
            found[asset] = event.asset_materialization.metadata
    assert found["holdout_metrics"]["report"].value == str(report_of(ran))
    assert found["served_model"]["model_card"].value == card_of(ran).read_text()


def test_report_is_an_artifact_of_the_window_in_mlflow(ran: Ran) -> None:
    stored = list((ran.warehouse / "mlartifacts").rglob("report.html"))
    assert [p.read_bytes() for p in stored] == [report_of(ran).read_bytes()]


def test_report_names_what_was_set_aside_and_which_day_did_not_train(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    from ltv_assets.reporting.document import to_html
    from ltv_assets.reporting.report import report_document
    from ltv_assets.reporting.window_facts import WindowFacts

    told = WindowFacts(opened(ran, monkeypatch), KEY)
    first, *others = told.days
    facts = {**first["facts"], "rows_quarantined": {"row_id is empty": 7}, "warnings": ["column cpm: 3 values are not numbers"]}
    changed = {**first, "facts": facts, "files_aside": [["train/datetime=2025-10-01-05-00/part-0.parquet", "zero bytes"]]}
    told.__dict__.update(days=(changed, *others), missing_days=("2025-09-30",))
    page = to_html(report_document(told, {})).decode()
    for words in (
        "2025-10-01: file <code>train/datetime=2025-10-01-05-00/part-0.parquet</code> set aside: zero bytes",
        "2025-10-01: 7 rows set aside: row_id is empty",
        "2025-10-01: column cpm: 3 values are not numbers",
        "2025-09-30: did not train",
    ):
        assert words in page
    assert "Nothing was set aside" not in page
