"""A real ``mlflow models serve`` answers for the champion: the batch path's numbers, one answer for each row."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from ltv_assets.core.columns import INPUTS as COLUMNS
from ltv_assets.core.columns import SCORED_COLUMNS
from ltv_assets.core.config import load_config
from ltv_assets.core.errors import ModelFileError, StaleError
from ltv_assets.features.impressions import example_impression
from ltv_assets.scoring.mlflow_model import REQUIREMENTS, write_files
from ltv_assets.scoring.online import OnlineModel
from ltv_assets.storage.warehouse import Warehouse
from ltv_assets_tests.conftest import Ran
from ltv_assets_tests.live.harness import ANSWER_SECONDS, end_group, free_port, wait_for

pytestmark = pytest.mark.slow

NESTED = [column.name for column in COLUMNS if column.is_nested]


@dataclass
class Server:
    """A running scoring server and the registered model it serves."""

    port: int
    folder: Path

    def post(self, body: dict[str, Any]) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        with contextlib.closing(connection):
            connection.request("POST", "/invocations", json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def predictions(self, body: dict[str, Any]) -> pd.DataFrame:
        status, answer = self.post(body)
        assert status == 200, answer
        return pd.DataFrame(answer["predictions"])


@pytest.fixture(scope="module")
def server(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    assert ran.exit_code == 0, ran.output
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{ran.warehouse / 'mlflow.db'}"
    source = MlflowClient(uri).get_model_version_by_alias("ltv", "champion").source
    port, log = free_port(), tmp_path_factory.mktemp("serving") / "server.log"
    words = ["models", "serve", "-m", "models:/ltv@champion", "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    environment = ran.environment() | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    with log.open("wb") as out:
        started = subprocess.Popen(
            [str(Path(sys.executable).parent / "mlflow"), *words],
            env=environment,
            cwd=log.parent,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def answering() -> bool:
        assert started.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=ANSWER_SECONDS).close()
        except OSError:
            return False
        return True

    try:
        wait_for("the scoring server", answering)
        yield Server(port, Path(str(source).removeprefix("file://")))
    finally:
        end_group(started)


@pytest.fixture(scope="module")
def impressions(ran: Ran) -> list[dict[str, Any]]:
    """A thousand impressions of a simulated day without labels, as a caller would write them."""
    rows: list[dict[str, Any]] = []
    for path in sorted((ran.data / "test").rglob("*.parquet")):
        hour = path.parent.name.removeprefix("datetime=")
        rows += [{**row, "datetime": hour} for row in pq.ParquetFile(path).read().to_pylist(maps_as_pydicts="strict")]
    assert len(rows) >= 1000
    chosen = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:1000]]
    loaded: list[dict[str, Any]] = json.loads(json.dumps(chosen))
    return loaded


def batch(ran: Ran, impressions: list[dict[str, Any]]) -> pd.DataFrame:
    """What the graph stored for the same rows."""
    (folder,) = (ran.warehouse / "lake" / "predictions").glob("day=*")
    table = pd.concat([pq.read_table(path).to_pandas() for path in folder.glob("*.parquet")])
    return table.set_index("row_id").loc[[row["row_id"] for row in impressions]].reset_index()


def agree(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert found["error"].isna().all(), found["error"].dropna().iloc[0]
    assert list(found["row_id"]) == list(expected["row_id"])
    for name in SCORED_COLUMNS:
        np.testing.assert_allclose(found[name].astype(float), expected[name].astype(float), rtol=1e-6, atol=0, err_msg=name)


def test_thousand_rows_get_the_numbers_of_the_batch(server: Server, ran: Ran, impressions: list[dict[str, Any]]) -> None:
    expected = batch(ran, impressions)
    assert expected["ltv_d7"].nunique() > 500, "the rows differ"
    agree(server.predictions({"dataframe_records": impressions}), expected)


def test_every_json_form_gets_the_same_numbers(server: Server, ran: Ran, impressions: list[dict[str, Any]]) -> None:
    def pairs(value: Any) -> Any:
        return [[k, pairs(v)] for k, v in value.items()] if isinstance(value, dict) else value

    def entries(value: Any) -> Any:
        return [{"key": k, "value": entries(v)} for k, v in value.items()] if isinstance(value, dict) else value

    def text(value: Any) -> Any:
        return None if value is None else json.dumps(value)

    forms = (pairs, entries, text)
    rows = [{**row, **{name: forms[i % 3](row[name]) for name in NESTED}} for i, row in enumerate(impressions[:300])]
    expected = batch(ran, impressions[:300])
    agree(server.predictions({"dataframe_records": rows}), expected)
    columns = list(rows[0])
    agree(server.predictions({"dataframe_split": {"columns": columns, "data": [[row[c] for c in columns] for row in rows]}}), expected)


def test_single_rows_get_the_numbers_of_the_batch(server: Server, ran: Ran, impressions: list[dict[str, Any]]) -> None:
    """How fast they are answered is measured by ``benchmarks/serving.py``."""
    answers = [server.predictions({"dataframe_records": [row]}) for row in impressions[:40]]
    agree(pd.concat(answers, ignore_index=True), batch(ran, impressions[:40]))


def test_malformed_rows_get_an_error_and_their_neighbours_a_score(server: Server, ran: Ran, impressions: list[dict[str, Any]]) -> None:
    rows = impressions[:5]
    broken = [rows[0], {**rows[1], "bcat": 5}, rows[2], {**rows[3], "datetime": "noon"}, {**rows[4], "cpm": {"some.app": "dear"}}]
    found = server.predictions({"dataframe_records": broken})
    assert list(found["row_id"]) == [row["row_id"] for row in rows]
    assert list(found["error"].isna()) == [True, False, True, False, False]
    wrong = {1: ("column bcat", "a number 5"), 3: ("column datetime", 'text "noon"'), 4: ("column cpm, key 'some.app'", 'text "dear"')}
    for row, (where, what) in wrong.items():
        message = found["error"][row]
        assert message.startswith(f"row {row}, {where}: expected ") and message.endswith(f", found {what}")
        assert found.loc[row, list(SCORED_COLUMNS)].isna().all()
    agree(found.iloc[[0, 2]].reset_index(drop=True), batch(ran, [rows[0], rows[2]]))


def test_request_without_any_usable_row_is_refused_or_answered_but_never_crashes(server: Server) -> None:
    status, answer = server.post({"dataframe_records": [{"country": "us"}]})
    assert status == 200 and "column datetime: expected" in answer["predictions"][0]["error"]
    for body in ({"dataframe_records": [{"colour": 1}]}, {"dataframe_records": [5]}, {"dataframe_records": []}, {"rows": []}):
        assert server.post(body)[0] == 400, body


def test_simultaneous_requests_do_not_meet(server: Server, ran: Ran, impressions: list[dict[str, Any]]) -> None:
    parts = [impressions[start : start + 7] for start in range(0, 84, 7)]
    with ThreadPoolExecutor(6) as callers:
        answers = list(callers.map(lambda rows: server.predictions({"dataframe_records": rows}), parts))
    agree(pd.concat(answers, ignore_index=True), batch(ran, impressions[:84]))


def test_row_id_is_not_needed_and_may_repeat(server: Server, impressions: list[dict[str, Any]]) -> None:
    row = {k: v for k, v in impressions[0].items() if k != "row_id"}
    assert "row_id" not in server.predictions({"dataframe_records": [row]}).columns
    twice = server.predictions({"dataframe_records": [impressions[0], impressions[0]]})
    assert twice["ltv_d7"].nunique() == 1 and twice["error"].isna().all()


def test_registered_model_is_the_champion_without_a_pickle(server: Server, ran: Ran) -> None:
    champion = json.loads((ran.warehouse / "champion.json").read_bytes())
    listing = json.loads(next(server.folder.rglob("serving.json")).read_bytes())
    assert (listing["window"], listing["fingerprint"]) == (champion["window"], champion["fingerprint"])
    for path in (p for p in server.folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        assert path.suffix in (".txt", ".json", ".yaml", "") and not data.startswith(b"\x80"), path
        assert path.name != "MLmodel" or b"pickle" not in data
        data.decode()
    described = yaml.safe_load((server.folder / "MLmodel").read_text())
    assert described["flavors"]["python_function"]["loader_module"] == "ltv_assets.scoring.online"
    assert described["flavors"]["python_function"]["python_version"].startswith(f"{sys.version_info.major}.")
    inputs, outputs = (json.loads(described["signature"][side]) for side in ("inputs", "outputs"))
    assert {i["name"] for i in inputs} >= {"row_id", "datetime", *NESTED}
    assert [o["name"] for o in outputs] == ["row_id", *SCORED_COLUMNS, "error"]
    requirements = (server.folder / "requirements.txt").read_text().split()
    assert sorted(line.split("==")[0] for line in requirements) == sorted(REQUIREMENTS)


def test_logged_example_is_answered(server: Server) -> None:
    example = json.loads((server.folder / "serving_input_example.json").read_bytes())
    (answer,) = server.predictions(example).to_dict("records")
    assert answer["row_id"] == example_impression()["row_id"] and answer["error"] is None


def test_altered_model_is_refused(server: Server, tmp_path: Path) -> None:
    data = next(server.folder.rglob("serving.json")).parent
    copy = tmp_path / "model"
    shutil.copytree(data, copy)
    OnlineModel.load(copy)
    victim = next(copy.rglob("score_gate.json"))
    victim.write_bytes(victim.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(ModelFileError, match=r"score_gate\.json: sha256 .* register"):
        OnlineModel.load(copy)
    victim.unlink()
    with pytest.raises(ModelFileError, match="cannot be read"):
        OnlineModel.load(copy)


def test_model_is_not_registered_with_other_features_than_it_was_trained_on(ran: Ran, tmp_path: Path) -> None:
    config, window = load_config(ran.config), json.loads((ran.warehouse / "champion.json").read_bytes())["window"]
    write_files(config, Warehouse(ran.warehouse), window, tmp_path / "same")
    assert OnlineModel.load(tmp_path / "same")
    changed = tmp_path / "features.yaml"
    changed.write_text(config.features.read_text().replace("[100, 200, 400, 700, 1000]", "[100, 200, 400, 700, 900]"))
    with pytest.raises(StaleError, match=f"window {window} was trained on other features than .*`ltv run --window {window}`"):
        write_files(config.model_copy(update={"features": changed}), Warehouse(ran.warehouse), window, tmp_path / "other")
