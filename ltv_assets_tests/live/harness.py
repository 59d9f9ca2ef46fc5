"""A real ``dagster dev`` (webserver, daemon, code server) on free loopback ports, driven over GraphQL, and a headless browser.

Used by the live tests only. Every process that is started here is ended here, with its children.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ltv_assets.core.asset_specs import INGESTED_ASSETS, WINDOW_ASSETS
from ltv_assets.core.config import PROJECT_ROOT
from ltv_assets_tests.conftest import HANGS, TINY_MODELS

T = TypeVar("T")

CONFIG = f"""
data: {{max_bad_file_share: 0.01}}
windows: {{min_train_days: 2, max_train_days: 7}}
compute: {{threads: 1}}
checks: {{zero_rate_tolerance: 0.5, rmsle_max: 5.0}}
automation: {{settle_seconds: 1, sensor_seconds: 5, windows_back: 3}}
{TINY_MODELS}"""
"""Every part of the graph, none of it large; one unreadable file is enough to reject a day."""

BOUND_OF_WAITING = HANGS / 2
"""Seconds; a wait ends as soon as its condition holds, so a long one costs nothing."""
ANSWER_SECONDS = 600.0
"""The same for one answer of a server or a browser."""


def wait_for(what: str, probe: Callable[[], T | None], *, every: float = 0.5) -> T:
    """The first true value of ``probe``; fails naming what was waited for."""
    deadline = time.monotonic() + BOUND_OF_WAITING
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {BOUND_OF_WAITING:g} s in vain for {what}; last seen: {value!r}")
        time.sleep(every)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end_group(process: subprocess.Popen[Any], *, first: int = signal.SIGTERM, seconds: float = 10) -> None:
    """End a process that leads its group, and the group: politely, then not."""
    for number in (first, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


@dataclass
class Place:
    """A data root, a warehouse and a configuration of their own, and the environment that points at them."""

    data: Path
    warehouse: Path
    config: Path

    @classmethod
    def make(cls, root: Path, data: Path, config: str = CONFIG) -> Place:
        root.mkdir(parents=True, exist_ok=True)
        path = root / "config.yaml"
        path.write_text(config)
        return cls(data, root / "warehouse", path)

    @property
    def environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("LTV_", "DAGSTER_", "MLFLOW_"))}
        return {
            **inherited,
            "LTV_DATA_ROOT": str(self.data),
            "LTV_WAREHOUSE": str(self.warehouse),
            "LTV_CONFIG": str(self.config),
            "DAGSTER_DISABLE_TELEMETRY": "yes",
            "NO_COLOR": "1",
        }

    def ltv(self, *arguments: str, expect: int = 0) -> str:
        """Run one ``ltv`` command to its end and return what it printed."""
        result = subprocess.run(
            self.ltv_command(*arguments), env=self.environment, capture_output=True, text=True, check=False, timeout=HANGS
        )
        assert result.returncode == expect, f"ltv {' '.join(arguments)} exited {result.returncode}:\n{result.stdout}\n{result.stderr}"
        return result.stdout

    @staticmethod
    def ltv_command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "ltv_assets.cli.app", *arguments]

    def states(self) -> dict[tuple[str, str], str]:
        """{(asset, partition): state} as ``ltv status`` says it."""
        rows = (json.loads(line) for line in self.ltv("status", "--json").splitlines())
        return {(r["asset"], r["partition"]): r["state"] for r in rows}

    def manifests(self) -> dict[str, bytes]:
        """Every manifest of the warehouse by its path: what each partition consists of and was made from."""
        found = [p for part in ("lake", "models", "submissions") for p in (self.warehouse / part).rglob("manifest.json")]
        return {str(p.relative_to(self.warehouse)): p.read_bytes() for p in sorted(found)}

    def champion(self) -> dict[str, Any]:
        path = self.warehouse / "champion.json"
        return json.loads(path.read_bytes()) if path.is_file() else {}


@dataclass
class Dagster:
    """A running ``dagster dev``."""

    place: Place
    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    _location: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = self.place.ltv_command("dev", "--port", str(self.port))
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                command, env=self.place.environment, cwd=PROJECT_ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        wait_for("the webserver", self._answers)
        wait_for("the daemon's heartbeats", self._daemons_healthy, every=2)

    def stop(self) -> None:
        """End the whole process group: politely, then not."""
        if self.process is None:
            return
        for number, seconds in ((signal.SIGINT, 120), (signal.SIGTERM, 60), (signal.SIGKILL, 60)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def restart_after_kill(self) -> None:
        """SIGKILL for webserver, daemon, code server and every run at once, then all but the runs again."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(ANSWER_SECONDS)
        self.start()

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"dagster dev ended:\n{self.log.read_text()[-3000:]}"
        try:
            found = self.query("{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }")
        except OSError:
            return False
        nodes = found["repositoriesOrError"].get("nodes", [])
        if nodes:
            self._location = {"repositoryName": nodes[0]["name"], "repositoryLocationName": nodes[0]["location"]["name"]}
        return bool(nodes)

    def _daemons_healthy(self) -> bool:
        found = self.query("{ instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } } }")
        statuses = found["instance"]["daemonHealth"]["allDaemonStatuses"]
        return all(s["healthy"] for s in statuses if s["required"])

    # ------------------------------------------------------------------------------------------------------------- GraphQL

    def query(self, text: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
        body = json.dumps({"query": text, "variables": dict(variables or {})}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", data=body, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        data: dict[str, Any] = answer["data"]
        return data

    def backfill(self, days: tuple[str, str] | None, windows: tuple[str, str] | None) -> str:
        """Launch one backfill over ranges of days and of windows; returns its id."""
        partitions = []
        for assets, chosen in ((INGESTED_ASSETS, days), (WINDOW_ASSETS, windows)):
            if chosen is not None:
                ranges = {"ranges": [{"start": chosen[0], "end": chosen[1]}]}
                partitions += [{"assetKey": {"path": [a]}, "partitions": ranges} for a in assets]
        found = self.query(
            """mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {
                 __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }""",
            {"p": {"partitionsByAssets": partitions}},
        )["launchPartitionBackfill"]
        assert found["__typename"] == "LaunchBackfillSuccess", found
        return str(found["backfillId"])

    def backfill_end(self, backfill: str) -> str:
        """Wait until a backfill has ended and return its status."""

        def ended() -> str | None:
            found = self.query(
                """query($id: String!) { partitionBackfillOrError(backfillId: $id) {
                     ... on PartitionBackfill { status error { message } } } }""",
                {"id": backfill},
            )["partitionBackfillOrError"]
            status = str(found["status"])
            return status if status.startswith(("COMPLETED", "FAILED", "CANCELED")) else None

        return wait_for(f"backfill {backfill} to end", ended, every=2)

    def launch(self, job: str, partition: str | None) -> str:
        """Launch one job for one partition; returns the run id."""
        tags = [{"key": "dagster/partition", "value": partition}] if partition else []
        found = self.query(
            """mutation($p: ExecutionParams!) { launchRun(executionParams: $p) {
                 __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }""",
            {"p": {"selector": {**self._location, "jobName": job}, "mode": "default", "executionMetadata": {"tags": tags}}},
        )["launchRun"]
        assert found["__typename"] == "LaunchRunSuccess", found
        return str(found["run"]["runId"])

    def runs(self) -> list[dict[str, Any]]:
        """Newest runs first: id, job, status, tags, and seconds of start and end."""
        found = self.query(
            "{ runsOrError(limit: 200) { ... on Runs { results { runId jobName status startTime endTime tags { key value } } } } }"
        )["runsOrError"]["results"]
        return [{**r, "tags": {t["key"]: t["value"] for t in r["tags"]}} for r in found]

    def run(self, run_id: str) -> dict[str, Any]:
        return next(r for r in self.runs() if r["runId"] == run_id)

    def run_end(self, run_id: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            run = self.run(run_id)
            return run if run["status"] in ("SUCCESS", "FAILURE", "CANCELED") else None

        return wait_for(f"run {run_id} to end", ended)

    def idle(self) -> bool:
        return all(r["status"] in ("SUCCESS", "FAILURE", "CANCELED") for r in self.runs())

    def messages(self, run_id: str) -> list[dict[str, Any]]:
        """Event log of a run: type, step, message."""
        found = self.query(
            """query($id: ID!) { logsForRun(runId: $id, limit: 1000) { ... on EventConnection { events {
                 __typename ... on MessageEvent { message stepKey } ... on ExecutionStepFailureEvent { error { message } } } } } }""",
            {"id": run_id},
        )
        events: list[dict[str, Any]] = found["logsForRun"]["events"]
        return events

    def process_of(self, run_id: str) -> int | None:
        """Process that executes a run, as its event log names it."""
        for event in self.messages(run_id):
            match = re.search(r"\(pid: (\d+)\)", event.get("message") or "")
            if match and "Executing steps" in event["message"]:
                return int(match.group(1))
        return None

    def materialized(self, asset: str) -> tuple[set[str], set[str]]:
        """Partitions of an asset that the UI shows as materialized, and as failed."""
        found = self.query(
            """query($k: AssetKeyInput!) { assetNodeOrError(assetKey: $k) { ... on AssetNode { assetPartitionStatuses {
                 ... on TimePartitionStatuses { ranges { startKey endKey status } } } partitionKeys } } }""",
            {"k": {"path": [asset]}},
        )["assetNodeOrError"]
        keys = found["partitionKeys"]
        by_status: dict[str, set[str]] = {"MATERIALIZED": set(), "FAILED": set(), "MATERIALIZING": set()}
        for part in found["assetPartitionStatuses"].get("ranges", []):
            by_status[part["status"]] |= {k for k in keys if part["startKey"] <= k <= part["endKey"]}
        return by_status["MATERIALIZED"], by_status["FAILED"]

    def checks(self, asset: str) -> list[str]:
        """Names of an asset's checks."""
        found = self.query(
            """query($k: AssetKeyInput!) { assetNodeOrError(assetKey: $k) { ... on AssetNode { assetChecksOrError {
                 ... on AssetChecks { checks { name } } } } } }""",
            {"k": {"path": [asset]}},
        )
        return [c["name"] for c in found["assetNodeOrError"]["assetChecksOrError"]["checks"]]

    def check_executions(self, asset: str, check: str) -> dict[str | None, str]:
        """{partition: status} of the newest execution of a check for each partition."""
        found = self.query(
            """query($k: AssetKeyInput!, $c: String!) { assetCheckExecutions(assetKey: $k, checkName: $c, limit: 200) {
                 status partition } }""",
            {"k": {"path": [asset]}, "c": check},
        )["assetCheckExecutions"]
        newest: dict[str | None, str] = {}
        for execution in found:
            newest.setdefault(execution["partition"], execution["status"])
        return newest

    def switch_on(self, sensor: str) -> None:
        found = self.query(
            "mutation($s: SensorSelector!) { startSensor(sensorSelector: $s) { __typename ... on PythonError { message } } }",
            {"s": {**self._location, "sensorName": sensor}},
        )["startSensor"]
        assert found["__typename"] == "Sensor", found

    def switch_off(self, sensor: str) -> None:
        known = self.query(
            "query($s: SensorSelector!) { sensorOrError(sensorSelector: $s) { ... on Sensor { id } } }",
            {"s": {**self._location, "sensorName": sensor}},
        )["sensorOrError"]["id"]
        found = self.query("mutation($id: String!) { stopSensor(id: $id) { __typename ... on PythonError { message } } }", {"id": known})
        assert found["stopSensor"]["__typename"] == "StopSensorMutationResult", found

    def switch_on_schedule(self, schedule: str) -> None:
        found = self.query(
            "mutation($s: ScheduleSelector!) { startSchedule(scheduleSelector: $s) { __typename ... on PythonError { message } } }",
            {"s": {**self._location, "scheduleName": schedule}},
        )["startSchedule"]
        assert found["__typename"] == "ScheduleStateResult", found

    def runs_of(self, tag: str, value: str) -> list[dict[str, Any]]:
        """Runs that carry a tag, newest first: what one sensor or schedule has asked for."""
        return [run for run in self.runs() if run["tags"].get(tag) == value]

    def ticks(self, sensor: str) -> list[dict[str, Any]]:
        """Newest ticks of a sensor first."""
        found = self.query(
            """query($s: SensorSelector!) { sensorOrError(sensorSelector: $s) { ... on Sensor { sensorState { ticks(limit: 50) {
                 timestamp status skipReason runKeys error { message } } } } } }""",
            {"s": {**self._location, "sensorName": sensor}},
        )
        ticks: list[dict[str, Any]] = found["sensorOrError"]["sensorState"]["ticks"]
        return ticks

    def log_texts(self) -> dict[str, str]:
        """Everything that was logged: the servers' output and the compute logs of every run."""
        files = [
            self.log,
            *(self.place.warehouse / "dagster" / "storage").rglob("*.err"),
            *(self.place.warehouse / "dagster").rglob("*.out"),
        ]
        return {str(p): p.read_text(errors="replace") for p in files if p.is_file()}


@contextlib.contextmanager
def running(place: Place, log: Path) -> Iterator[Dagster]:
    """A ``dagster dev`` for the time of the block."""
    dagster = Dagster(place, free_port(), log)
    try:
        dagster.start()
        yield dagster
    finally:
        dagster.stop()


# ------------------------------------------------------------------------------------------------------------- browser


class Browser:
    """Headless Chromium, spoken to by its DevTools protocol. ``events``: what it reported by itself, of the domains that are enabled."""

    PROGRAMS = ("chromium", "chromium-browser", "google-chrome")

    def __init__(self, profile: Path, *, width: int = 1600, height: int = 900) -> None:
        from websockets.sync.client import connect

        program = next((found for name in self.PROGRAMS if (found := shutil.which(name))), None)
        assert program is not None, "no Chromium on this machine; install it: apt-get update && apt-get install -y chromium"
        self.process = subprocess.Popen(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--hide-scrollbars",
                f"--window-size={width},{height}",
                f"--user-data-dir={profile}",
                "--remote-debugging-port=0",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        ports = profile / "DevToolsActivePort"
        port = wait_for("Chromium", lambda: ports.is_file() and ports.read_text().split("\n")[0])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=ANSWER_SECONDS) as response:
            page = next(t for t in json.load(response) if t["type"] == "page")
        self.socket = connect(page["webSocketDebuggerUrl"], max_size=None, open_timeout=ANSWER_SECONDS)
        self.number = 0
        self.events: list[dict[str, Any]] = []
        self.width, self.height = width, height
        self.command("Page.enable")
        self.magnify(1.0)

    def command(self, method: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": dict(parameters or {})}))
        while True:
            answer = json.loads(self.socket.recv(timeout=ANSWER_SECONDS))
            if answer.get("id") == self.number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def open(self, url: str) -> None:
        self.command("Page.navigate", {"url": url})

    def evaluate(self, script: str) -> Any:
        found = self.command("Runtime.evaluate", {"expression": script, "returnByValue": True, "awaitPromise": True})
        return found["result"].get("value")

    @property
    def text(self) -> str:
        """What the page shows."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def wait_for_text(self, words: Sequence[str]) -> None:
        wait_for(f"the page to show {list(words)}", lambda: all(w in self.text for w in words))

    def click(self, selector_script: str) -> None:
        """Click the middle of the element that a JavaScript expression yields."""
        place = self.evaluate(
            f"(() => {{ const r = ({selector_script}).getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
        )
        assert place, f"no such element: {selector_script}"
        for kind in ("mousePressed", "mouseReleased"):
            self.command("Input.dispatchMouseEvent", {"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1})

    def magnify(self, factor: float) -> None:
        """Lay the page out for a larger screen and draw it on the same picture."""
        size = {"width": round(self.width * factor), "height": round(self.height * factor)}
        self.command("Emulation.setDeviceMetricsOverride", {**size, "deviceScaleFactor": 1 / factor, "mobile": False})

    def fit_graph(self) -> None:
        """Give the lineage page's graph all the room there is."""
        beside_search = """[...document.querySelectorAll('button')].find(b => {
            const i = document.querySelector('input[placeholder^="Jump"]').getBoundingClientRect(), r = b.getBoundingClientRect();
            return r.x >= i.right && r.x < i.right + 60 && Math.abs(r.y + r.height / 2 - i.y - i.height / 2) < 20; })"""
        self.click(beside_search)
        time.sleep(2)
        blank = {"x": int(self.width * 0.9), "y": int(self.height * 0.85), "button": "left"}
        for count in (1, 2):
            for kind in ("mousePressed", "mouseReleased"):
                self.command("Input.dispatchMouseEvent", {"type": kind, "clickCount": count, **blank})
        time.sleep(3)
        at_the_right = "b.getBoundingClientRect().x > innerWidth - 70 && b.getBoundingClientRect().y > innerHeight / 2"
        below = "(a, b) => a.getBoundingClientRect().y - b.getBoundingClientRect().y"
        zoom_out = f"[...document.querySelectorAll('button')].filter(b => {at_the_right}).sort({below})[1]"
        self.click(zoom_out)  # as wide as the page fits, the graph is higher than it
        time.sleep(2)

    def screenshot(self, path: Path, clip: Mapping[str, float] | None = None) -> None:
        """A picture of what is seen, or of the part ``clip``: x, y, width, height in pixels of the page, and scale."""
        picture = self.command("Page.captureScreenshot", {"format": "png", **({"clip": dict(clip)} if clip else {})})["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(picture))

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(ANSWER_SECONDS)
