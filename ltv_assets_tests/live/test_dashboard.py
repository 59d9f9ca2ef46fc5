"""`ltv dashboard` in a real browser: every page on a full, a half-made and an empty warehouse, and beside a run.

The figures are compared with the published files, read here by pyarrow alone.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ltv_assets_tests.conftest import HANGS, PROJECT, Ran, command, environment
from ltv_assets_tests.live.harness import ANSWER_SECONDS, Browser, Place, end_group, free_port, wait_for

PAGES = {"/": "Today", "/money": "Where the money is", "/trust": "Can I trust it", "/compare": "Compare", "/impression": "One impression"}
TOO_WIDE = "document.documentElement.scrollWidth > window.innerWidth"
NAMED = "Object.fromEntries([...document.querySelectorAll('{0} data[data-name]')].map(d => [d.dataset.name, d.value]))"
GROUPS = """Object.fromEntries([...document.querySelectorAll('#groups tbody tr')].map(row => [row.dataset.group,
    Object.fromEntries([...row.querySelectorAll('data')].map(d => [d.dataset.name, d.value]))]))"""
FORECAST = ("rows", "expected_payers", "payers_low", "payers_high", "expected_revenue_usd", "revenue_low_usd", "revenue_high_usd")
COMPLAINTS = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")


@dataclass
class Pages:
    """A running `ltv dashboard`."""

    url: str
    log: Path

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=ANSWER_SECONDS) as answer:
            assert answer.status == 200
            return str(answer.read().decode())


@contextlib.contextmanager
def pages(env: dict[str, str], log: Path) -> Iterator[Pages]:
    port = free_port()
    with log.open("wb") as out:
        words = Place.ltv_command("dashboard", "--port", str(port))
        started = subprocess.Popen(words, env=env, cwd=PROJECT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    found = Pages(f"http://127.0.0.1:{port}", log)

    def answers() -> bool:
        assert started.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(OSError):
            return bool(json.loads(found.get("/state")))
        return False

    try:
        wait_for("the dashboard", answers, every=0.1)
        yield found
    finally:
        end_group(started, first=signal.SIGINT, seconds=20)
    assert "Traceback" not in log.read_text(), log.read_text()[-3000:]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"), width=390, height=844)
    for domain in ("Network", "Runtime", "Log"):
        opened.command(f"{domain}.enable")
    yield opened
    opened.close()


def open_page(browser: Browser, url: str, title: str) -> None:
    browser.open(url)
    there = f"location.href === {json.dumps(url)} && document.readyState === 'complete'"
    ready = f"{there} && document.querySelector('h1')?.innerText === {title!r}"
    wait_for(f"the page {url}", lambda: browser.evaluate(ready), every=0.05)


def click(browser: Browser, element: str, then: str) -> None:
    """Click a link as a reader does, and wait for a condition."""
    browser.evaluate(f"({element}).scrollIntoView({{block: 'center'}})")
    browser.click(element)
    wait_for(f"{element} to lead on", lambda: browser.evaluate(then), every=0.05)


def relation(warehouse: Path, asset: str) -> list[dict[str, Any]]:
    files = sorted((warehouse / "lake" / asset).glob("*=*/*.parquet"))
    listed = {f.parent: json.loads((f.parent / "manifest.json").read_bytes())["files"] for f in files}
    return [
        row
        for f in files
        if any(x["name"] == f.name and x["rows"] is not None for x in listed[f.parent])
        for row in pq.ParquetFile(f).read().to_pylist()
    ]


def same(shown: dict[str, str], row: dict[str, Any], names: tuple[str, ...]) -> None:
    assert {n: float(shown[n]) for n in names} == {n: float(row[n]) for n in names}


def contents(warehouse: Path) -> dict[str, int]:
    return {str(p.relative_to(warehouse)): p.stat().st_mtime_ns for p in sorted(warehouse.rglob("*")) if p.is_file()}


@pytest.fixture
def half_made(ran: Ran, tmp_path: Path) -> Path:
    """A warehouse whose run was stopped after the second stage of its window, and a relation that cannot be read."""
    warehouse = tmp_path / "half"
    for part in ("lake/raw_partitions", "lake/flattened_features", "lake/histos_train", "verdicts"):
        shutil.copytree(ran.warehouse / part, warehouse / part)
    for key in (ran.warehouse / "models").glob("window=*"):
        shutil.copytree(key / "buyer_classifier", warehouse / "models" / key.name / "buyer_classifier")
    broken = warehouse / "lake" / "holdout_metrics" / "window=2025-10-03"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("{")
    return warehouse


@pytest.mark.parametrize("state", ["full", "half made", "empty"])
def test_every_page_opens_on_every_state_of_a_warehouse_asks_nobody_else_and_changes_nothing(
    state: str, ran: Ran, half_made: Path, browser: Browser, tmp_path: Path
) -> None:
    warehouse = {"full": ran.warehouse, "half made": half_made, "empty": tmp_path / "none"}[state]
    env = environment(ran.data if state != "empty" else tmp_path / "no data", warehouse, LTV_CONFIG=str(ran.config))
    before = contents(warehouse)
    browser.events.clear()
    missing = {}
    with pages(env, tmp_path / "log") as served:
        for path, title in PAGES.items():
            open_page(browser, served.url + path, title)
            assert not browser.evaluate(TOO_WIDE), f"{path} is wider than a phone"
            assert browser.evaluate("[...document.querySelectorAll('svg.chart')].every(s => s.getAttribute('aria-label'))")
            missing[path] = browser.evaluate("[...document.querySelectorAll('.missing, .alert')].map(e => e.innerText).join('\\n')")
        asked = {e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"}
        complaints = [e for e in browser.events if e["method"] in COMPLAINTS]
    assert {url for url in asked if not url.startswith((served.url + "/", "data:"))} == set()
    assert complaints == []
    assert contents(warehouse) == before
    assert (tmp_path / "none").exists() is False
    if state == "full":
        assert "ltv run" not in missing["/"] + missing["/money"] + missing["/compare"] + missing["/impression"]
    else:
        assert all("ltv run" in missing[path] for path in PAGES if path != "/trust"), missing
    if state == "half made":
        assert "not a readable manifest" in missing["/compare"]


def test_figures_on_the_pages_equal_the_relations(ran: Ran, browser: Browser, tmp_path: Path) -> None:
    forecast = relation(ran.warehouse, "cohort_forecast")
    day = max(row["day"] for row in forecast)
    whole = next(r for r in forecast if r["day"] == day and r["segment"] == "all")
    measured = {r["metric"]: r for r in relation(ran.warehouse, "holdout_metrics") if r["segment"] == "all"}
    predicted = {r["row_id"]: r for r in relation(ran.warehouse, "predictions")}
    with pages(ran.environment(), tmp_path / "log") as served:
        open_page(browser, served.url + "/", "Today")
        same(browser.evaluate(NAMED.format(".lead")), whole, FORECAST[1:])

        open_page(browser, served.url + "/money", "Where the money is")
        segments = list(dict.fromkeys(r["segment"] for r in forecast if r["segment"] != "all"))
        assert browser.evaluate("document.querySelectorAll('.tabs a').length") == len(segments) >= 3
        for i, segment in enumerate(segments):
            click(
                browser,
                f"document.querySelectorAll('.tabs a')[{i}]",
                f"new URLSearchParams(location.search).get('segment') === {segment!r} && document.readyState === 'complete'"
                f" && document.querySelectorAll('.tabs a')[{i}].getAttribute('aria-current') === 'true'",
            )
            shown = browser.evaluate(GROUPS)
            expected = {r["value"]: r for r in forecast if r["day"] == day and r["segment"] == segment}
            assert set(shown) == set(expected)
            for value, row in expected.items():
                same(shown[value], row, FORECAST)

        column = "document.querySelectorAll('#groups thead th button')[4]"
        click(browser, column, "document.querySelector('#groups th[aria-sort=descending]') !== null")
        rows = [int(v) for v in browser.evaluate("[...document.querySelectorAll('#groups tbody data[data-name=rows]')].map(d => d.value)")]
        assert rows == sorted(rows, reverse=True)

        open_page(browser, served.url + "/trust", "Can I trust it")
        same(
            browser.evaluate(NAMED.format(".facts")),
            {n: r["value"] for n, r in measured.items()},
            ("ece", "mean_p_over_rate", "bias_ratio_capped"),
        )

        open_page(browser, served.url + "/compare", "Compare")
        figures = browser.evaluate(NAMED.format("#figures"))
        assert set(figures) >= {"rmsle", "auc", "zero_rate_predicted"}
        same(figures, {n: measured[n]["value"] for n in figures}, tuple(figures))

        open_page(browser, served.url + "/impression", "One impression")
        click(
            browser,
            "document.querySelector('#offered a')",
            "document.querySelector('#result') !== null && document.readyState === 'complete'",
        )
        chosen = browser.evaluate("new URLSearchParams(location.search).get('row')")
        shown = browser.evaluate(NAMED.format("#result"))
        row = predicted[chosen]
        assert row["expected_revenue_d7"] == max(r["expected_revenue_d7"] for r in predicted.values())
        assert float(shown["stored"]) == row["expected_revenue_d7"]
        for name in ("expected_revenue_d7", "buyer_probability", "ltv_d7"):
            assert float(shown[name]) == pytest.approx(row[name], rel=1e-9)
        text = browser.text
        assert "Of the 50 most alike" in text
        assert "nothing moved it" not in text


def test_pasted_impression_is_scored_as_the_stored_one_and_a_wrong_one_is_told_why(ran: Ran, browser: Browser, tmp_path: Path) -> None:
    path = sorted((ran.data / "test").rglob("*.parquet"))[0]
    raw = pq.ParquetFile(path).read().slice(3, 1).to_pylist(maps_as_pydicts="strict")[0]
    raw["datetime"] = path.parent.name.removeprefix("datetime=")
    stored = next(r for r in relation(ran.warehouse, "predictions") if r["row_id"] == raw["row_id"])
    with pages(ran.environment(), tmp_path / "log") as served:
        open_page(browser, served.url + "/impression", "One impression")
        submit = "document.querySelector('form[method=post] button')"
        for pasted, there in ((json.dumps(raw), "#result"), ('{"country": ["us"]}', ".alert"), ("<script>alert(1)</script>", ".alert")):
            browser.evaluate(f"document.querySelector('textarea').value = {json.dumps(pasted)}; document.body.dataset.old = '1'")
            click(browser, submit, f"document.body.dataset.old === undefined && document.querySelector('{there}') !== null")
            if there == "#result":
                shown = browser.evaluate(NAMED.format("#result"))
                for name in ("expected_revenue_d7", "buyer_probability", "ltv_d7"):
                    assert float(shown[name]) == pytest.approx(stored[name], rel=1e-6)
            else:
                assert browser.evaluate("document.querySelector('textarea').value") == pasted
        assert "not JSON" in browser.text


def ask_until(served: Pages, stop: threading.Event, faults: list[str], counted: list[int]) -> None:
    """Open every page again and again, as several readers would."""
    while not stop.is_set():
        for path in PAGES:
            try:
                text = served.get(path)
                if "lock" in text.lower().replace("block", "") or "cannot be read" in text:
                    faults.append(f"{path}: {text[-3000:]}")
            except (OSError, http.client.HTTPException) as error:
                faults.append(f"{path}: {error!r}")
            counted[0] += 1


def beside(served: Pages, work: Callable[[], None]) -> None:
    """Do ``work`` while two readers look at every page; none of them may see a fault."""
    stop, faults, counted = threading.Event(), list[str](), [0]
    readers = [threading.Thread(target=ask_until, args=(served, stop, faults, counted)) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        work()
    finally:
        stop.set()
        for reader in readers:
            reader.join(ANSWER_SECONDS)
    assert faults == []
    assert counted[0] >= len(PAGES)


def undo_scores(warehouse: Path) -> None:
    for folder in ("lake/predictions", "lake/cohort_forecast", "submissions"):
        shutil.rmtree(warehouse / folder)


def test_open_page_shows_by_itself_what_a_run_makes_meanwhile_and_neither_meets_a_lock(
    copied: Callable[[], Ran], browser: Browser, tmp_path: Path
) -> None:
    run = copied()
    undo_scores(run.warehouse)
    with pages(run.environment(), tmp_path / "log") as served:
        open_page(browser, served.url + "/money", "Where the money is")
        assert browser.evaluate("document.querySelector('#groups')") is None

        def made() -> None:
            output = tmp_path / "run.log"
            with output.open("wb") as out:
                started = subprocess.Popen(
                    Place.ltv_command("run"), env=run.environment(), cwd=PROJECT, stdout=out, stderr=subprocess.STDOUT
                )
            while started.poll() is None:  # a browser that nobody listens to hangs up
                browser.evaluate("document.title")
                time.sleep(0.5)
            text = output.read_text()
            assert started.returncode == 0, text
            assert "lock" not in text.lower().replace("block", "")

        beside(served, made)
        wait_for(
            "the open page to show the new forecast", lambda: browser.evaluate("document.querySelector('#groups tbody data') !== null")
        )
        assert browser.evaluate("performance.getEntriesByType('navigation').length") == 1
    assert relation(run.warehouse, "cohort_forecast")


@pytest.mark.soak
def test_runs_and_open_pages_do_not_meet_for_five_minutes(copied: Callable[[], Ran], tmp_path: Path) -> None:
    run = copied()
    end = time.monotonic() + 300

    def runs() -> None:
        while time.monotonic() < end:
            undo_scores(run.warehouse)
            shutil.rmtree(run.warehouse / "models")
            for words in (("run",), ("catalog",)):
                done = command("ltv", *words, env=run.environment(), timeout=HANGS)
                assert done.returncode == 0, done.stdout + done.stderr
                assert "lock" not in (done.stdout + done.stderr).lower().replace("block", "")

    with pages(run.environment(), tmp_path / "log") as served:
        beside(served, runs)
