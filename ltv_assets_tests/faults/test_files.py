"""Files that cannot be used are set aside with their reason; the good ones beside them are read, and the folder stays as it was."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from io import BytesIO
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltv_assets.cli.flatten_benchmark import find_days
from ltv_assets.core.errors import DataError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.defs.asset_checks.features import flattened_rows_reconciled
from ltv_assets.defs.asset_checks.ingestion import files_readable
from ltv_assets.ingestion.calendar import discover
from ltv_assets.ingestion.footers import Footer, FooterReader
from ltv_assets.ingestion.inventory import HashCache, inspect_day, refuse_unsound
from ltv_assets.scoring.predict_files import inspect_source
from ltv_assets.state.project import Project
from ltv_assets_tests.faults import fuzz
from ltv_assets_tests.faults.catalogue import Fault, fault
from ltv_assets_tests.faults.damaged_parquet import write_encrypted
from ltv_assets_tests.faults.evidence import ltv, nothing_changes
from ltv_assets_tests.faults.world import DAY, ROWS, World, one_table


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Hours 0 to 3 of one day."""
    return World.of(tmp_path, 4)


def relative(hour: int, name: str = "part-0.parquet") -> str:
    return f"train/datetime={DAY}-{hour:02d}-00/{name}"


# -------------------------------------------------------------------------------------------------------- ways to break


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def text(path: Path) -> None:
    path.write_text("row_id,iap_revenue_d7\n" * 20)


def temporary(path: Path) -> None:
    path.rename(path.with_name(path.name + ".tmp"))


def engine_leftover(path: Path) -> None:
    path.with_name("tmp_part-0.parquet").write_bytes(path.read_bytes()[:-5])


def link_outside(path: Path) -> None:
    outside = path.parents[3] / "outside.parquet"
    shutil.move(path, outside)
    path.symlink_to(outside)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_to_pipe(path: Path) -> None:
    """Whoever opens it waits for a writer."""
    path.unlink()
    os.mkfifo(path.with_name(".pipe"))
    path.symlink_to(".pipe")


def illegible_name(path: Path) -> None:
    path.rename(path.with_name("part-\udcff.parquet"))


def same_again(path: Path) -> None:
    shutil.copy(path, path.with_name("part-1.parquet"))


def pasted(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(b"PAR1" + data[-int.from_bytes(data[-8:-4], "little") - 8 :])


def encrypted_column(path: Path) -> None:
    write_encrypted(pq.read_table(path, partitioning=None), path, ["wifi_ratio"], plaintext_footer=True)


def encrypted_footer(path: Path) -> None:
    write_encrypted(pq.read_table(path, partitioning=None), path, ["wifi_ratio"], plaintext_footer=False)


def promised_rows(path: Path) -> None:
    """The footer's number of rows (field 3, before the list of one row group) becomes 2^60."""
    data = path.read_bytes()
    rows = bytes([0x16, 2 * ROWS, 0x19, 0x1C])
    at = data.rindex(rows)
    number = bytes([0x16, *[0x80] * 8, 0x20, 0x19, 0x1C])
    footer = int.from_bytes(data[-8:-4], "little") + len(number) - len(rows)
    path.write_bytes(data[:at] + number + data[at + len(rows) : -8] + footer.to_bytes(4, "little") + b"PAR1")


def huge_page(path: Path) -> None:
    """The only page of the last column claims 1 GiB."""
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table.select([n for n in table.column_names if n != "wifi_ratio"] + ["wifi_ratio"]), path, use_dictionary=False)
    row_group = pq.read_metadata(path).row_group(0)
    at = row_group.column(row_group.num_columns - 1).data_page_offset
    data = path.read_bytes()
    assert data[at : at + 3] == bytes([0x15, 0, 0x15])
    end = next(i for i in range(at + 3, at + 13) if data[i] < 128) + 1
    path.write_bytes(data[: at + 3] + bytes([0x80, 0x80, 0x80, 0x80, 0x08]) + data[end:])


