"""The crash loop: a process that executes `ltv run` is killed, the next one goes on, and the end is compared with an undisturbed run.

    python -m ltv_assets_tests.faults.crash --kills 200 --seed 0

Every process that is killed is a real one, ended by SIGKILL: a fork of this one, which has imported everything once, so a
kill costs no start-up. There are two kinds of kills. *Points*: the child watches every operation of its own on the
warehouse (Python's audit events for opening, renaming, making and removing, the exchange of two folders, and the
catalogue's transactions) and kills itself right before a chosen one. The points are the operations that the undisturbed run
was seen to make, so a new way of writing becomes a new point by itself; and whatever else a run does after a kill, to clear
up, is a point when it is met for the first time. Kinds of points that were not hit yet come first, those least like the
ones before them in front. *Times*: from outside, after a drawn amount of processor time.

Three stories are told: into an empty warehouse, over a finished one after an hour of raw data was rewritten, and when another
day has come, whose window challenges the champion. After every kill each partition must be wholly absent, wholly old or
wholly new, and nothing that was published may be gone. When a run has got through, the warehouse must equal the
undisturbed one (see `differences`) and hold nothing else (see `orphans`).

Two savings keep a run short and change no file's fate: models are tiny, and every picture is one fixed PNG.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from ltv_assets.core.errors import LtvError
from ltv_assets.storage.manifest import MANIFEST_NAME, read_manifest, verify_files

Trace = Callable[[str], None]

PARTITIONS = ("lake", "models", "submissions", "reports", "champions")
BY_BYTES = (*PARTITIONS, "verdicts", "comparisons", "quarantine")
"""Compared byte by byte with the undisturbed warehouse."""
BY_CONTENT = ("dagster", "mlartifacts", "mlflow.db", "ltv.duckdb", "champion.json", "tracking", "cache")
"""Hold clock times, random ids or a database's free pages; `differences` says what of them is compared."""
LOCKS = ("ltv.lock", "champion.lock", "tracking.lock")
"""Empty files that stay for good: a lock is held by the open file, never by the file's presence."""
KILLS_PER_CHAIN = 10
OUT_OF_REACH = {
    "rename a partition to .staging/gc": "only `ltv gc --apply` deletes partitions, each by one rename",
    "rename champion.json by promote, rollback and unpin": "the same operation as in a run, made by other commands under the same lock",
    "write ablations, tuning": "only `ltv ablate` and `ltv tune` make them, by the functions that publish partitions and single files",
    "rename <partition> to .<partition>.previous": "the detour of systems that cannot exchange two folders; Linux can",
    "write <partition>/.damaged": "only `ltv status --verify`, or a reader that meets a torn file, leaves this mark",
}
"""Operations on the warehouse that no `ltv run` makes here, killed or not, and why."""
PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
CONFIG = """
windows: {min_train_days: 2, max_train_days: 2}
compute: {threads: 1}
evaluation: {bootstrap_repeats: 50}
checks: {zero_rate_tolerance: 0.5, rmsle_max: 5.0}
models:
  folds: 2
  buyer_classifier: &tiny {num_leaves: 4, learning_rate: 0.2, min_data_in_leaf: 20, max_rounds: 5, patience: 2}
  whale_classifier: *tiny
  revenue_head: *tiny
  increments: *tiny
  boosting: *tiny
  forest: {trees: 3, num_leaves: 4}
  linear: {penalties: [0.01]}
  stacker: {booster: *tiny}
"""


# ----------------------------------------------------------------------------------------------------------------- stories


@dataclass
class Story:
    """One run to be disturbed: its data, the warehouse it starts from (None: empty), and how it ends when nobody disturbs it."""

    name: str
    data: Path
    start: Path | None
    end: Path
    points: dict[str, int] = field(default_factory=dict)
    familiar: frozenset[str] = frozenset()
    """Kinds of its operations, those that are not drawn among them."""
    seconds: float = 0.0

    @property
    def versions(self) -> tuple[Path, ...]:
        """Warehouses whose partitions may be seen on the way."""
        return (self.end,) if self.start is None else (self.start, self.end)


