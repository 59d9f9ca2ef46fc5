"""The parts of the dashboard: charts, words, reading beside writers, and what a stranger may ask of it."""

from __future__ import annotations

import asyncio
import json
import math
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from ltv_assets.cli.app import main
from ltv_assets.core.asset_specs import RELATIONS
from ltv_assets.core.errors import PermanentError
from ltv_assets.dashboard import charts, words
from ltv_assets.dashboard.app import MAX_PASTED_BYTES, Dashboard, make_app
from ltv_assets.dashboard.charts import Curve, Line
from ltv_assets.dashboard.pages import PAGES, Links
from ltv_assets.dashboard.reading import PublishedWarehouse
from ltv_assets.ingestion import raw_days
from ltv_assets.state.project import Project
from ltv_assets.state.status import partition_states
from ltv_assets.storage.warehouse import Warehouse
from ltv_assets_tests.conftest import Ran
from ltv_assets_tests.foreign.contracts import CONTRACTS
from ltv_assets_tests.foreign.tables import shop

HOSTILE = '<img src=x onerror="alert(1)">&\'"'
DAYS = ("2025-10-01", "2025-10-02", "2025-10-03")


def drawn(line: Line) -> str:
    return str(charts.over_days(DAYS, [line], title="t", y_label="USD", show=words.usd_axis))


# --------------------------------------------------------------------------------------------------------------- charts


def test_same_numbers_give_the_same_chart_and_no_numbers_give_none() -> None:
    line = Line("a", [1.0, None, 3.0], 1, "band", [0.5, None, 2.0], [2.0, None, 4.0])
    assert drawn(line) == drawn(line)
    assert drawn(Line("a", [None, None, math.nan])) == ""
    assert charts.over_days([], [], title="t", y_label="y", show=str) == ""
    assert charts.curves([], title="t", x_label="x", y_label="y", show_x=str, show_y=str) == ""


def test_charts_are_well_formed_and_names_of_groups_stay_text() -> None:
    curve = Curve(HOSTILE, [0.0, 1.0], [0.0, 1.0], 1, "dots")
    made = [
        drawn(Line(HOSTILE, [1.0, 2.0, 3.0])),
        str(charts.curves([curve], title=HOSTILE, x_label=HOSTILE, y_label="y", show_x=str, show_y=str)),
        str(charts.interval_bar(1.0, 0.5, 2.0, 3.0, told=HOSTILE)),
        str(charts.push_bar(-1.0, 2.0, told=HOSTILE)),
    ]
    for text in made:
        tree = ElementTree.fromstring(text)
        assert {e.tag.rpartition("}")[2] for e in tree.iter()} <= {"svg", "g", "path", "line", "rect", "circle", "polygon", "text", "title"}
        assert "style" not in {name for e in tree.iter() for name in e.attrib}  # the security policy would drop it
    assert HOSTILE in "".join(ElementTree.fromstring(made[0]).itertext())


def test_marks_lie_where_their_values_are() -> None:
    line = Line("a", [0.0, 5.0, 10.0], 1, "dots")
    marks = [e for e in ElementTree.fromstring(drawn(line)).iter() if e.tag.endswith("circle")]
    heights = [float(m.attrib["cy"]) for m in marks]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)
    assert heights[0] == pytest.approx(charts.HEIGHT - charts.BOTTOM)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.96, 0.973), (0.0, 12_345.0), (-3.0, 8.0), (5.0, 5.0)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = charts.ticks(low, high)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)
    assert len({f"{t:.4g}" for t in found}) == len(found)


def test_numbers_are_written_for_people() -> None:
    assert [words.usd(v) for v in (0.5, 12.345, 1234.5, -7.0, None, math.nan)] == ["$0.50", "$12.35", "$1\u202f234", "-$7.00", "–", "–"]
    assert [words.percent(v) for v in (0.1234, 0.0, None)] == ["12.3\u202f%", "0.0\u202f%", "–"]
    assert [words.compact(v) for v in (0.01234, 5.0, 999.0, 5000.0, 2_340_000.0)] == ["0.0123", "5", "999", "5k", "2.34M"]
    assert [words.few(v) for v in (0.44, 99.2, 1234.0)] == ["0.4", "99.2", "1\u202f234"]