def missing_values(path: Path) -> None:
    """The first page of a column says it holds half of its values."""
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table, path, use_dictionary=False, write_statistics=False, data_page_version="2.0")
    data = bytearray(path.read_bytes())
    column = table.column_names.index("wifi_ratio")
    group = pq.read_metadata(path).row_group(0)
    at = next(c.data_page_offset for c in map(group.column, range(group.num_columns)) if c.path_in_schema == table.column_names[column])
    page = data.index(bytes([0x15, 2 * ROWS]), at)
    data[page + 1] = ROWS
    path.write_bytes(data)


def contradicting_histograms(path: Path) -> None:
    """Asked for a column of this file, the library ends the process."""
    number = 1498
    fuzz.write_damaged(path, "bytes", random.Random(number))


@fault(
    "files",
    "an encrypted column, the footer in plain text",
    answer="quarantine",
    message="<file>: encrypted columns cannot be read; deliver the file unencrypted",
    inject=encrypted_column,
)
@fault(
    "files",
    "an encrypted footer",
    answer="quarantine",
    message="<file>: its footer is encrypted; deliver the file unencrypted",
    inject=encrypted_footer,
)
@fault(
    "files",
    "a footer that ends the process which reads it",
    answer="quarantine",
    message="<file>: reading its footer ends the reader (<how>); deliver the file again",
    inject=contradicting_histograms,
)
@fault(
    "files",
    "a footer that promises 2^60 rows",
    answer="quarantine",
    message="<file>: its footer promises 1152921504606846976 rows, its row groups hold <rows>; deliver the file again",
    inject=promised_rows,
)
@fault(
    "files",
    "a page that claims more bytes than its column has",
    answer="quarantine",
    message="<file>: a page of column chunk <column> claims 1073741824 bytes, the chunk <bytes>; deliver the file again",
    inject=huge_page,
)
@fault(
    "files",
    "pages that hold fewer values than their column",
    answer="quarantine",
    message="<file>: the pages of column chunk wifi_ratio hold 6 values, the chunk 12; deliver the file again",
    inject=missing_values,
)
@fault("files", "zero bytes", answer="quarantine", message="<file>: zero bytes; upload the file again", inject=empty)
@fault("files", "truncated footer", answer="quarantine", message="<file>: not a readable parquet file: <detail>", inject=truncate)
@fault("files", "not parquet", answer="quarantine", message="<file>: not a readable parquet file: <detail>", inject=text)
@fault(
    "files",
    "orphan temporary file",
    answer="quarantine",
    message="<file>: expected a .parquet file, found .tmp (an unfinished upload?)",
    inject=temporary,
)
@fault(
    "files",
    "tmp_*.parquet left by a killed engine",
    answer="quarantine",
    message="<file>: not a readable parquet file: <detail>",
    inject=engine_leftover,
    extra=1,
)
@fault(
    "files",
    "symbolic link that leaves the root",
    answer="quarantine",
    message="<file>: symbolic link that leaves the data root; copy the file instead",
    inject=link_outside,
)
@fault("files", "folder named like a file", answer="quarantine", message="<file>: folder where a parquet file was expected", inject=folder)
@fault("files", "the same part twice", answer="quarantine", message="<file>: same content as <first>", inject=same_again, extra=1)
@fault(
    "files",
    "footer of other bytes",
    answer="quarantine",
    message="<file>: column chunk <column> lies beyond the data of the file; it was cut or pasted together",
    inject=pasted,
)
@fault(
    "files",
    "symbolic link to itself or to nothing",
    answer="quarantine",
    message="<file>: symbolic link to nothing; copy the file instead",
    inject=link_to_itself,
)
@fault(
    "files",
    "pipe named like a file",
    answer="quarantine",
    message="<file>: pipe, socket or device where a parquet file was expected",
    inject=pipe,
)
@fault(
    "files",
    "symbolic link to a pipe",
    answer="quarantine",
    message="<file>: pipe, socket or device where a parquet file was expected",
    inject=link_to_pipe,
)
@fault(
    "files", "name that is not UTF-8", answer="quarantine", message="<file>: its name is not UTF-8; rename the file", inject=illegible_name
)
def test_broken_file_is_set_aside_with_its_reason(fault: Fault, world: World) -> None:
    damage: Callable[[Path], None] = fault.inject
    damage(world.file(2))
    extra = fault.given.get("extra", 0)
    with nothing_changes(world.data):
        findings = world.check()
        table, _ = world.flatten()
    (bad,) = findings.problems
    assert fault.told(bad)["file"].startswith(relative(2, ""))
    assert world.inspect().table().num_rows == 4 + extra
    hours = {h[-5:-3] for h in table.column("datetime").to_pylist()}
    assert hours == ({"00", "01", "02", "03"} if extra else {"00", "01", "03"})
    assert table.num_rows == (4 if extra else 3) * ROWS


