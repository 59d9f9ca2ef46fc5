"""A table unlike the contest's goes through the whole graph by its contract alone: files, windows, scores, submission."""

from __future__ import annotations

import csv
import html
import json
import re
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ltv_assets.core.config import load_config
from ltv_assets.core.contract import contract_of, load_contract
from ltv_assets.dashboard.app import Dashboard
from ltv_assets.dashboard.pages import PAGES, Links
from ltv_assets.features.registry import load_registry
from ltv_assets.features.rows import RowFlattener
from ltv_assets.modeling.evaluation.segments import metrics_of
from ltv_assets.modeling.model_store import read_served
from ltv_assets.scoring.online import OnlineModel
from ltv_assets.storage.warehouse import Warehouse
from ltv_assets_tests.conftest import TINY_MODELS, Ran, command, environment, made_once
from ltv_assets_tests.foreign.contracts import CONTRACTS
from ltv_assets_tests.foreign.tables import shop

SCORES = ["buyer_probability", "log_revenue_if_buyer", "ltv_d30", "expected_revenue_d30", "ltv_d90", "predicted_zero", "revenue_d30"]


@pytest.fixture(scope="session")
def shopped(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """`ltv run` on customers of a shop: daily folders in one root, horizons of 30 and 90 days."""

    def make(folder: Path) -> None:
        shop(folder / "data", train_days=3, test_days=1, rows=400)
        text, features, _ = CONTRACTS["shop"]
        (folder / "contract.yaml").write_text(text)
        (folder / "features.yaml").write_text(features)
        places = f"contract: {folder}/contract.yaml\nfeatures: {folder}/features.yaml\n"
        settings = "data: {train_folder: ., test_folder: .}\nchecks: {rmsle_max: 5, min_rows_per_day: 1, zero_rate_tolerance: 0.2}\n"
        (folder / "config.yaml").write_text(places + settings + TINY_MODELS)
        done = command("ltv", "run", env=environment(folder / "data", folder / "warehouse", LTV_CONFIG=str(folder / "config.yaml")))
        (folder / "told.json").write_text(json.dumps([done.stdout + done.stderr, done.returncode]))

    folder = made_once(tmp_path_factory, "shopped", make)
    output, exit_code = json.loads((folder / "told.json").read_text())
    return Ran(folder / "data", folder / "warehouse", folder / "config.yaml", output, exit_code)


def test_run_reaches_a_submission_in_the_names_of_the_contract(shopped: Ran) -> None:
    assert shopped.exit_code == 0, shopped.output[-3000:]
    assert "RMSLE of ltv_d30 (ungated)" in shopped.output
    files = sorted((shopped.data / "date=2024-03-04").glob("*.parquet"))
    wanted = {
        str(name) for f in files for name in pq.read_table(f, columns=["customer_ref"], partitioning=None)["customer_ref"].to_pylist()
    }
    for name in ("submission.csv", "submission_ungated.csv"):
        with next((shopped.warehouse / "submissions").glob(f"*/{name}")).open() as handle:
            header, *rows = csv.reader(handle)
        assert header == ["customer_ref", "revenue_d30"]
        assert {row[0] for row in rows} == wanted
        assert len(rows) == len(wanted)


def test_relations_have_the_horizons_of_the_contract_in_order(shopped: Ran) -> None:
    with duckdb.connect(str(shopped.warehouse / "ltv.duckdb"), read_only=True) as catalogue:
        described = catalogue.execute("DESCRIBE predictions").fetchall()
        falls = catalogue.execute("SELECT count(*), count(*) FILTER (ltv_d30 > ltv_d90) FROM predictions").fetchone()
        metrics = {name for (name,) in catalogue.execute("SELECT DISTINCT metric FROM holdout_metrics").fetchall()}
        segments = {name for (name,) in catalogue.execute("SELECT DISTINCT segment FROM holdout_metrics").fetchall()}
        labels = catalogue.execute("SELECT count(revenue_d30), count(revenue_d90) FROM flattened_features").fetchone()
    assert [column[0] for column in described] == ["row_id", "day", *SCORES]
    assert falls == (400, 0)
    assert {"rmsle_d90", "bias_ratio_ltv_d30", "horizon_violations"} <= metrics
    assert not metrics & {"rmsle_d14", "rmsle_d28", "bias_ratio_ltv_d7"}
    assert {name.partition("=")[0] for name in segments} <= {"all", "country", "channel", "cold_channel"}
    assert labels == (1200, 1200)


def test_a_second_run_finds_everything_fresh(shopped: Ran) -> None:
    done = command("ltv", "run", env=shopped.environment())
    assert done.returncode == 0, done.stderr[-2000:]
    assert "everything is fresh" in done.stderr


def test_folder_and_single_row_are_scored_as_the_graph_scores_them(shopped: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ltv predict` on one day's folder, and one customer as a server has it, against the published predictions."""
    out = tmp_path / "scores.parquet"
    done = command("ltv", "predict", "--in", str(shopped.data / "date=2024-03-04"), "--out", str(out), env=shopped.environment())
    assert done.returncode == 0, done.stderr[-2000:]
    published = pd.concat([pd.read_parquet(f) for f in Warehouse(shopped.warehouse).files("predictions", "2024-03-04")])
    published = published.set_index("row_id")
    pd.testing.assert_frame_equal(pd.read_parquet(out).set_index("row_id").loc[published.index], published)

    monkeypatch.setenv("LTV_WAREHOUSE", str(shopped.warehouse))
    config = load_config(shopped.config)
    contract = contract_of(config)
    model = OnlineModel(
        read_served(Warehouse(shopped.warehouse), "2024-03-03"), RowFlattener(load_registry(config.features, contract)), contract
    )
    row = pq.read_table(next((shopped.data / "date=2024-03-04").glob("*.parquet")), partitioning=None).slice(7, 1).to_pylist()[0]
    row["newsletter"] = int(row["newsletter"])  # a request says numbers as numbers
    answer = model.answer({**row, "datetime": "2024-03-04"})
    assert answer["error"] is None
    assert answer["row_id"] == row["customer_ref"]
    for name in SCORES:
        assert answer[name] == pytest.approx(published.loc[row["customer_ref"], name], rel=1e-9), name
    assert "datetime" in str(model.answer(row)["error"])


def test_dashboard_compares_windows_by_the_horizons_of_the_contract(shopped: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages of the finished run: figures of the horizons 30 and 90, and no word of any other."""
    for name, value in (("LTV_WAREHOUSE", shopped.warehouse), ("LTV_CONFIG", shopped.config), ("LTV_DATA_ROOT", shopped.data)):
        monkeypatch.setenv(name, str(value))
    dashboard = Dashboard(Links("", ""))
    pages = {name: dashboard.page(name, {}) for name in PAGES}
    assert not {name for name, text in pages.items() if re.search(r"[Ss]even days|\b7 days|\bD7\b|_d7\b", text)}
    later = metrics_of(load_contract(shopped.config.with_name("contract.yaml")).scores)["rmsle_d90"]
    assert later.description.replace("`", "") in html.unescape(pages["compare"])
