"""Three runs of two windows and two configurations, two of them recorded during an outage, on the pages of a real MLflow server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ltv_assets.core.config import PROJECT_ROOT
from ltv_assets.simulator import simulate
from ltv_assets.tracking.client import CHAMPION_ALIAS, comparison_path
from ltv_assets.tracking.outbox import WINDOW_STAGE
from ltv_assets_tests.conftest import HANGS
from ltv_assets_tests.live.harness import ANSWER_SECONDS, CONFIG, Browser, Place, end_group, free_port, wait_for

pytestmark = pytest.mark.slow

FIRST, SECOND = "2025-10-03", "2025-10-04"
CHANGED = "models.folds"
MAX_PICTURE_BYTES = 300_000
SCROLL = """[...document.querySelectorAll('*')].filter(e => e.scrollHeight > e.clientHeight + 20)
    .forEach(e => { e.scrollTop = (e.scrollTop + 100) % e.scrollHeight; })"""
WITHOUT_ASSISTANT = """localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
    localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"""
"""The page's chat window would open by itself at the first visit and cover a quarter of it."""
PICTURES = PROJECT_ROOT / "docs" / "pictures"


@dataclass
class Story:
    """What the runs printed, by name; ``address`` is where a server is to appear."""

    place: Place
    address: str
    printed: dict[str, str] = field(default_factory=dict)

    def run(self, name: str, window: str, folds: int, server: str | None) -> None:
        """`ltv run` of one window under one configuration; exits 0 whatever the server does."""
        self.place.config.write_text(CONFIG.replace("folds: 2", f"folds: {folds}"))
        self.printed[name] = self.ltv("run", "--window", window, server=server)

    def ltv(self, *arguments: str, server: str | None) -> str:
        environment = {**self.place.environment, **({"MLFLOW_TRACKING_URI": server} if server else {})}
        words = self.place.ltv_command(*arguments)
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=HANGS)
        assert done.returncode == 0, f"ltv {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


@contextmanager
def silent_server() -> Iterator[str]:
    """A server that accepts every connection and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        held: list[socket.socket] = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    held.append(listening.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A window with the default store, and another under two configurations with servers that do not answer."""
    root = tmp_path_factory.mktemp("tracking")
    simulate(root / "data", train_days=4, test_days=1, rows_per_hour=40, seed=5)
    told = Story(Place.make(root, root / "data"), f"http://127.0.0.1:{free_port()}")
    told.run("first", FIRST, 2, None)
    with silent_server() as silent:
        told.run("server is silent", SECOND, 2, silent)
    told.run("server is down", SECOND, 3, told.address)
    return told