@fault("files", "no read permission", answer="quarantine", message="<file>: no permission to read it")
def test_file_nobody_may_read_is_set_aside(fault: Fault) -> None:
    if os.geteuid() != 0 and not hasattr(os, "seteuid"):
        pytest.skip("needs to change its user")
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        root.chmod(0o755)
        world = World(root)
        world.put(0)
        world.put(1).chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may read everything
        try:
            inventory = world.inspect()
        finally:
            os.seteuid(user)
        (bad,) = inventory.quarantined
        assert fault.told(f"{bad.path}: {bad.reason}")["file"] == relative(1)
        assert [f.path for f in inventory.good] == [relative(0)]
        world.file(1).chmod(0o644)


def test_markers_and_hidden_files_are_no_data(world: World) -> None:
    for name in ("_SUCCESS", ".part-0.parquet.crc", "_metadata", ".hidden.parquet", "part-0.crc"):
        (world.file(0).parent / name).write_bytes(b"x")
    assert world.check().problems == []
    assert world.flatten()[0].num_rows == 4 * ROWS


# ----------------------------------------------------------------------------------------------------------- hours, days


def hour_that_is_itself(hours: Path) -> Path:
    link = hours / "datetime=2025-10-01-09-00"
    link.symlink_to(link.name)
    return link


@pytest.mark.parametrize(
    "name",
    [
        "datetime=2025-10-01 05:00:00",
        "datetime=2025-10-01-05-00\n",
        "datetime=2025-10-01-05-00 ",
        "datetime%3D2025-10-01-05-00",
        "Datetime=2025-10-01-05-00",
        "datetime=2025-10-01-05-30",
        "datetime=2025-10-01-5-00",
        "datetime=２０２５-10-01-05-00",
        "datetime=__HIVE_DEFAULT_PARTITION__",
        "date=2025-10-01/hour=05",
        "not UTF-8 \udcff",
        hour_that_is_itself,
    ],
    ids=lambda folder: folder.__name__ if callable(folder) else ascii(folder),
)
def test_folder_of_another_layout_is_named_and_left_out(world: World, name: str | Callable[[Path], Path]) -> None:
    hours = world.file(0).parent.parent
    if isinstance(name, str):
        (hours / name).mkdir(parents=True)
        shutil.copy(world.file(0), hours / name / "other.parquet")
        entry = (hours / name.split("/")[0]).name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    else:
        entry = name(hours).name
    expected = f"{hours / entry}: not an hourly folder; expected a name such as datetime=2025-10-01-00-00"
    assert world.check().problems == [expected]
    days, warnings = inspect_source(world.data)
    assert warnings == [f"{expected}; it is left out"]
    assert [len(day.files) for day in days] == [4]
    assert world.flatten()[0].num_rows == 4 * ROWS


def remove_hour(world: World) -> None:
    shutil.rmtree(world.file(3).parent)


