"""A window's report in a real browser: nothing is fetched, nothing complains, and it shows what was measured."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from ltv_assets.modeling.evaluation.segments import HEADLINE
from ltv_assets_tests.conftest import Ran
from ltv_assets_tests.live.harness import Browser, wait_for

LOADED = "document.readyState === 'complete' && [...document.images].every(i => i.complete)"
FETCHED = "performance.getEntriesByType('resource').map(r => r.name).filter(n => !n.startsWith('data:'))"
PICTURES = "[...document.images].map(i => [i.complete && i.naturalWidth > 300, i.alt])"
SHOWN = """Object.fromEntries([...document.querySelectorAll('#headline tr[data-name]')].map(
    row => [row.dataset.name, [row.querySelector('data').value, row.querySelector('data').innerText]]))"""


def test_report_opens_without_network_and_shows_the_measured_figures(ran: Ran, tmp_path: Path) -> None:
    assert "report.html" in ran.output
    report = next((ran.warehouse / "reports").glob("window=*/report.html"))
    browser = Browser(tmp_path / "profile", width=1000, height=900)
    try:
        for domain in ("Network", "Runtime", "Log"):
            browser.command(f"{domain}.enable")
        browser.command("Network.emulateNetworkConditions", {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0})
        browser.open(report.as_uri())
        browser.wait_for_text(["Window 2025-10-03", "Limits"])
        wait_for("the page and its pictures", lambda: browser.evaluate(LOADED))
        shown, pictures, fetched = browser.evaluate(SHOWN), browser.evaluate(PICTURES), browser.evaluate(FETCHED)
        too_wide = browser.evaluate("document.documentElement.scrollWidth > window.innerWidth")
        events = browser.events
    finally:
        browser.close()

    requests = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in requests if not url.startswith("data:")} == {report.as_uri()}
    assert fetched == []
    complaints = [e for e in events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")]
    assert complaints == []
    assert len(pictures) >= 8
    assert [alt for loaded, alt in pictures if not loaded or not alt] == []
    assert not too_wide

    files = sorted((ran.warehouse / "lake" / "holdout_metrics").glob("window=*/*metrics*.parquet"))
    rows = [r for f in files for r in pq.read_table(f, partitioning=None).to_pylist()]
    measured = {r["metric"]: r["value"] for r in rows if r["segment"] == "all" and r["value"] is not None}
    expected = {name for name, _ in HEADLINE if name in measured}
    assert set(shown) == expected >= {"rmsle", "rmsle_gated", "zero_rate_predicted", "auc"}
    for name, (whole, text) in shown.items():
        assert float(whole) == measured[name]
        assert text == f"{measured[name]:.4f}"