@pytest.fixture(scope="module")
def server(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real ``mlflow ui`` at the address that was closed during the runs, after `ltv mlflow-sync` has told it everything."""
    root = tmp_path_factory.mktemp("server")
    port = story.address.rpartition(":")[2]
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{root / 'server.db'}", "--artifacts-destination", str(root / "artifacts")]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=root, env=story.place.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for("the MLflow server", lambda: _answers(story.address, process, root / "log"))
        story.printed["sync"] = story.ltv("mlflow-sync", server=story.address)
        yield story.address
    finally:
        end_group(process)


def _answers(address: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()[-3000:]
    with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=ANSWER_SECONDS) as response:
        return bool(response.status == 200)
    return False


TROUBLES = ("server is down", "server is silent")


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_with_the_server_is_warned_of_and_fails_no_run(story: Story, name: str) -> None:
    assert "tracked_in_mlflow" not in story.printed["first"]
    assert "tracked_in_mlflow" in story.printed[name], story.printed[name]
    assert "ltv mlflow-sync" in story.printed[name]


def test_everything_arrives_when_the_server_is_back(story: Story, server: str) -> None:
    from mlflow.tracking import MlflowClient

    assert "0 waiting" in story.printed["sync"]
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("ltv")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.stage = '{WINDOW_STAGE}'", order_by=["start_time"])
    assert [(r.data.tags["window"], r.data.params[CHANGED]) for r in runs] == [(FIRST, "2"), (SECOND, "2"), (SECOND, "3")]
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert runs[2].data.tags["changed_from_before"] == f"{CHANGED} 2 -> 3"
    for run in runs[2:]:
        assert run.data.metrics == pytest.approx(_holdout_metrics(story.place.warehouse, run.data.tags["window"]))
        assert [(i.tags[0].value, i.dataset.name.startswith("flattened_features")) for i in run.inputs.dataset_inputs] == [
            ("training", True),
            ("evaluation", True),
        ]
        artifacts = {a.path for part in ("pictures", "tables", "gating", "") for a in client.list_artifacts(run.info.run_id, part)}
        assert {"config.json", "report.html", "pictures/rmsle.png", "tables/deciles.csv", "gating/score_gate.json"} <= artifacts
        nested = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
        stages = {n.data.tags["stage"]: n.info.run_id for n in nested}
        assert {"buyer_classifier", "buyer_gating", "revenue_regressor", "stacker"} <= set(stages)
        assert len(client.get_metric_history(stages["buyer_classifier"], "curve.log_loss")) > 5
        assert "pictures/shap.png" in {a.path for a in client.list_artifacts(stages["buyer_classifier"], "pictures")}
    champion = json.loads((story.place.warehouse / "champion.json").read_bytes())
    assert client.get_model_version_by_alias("ltv", CHAMPION_ALIAS).tags["fingerprint"] == champion["fingerprint"]


def _holdout_metrics(warehouse: Path, window: str) -> dict[str, float]:
    (file,) = (warehouse / "lake" / "holdout_metrics" / f"window={window}").glob("metrics-*.parquet")
    return {r["metric"]: r["value"] for r in pq.read_table(file).to_pylist() if r["segment"] == "all" and r["value"] is not None}


def test_pages_compare_windows_and_configurations(story: Story, server: str, tmp_path: Path) -> None:
    """The table of runs and the comparison page in a real browser; LTV_UPDATE_PICTURES=1 renews the documentation's picture."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("ltv")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.stage = '{WINDOW_STAGE}'")
    figures = [str(run.data.metrics["rmsle"])[:6] for run in runs if run.data.tags["window"] == SECOND]
    assert len(figures) == 2
    rounded = ["\nrmsle\n", *(f"{round(r.data.metrics['rmsle'], 3):g}" for r in runs if r.data.tags["window"] == SECOND)]
    target = PICTURES if os.environ.get("LTV_UPDATE_PICTURES") else tmp_path
    browser = Browser(tmp_path / "profile")
    try:
        browser.command("Page.addScriptToEvaluateOnNewDocument", {"source": WITHOUT_ASSISTANT})
        browser.magnify(1.1)
        browser.open(server + comparison_path(experiment.experiment_id))
        browser.wait_for_text(["3 matching runs", f"{CHANGED} 2 -> 3", "rmsle_minus_reference", *figures])
        browser.evaluate("document.querySelectorAll('[data-assistant-ui]').forEach(e => { e.style.display = 'none'; })")
        assert "Assistant" not in browser.text
        browser.screenshot(target / "mlflow_runs.png")
        chosen = json.dumps([run.info.run_id for run in runs if run.data.tags["window"] == SECOND])
        browser.open(f"{server}/#/compare-runs?runs={chosen}&experiments={json.dumps([experiment.experiment_id])}")
        browser.wait_for_text(["Comparing 2 Runs", CHANGED])
        # The page draws only the metrics in sight of a table that scrolls by itself, and rounds them.
        wait_for("the comparison to show the RMSLE of both", lambda: browser.evaluate(SCROLL) or all(w in browser.text for w in rounded))
    finally:
        browser.close()
    size = (target / "mlflow_runs.png").stat().st_size
    assert 10_000 < size < MAX_PICTURE_BYTES, f"{size} bytes"
