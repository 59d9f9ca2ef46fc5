"""When the machine fails (no space, no permission, a held lock, a signal): one message, nothing torn, and the next run heals."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltv_assets.core.asset_specs import CODE_VERSIONS
from ltv_assets.core.errors import LtvError, NoSpaceError, PermanentError, TransientError, explained
from ltv_assets.defs.publication import readable_failures
from ltv_assets.scoring.submission import write_submissions
from ltv_assets.state.project import Project
from ltv_assets.storage.files import file_lock, staging, write_atomic
from ltv_assets.storage.warehouse import Verdict, Warehouse
from ltv_assets_tests.conftest import PROJECT
from ltv_assets_tests.faults.catalogue import Fault, fault, unreachable
from ltv_assets_tests.faults.evidence import ltv, nothing_changes, tree
from ltv_assets_tests.faults.world import DAY, World, notes, one_table

ROOT = os.geteuid() == 0
LIMIT = 32_000

unreachable("process", "power cut", why="what a disk keeps of unflushed writes cannot be had without one; every file and folder is flushed")
unreachable("process", "worker lost on another machine", why="needs a second machine; a killed local process stands for it")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond ``size`` bytes: a disk that fills up while it is written to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def table(number: int) -> pa.Table:
    return pa.table({"x": pa.array(os.urandom(16).hex() for _ in range(number))})


def publish(warehouse: Warehouse, number: int) -> None:
    warehouse.write("flattened_features", DAY, one_table(table(number)), code_version="1", config="c", inputs={})


# --------------------------------------------------------------------------------------------------------------- disk full


def partition(warehouse: Warehouse) -> None:
    publish(warehouse, 10_000)


def single_file(warehouse: Warehouse) -> None:
    warehouse.record_verdict(Verdict("predictions", DAY, "rows_reconciled", True, True, "f", "b", "x" * 2 * LIMIT))


def submission(warehouse: Warehouse) -> None:
    source = warehouse.root.parent / "scores.parquet"

    def fill(folder: Path) -> dict[str, int | None]:
        rows = write_submissions([source], None, folder, threads=1, memory_limit="1GB")
        return {"submission.csv": rows, "submission_ungated.csv": None}

    warehouse.write("submission", DAY, fill, code_version="1", config="c", inputs={})


NO_SPACE = "<place>: no space left on the disk; make room (`ltv gc` shows what may go) and run again; what is published is untouched"


@fault("process", "disk full while a partition is written", answer="recover", message=NO_SPACE, write=partition)
@fault("process", "disk full while a check's result is written", answer="recover", message=NO_SPACE, write=single_file)
@fault("process", "disk full while DuckDB writes a submission", answer="recover", message=NO_SPACE, write=submission)
def test_full_disk_leaves_the_old_and_heals(fault: Fault, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "warehouse")
    publish(warehouse, 10)
    scores = pa.table({"row_id": [f"id-{i}" for i in range(20_000)], "iap_revenue_d7": [1.5] * 20_000, "ltv_d7": [1.5] * 20_000})
    pq.write_table(scores, tmp_path / "scores.parquet")
    with nothing_changes(tmp_path), pytest.raises((OSError, duckdb.Error)) as raised, largest_file(LIMIT):
        fault.write(warehouse)
    told = explained(raised.value, warehouse.root)
    assert isinstance(told, NoSpaceError)
    fault.told(str(told))
    assert not list((tmp_path / "warehouse" / ".staging").iterdir())
    fault.write(warehouse)
    assert warehouse.files("flattened_features", DAY)


@fault(
    "process",
    "no space for DuckDB's temporary files",
    answer="recover",
    message="<place>: not enough memory, and no room for DuckDB's temporary files (<detail>); "
    "raise compute.duckdb_memory_gb or make room on the disk, then run again; what is published is untouched",
)
def test_no_room_to_spill_says_which_key_helps(fault: Fault, tmp_path: Path) -> None:
    spill = tmp_path / ".part.spill"
    limits = {"memory_limit": "40MB", "threads": 1, "temp_directory": str(spill)}
    with duckdb.connect(":memory:", config=limits) as connection, pytest.raises(duckdb.OutOfMemoryException) as raised:
        connection.execute("SET max_temp_directory_size = '1MB'")
        connection.execute("CREATE TABLE t AS SELECT uuid()::VARCHAR AS a, uuid()::VARCHAR AS b FROM range(2000000)")
    told = explained(raised.value, tmp_path)
    assert isinstance(told, NoSpaceError)
    fault.told(str(told))
    assert not spill.exists(), "DuckDB was expected to remove its temporary files"


def test_failure_of_the_machine_is_one_message_in_dagster_and_is_not_retried() -> None:
    import dagster as dg

    for error in (OSError(28, "No space left on device", "/w/x"), PermissionError(13, "Permission denied", "/w/x"), NoSpaceError("full")):
        with pytest.raises(dg.Failure) as raised, readable_failures():
            raise error
        assert not raised.value.allow_retries
    with pytest.raises(ZeroDivisionError), readable_failures():
        raise ZeroDivisionError


def test_an_error_of_the_code_is_not_taken_for_one_of_the_machine() -> None:
    for error in (
        ValueError("Permission denied"),
        KeyError("x"),
        OSError(2, "No such file or directory", "/w/x"),
        RuntimeError("disk is full"),
    ):
        assert explained(error) is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of its own, whose size can be changed; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not ROOT or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")

    def resize(size: str) -> Path:
        subprocess.run(["mount", "-o", f"remount,{size}", str(folder)], check=True)
        return folder

    yield resize
    subprocess.run(["umount", "-l", str(folder)], check=True)


@fault(
    "process",
    "disk full before a run starts",
    answer="recover",
    message="<place>: <free> MB left on the disk, a run needs 4.2 MB to start; make room (`ltv gc` shows what may go) and run again",
)
def test_run_does_not_start_on_a_full_disk(
    fault: Fault, small_disk: Callable[[str], Path], simulated_small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = small_disk("size=1m") / "warehouse"
    monkeypatch.setenv("LTV_WAREHOUSE", str(warehouse))
    monkeypatch.setenv("LTV_DATA_ROOT", str(simulated_small))
    code, printed = ltv("run")
    assert code == 1
    fault.told(printed)
    assert [name for name in tree(warehouse) if not name.startswith(".staging")] == []


@fault(
    "process",
    "disk full in the middle of a run",
    answer="recover",
    message="failed: <step>: <asset>: <place>: <free> MB left on the disk, a run needs 4.2 MB to start; "
    "make room (`ltv gc` shows what may go) and run again",
)
@pytest.mark.slow
def test_run_on_a_disk_that_fills_up_keeps_what_it_made_and_goes_on_when_there_is_room(
    fault: Fault, small_disk: Callable[[str], Path], simulated_small: Path, place: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ltv_assets_tests.faults.crash import CONFIG

    place(simulated_small, CONFIG + "tracking: {enabled: false}\n")
    warehouse = small_disk("size=9m") / "warehouse"
    monkeypatch.setenv("LTV_WAREHOUSE", str(warehouse))
    code, printed = ltv("run")
    assert code == 1, printed
    fault.told(printed)
    made = {key: Warehouse(warehouse).files("raw_partitions", key) for key in Warehouse(warehouse).keys("raw_partitions")}
    assert made, "the first day was expected to fit"
    small_disk("size=200m")
    code, printed = ltv("run")
    assert code == 0, printed
    assert "ingest_days 2025-10-01: fresh" in printed
    assert (
        made.items()
        <= {key: Warehouse(warehouse).files("raw_partitions", key) for key in Warehouse(warehouse).keys("raw_partitions")}.items()
    )


# -------------------------------------------------------------------------------------------------------------- permission


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nobody may write below ``folder``, not even root."""
    if ROOT:
        made = subprocess.run(["mount", "--bind", str(folder), str(folder)], capture_output=True).returncode == 0
        if not made or subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], capture_output=True).returncode:
            pytest.skip("root needs the right to mount to be kept from writing")
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    else:
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(0o755)