def prepare(root: Path, number: int = 3) -> list[Story]:
    """Raw data at first, after the delivery of a corrected hour, and after that of another day; and the undisturbed runs of the first
    ``number`` of these stories, each of which begins where the one before it ends.
    """
    from ltv_assets.simulator import simulate

    old, new, longer = root / "data_old", root / "data_new", root / "data_longer"
    simulate(longer, train_days=4, test_days=1, rows_per_hour=30, seed=3)
    without_last = shutil.ignore_patterns("datetime=2025-10-04-*")
    _without_label(longer, "datetime=2025-10-02-03-00")
    shutil.copytree(longer, old, ignore=without_last)
    _without_label(longer, "datetime=2025-10-02-07-00")
    shutil.copytree(longer, new, ignore=without_last)
    (root / "config.yaml").write_text(CONFIG)
    stories = [Story("into an empty warehouse", old, None, root / "end_of_first")]
    stories.append(Story("over a finished warehouse", new, stories[0].end, root / "end_of_second"))
    stories.append(Story("when another day has come", longer, stories[1].end, root / "end_of_third"))
    for story in stories[:number]:
        if story.start is not None:
            shutil.copytree(story.start, story.end)
        began = time.process_time() + os.times().children_user
        outcome = run(story.data, story.end, root, trace=True)
        assert outcome.code == 0, f"the undisturbed run {story.name} exited {outcome.code}:\n{outcome.output}"
        story.points = {name: number for number, name in enumerate(dict.fromkeys(outcome.trace))}
        story.familiar = frozenset(map(kind_of, outcome.trace))
        story.seconds = time.process_time() + os.times().children_user - began
    return stories[:number]


