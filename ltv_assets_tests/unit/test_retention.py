"""What `ltv gc` deletes: only what the rule lets go, never the champion or what it was made from, and nothing by halves."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from ltv_assets.cli.app import main
from ltv_assets.cli.retention import collect, kept, needed_days, plan
from ltv_assets.core.asset_specs import DAY_ASSETS, WINDOW_ASSETS
from ltv_assets.core.contract import load_contract
from ltv_assets.state.project import Project
from ltv_assets.storage.champion import Champion, write_champion
from ltv_assets.storage.files import write_atomic
from ltv_assets.storage.warehouse import DOCUMENT_FOLDERS, Verdict, Warehouse

FIRST = date(2025, 10, 1)
CONFIG = "data: {dates: auto}\nretention: {windows: 2, days: 4, submissions: 1}\ntracking: {enabled: false}\n"


def day(number: int) -> str:
    return str(FIRST + timedelta(days=number - 1))


def fill(text: str) -> Any:
    def write(folder: Path) -> dict[str, int | None]:
        (folder / "content.txt").write_text(text)
        return {"content.txt": None}

    return write


def publish(warehouse: Warehouse, asset: str, key: str, inputs: dict[str, str] | None = None) -> None:
    warehouse.write(asset, key, fill(f"{asset} {key}"), code_version="1", config="c", inputs=inputs or {})
    warehouse.record_verdict(Verdict(asset, key, "some_check", True, True, warehouse.fingerprint(asset, key) or "", "b", "fine"))


def publish_day(warehouse: Warehouse, key: str) -> None:
    for asset in DAY_ASSETS:
        publish(warehouse, asset, key)
    write_atomic(warehouse.root / "cache" / "raw_hashes" / f"{key}.json", b"{}")


def publish_window(warehouse: Warehouse, number: int, train_days: int = 2) -> None:
    days = [day(n) for n in range(number - train_days, number)]
    for asset in WINDOW_ASSETS:
        publish(warehouse, asset, day(number), {f"flattened_features/{d}": "f" for d in days})
    for document in DOCUMENT_FOLDERS:
        warehouse.write(document, day(number), fill(document), code_version="1", config="c", inputs={})
    write_atomic(warehouse.root / "tracking" / f"window={day(number)}" / "run.json", b"{}")
    write_atomic(warehouse.root / "comparisons" / f"{day(number)}_against_{day(number - 1)}.json", b"{}")


def reign(warehouse: Warehouse, *windows: int) -> None:
    for number in windows:
        write_champion(warehouse, Champion(day(number), f"f{number}", "because"))


@pytest.fixture
def project(place: Any, tmp_path: Path) -> Iterator[Project]:
    """Ten days, windows 3 to 10, champions 3 then 4, two submissions; the data root knows day 10 and test day 12."""
    layout = load_contract().layout
    assert layout is not None
    for split, number in (("train", 10), ("test", 12)):
        (tmp_path / "data" / split / layout.folder(date.fromisoformat(day(number)), 0)).mkdir(parents=True)
    place(tmp_path / "data", CONFIG)
    project = Project.open()
    for number in (*range(1, 11), 12):
        publish_day(project.warehouse, day(number))
    for number in range(3, 11):
        publish_window(project.warehouse, number)
    reign(project.warehouse, 3, 4)
    for key in (f"{day(8)}_{day(8)}", project.submission_key):
        publish(project.warehouse, "submission", key)
    yield project


def snapshot(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}


def test_plan_lists_old_windows_days_and_submissions_and_touches_nothing(project: Project) -> None:
    before = snapshot(project.warehouse.root)
    doomed = plan(project)
    assert snapshot(project.warehouse.root) == before
    windows, days = ([d.key for d in doomed if d.kind == kind] for kind in ("window", "day"))
    assert windows == [day(n) for n in (5, 6, 7, 8)], "9 and 10 are the newest, 3 and 4 were champions"
    assert days == [day(n) for n in (5, 6)], "1 to 4 made the champions, 7 to 10 the newest windows"
    assert [d.key for d in doomed if d.kind == "submission"] == [f"{day(8)}_{day(8)}"]
    assert all(d.bytes > 0 for d in doomed)


def test_collect_leaves_no_trace_of_what_goes_and_every_byte_of_what_stays(project: Project) -> None:
    root = project.warehouse.root
    contents = {name: (root / name).read_bytes() for name in snapshot(root)}
    doomed = plan(project)
    paths = [p for d in doomed for path in d.paths for p in (path, *path.rglob("*"))]
    gone = {str(p.relative_to(root)) for p in paths if p.is_file()}
    assert collect(project, doomed) == []
    left = {name for name in snapshot(root) if not name.startswith(("ltv.", "."))}
    assert left == set(contents) - gone
    assert not [name for name in left for number in (5, 6, 7, 8) if f"window={day(number)}" in name]
    assert all((root / name).read_bytes() == contents[name] for name in left)
    assert not [p for p in (root / "models").iterdir() if not any(p.iterdir())], "no empty folder is left"
    assert plan(project) == ()
    assert collect(project, ()) == []


def test_champion_keeps_its_window_and_its_days_however_old(project: Project) -> None:
    collect(project, plan(project))
    for number in (3, 4):
        for asset in WINDOW_ASSETS:
            assert project.warehouse.manifest(asset, day(number)) is not None
    assert needed_days(project.warehouse, [day(3), day(4)]) == {day(n) for n in (1, 2, 3, 4)}
    assert set(project.warehouse.keys("flattened_features")) == {day(n) for n in (1, 2, 3, 4, 7, 8, 9, 10, 12)}


def test_only_the_champion_and_the_one_before_it_are_protected(project: Project) -> None:
    reign(project.warehouse, 6)
    assert kept(project) == {day(n) for n in (4, 6, 9, 10)}


def test_verdicts_and_tracking_of_vanished_partitions_are_orphans(project: Project) -> None:
    root = project.warehouse.root
    collect(project, plan(project))
    write_atomic(root / "verdicts" / "stacker" / day(20) / "some_check.json", b"{}")
    write_atomic(root / "tracking" / f"window={day(20)}" / "run.json", b"{}")
    project.warehouse.write("report", day(20), fill("report"), code_version="1", config="c", inputs={})
    found = {d.key for d in plan(project)}
    assert found == {f"verdicts/stacker/{day(20)}", f"tracking/window={day(20)}", f"reports/window={day(20)}"}
    collect(project, plan(project))
    assert plan(project) == ()


def test_command_shows_first_and_deletes_only_when_told(project: Project) -> None:
    before = snapshot(project.warehouse.root)
    shown = CliRunner().invoke(main, ["gc"])
    assert shown.exit_code == 0, shown.output
    assert f"window {day(5)}: " in shown.output
    assert "would be deleted; `ltv gc --apply` deletes them" in shown.output
    assert snapshot(project.warehouse.root) == before
    applied = CliRunner().invoke(main, ["gc", "--apply"])
    assert applied.exit_code == 0, applied.output
    assert project.warehouse.manifest("stacker", day(5)) is None
    assert "0 things" in CliRunner().invoke(main, ["gc"]).output


def test_crash_between_two_deletions_leaves_whole_partitions(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from ltv_assets.cli import retention

    original, calls = retention._remove, []

    def dies(warehouse: Warehouse, path: Path) -> None:
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        original(warehouse, path)

    monkeypatch.setattr(retention, "_remove", dies)
    with pytest.raises(KeyboardInterrupt):
        collect(project, plan(project))
    assert "served_model" in str(calls[0]), "a window stops being eligible before anything else of it goes"
    for asset in (*WINDOW_ASSETS, *DAY_ASSETS):
        for key in project.warehouse.keys(asset):
            assert project.warehouse.artifacts(asset, key)
    monkeypatch.setattr(retention, "_remove", original)
    collect(project, plan(project))
    assert plan(project) == ()


@given(
    windows=st.sets(st.integers(3, 14), min_size=1, max_size=6),
    reigns=st.lists(st.integers(3, 14), max_size=4),
    newest=st.integers(1, 5),
    back=st.integers(1, 8),
)
@settings(max_examples=10, deadline=None)
def test_no_rule_ever_lets_go_what_a_kept_window_needs(
    tmp_path_factory: pytest.TempPathFactory, windows: set[int], reigns: list[int], newest: int, back: int
) -> None:
    from ltv_assets.core.config import Config, RetentionConfig
    from ltv_assets.ingestion.calendar import Horizon

    warehouse = Warehouse(tmp_path_factory.mktemp("w"))
    for number in windows:
        publish(warehouse, "stacker", day(number), {f"flattened_features/{day(n)}": "f" for n in (number - 2, number - 1)})
    for number in range(1, max(windows) + 1):
        publish(warehouse, "flattened_features", day(number))
    reign(warehouse, *reigns)
    config = Config(retention=RetentionConfig(windows=newest, days=back))
    project = Project(config, Horizon((), (), 2, 7, 0, frozenset()), warehouse)
    doomed = plan(project)
    stay = kept(project)
    assert set(map(day, sorted(windows)[-newest:])) <= stay
    assert not stay & {d.key for d in doomed if d.kind == "window"}
    assert not needed_days(warehouse, stay) & {d.key for d in doomed if d.kind == "day"}
    if reigns:
        assert day(reigns[-1]) in stay


def test_runs_of_a_window_are_forgotten_with_their_artifacts(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    from ltv_assets.core.config import Config
    from ltv_assets.tracking.client import Tracker
    from ltv_assets.tracking.outbox import WINDOW_STAGE, Record

    tracker = Tracker(Config(), Warehouse(tmp_path))
    for window in (day(5), day(6)):
        for stage in (WINDOW_STAGE, "stacker"):
            tracker.log(Record(window=window, stage=stage, identity="i", metrics={"rmsle": 0.4}, artifacts={"a.png": b"png"}))
    gone, stays = tracker.run_id(day(5)) or "", tracker.run_id(day(6)) or ""
    assert (tmp_path / "mlartifacts" / gone / "artifacts" / "a.png").is_file()
    assert tracker.forget(day(5)) is None
    client = MlflowClient(tracker.uri)
    assert client.get_run(gone).info.lifecycle_stage == "deleted"
    assert client.get_run(stays).info.lifecycle_stage == "active"
    assert {p.name for p in (tmp_path / "mlartifacts").iterdir()} == {r.info.run_id for r in client.search_runs(["1"])}
    assert tracker.forget(day(20)) is None, "a window without runs has nothing to forget"


def test_server_that_is_down_does_not_stop_the_clean_up(tmp_path: Path) -> None:
    from ltv_assets.core.config import Config
    from ltv_assets.tracking.client import Tracker

    tracker = Tracker(Config(), Warehouse(tmp_path), uri="http://127.0.0.1:9")
    tracker.outbox.remember_run(day(5), "i", tracker.server, "window", "r")
    assert f"MLflow runs of window {day(5)} stay" in (tracker.forget(day(5)) or "")
