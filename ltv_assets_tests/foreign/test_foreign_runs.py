"""From a folder of parquet files nobody declared to a checked submission, a report and a served row, without one edit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from ltv_assets.cli.app import main
from ltv_assets_tests.conftest import TINY_MODELS, command, environment, made_once
from ltv_assets_tests.foreign.tables import FOREIGN, Foreign, read

ROWS = 1500
COMMANDS = ("init", "check-data", "run", "predict")

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Done:
    """A foreign table, its warehouse, and what each command printed."""

    table: Foreign
    config: Path
    warehouse: Path
    said: dict[str, tuple[int, str, str]]

    def environment(self) -> dict[str, str]:
        return environment(None, self.warehouse, LTV_CONFIG=str(self.config / "config.yaml"))

    def predictions(self) -> pd.DataFrame:
        with duckdb.connect(str(self.warehouse / "ltv.duckdb"), read_only=True) as connection:
            return connection.execute("SELECT * FROM predictions ORDER BY row_id").fetch_df()


def unlabelled(table: Foreign, folder: Path) -> Path:
    """A folder in the table's own layout with its unlabelled rows only."""
    day = table.test_days[0]
    if table.root.name == "game":
        folder.mkdir()
        for path in table.root.glob("*.parquet"):
            rows = pq.read_table(path)
            pq.write_table(rows.filter(rows["rev1"].is_null()), folder / path.name)
        return folder
    source = table.root / "test" if (table.root / "test").is_dir() else table.root
    for path in source.glob(f"*{day}"):
        shutil.copytree(path, folder / path.name)
    return folder


IN_CI = ("shop",)
"""The whole runs of the others are soak; every row of theirs is read and checked in CI."""


@pytest.fixture(scope="module", params=[pytest.param(name, marks=() if name in IN_CI else pytest.mark.soak) for name in FOREIGN])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Done:
    name = request.param

    def make(folder: Path) -> None:
        table = FOREIGN[name](folder / name, rows=ROWS)
        env = environment(None, folder / "warehouse", LTV_CONFIG=str(folder / "config" / "config.yaml"))
        words = {
            "init": ("--data", str(table.root), "--out", str(folder / "config")),
            "check-data": (str(table.root),),
            "run": (),
            "predict": ("--in", str(unlabelled(table, folder / "new")), "--out", str(folder / "scores.parquet")),
        }
        said = {}
        for verb in COMMANDS:
            ended = command("ltv", verb, *words[verb], env=env)
            said[verb] = (ended.returncode, ended.stdout, ended.stderr)
        (folder / "said.json").write_text(json.dumps(said))

    folder = made_once(tmp_path_factory, f"foreign-{name}", make)
    said = {verb: tuple(told) for verb, told in json.loads((folder / "said.json").read_text()).items()}
    return Done(FOREIGN[name](folder / "again" / name, rows=ROWS), folder / "config", folder / "warehouse", said)


def test_every_command_ends_well_without_an_edit(done: Done) -> None:
    for verb, (code, out, err) in done.said.items():
        assert code == 0, f"ltv {verb}: {out[-2000:]}{err[-3000:]}"
    assert done.table.leak in done.said["init"][1]


def test_columns_of_predictions_follow_the_horizons(done: Done) -> None:
    found = done.predictions()
    horizons = list(done.table.labels)
    wanted = [*(f"ltv_d{h}" for h in horizons), *(f"expected_revenue_d{h}" for h in horizons[:1])]
    assert set(wanted) <= set(found.columns)
    assert not any(f"ltv_d{h}" in found.columns for h in {1, 3, 7, 14, 28, 30, 90, 365} - set(horizons))
    for shorter, longer in pairwise(horizons):
        assert (found[f"ltv_d{shorter}"] <= found[f"ltv_d{longer}"]).all()
    assert sorted(found["row_id"]) == sorted(done.table.truth[done.table.identifier].to_pylist())