def _without_label(data: Path, hour: str) -> None:
    """Take the label off a few rows of one hour: they are to be set aside."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (path,) = (data / "train" / hour).glob("*.parquet")
    table = pq.read_table(path)
    column = table["iap_revenue_d7"]
    values: list[Any] = [None if row < 1 else value for row, value in enumerate(column.to_pylist())]
    pq.write_table(table.set_column(table.column_names.index("iap_revenue_d7"), "iap_revenue_d7", pa.array(values, column.type)), path)


# -------------------------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Kill:
    """When to kill: right before the operation ``point``, or after ``seconds`` of the child's processor time.

    Whichever it is, an operation whose kind is not among ``familiar`` is the last one, if it is met before.
    """

    point: str | None = None
    seconds: float | None = None
    familiar: frozenset[str] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Outcome:
    """How a child ended: killed, or with an exit code; what it printed; the operations seen, of a killed one the point it died at."""

    killed: bool
    code: int
    output: str
    trace: tuple[str, ...] = ()


def warm_up() -> None:
    """Import everything a run needs, without starting any of it, and replace the drawing of pictures."""
    import lightgbm
    import matplotlib.pyplot
    import mlflow.tracking
    import scipy.stats
    import sklearn.linear_model

    import ltv_assets.cli.app
    import ltv_assets.cli.runner
    import ltv_assets.definitions
    import ltv_assets.promotion.promotion
    import ltv_assets.reporting.report
    import ltv_assets.scoring.submission
    import ltv_assets.training.evaluation
    import ltv_assets.training.refit
    from ltv_assets.plots import canvas, data, quality

    for module in (canvas, data, quality):
        module.__dict__["render"] = lambda draw, **size: PICTURE
    assert lightgbm and matplotlib and mlflow and scipy and sklearn and ltv_assets


def run(data: Path, warehouse: Path, root: Path, *, kill: Kill | None = None, trace: bool = False) -> Outcome:
    """`ltv run` in a forked child, perhaps killed on the way."""
    printed, seen = root / "printed.txt", root / "seen.txt"
    seen.write_text("")
    child = os.fork()
    if child == 0:
        _become(data, warehouse, root, printed, kill, seen if trace or kill is not None else None)
    if kill is not None and kill.seconds is not None:
        _kill_after(child, kill.seconds)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return Outcome(killed, os.waitstatus_to_exitcode(status), printed.read_text(), tuple(seen.read_text().splitlines()))


def _become(data: Path, warehouse: Path, root: Path, printed: Path, kill: Kill | None, seen: Path | None) -> None:
    """Turn a forked child into `ltv run`; never returns."""
    code = 70
    try:
        out = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ |= {
            "LTV_DATA_ROOT": str(data),
            "LTV_WAREHOUSE": str(warehouse),
            "LTV_CONFIG": str(root / "config.yaml"),
            "DAGSTER_DISABLE_TELEMETRY": "yes",
        }
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if seen is not None:
            log = seen.open("a", buffering=1)
            _watch(warehouse, lambda name: _consider(name, kill, log))
        from ltv_assets.cli.app import main

        main(["run"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _consider(name: str, kill: Kill | None, log: TextIO) -> None:
    """Note an operation; or, in a process that is to be killed, note its last one only and end it right before."""
    if kill is None:
        print(name, file=log)
    elif name == kill.point or (kill.familiar is not None and kind_of(name) not in kill.familiar):
        print(name, file=log)
        os.kill(os.getpid(), signal.SIGKILL)


def _kill_after(child: int, seconds: float) -> None:
    """Kill a child once it has used that much processor time, so a busy machine changes nothing; give up when it has ended."""
    import psutil

    process = psutil.Process(child)
    while process.status() != psutil.STATUS_ZOMBIE:
        used = process.cpu_times()
        if used.user + used.system >= seconds:
            process.kill()
            return
        time.sleep(0.002)


# ------------------------------------------------------------------------------------------------------------------ points

_NAMES = (
    (re.compile(r"(?<=\.staging/)([^/]+)-[0-9a-f]{12}"), r"\1"),
    (re.compile(r"\.[0-9a-f]{8}\.tmp"), ".tmp"),
    (re.compile(r"(?<=/)[0-9a-f]{16}(?=/| |$)"), "<identity>"),
    (re.compile(r"-[0-9a-f]{12}(?=\.parquet)"), "-<hash>"),
)
_KINDS = (
    (re.compile(r"\d{4}-\d{2}-\d{2}(_\d{4}-\d{2}-\d{2})?"), "D"),
    (re.compile(r"\.staging/[\w-]+-D"), ".staging/<partition>"),
    (re.compile(r"content/(?!manifest)[^ ]+"), "content/<file>"),
    (re.compile(r"(lake/\w+/\w+=D|models/window=D/\w+|submissions/D|(reports|champions)/window=D)"), "<partition>"),
    (re.compile(r"(lake/\w+|models/window=D|submissions|reports|champions)(?= |$)"), "<folder of partitions>"),
    (re.compile(r"(verdicts/\w+/D)/[^ ]+"), "verdicts/<check>"),
    (re.compile(r"verdicts/\w+(/D)?"), "verdicts/<asset>"),
    (re.compile(r"tracking/[^ ]*?\.?(record|delivered|current|settings|champion)\.json(\.tmp)?"), r"tracking/<\1>"),
    (re.compile(r"tracking/[^ ]*\.[^ /]+"), "tracking/<artifact>"),
    (re.compile(r"tracking/(?!<(record|delivered|current|settings|champion|artifact)>)[^ ]+"), "tracking/<folder>"),
    (re.compile(r"quarantine/[^ ]+"), "quarantine/<day>"),
    (re.compile(r"(?<=change |commit )\w+"), "<relation>"),
)


def kind_of(point: str) -> str:
    """The point without the names of partition, file, check and stage: the named points of publication."""
    for pattern, replacement in _KINDS:
        point = pattern.sub(replacement, point)
    return point


_UNWATCHED = ("dagster", "mlartifacts", "mlflow.db")
"""Written by libraries through their own journals; times hit them, points do not."""


def unlike(kinds: Iterable[str], before: Iterable[str]) -> list[str]:
    """The kinds in an order in which each has as little as can be, operation and place, in common with all before it."""
    left, shared = list(dict.fromkeys(kinds)), Counter(trait for kind in before for trait in _traits(kind))
    ordered = []
    while left:
        ordered.append(min(left, key=lambda kind: sum(shared[trait] for trait in _traits(kind))))
        left.remove(ordered[-1])
        shared.update(_traits(ordered[-1]))
    return ordered


def _traits(kind: str) -> tuple[str, str]:
    """What is done, and the place it is done to: the target's first folder."""
    operation, _, where = kind.partition(" ")
    return operation, re.split(r" (?:to|with) ", where)[-1].split("/")[0]