def empty_hour(world: World) -> None:
    world.file(3).unlink()


@fault(
    "files",
    "an hour missing",
    answer="degrade",
    message="day <day>: <count> of 24 hours are missing: <hour>, <others>",
    inject=remove_hour,
    expected={"count": "21", "hour": f"{DAY}-03-00"},
)
@fault(
    "files",
    "an hour empty",
    answer="degrade",
    message="day <day>: <count> hours hold no file: <hour>",
    inject=empty_hour,
    expected={"count": "1", "hour": f"{DAY}-03-00"},
)
def test_missing_hour_is_a_warning_with_its_name(fault: Fault, world: World) -> None:
    fault.inject(world)
    with nothing_changes(world.data):
        findings = world.check()
    assert findings.problems == []
    assert fault.told(findings.warnings).items() >= fault.expected.items()
    assert world.flatten()[0].num_rows == 3 * ROWS


@fault(
    "files",
    "unknown folder beside the partitions",
    answer="degrade",
    message="<entry>: not an hourly folder; expected a name such as datetime=2025-10-01-00-00",
    inject="backup",
)
@fault(
    "files",
    "malformed datetime= value",
    answer="degrade",
    message="<entry>: not an hourly folder; expected a name such as datetime=2025-10-01-00-00",
    inject="datetime=2025-10-01-24-00",
)
def test_folder_that_is_no_hour_is_named_and_left_out(fault: Fault, world: World) -> None:
    shutil.copytree(world.file(0).parent, world.data / "train" / fault.inject)
    findings = world.check()
    assert fault.told(findings.problems)["entry"] == str(world.data / "train" / fault.inject)
    assert world.flatten()[0].num_rows == 4 * ROWS


@fault(
    "files",
    "more broken files than max_bad_file_share",
    answer="reject",
    message="day <day>: <share> of the files are unreadable, more than max_bad_file_share = <bound>; first: <file>: <reason>",
    inject=3,
)
@fault(
    "files",
    "no file of a day can be read",
    answer="reject",
    message="day <day>: no readable file, <count> quarantined; first: <file>: <reason>; deliver the hours again",
    inject=4,
)
def test_day_with_too_many_broken_files_is_refused(fault: Fault, world: World) -> None:
    from ltv_assets.defs.assets.ingestion import inventory_facts

    for hour in range(fault.inject):
        empty(world.file(hour))
    inventory = world.inspect()
    project = world.project
    facts = inventory_facts(inventory)
    project.warehouse.write("raw_partitions", DAY, lambda _: {}, code_version="1", config="", inputs={}, facts=facts)
    outcome = files_readable(project, DAY)
    assert not outcome.passed
    assert fault.told(outcome.message)["day"] == DAY


@fault(
    "files",
    "more undecodable files than max_bad_file_share",
    answer="reject",
    message="day <day>: <share> of the files are unreadable, more than max_bad_file_share = <bound>; first: <file>: <reason>",
)
def test_undecodable_files_count_as_broken(fault: Fault, world: World) -> None:
    from ltv_assets.defs.assets.ingestion import inventory_facts

    project = world.project
    facts = inventory_facts(world.inspect())
    project.warehouse.write("raw_partitions", DAY, lambda _: {}, code_version="1", config="", inputs={}, facts=facts)
    aside = [[relative(hour), "its rows cannot be decoded (x); deliver the file again"] for hour in range(3)]
    flat = {"rows_quarantined": {}, "rows_sampled_out": 0, "rows_in_files_quarantined": 3 * ROWS, "files_quarantined": aside}
    kept = one_table(pq.read_table(world.file(3), partitioning=None, columns=["row_id"]))
    project.warehouse.write("flattened_features", DAY, kept, code_version="1", config="", inputs={}, facts=flat)
    outcome = flattened_rows_reconciled(project, DAY)
    assert not outcome.passed
    assert fault.told(outcome.message)["file"] == relative(0)