@fault("process", "read-only warehouse, ltv run", answer="reject", message="<place>: not permitted (<why>); <remedy>", words=("run",))
@fault(
    "process", "read-only warehouse, ltv catalog", answer="reject", message="<place>: not permitted (<why>); <remedy>", words=("catalog",)
)
def test_read_only_warehouse_is_named_before_any_work(
    fault: Fault, place: Callable[..., Path], simulated_small: Path, tmp_path: Path
) -> None:
    warehouse = place(simulated_small)
    publish(Warehouse(warehouse), 10)
    with read_only(warehouse), nothing_changes(warehouse):
        code, printed = ltv(*fault.words)
    assert code == 2, printed
    assert str(warehouse) in fault.told(printed)["place"]


@fault("process", "read-only folder, ltv simulate", answer="reject", message="<place>: not permitted (<why>); <remedy>")
def test_read_only_target_is_named(fault: Fault, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with read_only(target), nothing_changes(tmp_path):
        code, printed = ltv("simulate", "--out", target / "data", "--train-days", "1", "--test-days", "0", "--rows-per-hour", "1")
    assert code == 2, printed
    fault.told(printed)


def test_read_only_warehouse_can_be_read(place: Callable[..., Path], simulated_small: Path) -> None:
    warehouse = place(simulated_small)
    publish(Warehouse(warehouse), 10)
    with read_only(warehouse):
        assert Warehouse(warehouse).files("flattened_features", DAY)
        code, printed = ltv("status")
    assert code == 0, printed
    assert "flattened_features" in printed


@fault(
    "process",
    "warehouse of another user",
    answer="reject",
    message="<place>: not permitted (Permission denied); give this user the right to it, "
    "or choose another place with LTV_WAREHOUSE or LTV_DATA_ROOT",
)
def test_warehouse_of_another_user_is_named(fault: Fault, tmp_path: Path) -> None:
    root = tmp_path / "warehouse"
    publish(Warehouse(root), 10)
    for folder in (root, *(p for p in root.rglob("*") if p.is_dir())):
        folder.chmod(0o755 if ROOT else 0o555)
    for parent in tmp_path.parents:
        if ROOT and parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    tmp_path.chmod(0o755)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        if ROOT:
            os.setgid(65534)
            os.setuid(65534)
        try:
            Warehouse(root).writable()
            os.write(writer, b"it could be written")
        except LtvError as error:
            os.write(writer, f"{type(error).__name__}|{error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    kind, _, message = os.read(reader, 10_000).decode().partition("|")
    os.close(reader)
    assert kind == PermanentError.__name__, kind
    assert str(root) in fault.told(message)["place"]
    for folder in (root, *(p for p in root.rglob("*") if p.is_dir())):
        folder.chmod(0o755)


# ------------------------------------------------------------------------------------------------------------------- locks


def _hold_catalogue(path: str, ready: multiprocessing.synchronize.Event) -> None:
    with duckdb.connect(path):
        ready.set()
        time.sleep(3600)


def _hold_lock(path: str, ready: multiprocessing.synchronize.Event) -> None:
    with file_lock(Path(path), timeout_seconds=1, what="test"):
        ready.set()
        time.sleep(3600)


@contextmanager
def another_process(target: Callable[..., None], path: Path) -> Iterator[int]:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=target, args=(str(path), ready))
    process.start()
    assert ready.wait(600)
    try:
        yield process.pid or 0
    finally:
        process.kill()
        process.join(600)


@fault(
    "process",
    "catalogue open in another program",
    answer="degrade",
    message="<path>/ltv.duckdb: the DuckDB catalogue is open in another program (<detail>); close it and run `ltv catalog`; "
    "the partitions themselves are safe",
)
def test_held_catalogue_is_named_and_catches_up(fault: Fault, place: Callable[..., Path], simulated_small: Path) -> None:
    warehouse = place(simulated_small)
    project = Project.open()
    project.sync_catalogue()
    with another_process(_hold_catalogue, warehouse / "ltv.duckdb"), pytest.raises(TransientError) as raised:
        project.sync_catalogue()
    fault.told(str(raised.value))
    project.sync_catalogue()


@fault(
    "process",
    "lock held by another process",
    answer="degrade",
    message="<path>/champion.lock: the champion's record is held by another process for more than 0.2 s; try again when it has finished",
)
def test_held_lock_is_waited_for_a_bounded_time_and_dies_with_its_holder(fault: Fault, tmp_path: Path) -> None:
    from ltv_assets.storage.champion import champion_lock

    with another_process(_hold_lock, tmp_path / "champion.lock") as holder:
        with pytest.raises(TransientError) as raised, champion_lock(Warehouse(tmp_path), 0.2):
            pass
        fault.told(str(raised.value))
        os.kill(holder, signal.SIGKILL)
        with champion_lock(Warehouse(tmp_path), 600):
            pass


# ---------------------------------------------------------------------------------------------------------------- replaced


def test_reader_of_a_partition_that_is_replaced_gets_the_old_or_the_new(tmp_path: Path) -> None:
    """A reader and a writer in two processes; every read must be one whole version."""
    warehouse = Warehouse(tmp_path)
    _write_versions(str(tmp_path), 1)
    child = os.fork()
    if child == 0:
        try:
            _write_versions(str(tmp_path), None)
        finally:
            os._exit(0)
    seen: Counter[bytes] = Counter()
    try:
        while len(seen) < 20 or seen.total() < 200:
            read = warehouse.artifacts("served_model", DAY)
            assert read["one.json"] == read["other.json"]
            seen[read["one.json"]] += 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _write_versions(root: str, versions: int | None) -> None:
    """Publish so many versions of a partition; None: until the process is killed."""
    for version in itertools.count() if versions is None else range(versions):
        both = notes(one=f'"{version}"', other=f'"{version}"')
        Warehouse(Path(root)).write("served_model", DAY, both, code_version="1", config="c", inputs={})


@fault(
    "process",
    "input replaced by a backfill while a window trains",
    answer="recover",
    message="flattened_features 2025-10-01: its input raw_partitions/2025-10-01 was replaced by another run while it was read; "
    "run it again",
)
def test_partition_made_of_two_versions_of_its_input_is_not_published(
    fault: Fault, place: Callable[..., Path], simulated_small: Path
) -> None:
    from ltv_assets.defs.publication import Publication
    from ltv_assets.defs.resources import CatalogueResource
    from ltv_assets.tracking.client import Tracker

    warehouse = Warehouse(place(simulated_small))

    def backfill(text: str) -> None:
        warehouse.write("raw_partitions", DAY, notes(note=text), code_version="1", config="c", inputs={})

    backfill("1")
    project = Project.open()
    inputs = project.lineage().inputs("flattened_features", DAY)
    tracker = Tracker(project.config, project.warehouse)
    work = Publication(project, CatalogueResource(), tracker, "flattened_features", DAY, "run", inputs, time.perf_counter())

    def replaced_meanwhile(folder: Path) -> dict[str, int | None]:
        listed = notes(note="made of both")(folder)
        backfill("2")
        return listed

    with pytest.raises(TransientError) as raised:
        work.publish(replaced_meanwhile)
    fault.told(str(raised.value))
    assert warehouse.manifest("flattened_features", DAY) is None


# ------------------------------------------------------------------------------------------------------------------- stale


@fault(
    "process", "rerun with another code version", answer="recover", message="made by code version 0, now <version>", code="0", config=None
)
@fault("process", "rerun with a changed configuration", answer="recover", message="the configuration changed", code=None, config="other")
def test_stale_partition_says_why(fault: Fault, tmp_path: Path) -> None:
    world = World(tmp_path)
    world.put(0)
    lineage = world.project.lineage()
    world.project.warehouse.write(
        "raw_partitions",
        DAY,
        one_table(table(3)),
        code_version=fault.code or CODE_VERSIONS["raw_partitions"],
        config=fault.config or lineage.config_hash("raw_partitions", DAY),
        inputs={},
    )
    status = world.project.lineage().status("raw_partitions", DAY)
    assert status.state == "stale"
    fault.told(status.why)


# ----------------------------------------------------------------------------------------------------------------- signals


INTERRUPTED = "interrupted: what was published stays; the same command goes on from there"


@fault("process", "Ctrl-C during a run", answer="recover", message=INTERRUPTED, number=signal.SIGINT)
@fault("process", "SIGTERM during a run", answer="recover", message=INTERRUPTED, number=signal.SIGTERM)
@pytest.mark.slow
def test_ended_run_leaves_whole_partitions(fault: Fault, tmp_path: Path, simulated_small: Path) -> None:
    root = tmp_path / "warehouse"
    environment = os.environ | {"LTV_WAREHOUSE": str(root), "LTV_DATA_ROOT": str(simulated_small), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "ltv_assets.cli.app", "run"]
    process = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = ""
    while "ingest_days 2025-10-02" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    process.send_signal(fault.number)
    said += process.communicate(timeout=1800)[0]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    fault.told(said)
    warehouse = Warehouse(root)
    assert warehouse.keys("flattened_features")[:1] == ("2025-10-01",)
    for asset in ("raw_partitions", "flattened_features"):
        for key in warehouse.keys(asset):
            assert warehouse.files(asset, key)
    warehouse.sweep()
    assert list((root / ".staging").iterdir()) == []


@fault(
    "process",
    "daemon, servers and runs killed at once",
    answer="recover",
    message="run <id> was killed together with the server that had started it; it counts as failed now",
)
def test_run_that_died_with_its_server_is_ended_before_the_next_one_starts(
    fault: Fault, place: Callable[..., Path], simulated_small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dagster as dg
    from dagster._core.storage.tags import GRPC_INFO_TAG

    from ltv_assets.defs.instance import open_instance

    @dg.job
    def some_job() -> None: ...

    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setattr(os, "execv", lambda *arguments: None)
    warehouse = place(simulated_small)
    with tempfile.TemporaryDirectory() as sockets, socket.socket(socket.AF_UNIX) as server, open_instance(warehouse) as instance:
        server.bind(f"{sockets}/alive")
        server.listen()
        runs = {}
        for name, status in (("alive", "STARTED"), ("gone", "STARTED"), ("gone", "NOT_STARTED")):
            tags = {GRPC_INFO_TAG: json.dumps({"host": "localhost", "socket": f"{sockets}/{name}"})}
            run = instance.create_run_for_job(some_job, status=dg.DagsterRunStatus(status), tags=tags)
            runs[name, status] = run.run_id
        code, printed = ltv("dev", "--port", "65123")
        assert code == 0, printed
        assert fault.told(printed)["id"] == runs["gone", "STARTED"]
        ends = {key: run.status.value for key, run_id in runs.items() if (run := instance.get_run_by_id(run_id))}
    assert ends == {("alive", "STARTED"): "STARTED", ("gone", "STARTED"): "FAILURE", ("gone", "NOT_STARTED"): "NOT_STARTED"}


@pytest.mark.parametrize("status", ["NOT_STARTED", "STARTED"])
def test_run_of_a_killed_ltv_run_is_ended_by_the_next_one(status: str, place: Callable[..., Path], simulated_small: Path) -> None:
    import dagster as dg

    from ltv_assets.cli.runner import PROCESS_TAG, _end_abandoned_runs
    from ltv_assets.defs.instance import open_instance

    @dg.job
    def some_job() -> None: ...

    warehouse = place(simulated_small)
    with staging(warehouse, "run") as alive, open_instance(warehouse) as instance:
        runs = {
            tags: instance.create_run_for_job(some_job, status=dg.DagsterRunStatus(status), tags=dict(tags)).run_id
            for tags in (((PROCESS_TAG, alive.name),), ((PROCESS_TAG, "run-0123456789ab"),), ())
        }
        _end_abandoned_runs(Project.open(), instance)
        ends = [run.status.value for run_id in runs.values() if (run := instance.get_run_by_id(run_id))]
    assert ends == [status, "FAILURE", status], "the process of the first lives, the last belongs to a code server"


def test_leftovers_of_killed_writers_are_swept_and_living_ones_spared(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    publish(warehouse, 3)
    leftovers = [tmp_path / "verdicts" / "x" / DAY / ".rmsle.json.0a1b2c3d.tmp", tmp_path / ".champion.json.0a1b2c3d.tmp"]
    for path in leftovers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    orphan = tmp_path / ".staging" / "stacker-2025-10-01-0123456789ab"
    (orphan / "content").mkdir(parents=True)
    write_atomic(tmp_path / "verdicts" / "kept.json", b"1")
    before = {name: digest for name, digest in tree(tmp_path).items() if not name.endswith(".tmp")}
    assert len(warehouse.sweep()) == 3
    assert tree(tmp_path) == before
    assert not orphan.exists()
    shutil.rmtree(tmp_path / "verdicts")
