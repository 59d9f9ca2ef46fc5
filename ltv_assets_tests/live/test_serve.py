"""A real ``ltv serve``: the batch's numbers, models exchanged under load, and what abuse of every kind gets."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest

from ltv_assets.core.check_specs import blocking_checks
from ltv_assets.core.columns import SCORED_COLUMNS
from ltv_assets.core.config import load_config
from ltv_assets.features.impressions import example_impression
from ltv_assets.modeling.model_store import OOF_FILE
from ltv_assets.modeling.stages import STAGE_NAMES
from ltv_assets.promotion.promotion import promote, rollback
from ltv_assets.scoring.online import FEW_ROWS, OnlineModel
from ltv_assets.scoring.window_model import read_model
from ltv_assets.state.project import Project
from ltv_assets.storage.champion import CHAMPION_FILE, read_champion
from ltv_assets.storage.warehouse import Verdict, Warehouse
from ltv_assets_tests.conftest import Ran
from ltv_assets_tests.live.harness import ANSWER_SECONDS, end_group, free_port, wait_for
from ltv_assets_tests.unit.test_one_row import awkward

pytestmark = pytest.mark.slow
BOUNDS = "serving: {max_body_mb: 8, max_rows: 1500, max_concurrent: 4, read_seconds: 2, poll_seconds: 0.2}\n"


@dataclass
class Served:
    """A running ``ltv serve``."""

    ran: Ran
    port: int
    log: Path
    process: subprocess.Popen[bytes]
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)) as connection:
            connection.request(method, path, body, {**self.headers, **headers})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def get(self, path: str) -> tuple[int, Any]:
        status, _, content = self.ask("GET", path)
        return status, json.loads(content)

    def post(self, value: Any) -> tuple[int, Any]:
        status, _, content = self.ask("POST", "/v1/score", value if isinstance(value, bytes) else json.dumps(value).encode())
        return status, json.loads(content)

    def scores(self, value: Any) -> Any:
        status, answer = self.post(value)
        assert status == 200, answer
        return answer

    def metric(self, name: str) -> float:
        lines = self.ask("GET", "/metrics")[2].decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            return self.ask("GET", "/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False


@contextlib.contextmanager
def serving(
    ran: Ran, folder: Path, *words: str, ready: bool = True, before: Callable[[], None] | None = None, **environment: str
) -> Iterator[Served]:
    """`ltv serve` for the warehouse of a run, bounded as ``BOUNDS`` says, until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "serving.yaml"
    config.write_text(ran.config.read_text() + BOUNDS)
    port, log = free_port(), folder / "server.log"
    command = [sys.executable, "-m", "ltv_assets.cli.app", "serve", "--port", str(port), *words]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env=ran.environment() | {"LTV_CONFIG": str(config)} | environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=before,
        )
    served = Served(ran, port, log, process)
    try:
        if ready:
            wait_for("a model to answer with", served.ready, every=0.2)
        yield served
    finally:
        end_group(process, seconds=60)