@fault(
    "files",
    "a file vanishes or is cut between inventory and flattening",
    answer="reject",
    message="<file>: cannot be read as parquet: <detail>",
)
def test_file_that_is_cut_after_the_inventory_stops_the_day(fault: Fault, world: World) -> None:
    from ltv_assets.features.flatten import RawFile, flatten_files
    from ltv_assets.features.registry import load_registry

    inventory = world.inspect()
    truncate(world.file(1))
    files = [RawFile(world.data / f.path, f.datetime) for f in inventory.good]
    with pytest.raises(DataError) as caught:
        flatten_files(files, registry=load_registry(world.config.features), labelled=True, out=world.root / "day.parquet")
    assert fault.told(str(caught.value))["file"] == str(world.file(1))
    assert not (world.root / "day.parquet").exists()


@fault(
    "files",
    "a file exchanged after the inventory for one that ends its reader",
    answer="reject",
    message="<file>: encrypted columns cannot be read; deliver the file unencrypted; it was exchanged after the inventory of its day, "
    "run `ltv run` for a new one",
)
def test_file_exchanged_after_the_inventory_is_looked_at_again_before_it_is_opened(fault: Fault, world: World) -> None:
    cache = HashCache()
    inventory = inspect_day(world.config, discover(world.config), date.fromisoformat(DAY), cache)
    files = [(world.data / f.path, f.sha256) for f in inventory.good]
    refuse_unsound(files, cache)
    encrypted_column(world.file(1))
    with pytest.raises(DataError) as raised:
        refuse_unsound(files, cache)
    assert fault.told(str(raised.value))["file"] == str(world.file(1))


def own_reader() -> psutil.Process:
    """The process of the reader that was started last."""
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return max((child for child in alive if "footer_reader" in str(child.cmdline())), key=lambda child: child.create_time())


@fault(
    "files",
    "a footer that takes too long",
    answer="quarantine",
    message="<file>: reading its footer takes more than 1 s; deliver the file again",
)
def test_footer_that_takes_too_long_sets_its_file_aside(fault: Fault, world: World) -> None:
    """Half a million row groups, all of them the same bytes of the file."""
    path = world.file(0)
    pq.write_table(pa.table({"row_id": ["a"]}), path)
    metadata = pq.read_metadata(path)
    for _ in range(19):
        metadata.append_row_groups(metadata)
    footer = BytesIO()
    metadata.write_metadata_file(footer)
    data = path.read_bytes()
    path.write_bytes(data[: -8 - int.from_bytes(data[-8:-4], "little")] + footer.getvalue()[4:])
    reader = FooterReader(seconds=1)
    fault.told(f"{path}: {reader.read(path)}")
    assert isinstance(reader.read(world.file(1)), Footer)
    reader.close()


def test_reader_that_does_not_answer_is_given_up_and_another_one_asked(world: World) -> None:
    """A stopped process stands for a disk that does not answer."""
    reader = FooterReader(seconds=1)
    first = reader.read(world.file(0))
    assert isinstance(first, Footer)
    stopped = own_reader()
    stopped.send_signal(signal.SIGSTOP)
    assert reader.read(world.file(0)) == first
    assert not stopped.is_running()
    reader.close()


def test_footers_are_read_by_threads_and_by_forked_processes_alike(world: World) -> None:
    reader = FooterReader()
    wanted = [reader.read(world.file(hour)) for hour in range(4)]
    encrypted_column(world.file(2))
    wanted[2] = reader.read(world.file(2))
    assert isinstance(wanted[2], str)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: reader.read(world.file(i % 4)), range(40))) == wanted * 10
    os.register_at_fork(after_in_child=reader.forget)
    forked = os.fork()
    if not forked:
        os._exit(0 if [reader.read(world.file(hour)) for hour in range(4)] == wanted else 1)
    assert [reader.read(world.file(i % 4)) for i in range(40)] == wanted * 10
    assert os.waitpid(forked, 0)[1] == 0
    reader.close()


