"""What happens without a click, and how often: landed days, rewritten days, ready windows, figures out of bounds."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from ltv_assets.core.asset_specs import WINDOW_UPSTREAM
from ltv_assets.core.config import load_config
from ltv_assets.core.errors import StaleError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.defs import automation, schedules, sensors
from ltv_assets.defs.resources import ProjectResource
from ltv_assets.ingestion.arrivals import landings
from ltv_assets.monitoring.retraining import Watch
from ltv_assets.state import readiness
from ltv_assets.state.freshness import Lineage, Status
from ltv_assets.state.plan import followed, plan, standing, steps, up_to
from ltv_assets.state.project import Project

pytestmark = pytest.mark.contest

DAYS = [PartitionKey(f"2025-10-0{i}") for i in range(1, 6)]
PARTITIONS = dg.DailyPartitionsDefinition(start_date=DAYS[0], end_date="2025-10-20")


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], str]:
    """What the lineage would say of each partition; missing unless a test says otherwise."""
    table: dict[tuple[str, str], Any] = {}
    monkeypatch.setattr(Lineage, "status", lambda self, asset, key: Status(asset, key, table.get((asset, key), "missing"), "because"))
    return table


@pytest.fixture
def data(tmp_path: Path, place: Callable[..., Path]) -> Path:
    """An empty data root; files count as landed at once."""
    root = tmp_path / "data"
    place(root, "automation: {settle_seconds: 0, allow_missing_hours: 0}\n")
    return root


def land(root: Path, day: str, hours: int = 24, text: str = "x", split: str = "train") -> None:
    for hour in range(hours):
        folder = root / split / f"datetime={day}-{hour:02d}-00"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "part-0.parquet").write_text(text)


class Eye:
    """One sensor with its cursor, looked through again and again."""

    def __init__(self, name: str) -> None:
        self.sensor = next(s for s in sensors.build(load_config(), PARTITIONS) if s.name == name)
        self.cursor: str | None = None
        self.instance = dg.DagsterInstance.ephemeral()

    def look(self) -> tuple[list[dg.RunRequest], str | None]:
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor, resources={"project_resource": ProjectResource()})
        result = self.sensor(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        return list(result.run_requests or []), result.skip_reason.skip_message if result.skip_reason else None


# ------------------------------------------------------------------------------------------------------------ days_landed


def test_day_is_ingested_once_when_its_24_hours_are_there(data: Path, states: dict[Any, str]) -> None:
    eye = Eye("days_landed")
    land(data, DAYS[0], hours=23)
    requests, reason = eye.look()
    assert requests == []
    assert reason is not None and "1 of 24 hours are missing" in reason
    land(data, DAYS[0])
    requests, _ = eye.look()
    assert [r.partition_key for r in requests] == [DAYS[0]]
    assert "it has landed" in requests[0].tags["ltv/reason"]
    assert eye.look()[0] == [], "a day that failed is not asked for again while its files stay the same"


def test_hours_that_may_be_missing_are_configured(tmp_path: Path, place: Callable[..., Path], states: dict[Any, str]) -> None:
    place(tmp_path / "data", "automation: {settle_seconds: 0, allow_missing_hours: 23}\n")
    land(tmp_path / "data", DAYS[0], hours=1)
    assert len(Eye("days_landed").look()[0]) == 1


def test_day_still_being_written_is_left_alone(tmp_path: Path, place: Callable[..., Path], states: dict[Any, str]) -> None:
    place(tmp_path / "data", "automation: {settle_seconds: 3600}\n")
    land(tmp_path / "data", DAYS[0])
    eye = Eye("days_landed")
    requests, reason = eye.look()
    assert requests == []
    assert reason is not None and "its files changed" in reason
    for path in (tmp_path / "data").rglob("*.parquet"):
        os.utime(path, (time.time() - 4000, time.time() - 4000))
    assert len(eye.look()[0]) == 1


def test_unfinished_uploads_and_markers_do_not_make_an_hour(data: Path, states: dict[Any, str]) -> None:
    land(data, DAYS[0], hours=23)
    folder = data / "train" / f"datetime={DAYS[0]}-23-00"
    folder.mkdir()
    for name in ("_SUCCESS", ".part-0.parquet.tmp", "part-0.parquet.crc"):
        (folder / name).write_text("x")
    assert Eye("days_landed").look()[0] == []


def test_rewritten_hour_rebuilds_the_day(data: Path, states: dict[Any, str]) -> None:
    eye = Eye("days_landed")
    land(data, DAYS[0])
    first = eye.look()[0]
    states["flattened_features", DAYS[0]] = "stale"
    (data / "train" / f"datetime={DAYS[0]}-05-00" / "part-0.parquet").write_text("late correction")
    again = eye.look()[0]
    assert [r.partition_key for r in again] == [DAYS[0]]
    assert "its files changed" in again[0].tags["ltv/reason"]
    assert again[0].run_key != first[0].run_key


def test_restored_copy_is_not_taken_for_a_day_asked_for_before(data: Path, states: dict[Any, str]) -> None:
    """The same names, sizes and times as at first: only the order of events tells that the day must be built again."""
    eye, path = Eye("days_landed"), data / "train" / f"datetime={DAYS[0]}-05-00" / "part-0.parquet"
    land(data, DAYS[0])
    keys, modified = [eye.look()[0][0].run_key], path.stat().st_mtime_ns
    for text, later in (("torn", 1), ("x", 0), ("torn", 1), ("x", 0)):
        path.write_text(text)
        os.utime(path, ns=(modified, modified + later))
        keys.append(eye.look()[0][0].run_key)
    assert len(set(keys)) == 5


def test_day_asked_for_after_the_cursor_was_reset_has_a_new_run_key(data: Path, states: dict[Any, str]) -> None:
    """Dagster never runs a key twice, whatever the cursor says: the same key would be dropped and the day forgotten."""
    eye = Eye("days_landed")
    land(data, DAYS[0])
    keys = [eye.look()[0][0].run_key]
    for cursor in (None, "", "written by hand", "[1]", '{"2025-10-01": 5}'):
        eye.cursor = cursor
        keys.append(eye.look()[0][0].run_key)
    assert len(set(keys)) == 6


def test_day_taken_away_and_put_back_unchanged_has_a_new_run_key(data: Path, states: dict[Any, str]) -> None:
    eye = Eye("days_landed")
    land(data, DAYS[0])
    first = eye.look()[0][0].run_key
    (data / "train").rename(data / "away")
    assert eye.look()[0] == []
    (data / "away").rename(data / "train")
    assert eye.look()[0][0].run_key != first


def test_change_during_a_run_waits_for_its_outcome_and_is_not_forgotten(data: Path, states: dict[Any, str]) -> None:
    eye = Eye("days_landed")
    land(data, DAYS[0])
    ingest = dg.define_asset_job("ingest_days").resolve(
        asset_graph=dg.Definitions([dg.asset(name="anything")(lambda: None)]).resolve_asset_graph()
    )
    assert len(eye.look()[0]) == 1
    run = eye.instance.create_run_for_job(ingest, status=dg.DagsterRunStatus.STARTED, tags={"dagster/partition": DAYS[0]})
    (data / "train" / f"datetime={DAYS[0]}-05-00" / "part-0.parquet").write_text("late correction")
    assert eye.look() == ([], f"day {DAYS[0]}: a run for it is under way; its outcome decides")
    eye.cursor = None
    assert eye.look()[0] == []
    eye.instance.report_run_failed(run)
    assert [r.partition_key for r in eye.look()[0]] == [DAYS[0]]
    assert eye.look()[0] == []


def test_fresh_day_costs_no_run(data: Path, states: dict[Any, str]) -> None:
    for day in DAYS[:3]:
        land(data, day)
        states["flattened_features", day] = "fresh"
    states["flattened_features", DAYS[1]] = "stale"
    assert [r.partition_key for r in Eye("days_landed").look()[0]] == [DAYS[1]]


def test_day_of_the_future_is_not_touched(data: Path, states: dict[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTV_TODAY", DAYS[1])
    for day in DAYS[:3]:
        land(data, day)
    assert [r.partition_key for r in Eye("days_landed").look()[0]] == DAYS[:2]


def test_day_beyond_the_known_partitions_says_what_to_do(data: Path, states: dict[Any, str]) -> None:
    land(data, "2025-11-30")
    requests, reason = Eye("days_landed").look()
    assert requests == []
    assert reason is not None and "reload the code location" in reason


def test_looking_without_news_judges_no_day(data: Path, states: dict[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for day in DAYS:
        land(data, day)
    eye = Eye("days_landed")
    eye.look()
    monkeypatch.setattr(Lineage, "status", lambda *a: pytest.fail("judged a day that did not change"))
    assert eye.look()[0] == []


def test_test_days_land_too(data: Path, states: dict[Any, str]) -> None:
    land(data, DAYS[0])
    land(data, DAYS[3], split="test")
    found = landings(Project.open().config, Project.open().horizon)
    assert [(str(x.day), x.split, x.hours) for x in found] == [(DAYS[0], "train", 24), (DAYS[3], "test", 24)]


# ---------------------------------------------------------------------------------------------------- windows_and_scores


def ready_world(data: Path, states: dict[Any, str], *, fresh_days: int = 5) -> None:
    for index, day in enumerate(DAYS):
        land(data, day)
        states["flattened_features", day] = "fresh" if index < fresh_days else "failed"


def test_status_run_and_automation_take_from_one_plan(data: Path, states: dict[Any, str]) -> None:
    ready_world(data, states)
    land(data, "2025-10-08", split="test")
    lineage = Project.open().lineage()
    shown = plan(lineage, standing(lineage))
    made = plan(lineage, up_to(lineage, DAYS[4]))
    assert set(made) <= set(shown)
    assert set(plan(lineage, followed(lineage), ("predictions", "submission"))) == {
        s for s in shown if s.asset in ("predictions", "submission")
    }
    # Job by job, each from its first key to its last; nothing of the plan is lost or done twice.
    runs = steps(made)
    assert [run.job for run in runs] == ["ingest_days"] * 6 + ["train_window", "score_days", "make_submission"]
    assert sorted((s.asset, s.partition) for run in runs for s in run.states) == sorted((s.asset, s.partition) for s in made)
    assert [run.key for run in runs[:6]] == [*DAYS[:5], "2025-10-08"]


def test_window_waits_for_its_days_its_holdout_and_its_labels(data: Path, states: dict[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    ready_world(data, states)
    lineage = Project.open().lineage()
    assert [s.partition for s in plan(lineage, followed(lineage), ("stacker",))] == [DAYS[2], DAYS[3], DAYS[4]]
    assert readiness.waiting_for(Project.open().lineage(), "stacker", DAYS[4]) is None
    states["flattened_features", DAYS[4]] = "failed"
    assert "day 2025-10-05 is failed" in (readiness.waiting_for(Project.open().lineage(), "histos_train", DAYS[4]) or "")
    states["flattened_features", DAYS[4]] = "fresh"
    states["flattened_features", DAYS[1]] = "stale"
    assert "day 2025-10-02 is stale" in (readiness.waiting_for(Project.open().lineage(), "stacker", DAYS[4]) or "")
    states["flattened_features", DAYS[1]] = "fresh"
    monkeypatch.setenv("LTV_TODAY", "2025-10-12")
    assert "labels of day 2025-10-05 are not final" in (readiness.waiting_for(Project.open().lineage(), "stacker", DAYS[4]) or "")
    monkeypatch.setenv("LTV_TODAY", "2025-10-13")
    assert readiness.waiting_for(Project.open().lineage(), "stacker", DAYS[4]) is None


def test_window_without_its_holdout_day_is_refused_before_anything_is_trained(data: Path, states: dict[Any, str]) -> None:
    """The page offers it when days are backfilled together with windows."""
    ready_world(data, states)
    with pytest.raises(StaleError, match=r"window 2025-10-06: its holdout day has no labelled data; the newest .* is 2025-10-05"):
        Project.open().lineage().require_ready("histos_train", PartitionKey("2025-10-06"))


def test_window_whose_holdout_day_failed_is_refused_before_anything_is_trained(data: Path, states: dict[Any, str]) -> None:
    ready_world(data, states)
    states["raw_partitions", DAYS[4]] = "failed"
    with pytest.raises(StaleError, match=r"histos_train 2025-10-05: the holdout day of its window failed"):
        Project.open().lineage().require_ready("histos_train", DAYS[4])


def test_missing_day_inside_keeps_a_window_waiting(data: Path, states: dict[Any, str]) -> None:
    for day in (DAYS[0], DAYS[1], DAYS[3], DAYS[4]):
        land(data, day)
        states["flattened_features", day] = "fresh"
    assert "no data for 2025-10-03" in (readiness.waiting_for(Project.open().lineage(), "stacker", DAYS[4]) or "")


class Automation:
    """The automation condition of every asset, evaluated tick by tick on an instance of its own."""

    def __init__(self, defs: dg.Definitions) -> None:
        self.defs, self.instance, self.cursor = defs, dg.DagsterInstance.ephemeral(), None

    def tick(self) -> dict[str, set[str]]:
        automation._lineage.cache_clear()
        result: Any = dg.evaluate_automation_conditions(defs=self.defs, instance=self.instance, cursor=self.cursor)
        self.cursor = result.cursor
        found = {name: result.get_requested_partitions(dg.AssetKey(name)) for name in automation.AUTOMATED_ASSETS}
        return {name: set(map(str, keys)) for name, keys in found.items() if keys}


@pytest.fixture
def automatic(data: Path, states: dict[Any, str], monkeypatch: pytest.MonkeyPatch) -> Automation:
    ready_world(data, states)
    monkeypatch.setattr(readiness, "identity", lambda lineage, asset, key: f"{asset} {key} {lineage.status('inputs', key).state}")
    monkeypatch.setattr(automation, "identity", readiness.identity)
    from ltv_assets.definitions import build_defs

    return Automation(build_defs())


def test_windows_whose_days_passed_are_requested_once_as_a_whole(automatic: Automation, states: dict[Any, str]) -> None:
    first = automatic.tick()
    assert first == {asset: {DAYS[2], DAYS[3], DAYS[4]} for asset in WINDOW_UPSTREAM}
    assert automatic.tick() == {}, "what failed is not asked for again with the same inputs"
    states["inputs", DAYS[4]] = "stale"
    assert automatic.tick() == {asset: {DAYS[4]} for asset in WINDOW_UPSTREAM}, "changed inputs are a new chance"


def test_failed_day_blocks_only_the_windows_that_need_it(automatic: Automation, states: dict[Any, str]) -> None:
    states["flattened_features", DAYS[3]] = "failed"
    assert automatic.tick() == {asset: {DAYS[2]} for asset in WINDOW_UPSTREAM}
    states["flattened_features", DAYS[3]] = "fresh"
    assert automatic.tick() == {asset: {DAYS[3], DAYS[4]} for asset in WINDOW_UPSTREAM}, "the repaired day heals both"


def test_only_what_is_not_fresh_is_requested(automatic: Automation, states: dict[Any, str]) -> None:
    for key in DAYS[2:]:
        for asset in WINDOW_UPSTREAM:
            states[asset, key] = "fresh"
    states["stacker", DAYS[4]] = states["served_model", DAYS[4]] = "stale"
    assert automatic.tick() == {"stacker": {DAYS[4]}, "served_model": {DAYS[4]}}


# ------------------------------------------------------------------------------------- retraining_needed, the schedules


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the watch sees; a test turns the knobs."""
    world = SimpleNamespace(seen=("champion", "1"), reasons=(), window=DAYS[4])
    monkeypatch.setattr(sensors, "watched", lambda project: world.seen)
    monkeypatch.setattr(sensors, "look", lambda project: Watch({"rmsle": 0.4}, world.reasons))
    monkeypatch.setattr(sensors, "newest_trainable_window", lambda lineage: (world.window, "about the window"))
    monkeypatch.setattr(schedules, "newest_trainable_window", lambda lineage: (world.window, "about the window"))
    return world