@pytest.fixture(scope="module")
def two(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The run's warehouse with a second eligible window: the model as it was before it learnt from its holdout day."""
    assert ran.exit_code == 0, ran.output
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(ran.warehouse, folder / "warehouse")
    warehouse = Warehouse(folder / "warehouse")
    champion = read_champion(warehouse)
    assert champion is not None
    other = earlier(champion.window)
    stages = {name: warehouse.artifacts(name, champion.window) for name in STAGE_NAMES}
    models = {f"{name}/{file}": data for name, files in stages.items() for file, data in files.items() if file != OOF_FILE}

    def write(asset: str, files: dict[str, bytes], inputs: dict[str, str]) -> str:
        def fill(target: Path) -> dict[str, int | None]:
            for name, data in files.items():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (target / name).write_bytes(data)
            return dict.fromkeys(files)

        return warehouse.write(asset, other, fill, code_version="1", config="c", inputs=inputs).fingerprint

    metrics = write("holdout_metrics", {"told.txt": b"nothing"}, {})
    for check in blocking_checks("holdout_metrics"):
        warehouse.record_verdict(Verdict("holdout_metrics", other, check, True, True, metrics, "b", ""))
    write("served_model", models, {f"holdout_metrics/{other}": metrics})
    return Ran(ran.data, folder / "warehouse", ran.config, ran.output, ran.exit_code)


def earlier(window: str) -> str:
    return str((pd.Timestamp(window) - pd.Timedelta(days=1)).date())


def project(ran: Ran) -> Project:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ran.environment().items():
            if name.startswith("LTV_"):
                patch.setenv(name, value)
        return Project.open()


@pytest.fixture(scope="module")
def impressions(ran: Ran) -> list[dict[str, Any]]:
    """Impressions of a simulated day, as a caller would write them."""
    rows: list[dict[str, Any]] = []
    for path in sorted((ran.data / "test").rglob("*.parquet")):
        hour = path.parent.name.removeprefix("datetime=")
        rows += [{**row, "datetime": hour} for row in pq.ParquetFile(path).read().to_pylist(maps_as_pydicts="strict")]
    loaded: list[dict[str, Any]] = json.loads(json.dumps([rows[i] for i in np.random.default_rng(0).permutation(len(rows))]))
    return loaded


@pytest.fixture(scope="module")
def server(two: Ran, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(two, tmp_path_factory.mktemp("serve")) as served:
        yield served


def agree(answers: list[dict[str, Any]], expected: pd.DataFrame, rtol: float = 1e-9) -> None:
    found = pd.DataFrame(answers)
    assert found["error"].isna().all(), found["error"].dropna().iloc[0]
    for name in SCORED_COLUMNS:
        np.testing.assert_allclose(found[name].astype(float), expected[name].astype(float), rtol=rtol, atol=0, err_msg=name)


def batch(ran: Ran, impressions: list[dict[str, Any]]) -> pd.DataFrame:
    """What the graph stored for the same rows."""
    (folder,) = (ran.warehouse / "lake" / "predictions").glob("day=*")
    table = pd.concat([pq.read_table(path).to_pandas() for path in folder.glob("*.parquet")])
    return table.set_index("row_id").loc[[row["row_id"] for row in impressions]].reset_index()


# -------------------------------------------------------------------------------------------------------------- numbers


def test_ten_thousand_impressions_alone_have_the_numbers_of_the_batch(ran: Ran, impressions: list[dict[str, Any]]) -> None:
    window = json.loads((ran.warehouse / CHAMPION_FILE).read_bytes())["window"]
    model = read_model(load_config(ran.config), Warehouse(ran.warehouse), window)
    rows = [*impressions, *awkward(10_000 - len(impressions), seed=11)]
    alone = [model.answer(row) for row in rows]
    together = model.answers(rows)
    assert len(alone) == len(together) == 10_000 and model.by_engine == 0
    assert sum(answer["error"] is not None for answer in alone) == 0
    agree(alone, pd.DataFrame(together))
    stored = batch(ran, impressions)
    agree(alone[: len(impressions)], stored)
    assert stored["ltv_d7"].nunique() > 500, "the rows differ"


def test_requests_of_every_size_get_the_numbers_of_the_batch_and_the_name_of_the_model(
    server: Served, impressions: list[dict[str, Any]]
) -> None:
    champion = read_champion(Warehouse(server.ran.warehouse))
    assert champion is not None
    expected = batch(server.ran, impressions)
    singles = [server.scores(row) for row in impressions[:40]]
    agree(singles, expected[:40])
    for count in (1, 5, FEW_ROWS, FEW_ROWS + 1, 1000):
        answers = server.scores(impressions[:count])
        agree(answers, expected[:count])
        assert [answer["row_id"] for answer in answers] == [row["row_id"] for row in impressions[:count]]
        assert {(answer["window"], answer["fingerprint"]) for answer in answers} == {(champion.window, champion.fingerprint)}


def test_requests_as_for_mlflow_are_answered(server: Served, impressions: list[dict[str, Any]]) -> None:
    rows = impressions[:3]
    columns = list(rows[0])
    expected = server.scores(rows)
    assert server.scores({"dataframe_records": rows}) == expected
    assert server.scores({"dataframe_split": {"columns": columns, "data": [[row[c] for c in columns] for row in rows]}}) == expected
    assert server.scores([]) == []


def test_malformed_rows_get_an_error_in_place(server: Served, impressions: list[dict[str, Any]]) -> None:
    rows = [impressions[0], {**impressions[1], "bcat": 5}, 7, {"country": "us"}, impressions[2]]
    answers = server.scores(rows)
    assert [answer["error"] is None for answer in answers] == [True, False, False, False, True]
    assert answers[1]["error"].startswith("row 1, column bcat: expected an object") and answers[1]["ltv_d7"] is None
    assert answers[2]["error"] == "row 2: expected an object with the columns of an impression, found int"
    assert "row 3, column datetime: expected" in answers[3]["error"]
    assert answers[0] == server.scores(impressions[0])


def test_documented_examples_are_answered(server: Served) -> None:
    described = server.get("/openapi.json")[1]
    examples = described["paths"]["/v1/score"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        answer = server.scores(example["value"])
        assert all(row["error"] is None for row in (answer if isinstance(answer, list) else [answer]))
    assert server.scores(example_impression())["row_id"] == "example"


# ----------------------------------------------------------------------------------------------------- exchange of models


class Load:
    """Callers that ask without a pause until they are stopped, and everything they were told."""

    def __init__(self, server: Served, rows: list[dict[str, Any]], callers: int = 2) -> None:
        self._server, self._rows, self._stop = server, rows, threading.Event()
        self.answers: list[tuple[int, dict[str, Any]]] = []
        self.failed: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(k,)) for k in range(callers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, turn: int) -> None:
        while not self._stop.is_set():
            turn += 1
            i = turn % len(self._rows)
            several = turn % 7 == 0
            asked = self._rows[i : i + 3] if several else self._rows[i]
            try:
                status, answer = self._server.post(asked)
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(repr(error))
                continue
            if status != 200:
                self.failed.append(f"{status}: {answer}")
            else:
                self.answers += zip(range(i, i + 3), answer, strict=False) if several else [(i, answer)]


def test_ten_promotions_and_rollbacks_under_load_lose_no_request_and_mix_no_model(
    server: Served, impressions: list[dict[str, Any]]
) -> None:
    rows, opened = impressions[:100], project(server.ran)
    warehouse = opened.warehouse
    windows = warehouse.keys("served_model")
    assert len(windows) == 2
    expected = {w: read_model(opened.config, warehouse, w).answers(rows) for w in windows}
    prints = {w: warehouse.fingerprint("served_model", w) for w in windows}
    promote(opened, windows[1])
    with Load(server, rows) as load:
        for turn in range(10):
            champion = promote(opened, windows[0]) if turn % 2 == 0 else rollback(opened)
            wait_for("the exchange", lambda: server.get("/v1/model")[1]["window"] == champion.window, every=0.05)  # noqa: B023
    assert load.failed == []
    assert {answer["window"] for _, answer in load.answers} == set(windows)
    for i, answer in load.answers:
        assert answer["fingerprint"] == prints[answer["window"]]
        for name in SCORED_COLUMNS:
            assert np.isclose(answer[name], expected[answer["window"]][i][name], rtol=1e-9, atol=0), (i, name, answer)
    first, second = (np.array([row["ltv_d7"] for row in expected[w]]) for w in windows)
    assert (np.abs(first - second) > 1e-6 * first).mean() > 0.9, "the models differ"
    assert server.metric("ltv_serve_swaps_total") >= 10


def test_damaged_champion_is_refused_and_the_old_one_answers(server: Served, impressions: list[dict[str, Any]]) -> None:
    opened = project(server.ran)
    other, present = opened.warehouse.keys("served_model")
    promote(opened, present)
    wait_for("the champion", lambda: server.get("/v1/model")[1]["window"] == present, every=0.1)
    victim = next((server.ran.warehouse / "models" / f"window={other}" / "served_model").rglob("score_gate.json"))
    whole = victim.read_bytes()
    victim.write_bytes(whole.replace(b"1", b"2", 1))
    promote(opened, other)
    wait_for("the refusal", lambda: server.get("/v1/model")[1]["problem"], every=0.1)
    told = server.get("/v1/model")[1]
    assert told["window"] == present and other in told["problem"] and "score_gate.json" in told["problem"]
    assert server.scores(impressions[0])["window"] == present
    assert server.get("/readyz") == (200, {"ready": True, "problem": told["problem"]})
    assert server.metric("ltv_serve_champion_mismatch") == 1
    victim.write_bytes(whole)
    wait_for("the mended champion", lambda: server.get("/v1/model")[1]["window"] == other, every=0.2)
    promote(opened, present)
    wait_for("the champion", lambda: server.get("/v1/model")[1] | {"loaded_at": ""}, every=0.1)


def test_record_that_names_another_content_or_nothing_readable_is_refused(
    two: Ran, impressions: list[dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copytree(two.warehouse, tmp_path / "warehouse")
    ran = Ran(two.data, tmp_path / "warehouse", two.config, "", 0)
    record = ran.warehouse / CHAMPION_FILE
    with serving(ran, tmp_path / "serve") as served:
        before = served.get("/v1/model")[1]
        for content in (json.dumps({**json.loads(record.read_bytes()), "fingerprint": "0" * 16}), "{torn"):
            record.write_text(content)
            wait_for("the refusal", lambda: served.get("/v1/model")[1]["problem"], every=0.1)
            assert served.scores(impressions[0])["fingerprint"] == before["fingerprint"]
        shutil.rmtree(ran.warehouse)
        wait_for("the missing warehouse", lambda: "no champion" in (served.get("/readyz")[1]["problem"] or ""), every=0.1)
        assert served.scores(impressions[:200])[0]["fingerprint"] == before["fingerprint"]


def test_server_without_a_champion_waits_for_one(two: Ran, impressions: list[dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(two.warehouse, tmp_path / "warehouse")
    ran = Ran(two.data, tmp_path / "warehouse", two.config, "", 0)
    record = ran.warehouse / CHAMPION_FILE
    record.rename(tmp_path / "kept")
    with serving(ran, tmp_path / "serve", ready=False) as served:
        wait_for("the server", lambda: served.ready() or "listening" in served.log.read_text(), every=0.2)
        wait_for("its first answer", lambda: _answers(served), every=0.2)
        assert served.get("/readyz")[0] == 503
        status, headers, content = served.ask("POST", "/v1/score", json.dumps(impressions[0]).encode())
        assert status == 503 and headers["retry-after"] and json.loads(content)["error"]["kind"] == "no_model"
        (tmp_path / "kept").rename(record)
        wait_for("the champion", served.ready, every=0.2)
        assert served.scores(impressions[0])["error"] is None


def _answers(served: Served) -> bool:
    with contextlib.suppress(OSError):
        return served.ask("GET", "/healthz")[0] == 200
    return False


# ---------------------------------------------------------------------------------------------------------------- abuse


def test_body_of_a_hundred_megabytes_is_refused_by_name(server: Served) -> None:
    status, _, content = server.ask("POST", "/v1/score", b" " * 100_000_000)
    assert (status, json.loads(content)["error"]["kind"]) == (413, "too_large")
    assert server.get("/healthz")[0] == 200


def test_caller_that_waits_to_be_asked_need_not_send_a_large_body(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=ANSWER_SECONDS) as caller:
        caller.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\nExpect: 100-continue\r\n\r\n")
        assert caller.recv(64).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"[" * 10_000 + b"]" * 10_000, 400, "bad_request"),
        (b'{"a":' * 10_000, 400, "bad_request"),
        (b"\xff\xfe", 400, "bad_request"),
        (b"", 400, "bad_request"),
        (b"5", 400, "bad_request"),
        (b'"text"', 400, "bad_request"),
        (b'{"dataframe_split": {"columns": ["a", "a"], "data": [[1, 2]]}}', 400, "bad_request"),
        (b'{"dataframe_records": {"a": 1}}', 400, "bad_request"),
        (b"[" + b"{}," * 1500 + b"{}]", 413, "too_many_rows"),
    ],
    ids=["brackets", "unclosed objects", "no text", "nothing", "a number", "a text", "a column twice", "no list", "too many rows"],
)
def test_what_is_no_request_is_refused_with_a_reason(server: Served, body: bytes, status: int, kind: str) -> None:
    found, answer = server.post(body)
    assert (found, answer["error"]["kind"]) == (status, kind) and answer["error"]["message"]


def test_odd_values_are_answered_in_place(server: Served, impressions: list[dict[str, Any]]) -> None:
    row = json.dumps(impressions[0])
    assert server.scores(row.replace("{", '{"release_msrp": NaN, "unknown": 1e999, ', 1).encode())["error"] is None
    assert (
        "column country" in server.scores(row.replace("{", '{"x": 1, ', 1).replace('"country": "', '"country": "\\ud800').encode())["error"]
    )
    nested = json.dumps({**impressions[0], "bcat": "[" * 10_000 + "]" * 10_000})
    assert "column bcat" in server.scores(nested.encode())["error"]


def test_slow_callers_lose_their_connection_and_nobody_elses(server: Served, impressions: list[dict[str, Any]]) -> None:
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=ANSWER_SECONDS)) for _ in range(30)]
        for caller in callers[:10]:
            caller.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nX-A")
        for caller in callers[10:20]:
            caller.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        for row in impressions[:20]:
            assert server.scores(row)["error"] is None
        for caller in callers[:10] + callers[20:]:
            assert caller.recv(1000) == b"", "closed without an answer"
        for caller in callers[10:20]:
            assert caller.recv(1000).startswith(b"HTTP/1.1 408")


