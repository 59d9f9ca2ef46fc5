"""A killed run costs time and nothing else; two runs, and a reader beside them, do not disturb each other."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ltv_assets_tests.conftest import PROJECT
from ltv_assets_tests.faults import crash
from ltv_assets_tests.faults.catalogue import Fault, fault
from ltv_assets_tests.faults.world import notes


def loop(tmp_path: Path, *words: str) -> str:
    """Run the crash loop in a process of its own, which can be forked safely; returns its report."""
    command = [sys.executable, "-m", "ltv_assets_tests.faults.crash", "--folder", str(tmp_path), *words]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three kills of a run over a finished warehouse, then two such runs at once; the other stories are soak."""
    return loop(tmp_path_factory.mktemp("crash"), "--kills", "3", "--story", "2", "--together")


def kinds_hit(report: str) -> tuple[int, int]:
    """How many kinds of operation the kills of a report met, and how many there are."""
    found = re.search(r"points: (\d+) of (\d+) kinds", report)
    assert found is not None
    return int(found[1]), int(found[2])


def nothing_is_lost(report: str, kills: int) -> None:
    for line in (f"kills: {kills} ", "mixed partitions: 0", "lost rows: 0", "orphans: 0"):
        assert line in report


@fault(
    "process",
    "SIGKILL before, during and after every write, between two outputs of one asset, and at random times",
    answer="recover",
    message="mixed partitions: 0",
)
@pytest.mark.slow
def test_kills_mix_nothing_lose_nothing_leave_nothing(fault: Fault, report: str) -> None:
    fault.told(report)
    nothing_is_lost(report, 3)
    identical, chains = map(int, re.search(r"identical to the undisturbed one: (\d+) of (\d+)", report).groups())  # type: ignore[union-attr]
    assert identical == chains >= 1
    assert kinds_hit(report)[0] >= 1


@fault(
    "process",
    "two `ltv run` at once on one warehouse, and a reader beside them",
    answer="recover",
    message="side by side: exit codes 0 and 0, <n> reads, 0 mixtures seen",
)
@pytest.mark.slow
def test_two_runs_and_a_reader_share_one_warehouse(fault: Fault, report: str) -> None:
    assert int(fault.told(report)["n"]) > 0


@pytest.mark.soak
def test_twenty_kills_mix_nothing_lose_nothing_leave_nothing(tmp_path: Path) -> None:
    report = loop(tmp_path, "--kills", "20")
    nothing_is_lost(report, 20)
    identical, chains = map(int, re.search(r"identical to the undisturbed one: (\d+) of (\d+)", report).groups())  # type: ignore[union-attr]
    assert identical == chains >= 3
    assert kinds_hit(report)[0] > 10


@pytest.mark.soak
def test_two_hundred_kills_at_every_kind_of_operation(tmp_path: Path) -> None:
    report = loop(tmp_path, "--kills", "200", "--seed", "7")
    nothing_is_lost(report, 200)
    hit, kinds = kinds_hit(report)
    assert hit == kinds


def test_every_operation_has_a_kind_without_names() -> None:
    point = "rename .staging/stacker-2025-10-03/content/figures.parquet to .staging/stacker-2025-10-03/content/figures-<hash>.parquet"
    assert crash.kind_of(point) == "rename .staging/<partition>/content/<file> to .staging/<partition>/content/<file>"
    assert crash.kind_of("rename .staging/raw_partitions-2025-10-01/content to lake/raw_partitions/day=2025-10-01") == (
        "rename .staging/<partition>/content to <partition>"
    )
    assert crash.kind_of("write verdicts/holdout_metrics/2025-10-03/.rmsle.json.tmp") == "write verdicts/<check>"


def test_kinds_that_were_not_hit_come_first_those_least_like_the_others_in_front() -> None:
    kinds = [
        "write tracking/<record>",
        "write tracking/<current>",
        "flush tracking",
        "rename a to c.json",
        "exchange a with <partition>",
    ]
    assert crash.unlike(kinds, ["write tracking/<settings>"]) == [
        "rename a to c.json",
        "exchange a with <partition>",
        "flush tracking",
        "write tracking/<record>",
        "write tracking/<current>",
    ]
    points = {"flush tracking": 0, "write champion.lock": 1, "write ltv.lock": 2, "write .staging/run.lock": 3}
    story = crash.Story("", Path(), None, Path(), points, seconds=10.0)
    hit = ["write champion.lock", "write ltv.lock"]
    assert [kill.point for kill in crash.draw_kills(story, hit, random.Random(0), 2)] == ["flush tracking", "write .staging/run.lock"]


def test_a_mixture_would_be_noticed(tmp_path: Path) -> None:
    """The judge of the loop is judged: old and new files in one partition, a torn one, and an unlisted one."""
    from ltv_assets.storage.warehouse import Warehouse

    def publish(root: Path, text: str) -> Path:
        both = notes(one=f'"{text}"', other=f'"{text}"')
        Warehouse(root).write("predictions", "2025-10-01", both, code_version="1", config="c", inputs={})
        return Warehouse(root).folder("predictions", "2025-10-01")

    old, new = publish(tmp_path / "old", "old"), publish(tmp_path / "new", "new")
    published = [crash.published(tmp_path / "old"), crash.published(tmp_path / "new")]
    (name,) = published[0]
    allowed = {name: {p[name] for p in published}}
    assert crash.mixed(tmp_path / "old", allowed) == crash.mixed(tmp_path / "new", allowed) == []
    assert crash.lost_rows(published[0], {}) == 0
    (old / "one.json").write_bytes((new / "one.json").read_bytes())
    assert "content differs" in crash.mixed(tmp_path / "old", allowed)[0]
    (new / "stray.json").write_text("{}")
    assert "stray.json" in crash.mixed(tmp_path / "new", allowed)[0]
    publish(tmp_path / "third", "a third version")
    assert crash.mixed(tmp_path / "third", allowed) == [f"{name}: neither the old nor the new manifest"]