# -------------------------------------------------------------------------------------------------------------- reading


def publish(warehouse: Warehouse, day: str, rows: list[dict[str, Any]]) -> None:
    def fill(folder: Path) -> dict[str, int | None]:
        pq.write_table(pa.Table.from_pylist(rows), folder / "forecast.parquet")
        return {"forecast.parquet": len(rows)}

    warehouse.write("cohort_forecast", day, fill, code_version="1", config="c", inputs={}, facts={"cap_usd": 10.0, "tail_factor": 1.1})


def forecast(day: str, segment: str, value: str, revenue: float, rows: int = 100) -> dict[str, Any]:
    money = {"expected_revenue_usd": revenue, "revenue_low_usd": revenue / 2, "revenue_high_usd": revenue * 2}
    payers = {"expected_payers": rows / 10, "payers_low": rows / 20, "payers_high": rows / 5}
    found = {"day": day, "segment": segment, "value": value, "rows": rows, **payers, **money}
    assert set(found) == {c.name for c in RELATIONS["cohort_forecast"]}
    return found


def test_reader_meets_whole_partitions_only_while_they_are_replaced(tmp_path: Path) -> None:
    writer, reader = Warehouse(tmp_path), PublishedWarehouse(tmp_path)
    publish(writer, DAYS[0], [forecast(DAYS[0], "all", "all", 0.0)])
    stop, seen, states = threading.Event(), set[float](), set[str]()

    def write() -> None:
        for number in range(1, 50):
            publish(writer, DAYS[0], [forecast(DAYS[0], "all", "all", float(number))] * 3)
        stop.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not stop.is_set():
        rows = reader.rows("cohort_forecast", DAYS[0])
        seen |= {row["expected_revenue_usd"] for row in rows}
        states.add(reader.state())
        assert len({row["expected_revenue_usd"] for row in rows}) == 1
        assert len(rows) == (1 if rows[0]["expected_revenue_usd"] == 0.0 else 3)
    thread.join()
    assert reader.rows("cohort_forecast", DAYS[0])[0]["expected_revenue_usd"] == 49.0
    assert len(states) > 1 or len(seen) == 1


def test_reader_writes_nothing_not_even_that_a_file_is_damaged(tmp_path: Path) -> None:
    publish(Warehouse(tmp_path), DAYS[0], [forecast(DAYS[0], "all", "all", 1.0)])
    (file,) = tmp_path.rglob("*.parquet")
    file.write_bytes(b"torn")
    reader, before = PublishedWarehouse(tmp_path), sorted(tmp_path.rglob("*"))
    for read in (reader.rows, reader.artifacts, lambda a, k: reader.write(a, k, dict)):
        if read != reader.artifacts:
            with pytest.raises(PermanentError, match=r"cohort_forecast|reading only"):
                read("cohort_forecast", DAYS[0])
    assert sorted(tmp_path.rglob("*")) == before


