"""Which days a window trains on, and what it refuses."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltv_assets.core.config import Config, parse_config
from ltv_assets.core.errors import StaleError
from ltv_assets.core.time_layout import time_layout
from ltv_assets.ingestion.calendar import Horizon, discover, mature_horizons, uncovered_hours
from ltv_assets.ingestion.raw_days import hour_of_folders

FIRST = date(2025, 10, 1)


def day(n: int) -> date:
    return FIRST + timedelta(days=n - 1)


def horizon(train: list[int], test: list[int] = [], *, least: int = 2, most: int = 7, embargo: int = 0, gaps: list[int] = []) -> Horizon:  # noqa: B006
    return Horizon(tuple(map(day, train)), tuple(map(day, test)), least, most, embargo, frozenset(map(day, gaps)))


def test_window_trains_on_the_days_before_its_holdout_only() -> None:
    h = horizon([1, 2, 3, 4, 5, 6], [8])
    assert h.training_days(day(6)) == tuple(map(day, [1, 2, 3, 4, 5]))
    assert h.last_window == day(6)
    assert h.window_keys() == tuple(map(day, [3, 4, 5, 6]))


def test_longest_window_is_bounded() -> None:
    assert horizon(list(range(1, 12)), most=3).training_days(day(11)) == tuple(map(day, [8, 9, 10]))


def test_embargo_keeps_the_last_days_out() -> None:
    assert horizon([1, 2, 3, 4, 5, 6], embargo=2).training_days(day(6)) == tuple(map(day, [1, 2, 3]))


def test_too_few_days_are_refused_with_the_first_possible_window() -> None:
    with pytest.raises(StaleError, match=r"at least 2 labelled days .* found 1; choose a later window \(the first is 2025-10-03\)"):
        horizon([1, 2, 3]).training_days(day(2))


def test_missing_day_inside_is_refused_unless_listed_as_gap() -> None:
    with pytest.raises(StaleError, match=r"no data for 2025-10-03; add the missing hours, or list the days in data\.gap_days"):
        horizon([1, 2, 4, 5]).training_days(day(5))
    assert horizon([1, 2, 4, 5], gaps=[3]).training_days(day(5)) == tuple(map(day, [1, 2, 4]))


@given(
    train=st.sets(st.integers(1, 25), min_size=1),
    least=st.integers(1, 4),
    extra=st.integers(0, 6),
    embargo=st.integers(0, 4),
)
def test_no_window_ever_sees_its_holdout_or_a_later_day(train: set[int], least: int, extra: int, embargo: int) -> None:
    h = horizon(sorted(train), least=least, most=least + extra, embargo=embargo)
    for window in h.window_keys():
        days = h.training_days(window)
        assert least <= len(days) <= least + extra
        assert max(days) < window - timedelta(days=embargo)


@pytest.mark.parametrize(
    "name",
    ["datetime=2025-10-01-24-00", "datetime=2025-13-01-00-00", "datetime=2025-10-01", "2025-10-01-00-00", "datetime=2025-10-01-00-30"],
)
def test_malformed_folder_is_no_hour(name: str) -> None:
    assert hour_of_folders([name], time_layout("datetime=%Y-%m-%d-%H-00")) is None


@pytest.mark.contest
def test_days_are_found_by_their_folders(tmp_path: Path) -> None:
    for name in ("datetime=2025-10-02-05-00", "datetime=2025-10-01-00-00", "datetime=2025-10-02-06-00", "_SUCCESS", "junk"):
        (tmp_path / "train" / name).mkdir(parents=True)
    assert discover(at(tmp_path)).train_days == (date(2025, 10, 1), date(2025, 10, 2))


@pytest.mark.contest
def test_labels_mature_by_the_clock() -> None:
    config = Config()
    assert mature_horizons(config, FIRST, FIRST + timedelta(days=7)) == frozenset()
    assert mature_horizons(config, FIRST, FIRST + timedelta(days=8)) == {7}
    assert mature_horizons(config, FIRST, FIRST + timedelta(days=15)) == {7, 14}
    assert mature_horizons(config, FIRST, FIRST + timedelta(days=29)) == {7, 14, 28}


@pytest.mark.contest
def test_labels_mature_when_the_configuration_says_so(tmp_path: Path) -> None:
    """By horizon, in either way to write it; every other horizon matures after as many days as it is long."""
    for text in ("windows: {label_maturity_days: {7: 9}}", "windows: {label_maturity_days_d7: 9}"):
        config = parse_config(text, tmp_path / "config.yaml")
        assert mature_horizons(config, FIRST, FIRST + timedelta(days=9)) == frozenset()
        assert mature_horizons(config, FIRST, FIRST + timedelta(days=10)) == {7}
        assert mature_horizons(config, FIRST, FIRST + timedelta(days=15)) == {7, 14}


@pytest.mark.contest
def test_partition_cap_also_bounds_the_days(tmp_path: Path) -> None:
    for day_number in (1, 2, 3):
        for hour in range(24):
            (tmp_path / "train" / f"datetime=2025-10-0{day_number}-{hour:02d}-00").mkdir(parents=True)
    capped = Config.model_validate({"data": {"root": str(tmp_path), "train": {"max_partitions": 30}}})
    assert discover(capped).train_days == (date(2025, 10, 1), date(2025, 10, 2))
    assert discover(at(tmp_path)).train_days == (date(2025, 10, 1), date(2025, 10, 2), date(2025, 10, 3))


def at(root: Path, dates: object = "auto") -> Config:
    return Config.model_validate({"data": {"root": str(root), "dates": dates}})


def hours(root: Path, split: str, day: str, numbers: range) -> None:
    for hour in numbers:
        (root / split / f"datetime={day}-{hour:02d}-00").mkdir(parents=True)


@pytest.mark.contest
def test_hours_of_a_training_day_under_test_are_named(tmp_path: Path) -> None:
    hours(tmp_path, "train", "2025-10-01", range(12))
    hours(tmp_path, "test", "2025-10-01", range(12, 24))
    hours(tmp_path, "test", "2025-10-02", range(24))
    config = at(tmp_path)
    (message,) = uncovered_hours(config, discover(config))
    assert message == (
        f"day 2025-10-01 counts as train, so its 12 hours under {tmp_path}/test are read by nobody: 12-23; "
        f"move them to {tmp_path}/train, or deliver the day under one of the two folders only"
    )
    assert uncovered_hours(config, discover(config), date(2025, 10, 2)) == ()


@pytest.mark.contest
def test_every_hour_beside_explicit_dates_is_named(tmp_path: Path) -> None:
    dates = {
        "train": {"first": date(2025, 10, 1), "last": date(2025, 10, 2)},
        "test": {"first": date(2025, 10, 4), "last": date(2025, 10, 4)},
    }
    for day in ("2025-10-01", "2025-10-03", "2025-10-04"):
        hours(tmp_path, "train", day, range(3))
    hours(tmp_path, "test", "2025-10-04", range(2))
    hours(tmp_path, "test", "2025-10-02", range(5, 6))
    config = at(tmp_path, dates)
    found = uncovered_hours(config, discover(config))
    assert [message.partition(", so")[0] for message in found] == [
        "day 2025-10-03 lies outside data.dates",
        "day 2025-10-04 counts as test",
        "day 2025-10-02 counts as train",
    ]