def test_reader_that_somebody_ended_costs_no_file(world: World) -> None:
    reader = FooterReader()
    first = reader.read(world.file(0))
    own_reader().kill()
    assert reader.read(world.file(0)) == first
    reader.close()


def test_measuring_leaves_out_files_that_cannot_be_used(world: World) -> None:
    encrypted_column(world.file(2))
    (files,) = find_days(world.data).values()
    assert [file.path for file in files] == [world.file(hour) for hour in (0, 1, 3)]


# ------------------------------------------------------------------------------------------------------------- check-data


def test_check_data_prints_one_line_for_each_bad_file_and_exits_2(world: World, place: Callable[..., Path]) -> None:
    """One file of each bad kind beside good ones; each is named once, and the warnings repeat nothing."""
    place()
    damages = (empty, truncate, text, temporary, link_outside, folder, pasted)
    for hour, damage in enumerate(damages, 4):
        world.put(hour)
        damage(world.file(hour))
    same_again(world.file(0))
    world.put(12)
    table = pq.read_table(world.file(12), partitioning=None)
    pq.write_table(table.drop_columns(["row_id"]), world.file(12))
    with nothing_changes(world.data):
        code, output = ltv("check-data", world.data)
    assert code == 2
    lines = [line for line in output.splitlines() if line.startswith("train/") and ".parquet" in line.split(":")[0]]
    assert len(lines) == len({line.split(":")[0] for line in lines}) == len(damages) + 2, output
    for words in (
        "zero bytes",
        "not a readable parquet file",
        "expected a .parquet file, found .tmp",
        "symbolic link that leaves the data root",
        "folder where a parquet file was expected",
        "lies beyond the data of the file",
        "same content as",
        "required column row_id is missing",
    ):
        assert any(words in line for line in lines), words


def test_missing_column_is_one_warning(world: World, place: Callable[..., Path]) -> None:
    place()
    for hour in range(4):
        table = pq.read_table(world.file(hour), partitioning=None)
        pq.write_table(table.drop_columns(["carrier"]), world.file(hour))
    code, output = ltv("check-data", world.data)
    assert code == 0
    (told,) = (line for line in output.splitlines() if "carrier" in line)
    assert told.startswith("column carrier is missing in every file: read as NULL; ")


BAD_DAYS: tuple[tuple[str, Callable[[Path], None]], ...] = (
    ("zero bytes", empty),
    ("not a readable parquet file", truncate),
    ("found .tmp", temporary),
    ("leaves the data root", link_outside),
    ("lies beyond the data", pasted),
    ("encrypted columns cannot be read", encrypted_column),
    ("ends the reader", contradicting_histograms),
)


@pytest.mark.slow
def test_run_finishes_the_good_days_beside_the_bad_and_exits_1(tmp_path: Path, place: Callable[..., Path]) -> None:
    world = World(tmp_path)
    place(world.data, "tracking: {enabled: false}\n")
    first, *bad, last = days = [f"2025-10-{number:02d}" for number in range(1, len(BAD_DAYS) + 3)]
    for day in days:
        world.put(0, day=day)
    for day, (_, damage) in zip(bad, BAD_DAYS, strict=True):
        damage(world.file(0, day))
    with nothing_changes(world.data):
        code, output = ltv("run")
    assert code == 1
    for day, (words, _) in zip(bad, BAD_DAYS, strict=True):
        assert any(day in line and words in line for line in output.splitlines() if line.startswith("failed:")), (day, output)
    lineage = Project.open().lineage()
    assert [lineage.status("flattened_features", PartitionKey(day)).state for day in (first, last)] == ["fresh", "fresh"]
    assert [lineage.status("raw_partitions", PartitionKey(day)).state for day in bad] == ["failed"] * len(BAD_DAYS)
