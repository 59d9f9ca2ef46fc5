"""Whatever is damaged, and however: one of the answers, and never a library's exception or the end of the process."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ltv_assets_tests.conftest import PROJECT
from ltv_assets_tests.faults import damaged_parquet
from ltv_assets_tests.faults.fuzz import case, data_case, text_case
from ltv_assets_tests.faults.world import World

ANSWERS = {"accept", "degrade", "quarantine", "reject", "unwritable"}
SOAK_SECONDS = float(os.environ.get("FUZZ_SECONDS", "600"))

tries_few = settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
tries_many = settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
some_random = st.randoms(use_true_random=False)


@pytest.fixture(scope="module")
def world() -> World:
    """A day whose hour 0 is good; hour 1 is written anew by every case."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        world.put(0)
        yield world


@tries_few
@given(rng=some_random)
def test_any_damage_to_the_schema_gets_an_answer(world: World, rng: random.Random) -> None:
    assert data_case(world, "schema", rng) in ANSWERS


@tries_few
@given(rng=some_random)
def test_any_damage_to_keys_and_labels_gets_an_answer(world: World, rng: random.Random) -> None:
    assert data_case(world, "labels", rng) in ANSWERS


@tries_few
@given(rng=some_random)
def test_any_damage_to_the_bytes_of_a_file_gets_an_answer(world: World, rng: random.Random) -> None:
    assert data_case(world, "bytes", rng) in ANSWERS


@tries_many
@given(rng=some_random)
def test_any_damage_to_the_configuration_is_refused_with_its_file_or_harmless(world: World, rng: random.Random) -> None:
    for kind in ("configuration", "settings"):
        assert text_case(world, kind, rng) in {"accept", "reject"}


@tries_few
@given(rng=some_random)
def test_any_damage_to_the_feature_registry_is_refused_with_its_file_or_harmless(world: World, rng: random.Random) -> None:
    assert text_case(world, "registry", rng) in {"accept", "reject"}


@pytest.mark.parametrize(("number", "answer"), [(691, "reject"), (1498, "quarantine")])
def test_case_that_once_had_no_answer_has_one(world: World, number: int, answer: str) -> None:
    """691: an empty message; 1498: a footer whose level histograms ended the process."""
    assert case(world, number)[1] == answer


def tries_mutations(folder: Path, numbers: range) -> Counter[str]:
    """How often each answer came; fails with the numbers of the mutations that had none."""
    counts, failures = damaged_parquet.soak(folder, numbers)
    assert not failures, "\n".join(failures)
    assert counts.total() == len(numbers)
    assert set(counts) == {"read", "set aside", "refused"} & set(counts)
    return counts


def test_damaged_footers_and_pages_of_every_writer_get_an_answer(tmp_path: Path) -> None:
    counts = tries_mutations(tmp_path / "fuzz", range(288))
    assert counts["read"] > 0
    assert counts["set aside"] > counts["read"]


@pytest.mark.soak
def test_twenty_thousand_damaged_footers_and_pages_end_no_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """FUZZ_MUTATIONS sets how many, FUZZ_FIRST the first one."""
    first = int(os.environ.get("FUZZ_FIRST", "0"))
    numbers = range(first, first + int(os.environ.get("FUZZ_MUTATIONS", "20000")))
    counts, failures = damaged_parquet.soak(tmp_path / "fuzz", numbers)
    with capsys.disabled():
        answers = ("set aside", "read", "refused", "aborts", "hangs", "tracebacks")
        print(f"\nmutations: {counts.total()}, {', '.join(f'{name}: {counts[name]}' for name in answers)}")
    assert not failures, "\n".join(failures)


@pytest.mark.soak
def test_ten_minutes_of_damage_end_no_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """FUZZ_SECONDS sets the time, FUZZ_FIRST the first case; cases run in processes of their own, so an abort is seen and named."""
    first, ends = int(os.environ.get("FUZZ_FIRST", "0")), time.monotonic() + SOAK_SECONDS
    answers: Counter[str] = Counter()
    failed: list[str] = []
    while (left := ends - time.monotonic()) > 0:
        words = [sys.executable, "-m", "ltv_assets_tests.faults.fuzz", str(tmp_path / "fuzz"), str(left), str(first)]
        done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, check=False)
        first = int((tmp_path / "fuzz" / "case").read_text()) + 1
        if done.returncode == 0:
            answers.update(json.loads(done.stdout.splitlines()[-1]))
        else:
            failed.append(f"case {first - 1}, exit {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    with capsys.disabled():
        print(f"\n{first} cases tried, {len(failed)} without an answer\n{json.dumps(answers, indent=1, sort_keys=True)}")
    assert not failed, "\n".join(failed)