def test_retraining_is_asked_for_once_when_a_figure_leaves_its_bound(data: Path, figures: SimpleNamespace) -> None:
    eye = Eye("retraining_needed")
    assert eye.look() == ([], "within bounds: rmsle 0.4000")
    assert eye.look() == ([], "nothing was evaluated or scored since the last look")
    figures.seen, figures.reasons = ("champion", "2"), ("RMSLE is 0.7, above 0.6",)
    requests, _ = eye.look()
    assert [(r.partition_key, r.tags["ltv/reason"]) for r in requests] == [(DAYS[4], "RMSLE is 0.7, above 0.6")]
    assert eye.look()[0] == []


def test_retraining_waits_for_a_run_that_is_under_way(data: Path, figures: SimpleNamespace) -> None:
    """While a window is being made its figures change and it is not fresh yet; that is no reason to make it twice."""
    eye = Eye("retraining_needed")
    figures.reasons = ("RMSLE is 0.7, above 0.6",)
    train = dg.define_asset_job("train_window").resolve(
        asset_graph=dg.Definitions([dg.asset(name="anything")(lambda: None)]).resolve_asset_graph()
    )
    run = eye.instance.create_run_for_job(train, status=dg.DagsterRunStatus.STARTED, tags={"dagster/partition": DAYS[4]})
    assert eye.look() == ([], f"a run for {DAYS[4]} is under way; its outcome decides")
    eye.instance.report_run_failed(run)
    assert [r.partition_key for r in eye.look()[0]] == [DAYS[4]]