def test_ltv_is_no_worse_than_one_lightgbm_beyond_noise(done: Done) -> None:
    """On rows whose revenue nobody saw: the difference of squared log errors is no more than two standard errors above 0."""
    import lightgbm as lgb

    table, found = done.table, done.predictions()
    rows = read(table).to_pandas()
    target = next(iter(table.labels.values()))
    rows = rows.drop(columns=[c for c in (*table.labels.values(), table.leak, "is_payer", "converted") if c != target and c in rows])
    ids, revenue = rows.pop(table.identifier), rows.pop(target)
    X = pd.DataFrame(
        {
            n: c
            if pd.api.types.is_numeric_dtype(c)
            else c.str.len()
            if n in ("session_minutes", "ad_views", "levels_done")
            else pd.factorize(c)[0]
            for n, c in rows.items()
        }
    )
    known = revenue.notna()
    model = lgb.LGBMRegressor(n_estimators=100, learning_rate=0.05, num_leaves=15, random_state=0, n_jobs=2, verbose=-1)
    model.fit(X[known], np.log1p(revenue[known]))
    reference = pd.Series(model.predict(X[~known]), index=ids[~known])
    truth = table.truth.to_pandas().set_index(table.identifier)["revenue"]
    ours = np.log1p(found.set_index("row_id")[f"ltv_d{next(iter(table.labels))}"].loc[truth.index])
    difference = (ours - np.log1p(truth)) ** 2 - (reference.loc[truth.index] - np.log1p(truth)) ** 2
    constant = (np.log1p(revenue[known]).mean() - np.log1p(truth)) ** 2
    assert difference.mean() < 2 * difference.std() / np.sqrt(len(difference))
    assert ((ours - np.log1p(truth)) ** 2).mean() < constant.mean()


def test_predict_without_the_graph_gives_the_graphs_scores(done: Done) -> None:
    alone = pd.read_parquet(done.config.parent / "scores.parquet").sort_values("row_id", ignore_index=True)
    score = f"ltv_d{next(iter(done.table.labels))}"
    np.testing.assert_array_equal(alone[score].to_numpy(), done.predictions()[score].to_numpy())


def test_report_names_the_tables_own_columns_and_horizons(done: Done) -> None:
    [report] = (done.warehouse / "reports").glob("window=*/report.html")
    text = report.read_text()
    shortest, target = next(iter(done.table.labels.items()))
    assert f"ltv_d{shortest}" in text and target in text and done.table.features[0] in text
    assert not [
        name for name in ("iap_revenue_d7", "advertiser", *(f"ltv_d{h}" for h in (7, 14, 28) if h not in done.table.labels)) if name in text
    ]


def test_submission_has_every_unlabelled_row_under_the_targets_name(done: Done) -> None:
    [path] = (done.warehouse / "submissions").glob("*/submission.csv")
    header, *lines = path.read_text().splitlines()
    assert header == f"{done.table.identifier},{next(iter(done.table.labels.values()))}"
    assert len(lines) == len(done.table.truth)


