"""``ltv predict`` counts, sets aside, refuses and warns as a day of the graph does, wherever the hours lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ltv_assets.core.config import DataConfig
from ltv_assets.core.errors import DataError
from ltv_assets.ingestion.inventory import DayInventory
from ltv_assets.scoring.predict_files import inspect_source, predict_folder, refuse_unusable
from ltv_assets_tests.faults import test_files as damages
from ltv_assets_tests.faults.catalogue import Fault, fault
from ltv_assets_tests.faults.evidence import tree
from ltv_assets_tests.faults.world import DAY, World, edit, hour_key


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Hours 0 to 3 of one day without labels."""
    world = World(tmp_path)
    for hour in range(4):
        world.put(hour, split="test")
    return world


def file(world: World, hour: int) -> Path:
    return world.file(hour, split="test")


def only_day(source: Path) -> DayInventory:
    (day,), _ = inspect_source(source)
    return day


@fault("files", "uncommitted output of a killed job beside the data, ltv predict", answer="accept", message="")
def test_predict_reads_no_uncommitted_output(fault: Fault, world: World) -> None:
    """Folders of committers of Spark and Hadoop, beside the hours, above them and inside one."""
    hour = file(world, 0).parent
    before = inspect_source(world.data)
    for folder in (
        hour.parent / ".spark-staging-1f" / hour.name,
        hour.parent / "_temporary" / "0" / hour.name,
        world.data / ".spark-staging-1f" / hour.name,
        world.data / "_temporary" / hour.name,
        hour / "_temporary" / "0",
    ):
        shutil.copytree(file(world, 1).parent, folder)
    assert inspect_source(world.data) == before
    fault.silent()
    assert [f.path.split("/", 1)[1] for f in only_day(world.data).good] == [f.path.split("/", 1)[1] for f in world.inspect().good]


def test_predict_sets_the_same_files_aside_for_the_same_reasons_as_a_run(world: World) -> None:
    bad = (damages.empty, damages.truncate, damages.text, damages.temporary, damages.folder, damages.pasted, damages.encrypted_column)
    for hour, damage in enumerate(bad, 4):
        world.put(hour, split="test")
        damage(file(world, hour))
    damages.same_again(file(world, 0))
    damages.link_outside(file(world, 1))
    ours, theirs = only_day(world.data / "test"), world.inspect()
    assert len(theirs.quarantined) == len(bad) + 2
    assert [(f"test/{f.path}", f.reason.replace(" as ", " as test/")) for f in ours.quarantined] == [
        (f.path, f.reason) for f in theirs.quarantined
    ]
    assert len(ours.warnings) == len(theirs.warnings)


def test_predict_takes_a_data_root_a_split_an_hour_and_a_file(world: World) -> None:
    rows = pq.read_metadata(file(world, 2)).num_rows
    for source, hours in ((world.data, 4), (world.data / "test", 4), (file(world, 2).parent, 1), (file(world, 2), 1)):
        day = only_day(source)
        assert [f.datetime for f in day.good] == [hour_key(h) for h in (range(4) if hours == 4 else [2])]
        assert day.rows == hours * rows
        assert any("hours are missing" in w for w in day.warnings) == (hours == 4)
    with pytest.raises(DataError, match=r"no impressions found; expected datetime=YYYY-MM-DD-HH-00/\*\.parquet below it"):
        inspect_source(world.data.parent / "nothing")


@fault(
    "files",
    "a folder beside the hours that is none, ltv predict",
    answer="degrade",
    message="<entry>: not an hourly folder; expected a name such as datetime=2025-10-01-00-00; it is left out",
)
def test_predict_names_what_it_leaves_out(fault: Fault, world: World) -> None:
    hours = world.data / "test"
    shutil.copytree(file(world, 0).parent, hours / "backup" / file(world, 0).parent.name)
    days, warnings = inspect_source(world.data)
    assert fault.told(warnings) == {"entry": str(hours / "backup")}
    assert len(days[0].files) == 4


def test_predict_follows_a_link_to_what_it_may_be_given(world: World) -> None:
    for number, source in enumerate((world.data, file(world, 2).parent, file(world, 2))):
        link = world.root / f"link{number}"
        link.symlink_to(source)
        assert inspect_source(link) == inspect_source(source)


@fault(
    "files",
    "a file outside an hourly folder, ltv predict",
    answer="reject",
    message="<file>: expected a file in a folder such as datetime=2025-10-01-00-00, found it in <folder>",
)
def test_predict_refuses_a_file_without_an_hour(fault: Fault, world: World) -> None:
    """Hours further down are not its hours."""
    lone = world.data / "lone.parquet"
    shutil.copy(file(world, 0), lone)
    with pytest.raises(DataError) as raised:
        inspect_source(lone)
    assert fault.told(str(raised.value)) == {"file": str(lone), "folder": "data"}


@fault(
    "output",
    "scores among the impressions, ltv predict",
    answer="reject",
    message="<target>: expected a file outside the impressions, found it in the hourly folder <hour>; give another --out",
)
def test_predict_writes_nothing_among_impressions(fault: Fault, world: World) -> None:
    link = world.root / "scores"
    link.symlink_to(file(world, 1).parent)
    before = tree(world.data)
    for target in (file(world, 1), file(world, 1).with_name("scores.csv"), link / "scores.csv", link / "new" / "scores.parquet"):
        with pytest.raises(DataError) as raised:
            predict_folder(world.project, world.data, target, window=None, progress=lambda done, total: None)
        assert fault.told(str(raised.value)) == {"target": str(target), "hour": f"datetime={hour_key(1)}"}
    assert tree(world.data) == before


@fault(
    "files",
    "more broken files than max_bad_file_share, ltv predict",
    answer="reject",
    message="day <day>: 75% of the files are unreadable, more than max_bad_file_share = 50%; "
    "first: <file>: zero bytes; upload the file again",
    hours=3,
)
@fault(
    "files",
    "no file of a day can be read, ltv predict",
    answer="reject",
    message="day <day>: no readable file, 4 quarantined; first: <file>: zero bytes; upload the file again; deliver the hours again",
    hours=4,
)
def test_predict_refuses_a_day_with_too_many_broken_files(fault: Fault, world: World) -> None:
    for hour in range(fault.hours):
        damages.empty(file(world, hour))
    with pytest.raises(DataError) as raised:
        refuse_unusable(DataConfig(), inspect_source(world.data)[0])
    assert fault.told(str(raised.value)) == {"day": DAY, "file": f"test/datetime={hour_key(0)}/part-0.parquet"}


@fault(
    "schema",
    "row_id missing, ltv predict",
    answer="reject",
    message="<file>: required column row_id is missing; expected it in every file of test/; deliver the file again",
)
def test_predict_refuses_a_file_without_keys(fault: Fault, world: World) -> None:
    edit(file(world, 1), lambda table: table.drop_columns(["row_id"]))
    with pytest.raises(DataError) as raised:
        refuse_unusable(DataConfig(), inspect_source(world.data)[0])
    fault.told(str(raised.value))


def test_predict_warns_of_columns_as_a_run_does(world: World) -> None:
    for hour in range(4):
        edit(file(world, hour), lambda table: table.drop_columns(["carrier"]).append_column("extra", table["cpm"]))
    ours, theirs = only_day(world.data).warnings, world.inspect().warnings
    assert ours == theirs
    assert any(warning.startswith("column carrier is missing in every file: read as NULL; ") for warning in ours)
    assert "unexpected columns are ignored: extra" in ours