def test_retraining_asked_for_after_the_cursor_was_reset_has_a_new_run_key(data: Path, figures: SimpleNamespace) -> None:
    eye = Eye("retraining_needed")
    figures.reasons = ("RMSLE is 0.7, above 0.6",)
    keys = [eye.look()[0][0].run_key]
    eye.cursor = None
    keys.append(eye.look()[0][0].run_key)
    assert len(set(keys)) == 2


def test_retraining_without_new_data_says_so(data: Path, figures: SimpleNamespace) -> None:
    figures.reasons, figures.window = ("scores moved by PSI 0.4",), None
    requests, reason = Eye("retraining_needed").look()
    assert requests == []
    assert reason == "scores moved by PSI 0.4; but there is nothing to train: about the window"


def test_without_champion_nothing_is_retrained(data: Path, figures: SimpleNamespace) -> None:
    figures.seen = None
    assert Eye("retraining_needed").look() == ([], "there is no champion yet")


def schedule(name: str) -> Any:
    from datetime import UTC, datetime

    definition = next(s for s in schedules.build(load_config()) if s.name == name)
    context = dg.build_schedule_context(
        scheduled_execution_time=datetime(2025, 11, 3, 3, tzinfo=UTC), resources={"project_resource": ProjectResource()}
    )
    return definition(context)