def test_endless_head_is_cut_off(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=ANSWER_SECONDS) as caller, pytest.raises(OSError):
        caller.sendall(b"GET /healthz HTTP/1.1\r\n")
        for number in range(100_000):
            caller.sendall(b"X-%d: %s\r\n" % (number, b"a" * 1000))
    assert server.get("/healthz")[0] == 200


def test_more_at_once_than_allowed_is_told_to_come_again(server: Served, impressions: list[dict[str, Any]]) -> None:
    body = json.dumps(impressions[:300]).encode()
    with ThreadPoolExecutor(24) as callers:
        answers = list(callers.map(lambda _: server.ask("POST", "/v1/score", body), range(48)))
    refused = [headers for status, headers, _ in answers if status == 429]
    assert {status for status, _, _ in answers} == {200, 429}
    assert all(headers["retry-after"] == "1" for headers in refused)
    assert server.scores(impressions[0])["error"] is None
    assert server.metric("ltv_serve_errors_total") >= len(refused)


def test_nothing_of_a_request_is_in_the_log(server: Served, impressions: list[dict[str, Any]]) -> None:
    secret = "a-secret-of-the-caller"
    server.post({**impressions[0], "bcat": secret, "row_id": secret})
    server.post(f'{{"{secret}": '.encode())
    server.ask("GET", f"/{secret}?{secret}", **{"X-Secret": secret})
    server.ask("POST", "/v1/score", f'["{secret}"]'.encode())
    assert secret not in server.log.read_text()
    assert "serving window" in server.log.read_text()