def test_state_of_many_days_lists_the_raw_files_once(
    simulated_small: Path, place: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    place(simulated_small)
    project = Project.open()
    listed: list[Path] = []
    scan = raw_days.scan_hours
    monkeypatch.setattr(raw_days, "scan_hours", lambda folder, layout: listed.append(folder) or scan(folder, layout))
    states = partition_states(project)
    assert len({s["partition"] for s in states if s["asset"] == "raw_partitions"}) == 4
    assert len(listed) == len(set(listed)) == 2


# ---------------------------------------------------------------------------------------------------------------- pages


def ask(
    dashboard: Dashboard, path: str, *, host: str = "127.0.0.1", body: bytes | None = None, query: str = ""
) -> tuple[int, dict[str, str], str]:
    """One request straight into the application: status, headers, text."""
    sent: list[Any] = []
    scope = {"type": "http", "http_version": "1.1", "method": "GET" if body is None else "POST", "path": path, "raw_path": path.encode()}
    scope |= {
        "query_string": query.encode(),
        "headers": [(b"host", host.encode())],
        "scheme": "http",
        "server": ("127.0.0.1", 1),
        "root_path": "",
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body or b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(make_app(dashboard)(scope, receive, send))
    headers = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(m.get("body", b"") for m in sent[1:]).decode()


@pytest.fixture
def hostile(simulated_small: Path, place: Callable[..., Path]) -> Dashboard:
    """The pages of a warehouse whose groups bear hostile names."""
    warehouse = Warehouse(place(simulated_small))
    for day, extra in zip(DAYS, (1.0, 2.0, 3.0), strict=True):
        groups = [forecast(day, "country", HOSTILE, extra, 60), forecast(day, "country", "us", 9.0, 40)]
        publish(warehouse, day, [forecast(day, "all", "all", 9.0 + extra), *groups, forecast(day, "dev_os", "ios", 9.0 + extra)])
    return Dashboard(Links("http://127.0.0.1:3000", "http://127.0.0.1:5000"))


def test_pages_hold_no_script_of_others_and_allow_none(hostile: Dashboard) -> None:
    for _, path, _ in (*PAGES.values(), ("", "/impression", None)):
        status, headers, text = ask(hostile, path)
        assert status == 200
        assert "<img" not in text and "onerror=" not in text.replace("onerror=&#34;", "").replace("onerror=&quot;", "")
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert " style=" not in text and "<style" not in text and text.count("<script") == 1
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"


def test_pages_speak_of_the_horizon_of_the_contract(tmp_path: Path, place: Callable[..., Path]) -> None:
    """Customers of a shop, whose revenue is counted over thirty days: in words, on axes and in the age of a final label."""
    for name, text in zip(("contract", "features"), CONTRACTS["shop"], strict=False):
        (tmp_path / f"{name}.yaml").write_text(text)
    shop(tmp_path / "data", train_days=2, test_days=1, rows=40)
    files = f"contract: {tmp_path}/contract.yaml\nfeatures: {tmp_path}/features.yaml\n"
    warehouse = Warehouse(place(tmp_path / "data", files + "data: {train_folder: ., test_folder: .}\n"))
    for day in DAYS:
        publish(warehouse, day, [forecast(day, "all", "all", 9.0), forecast(day, "country", "ES", 9.0)])
    pages = {name: ask(Dashboard(Links("", "")), path)[2] for name, (_, path, _) in PAGES.items()}
    assert not {name for name, text in pages.items() if re.search(r"seven days|\b7 days|\bD7\b|Seven days", text)}
    assert all("D30 revenue" in text for text in pages.values())
    assert "revenue within 30 days (USD)" in pages["today"] and "are expected to bring within 30 days." in pages["money"]
    assert "final 30 days after it" in pages["trust"]


def test_choice_that_does_not_exist_shows_the_usual_one(hostile: Dashboard) -> None:
    usual = ask(hostile, "/money")[2]
    for query in ("day=../../etc/passwd&segment=x", f"day={DAYS[2]}&segment=%3Cscript%3E", "day=&segment="):
        assert ask(hostile, "/money", query=query)[2] == usual
    assert "$3.00" in usual
    other = ask(hostile, "/money", query=f"day={DAYS[0]}&segment=country")[2]
    assert "$1.00" in other and "$3.00" not in other
    assert 'data-group="ios"' in ask(hostile, "/money", query=f"day={DAYS[0]}&segment=dev_os")[2]


def test_richest_group_for_sure_is_named_first(hostile: Dashboard) -> None:
    text = ask(hostile, "/money")[2]
    assert "us is the surest place for the next dollar" in text
    assert "bring $225" in text  # a thousand of 40 impressions with 9 USD
    assert "40.0\u202f%" in text


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", ""])
def test_request_for_another_host_is_refused(hostile: Dashboard, host: str) -> None:
    assert ask(hostile, "/", host=host)[0] == 400


@pytest.mark.parametrize("path", ["/report/..", "/report/2025-10-01", "/report/..%2f..%2fchampion.json", "/nothing", "/static/../app.py"])
def test_path_that_is_no_page_leads_nowhere(hostile: Dashboard, path: str) -> None:
    status, _, text = ask(hostile, path)
    assert status == 404
    assert "Traceback" not in text


def test_huge_paste_is_refused(hostile: Dashboard) -> None:
    status, _, text = ask(hostile, "/impression", body=b"impression=" + b"x" * MAX_PASTED_BYTES)
    assert (status, "more than 1 MiB" in text) == (413, True)


def test_wrong_configuration_is_told_on_every_page(hostile: Dashboard, place: Callable[..., Path]) -> None:
    place(None, "windows: {min_train_days: -3}")
    for name in PAGES:
        text = Dashboard(hostile.links).page(name, {})
        assert "min_train_days" in text and "cannot be opened" in text


def test_state_changes_when_something_is_published_judged_or_promoted(hostile: Dashboard) -> None:
    warehouse = Project.open().warehouse
    states = [json.loads(ask(hostile, "/state")[2])["state"]]
    states.append(json.loads(ask(hostile, "/state")[2])["state"])
    publish(warehouse, DAYS[0], [forecast(DAYS[0], "all", "all", 77.0)])
    states.append(json.loads(ask(hostile, "/state")[2])["state"])
    (warehouse.root / "champion.json").write_text('{"window": null}')
    states.append(json.loads(ask(hostile, "/state")[2])["state"])
    assert states[0] == states[1]
    assert len(set(states)) == 3


# ------------------------------------------------------------------------------------------------------------- outcomes


def test_coverage_bias_and_error_are_those_of_the_outcomes(hostile: Dashboard) -> None:
    """Four whole days, one of them outside its interval: counted by hand."""
    warehouse = Project.open().warehouse
    came = ((10.0, 12.0, True), (10.0, 8.0, True), (10.0, 30.0, False), (10.0, 10.0, True))
    for number, (expected, revenue, inside) in enumerate(came):
        day = f"2025-09-{number + 1:02d}"
        row = forecast(day, "all", "all", expected) | {"rows_labelled": 100, "model_window": "2025-08-31", "model_age_days": number + 1}
        row |= {"payers": 9, "revenue_capped_usd": revenue, "revenue_usd": revenue + 5, "payers_inside": True, "revenue_inside": inside}
        assert set(row) == {c.name for c in RELATIONS["cohort_outcome"]}

        def fill(folder: Path, row: dict[str, Any] = row) -> dict[str, int | None]:
            pq.write_table(pa.Table.from_pylist([row]), folder / "outcome.parquet")
            return {"outcome.parquet": 1}

        warehouse.write("cohort_outcome", day, fill, code_version="1", config="c", inputs={})
    text = " ".join(ask(hostile, "/trust")[2].split())
    whole = text[text.index('id="coverage"') :].split("</tr>")[1]
    cells = [re.sub(r"<[^>]*>", "", cell).strip() for cell in whole.split("<td")[1:]]
    assert [cell.rpartition(">")[2] for cell in cells] == ["4", "75 %", "100 %", "-33.3 %", "40 %"]
    assert "75\u202f%" in ask(hostile, "/")[2]


def test_model_of_another_version_is_told_and_the_pages_stay(copied: Callable[[], Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    run = copied()
    for name in ("LTV_DATA_ROOT", "LTV_WAREHOUSE", "LTV_CONFIG"):
        monkeypatch.setenv(name, run.environment()[name])
    monkeypatch.setattr("ltv_assets.modeling.model_store.read_served", lambda warehouse, key: {}["growth"])
    dashboard = Dashboard(Links("http://127.0.0.1:3000", "http://127.0.0.1:5000"))
    day = Project.open().warehouse.keys("predictions")[-1]
    row = re.search(r"row=([^\"&]+)", ask(dashboard, "/impression")[2])
    assert row is not None
    status, _, text = ask(dashboard, "/impression", query=f"day={day}&row={row.group(1)}")
    assert (status, "written by another version" in text, "ltv run" in text) == (200, True, True)
    assert ask(dashboard, "/")[0] == 200


@pytest.mark.parametrize(
    ("words", "exit_code", "told"),
    [
        (("--port", "{taken}"), 1, "end what uses it"),
        (("--dagster", "javascript:alert(1)"), 2, "not an address"),
        (("--mlflow", "http://me:secret@tracking.example"), 2, "without user and password"),
    ],
)
def test_command_says_what_is_wrong_before_it_listens(
    words: tuple[str, ...], exit_code: int, told: str, place: Callable[..., Path]
) -> None:
    place()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        chosen = [word.format(taken=other.getsockname()[1]) for word in words]
        result = CliRunner().invoke(main, ["dashboard", *chosen])
    assert result.exit_code == exit_code
    assert told in " ".join(result.output.split())
    assert "secret" not in result.output