def test_weekly_schedule_trains_the_newest_window(data: Path, figures: SimpleNamespace) -> None:
    assert schedule("weekly_retraining").partition_key == DAYS[4]
    figures.window = None
    assert schedule("weekly_retraining").skip_message == "about the window"


def test_daily_schedule_scores_what_is_not_fresh(data: Path, states: dict[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for day in DAYS[:2]:
        land(data, day, split="test")
    states["predictions", DAYS[0]] = states["predictions", DAYS[1]] = states["cohort_forecast", DAYS[0]] = "fresh"
    monkeypatch.setattr(schedules, "waiting_for", lambda lineage, asset, key: None)
    (request,) = schedule("daily_prediction")
    assert (request.partition_key, request.asset_selection) == (DAYS[1], [dg.AssetKey("cohort_forecast")])
    monkeypatch.setattr(schedules, "waiting_for", lambda lineage, asset, key: "no champion")
    assert schedule("daily_prediction").skip_message == "no champion"


def test_cursor_forgets_days_that_are_gone(data: Path, states: dict[Any, str]) -> None:
    import shutil

    eye = Eye("days_landed")
    for day in DAYS[:2]:
        land(data, day)
    eye.look()
    for folder in (data / "train").glob(f"datetime={DAYS[0]}-*"):
        shutil.rmtree(folder)
    eye.look()
    assert set(json.loads(eye.cursor or "{}")) == {DAYS[1]}