def test_token_is_required_where_there_is_one(two: Ran, tmp_path: Path, impressions: list[dict[str, Any]]) -> None:
    with serving(two, tmp_path, LTV_SERVE_TOKEN="right") as served:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "right"}, {"Authorization": "Bearer right "[:-2]}):
            served.headers = headers
            assert served.post(impressions[0])[0] == 401
            assert served.ask("GET", "/v1/model")[0] == served.ask("GET", "/metrics")[0] == 401
            assert served.get("/healthz")[0] == served.get("/readyz")[0] == 200
        served.headers = {"Authorization": "Bearer right"}
        assert served.scores(impressions[0])["error"] is None
        assert "right" not in served.log.read_text()


def test_full_disk_stops_no_answer(two: Ran, tmp_path: Path, impressions: list[dict[str, Any]]) -> None:
    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    with serving(two, tmp_path, before=full) as served:
        assert served.log.read_bytes() == b"", "no file can be written"
        assert all(answer["error"] is None for answer in served.scores(impressions[:500]))
        assert served.scores(impressions[0])["error"] is None
        assert served.metric("ltv_serve_rows_total") == 501


# ------------------------------------------------------------------------------------------------------------ processes


def test_killed_worker_is_replaced_while_the_others_answer(two: Ran, tmp_path: Path, impressions: list[dict[str, Any]]) -> None:
    with serving(two, tmp_path, "--workers", "2") as served:
        parent = psutil.Process(served.process.pid)

        def workers() -> set[int]:
            found = set()
            for child in parent.children():
                with contextlib.suppress(psutil.Error):  # it ended meanwhile
                    found |= {child.pid} if "spawn_main" in " ".join(child.cmdline()) else set()
            return found

        wait_for("two workers", lambda: served.log.read_text().count("serving window") == 2)
        first = workers()
        assert len(first) == 2
        for row in impressions[:50]:
            assert served.scores(row)["error"] is None
        victim = first.pop()
        os.kill(victim, signal.SIGKILL)
        lost = 0
        for row in impressions[:50]:
            try:
                assert served.scores(row)["error"] is None
            except (OSError, http.client.HTTPException):  # a connection that the killed worker had taken
                lost += 1
        assert lost <= 10
        second = wait_for("the new worker", lambda: len(found := workers()) == 2 and victim not in found and found)
        assert first < second
        assert served.metric("ltv_serve_rows_total") >= 50 + 50 - lost, "counts of the killed worker remain"
        with ThreadPoolExecutor(8) as callers:
            assert all(answer["error"] is None for answer in callers.map(served.scores, impressions[:100]))