def test_a_served_row_has_the_score_of_the_batch(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    from ltv_assets.features.rows import RowFlattener
    from ltv_assets.modeling.model_store import read_served
    from ltv_assets.scoring.online import OnlineModel
    from ltv_assets.state.project import Project

    for name in ("LTV_CONFIG", "LTV_WAREHOUSE"):
        monkeypatch.setenv(name, done.environment()[name])
    project = Project.open()
    champion = project.lineage().champion()
    assert champion is not None
    model = OnlineModel(read_served(project.warehouse, champion.window), RowFlattener(project.registry), project.contract)
    rows = read(done.table).to_pandas()
    new = rows[rows[done.table.identifier].isin(done.table.truth[done.table.identifier].to_pylist())].head(20)
    if project.contract.time.layout is not None:
        new = new.assign(datetime=f"{done.table.test_days[0]}-00-00")
    answer = model.predict(new.astype(object).where(new.notna(), None))
    assert answer["error"].isna().all(), answer["error"].dropna().iloc[0]
    score = f"ltv_d{next(iter(done.table.labels))}"
    batch = done.predictions().set_index("row_id")[score]
    np.testing.assert_allclose(answer[score].astype(float), batch.loc[answer["row_id"].astype(str)].to_numpy(), rtol=1e-9)


@pytest.mark.parametrize("name", [name for name in FOREIGN if name not in IN_CI])
def test_every_row_of_a_table_that_nobody_declared_is_read(name: str, place: Callable[..., Path], tmp_path: Path) -> None:
    """`ltv init` and `ltv check-data`, without the run after them."""
    table = FOREIGN[name](tmp_path / name, rows=300)
    place()
    runner, config = CliRunner(), tmp_path / "config"
    proposed = runner.invoke(main, ["init", "--data", str(table.root), "--out", str(config)], catch_exceptions=False)
    assert proposed.exit_code == 0 and table.leak in proposed.output, proposed.output
    named = {"LTV_CONFIG": str(config / "config.yaml")}
    checked = runner.invoke(main, ["check-data", str(table.root)], env=named, catch_exceptions=False)
    assert checked.exit_code == 0, checked.output
    rows = 300 * len((*table.train_days, *table.test_days))
    assert f"{rows:,}" in checked.output or str(rows) in checked.output, checked.output


@pytest.mark.parametrize("done", ["shop"], indirect=True)
def test_the_leak_as_a_feature_keeps_the_window_from_being_used_and_is_named(done: Done, tmp_path: Path) -> None:
    """What somebody gets who does not heed the proposal: the leak declared as a feature, asked for, and everything run."""
    shutil.copytree(done.config, tmp_path / "config")
    contract = tmp_path / "config" / "contract.yaml"
    tree = yaml.safe_load(contract.read_text())
    tree["labels"].pop("others")
    column = next(c for c in tree["columns"] if c["name"] == done.table.leak)
    column["role"] = "feature"
    contract.write_text(yaml.safe_dump(tree, sort_keys=False))
    features = tmp_path / "config" / "features.yaml"
    registry = yaml.safe_load(features.read_text())
    registry["groups"]["leaked"] = {"enabled": True, "description": "x", "columns": {done.table.leak: ["value"]}}
    features.write_text(yaml.safe_dump(registry, sort_keys=False))
    config = tmp_path / "config" / "config.yaml"
    config.write_text(config.read_text().replace(str(done.config), str(tmp_path / "config")) + TINY_MODELS)
    ended = command("ltv", "run", env=environment(None, tmp_path / "warehouse", LTV_CONFIG=str(config)))
    assert ended.returncode == 1
    assert f"check no_leak of buyer_classifier failed: window {done.table.train_days[-1]}: leak: {done.table.leak} (" in ended.stderr
    assert not list((tmp_path / "warehouse").glob("submissions/*/submission.csv"))


@pytest.mark.parametrize("done", ["shop"], indirect=True)
def test_wrong_edit_of_the_contract_is_one_message(done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that were proposed are read by the same loader as anybody's: file, line, key, remedy."""
    shutil.copytree(done.config, tmp_path / "config")
    contract = tmp_path / "config" / "contract.yaml"
    contract.write_text(contract.read_text().replace("identifier: ", "identifer: ", 1))
    config = tmp_path / "config" / "config.yaml"
    config.write_text(config.read_text().replace(str(done.config), str(tmp_path / "config")))
    ended = command("ltv", "check-data", str(done.table.root), env=environment(None, tmp_path / "warehouse", LTV_CONFIG=str(config)))
    assert ended.returncode == 2
    assert re.search(r"contract\.yaml:[0-9]+: identifer: unknown key; did you mean identifier\?", ended.stderr), ended.stderr