def _watch(warehouse: Path, announce: Trace) -> None:
    """Announce every operation of this process on the warehouse, right before it happens."""
    prefix = f"{warehouse}{os.sep}"

    def below(path: object) -> str | None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return None
        name = os.fsdecode(path)
        if not name.startswith(prefix):
            return None
        name = name.removeprefix(prefix)
        if name.startswith(_UNWATCHED):
            return None
        for pattern, replacement in _NAMES:
            name = pattern.sub(replacement, name)
        return name

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            name, (_, mode, flags) = below(arguments[0]), arguments
            if name is not None and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                announce(f"write {name}")
            elif name is not None and mode is None:
                announce(f"flush {name}")
        elif event == "os.rename" and below(arguments[1]) is not None:
            announce(f"rename {below(arguments[0])} to {below(arguments[1])}")
        elif event in ("os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            name = below(arguments[0])
            if name is not None:
                announce(f"{event.rpartition('.')[2]} {name}")

    from mlflow.tracking import MlflowClient

    from ltv_assets.storage import catalog as catalogue
    from ltv_assets.storage import files as storage_files

    swap = storage_files._exchange

    def exchange(one: Path, other: Path) -> bool:
        announce(f"exchange {below(one)} with {below(other)}")
        return swap(one, other)

    storage_files.__dict__["_exchange"] = exchange
    for change in ("_replace_view", "_replace_rows"):
        catalogue.__dict__[change] = _announced(catalogue.__dict__[change], announce)
    MlflowClient.create_run = _announced_run(MlflowClient.create_run, announce)  # type: ignore[method-assign]
    sys.addaudithook(hook)


def _announced(change: Callable[..., None], announce: Trace) -> Callable[..., None]:
    def changed(connection: Any, warehouse: Any, asset: str, *rest: Any) -> None:
        announce(f"catalogue: change {asset} in an open transaction")
        change(connection, warehouse, asset, *rest)
        announce(f"catalogue: commit {asset}")

    return changed


def _announced_run(create: Callable[..., Any], announce: Trace) -> Callable[..., Any]:
    def created(*arguments: Any, **named: Any) -> Any:
        made = create(*arguments, **named)
        announce("mlflow: note the run that was created")
        return made

    return created


# ----------------------------------------------------------------------------------------------------------------- looking


def published(warehouse: Path) -> dict[str, bytes]:
    """{folder below the warehouse: bytes of its manifest} of every published partition."""
    found = (p for part in PARTITIONS for p in (warehouse / part).rglob(MANIFEST_NAME))
    return {str(p.parent.relative_to(warehouse)): p.read_bytes() for p in sorted(found)}


def mixed(warehouse: Path, allowed: dict[str, set[bytes]]) -> list[str]:
    """Partitions that are not wholly old or wholly new: manifest, list of files and every hash."""
    problems = []
    known = published(warehouse)
    for name, manifest in known.items():
        folder = warehouse / name
        try:
            loaded = read_manifest(folder)
            assert loaded is not None
            verify_files(folder, loaded)
        except LtvError as error:
            problems.append(f"{name}: {error}")
            continue
        present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        if present != {MANIFEST_NAME, *(f.name for f in loaded.files)}:
            problems.append(f"{name}: holds {sorted(present)}")
        if manifest not in allowed.get(name, set()):
            problems.append(f"{name}: neither the old nor the new manifest")
    for part in PARTITIONS:
        for path in (warehouse / part).rglob("*"):
            if path.is_file() and not any(str(p.relative_to(warehouse)) in known for p in path.parents if p.is_relative_to(warehouse)):
                problems.append(f"{path.relative_to(warehouse)}: belongs to no published partition")
    for part in ("verdicts", "comparisons", "tracking", "cache"):
        for path in (warehouse / part).rglob("*.json"):
            if not path.name.startswith("."):
                try:
                    json.loads(path.read_bytes())
                except ValueError as error:
                    problems.append(f"{path.relative_to(warehouse)}: torn ({error})")
    return problems


def lost_rows(before: dict[str, bytes], now: dict[str, bytes]) -> int:
    """Rows of partitions that were published and are gone."""
    return sum(sum(f["rows"] or 0 for f in json.loads(before[name])["files"]) for name in before.keys() - now.keys())


def files(warehouse: Path, part: str) -> dict[str, bytes]:
    """Files of one part by path."""
    return {str(p.relative_to(warehouse)): p.read_bytes() for p in sorted((warehouse / part).rglob("*")) if p.is_file()}


def differences(warehouse: Path, expected: Path) -> list[str]:
    """What differs from an undisturbed warehouse.

    Everything in `BY_BYTES` must be equal to the byte. The champion's record without its dates; every relation of the catalogue
    row by row; MLflow's runs by name, state, parameters and figures, and their artifacts by name; the outbox by its files.
    """
    problems = []
    for part in BY_BYTES:
        one, other = files(warehouse, part), files(expected, part)
        problems += [f"{name} differs" for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
    for what in (_champion, _catalogue, _mlflow_runs, _mlflow_artifacts, _outbox):
        found, wanted = what(warehouse), what(expected)
        if found != wanted:
            problems.append(f"{what.__name__.strip('_')}: expected {_short(wanted, found)}, found {_short(found, wanted)}")
    return problems


def _short(value: Any, other: Any) -> str:
    if isinstance(value, dict) and isinstance(other, dict):
        value = {k: v for k, v in value.items() if other.get(k) != v}
    return f"{value!r:.400}"


def _champion(warehouse: Path) -> dict[str, Any]:
    record = json.loads((warehouse / "champion.json").read_bytes())
    return {k: v for k, v in record.items() if k != "history"}


def _catalogue(warehouse: Path) -> dict[str, list[str]]:
    """Every relation's rows; paths of the views are written anew, because a warehouse that was copied has moved."""
    import duckdb

    with duckdb.connect(str(warehouse / "ltv.duckdb"), read_only=True) as connection:
        names = [row[0] for row in connection.execute("SELECT table_name FROM information_schema.tables ORDER BY 1").fetchall()]
        return {name: sorted(map(repr, connection.execute(f'SELECT * FROM "{name}"').fetchall())) for name in names}


def _sqlite(path: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        return connection.execute(query).fetchall()


def _mlflow_runs(warehouse: Path) -> dict[str, Any]:
    database = warehouse / "mlflow.db"
    runs = _sqlite(database, "SELECT run_uuid, name, status FROM runs WHERE lifecycle_stage = 'active'")
    found: dict[str, Any] = {}
    for number, (run_id, name, status) in enumerate(sorted(runs, key=lambda r: str(r[1]))):
        params = sorted(_sqlite(database, f"SELECT key, value FROM params WHERE run_uuid = '{run_id}'"))
        metrics = sorted(_sqlite(database, f"SELECT key, value FROM latest_metrics WHERE run_uuid = '{run_id}'"))
        found[f"{number} {name} {status}"] = {"params": params, "metrics": metrics}
    return found


def _mlflow_artifacts(warehouse: Path) -> list[str]:
    active = {row[0] for row in _sqlite(warehouse / "mlflow.db", "SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active'")}
    kept = (p.relative_to(warehouse / "mlartifacts") for p in (warehouse / "mlartifacts").rglob("*") if p.is_file())
    return sorted("/".join(p.parts[1:]) for p in kept if p.parts[0] in active)


def _outbox(warehouse: Path) -> list[str]:
    """What was recorded; the folder's name holds a hash of the warehouse's place, and delivery marks may outlive what they mark."""
    names = (re.sub(r"/[0-9a-f]{16}/", "/<identity>/", name) for name in files(warehouse, "tracking"))
    return sorted(name for name in names if not name.endswith("/delivered.json"))


def orphans(warehouse: Path) -> list[str]:
    """What a killed process left and nobody will use: temporary files, staging folders, database journals, runs without an end."""
    ours = (".staging", *BY_BYTES, *BY_CONTENT, *LOCKS)
    found = [str(p.relative_to(warehouse)) for p in warehouse.iterdir() if p.name not in ours]
    found += [str(p.relative_to(warehouse)) for p in (warehouse / ".staging").iterdir()]
    inside = (p for part in (*BY_BYTES, "tracking", "cache") for p in (warehouse / part).rglob("*"))
    found += [str(p.relative_to(warehouse)) for p in inside if p.name.startswith(".") or p.name.endswith(".tmp")]
    found += [str(p.relative_to(warehouse)) for p in (warehouse / "dagster").glob(".*")]
    states = _sqlite(warehouse / "dagster" / "history" / "runs.db", "SELECT run_id, status FROM runs")
    found += [f"Dagster run {run_id} is {status}" for run_id, status in states if status not in ("SUCCESS", "FAILURE", "CANCELED")]
    running = _sqlite(warehouse / "mlflow.db", "SELECT name FROM runs WHERE status = 'RUNNING' AND lifecycle_stage = 'active'")
    return found + [f"MLflow run {name} is still running" for (name,) in running]


# -------------------------------------------------------------------------------------------------------------------- loop


@dataclass
class Report:
    """Figures of a crash loop; everything under ``problems`` should be empty."""

    seed: int
    at_points: list[str] = field(default_factory=list)
    clearing: set[str] = field(default_factory=set)
    """Kinds of operations that no undisturbed run makes; each was hit when it was met."""
    at_times: int = 0
    chains: int = 0
    identical: int = 0
    lost: int = 0
    problems: dict[str, list[str]] = field(default_factory=lambda: {"mixed": [], "orphans": [], "differences": [], "failures": []})

    @property
    def kills(self) -> int:
        return len(self.at_points) + self.at_times

    @property
    def good(self) -> bool:
        return self.lost == 0 and self.identical == self.chains and not any(self.problems.values())

    def lines(self, known: Collection[str]) -> Iterator[str]:
        """The report as a person reads it; ``known`` are all the points there are."""
        yield f"kills: {self.kills} ({len(self.at_points)} at points, {self.at_times} at drawn times), seed {self.seed}"
        kinds, hit = {kind_of(point) for point in known} | self.clearing, {kind_of(point) for point in self.at_points}
        met = set(self.at_points) & set(known)
        yield f"points: {len(hit)} of {len(kinds)} kinds, {len(met)} of {len(known)} operations of the undisturbed runs"
        yield f"kinds that only a run after a kill makes: {len(self.clearing)}"
        yield from (f"  {kind}" for kind in sorted(self.clearing))
        yield f"kinds not hit: {len(kinds - hit)}"
        yield from (f"  {kind}" for kind in sorted(kinds - hit))
        yield "out of reach of `ltv run`:"
        yield from (f"  {operation}: {why}" for operation, why in OUT_OF_REACH.items())
        yield f"mixed partitions: {len(self.problems['mixed'])}"
        yield f"lost rows: {self.lost}"
        yield f"orphans: {len(self.problems['orphans'])}"
        yield f"warehouses identical to the undisturbed one: {self.identical} of {self.chains}"
        for kind, found in self.problems.items():
            yield from (f"{kind}: {line}" for line in found[:20])


def draw_kills(story: Story, spent: Sequence[str], generator: random.Random, number: int) -> list[Kill]:
    """Kills of one chain in the order of the run: points of kinds not yet hit first, and a drawn time after every third one."""
    hit = [kind_of(point) for point in dict.fromkeys(spent)]
    points = generator.sample(sorted(story.points), len(story.points))
    one_of = {kind_of(point): point for point in points}
    fresh = [one_of[kind] for kind in unlike((kind for kind in one_of if kind not in hit), hit)]
    preferred = dict.fromkeys([*fresh, *(p for p in points if p not in spent), *points])
    chosen = sorted(list(preferred)[: max(1, -(-3 * number // 4))], key=story.points.__getitem__)
    kills: list[Kill] = []
    for position, point in enumerate(chosen):
        kills.append(Kill(point=point))
        if position % 3 == 2:
            kills.append(Kill(seconds=generator.uniform(0.2, 0.2 * story.seconds)))
    return kills[:number]


def chain(story: Story, kills: Sequence[Kill], usual: frozenset[str], root: Path, report: Report) -> None:
    """One story, killed as often as there are kills or until a run gets through, then compared with its undisturbed end."""
    warehouse = root / "warehouse"
    shutil.rmtree(warehouse, ignore_errors=True)
    if story.start is not None:
        shutil.copytree(story.start, warehouse)
    versions = [published(w) for w in story.versions]
    allowed = {name: {v[name] for v in versions if name in v} for version in versions for name in version}
    waiting = list(kills)
    for left in range(len(kills), -1, -1):
        before = published(warehouse)
        kill = replace(waiting[0], familiar=usual | report.clearing) if left else None
        outcome = run(story.data, warehouse, root, kill=kill)
        report.problems["mixed"] += [f"{kill}: {line}" for line in mixed(warehouse, allowed)]
        report.lost += lost_rows(before, published(warehouse))
        if kill is None or not outcome.killed:
            break  # the point was no longer on the way, or the time not reached: this run got through
        point = next(iter(outcome.trace), None)
        if point is None:
            report.at_times += 1
        else:
            report.at_points.append(point)
            report.clearing |= {kind_of(point)} - usual
        if point is None or point == kill.point:
            waiting.pop(0)
    report.chains += 1
    if outcome.code != 0:
        report.problems["failures"].append(f"{story.name}: exit code {outcome.code}: {outcome.output[-600:]}")
        return
    different = differences(warehouse, story.end)
    report.identical += not different
    report.problems["differences"] += [f"{story.name}: {line}" for line in different]
    report.problems["orphans"] += [f"{story.name}: {line}" for line in orphans(warehouse)]


# ---------------------------------------------------------------------------------------------------------------- together


def together(story: Story, root: Path) -> tuple[str, list[str]]:
    """Two runs of one story at the same time on the same warehouse, read all the while; returns one line, and what went wrong."""
    warehouse = root / "warehouse"
    shutil.rmtree(warehouse, ignore_errors=True)
    if story.start is not None:
        shutil.copytree(story.start, warehouse)
    children = []
    for number in (1, 2):
        child = os.fork()
        if child == 0:
            _become(story.data, warehouse, root, root / f"printed_{number}.txt", None, None)
        children.append(child)
    reads, seen = 0, []
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    codes[child] = os.waitstatus_to_exitcode(status)
        count, problems = _read_everything(warehouse)
        reads += count
        seen += problems
    ends = [codes[child] for child in children]
    problems = [*seen, *differences(warehouse, story.end), *orphans(warehouse)] if ends == [0, 0] else list(seen)
    problems += [(root / f"printed_{n}.txt").read_text()[-800:] for n, code in zip((1, 2), ends, strict=True) if code]
    return f"side by side: exit codes {ends[0]} and {ends[1]}, {reads} reads, {len(seen)} mixtures seen", problems


def _read_everything(root: Path) -> tuple[int, list[str]]:
    """Read each partition as every reader does, and the catalogue; returns how many were read, and what was not consistent."""
    from ltv_assets.modeling.model_store import read_served
    from ltv_assets.storage.warehouse import Warehouse

    warehouse, reads, problems = Warehouse(root), 0, []
    for asset in ("raw_partitions", "flattened_features", "buyer_classifier", "stacker", "predictions", "submission"):
        for key in warehouse.keys(asset):
            try:
                warehouse.files(asset, key)
                warehouse.artifacts(asset, key)
                reads += 1
            except LtvError as error:
                problems.append(f"{asset} {key}: {error}")
    for key in warehouse.keys("served_model"):
        try:
            read_served(warehouse, key)
            reads += 1
        except LtvError as error:
            problems.append(f"served_model {key}: {error}")
    time.sleep(0.05)
    return reads, problems


# -------------------------------------------------------------------------------------------------------------------- main


def crash_loop(stories: Sequence[Story], kills: int, seed: int, root: Path, say: Trace) -> Report:
    """Kill ``kills`` times, story after story."""
    generator, report = random.Random(seed), Report(seed)
    usual = frozenset[str]().union(*(story.familiar for story in stories))
    while report.kills < kills:
        story = stories[report.chains % len(stories)]
        number = min(KILLS_PER_CHAIN, -(-kills // len(stories)), kills - report.kills)
        chain(story, draw_kills(story, report.at_points, generator, number), usual, root, report)
        figures = f"{len(report.problems['mixed'])} mixed, {report.lost} rows lost, {len(report.problems['orphans'])} orphans"
        used = time.process_time() + sum(os.times()[2:4])
        say(f"{report.kills} kills, {report.identical} of {report.chains} identical, {figures}, {used:.0f} s of processor time")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill `ltv run` again and again and look for damage.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--story", type=int, choices=(1, 2, 3), default=None, help="whose runs alone are killed; default: all three")
    parser.add_argument("--together", action="store_true", help="also run the second story twice at once, with a reader beside")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory(prefix="ltv-crash-", dir=options.folder) as folder:
        root = Path(folder)
        warm_up()
        stories = prepare(root, max(options.story or 3, 2 if options.together else 1))
        if options.kills:
            chosen = stories if options.story is None else [stories[options.story - 1]]
            report = crash_loop(chosen, options.kills, options.seed, root, lambda line: print(line, file=sys.stderr, flush=True))
            print("\n".join(report.lines({name for story in stories for name in story.points})))
            good = report.good
        if options.together:
            line, problems = together(stories[1], root)
            print("\n".join([line, *problems]))
            good = good and not problems
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