def test_stopped_server_finishes_what_it_began(two: Ran, tmp_path: Path, impressions: list[dict[str, Any]]) -> None:
    with serving(two, tmp_path) as served, ThreadPoolExecutor(2) as callers:
        answer = callers.submit(served.scores, impressions[:1000])
        wait_for("the request in flight", lambda: served.metric("ltv_serve_in_flight") >= 1 or answer.done(), every=0.01)
        served.process.send_signal(signal.SIGTERM)
        assert len(answer.result()) == 1000
        assert served.process.wait(ANSWER_SECONDS) == 0
        with pytest.raises(OSError):
            served.get("/healthz")


def test_connections_are_kept_alive_and_idle_ones_cost_nobody(server: Served, impressions: list[dict[str, Any]]) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=ANSWER_SECONDS)) as connection:
        for row in impressions[:5]:
            connection.request("POST", "/v1/score", json.dumps(row))
            answer = connection.getresponse()
            assert answer.status == 200 and json.loads(answer.read())["error"] is None
        kept = connection.sock
        time.sleep(0.1)
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b'{"alive":true}' and connection.sock is kept


def test_list_that_takes_too_long_is_given_up(two: Ran, impressions: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    import httpx

    from ltv_assets.core.config import ServingConfig
    from ltv_assets.serving.app import create_app

    for name, value in two.environment().items():
        if name.startswith("LTV_"):
            monkeypatch.setenv(name, value)
    app: Any = create_app(ServingConfig(timeout_seconds=0.001))

    async def ask() -> httpx.Response:
        async with app._app.router.lifespan_context(app._app), httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            return await client.post("http://serve/v1/score", json=impressions[:1000])

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["error"]["kind"]) == (504, "timeout")


def test_mlflows_path_gives_the_same_answers(two: Ran, impressions: list[dict[str, Any]], tmp_path: Path) -> None:
    from ltv_assets.scoring.mlflow_model import write_files

    opened = project(two)
    window = opened.warehouse.keys("served_model")[-1]
    write_files(opened.config, opened.warehouse, window, tmp_path / "files")
    logged = OnlineModel.load(tmp_path / "files")
    expected = read_model(opened.config, opened.warehouse, window).answers(impressions[:50])
    assert logged.answers(impressions[:50]) == expected
    frame = logged.predict(pd.DataFrame(impressions[:50]))
    agree(frame.to_dict("records"), pd.DataFrame(expected))
