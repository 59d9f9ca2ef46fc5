"""Calendar: the days that exist, and the training days of a window.

Pure calendar logic over the configuration and the names of the hourly folders; no file is opened. Both
partition dimensions are defined here: *days* (the day of the impression) and *windows* (key D = the holdout day; the days before D
are for training). Next to read: ``defs/partitions.py``, the same for Dagster.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Literal

from ltv_assets.core.config import FIRST_DAY, LAST_DAY, Config, DateRanges
from ltv_assets.core.config import parse_day as day_of
from ltv_assets.core.errors import ConfigError, DataError, StaleError

Split = Literal["train", "test"]

HOUR_FOLDER = re.compile(r"datetime=(\d{4})-(\d{2})-(\d{2})-(\d{2})-00", re.ASCII)
FALLBACK_FIRST_DAY = date(2025, 10, 1)
FALLBACK_LAST_DAY = date(2025, 10, 11)


def today() -> date:
    """Today, for label maturity: ``LTV_TODAY`` (YYYY-MM-DD) if set, else the UTC day."""
    text = os.environ.get("LTV_TODAY")
    if not text:
        return datetime.now(UTC).date()
    try:
        return day_of(text)
    except ValueError:
        raise ConfigError(f"environment variable LTV_TODAY: expected a day such as 2025-11-01, found {text!r:.80}") from None


def parse_day(key: str) -> date:
    """Day of a partition key; raises DataError for anything but YYYY-MM-DD, so a key cannot be a path out of the warehouse."""
    try:
        return day_of(key)
    except ValueError:
        raise DataError(f"partition key {key!r}: expected a day such as 2025-10-06") from None


def hour_of_folder(name: str) -> tuple[date, int] | None:
    """(day, hour) of a folder named ``datetime=YYYY-MM-DD-HH-00``; None for any other name or an invalid hour."""
    match = HOUR_FOLDER.fullmatch(name)
    if match is None:
        return None
    year, month, day, hour = (int(g) for g in match.groups())
    try:
        found = date(year, month, day)
    except ValueError:
        return None
    return (found, hour) if hour < 24 and FIRST_DAY <= found <= LAST_DAY else None


def days_in(folder: Path, max_partitions: int | None = None) -> tuple[date, ...]:
    """Days with at least one hourly folder in ``folder``, among its ``max_partitions`` earliest hours."""
    if not folder.is_dir():
        return ()
    found = (hour_of_folder(entry.name) for entry in folder.iterdir() if entry.is_dir())
    hours = sorted(hour for hour in found if hour is not None)
    return tuple(sorted({day for day, _ in hours[:max_partitions]}))


@dataclass(frozen=True, slots=True)
class Horizon:
    """The days with labels, the days without, and the rules that turn them into windows."""

    train_days: tuple[date, ...]
    test_days: tuple[date, ...]
    min_train_days: int
    max_train_days: int
    embargo_days: int
    gap_days: frozenset[date]

    @property
    def is_empty(self) -> bool:
        """True when no day was found or configured."""
        return not self.train_days and not self.test_days

    @property
    def first_day(self) -> date:
        """First known day; the contest's first day when no day is known."""
        return min((*self.train_days, *self.test_days), default=FALLBACK_FIRST_DAY)

    @property
    def last_day(self) -> date:
        """Last known day; the contest's last day when no day is known."""
        return max((*self.train_days, *self.test_days), default=FALLBACK_LAST_DAY)

    @property
    def first_window(self) -> date:
        """First day that could be a holdout."""
        return min(self.train_days, default=self.first_day) + timedelta(days=self.min_train_days + self.embargo_days)

    @property
    def last_window(self) -> date | None:
        """The newest labelled day, if it has enough days before it."""
        days = self.window_keys()
        return days[-1] if days else None

    def split_of(self, day: date) -> Split:
        """Split of a day; raises DataError naming the known days."""
        if day in self.train_days:
            return "train"
        if day in self.test_days:
            return "test"
        known = f"{self.first_day} .. {self.last_day}" if not self.is_empty else "none; run `ltv simulate` or set LTV_DATA_ROOT"
        raise DataError(f"day {day}: no hourly folder and no configured date; known days are {known}")

    def training_days(self, window: date) -> tuple[date, ...]:
        """Days that train window ``window``: the existing labelled days among the ``max_train_days`` before the embargo.

        Raises StaleError if there are too few, or if a day inside is missing and not listed in ``data.gap_days``.
        """
        last = window - timedelta(days=1 + self.embargo_days)
        first = last - timedelta(days=self.max_train_days - 1)
        days = tuple(d for d in self.train_days if first <= d <= last)
        if len(days) < self.min_train_days:
            raise StaleError(
                f"window {window}: needs at least {self.min_train_days} labelled days in {first} .. {last}, found {len(days)}; "
                f"choose a later window (the first is {self.first_window}) or lower windows.min_train_days"
            )
        missing = [d for d in _between(days[0], last) if d not in self.train_days and d not in self.gap_days]
        if missing:
            names = ", ".join(str(d) for d in missing)
            raise StaleError(f"window {window}: no data for {names}; add the missing hours, or list the days in data.gap_days")
        return days

    def window_keys(self) -> tuple[date, ...]:
        """Every labelled day that can be a holdout."""
        keys = []
        for day in self.train_days:
            try:
                self.training_days(day)
            except StaleError:
                continue
            keys.append(day)
        return tuple(keys)


def _between(first: date, last: date) -> tuple[date, ...]:
    return tuple(first + timedelta(days=i) for i in range((last - first).days + 1))


def split_folder(config: Config, split: Split) -> Path:
    """Folder of one split's hourly folders."""
    return config.data.root / (config.data.train_folder if split == "train" else config.data.test_folder)


def discover(config: Config) -> Horizon:
    """Horizon of a configuration: its explicit dates, or with ``dates: auto`` every day found under the data root."""
    if isinstance(config.data.dates, DateRanges):
        train, test = config.data.dates.train.days(), config.data.dates.test.days()
        train = tuple(d for d in train if d not in config.data.gap_days)
    else:
        train = days_in(split_folder(config, "train"), config.data.train.max_partitions)
        test = tuple(d for d in days_in(split_folder(config, "test"), config.data.test.max_partitions) if d not in train)
    return Horizon(
        train,
        test,
        config.windows.min_train_days,
        config.windows.max_train_days,
        config.windows.embargo_days,
        frozenset(config.data.gap_days),
    )


def uncovered_hours(config: Config, horizon: Horizon, day: date | None = None) -> tuple[str, ...]:
    """A message for each day (or for ``day``) with hourly folders that no partition reads.

    A day belongs to one split, so its hours under the other's folder are not read, nor is a day outside explicit dates.
    """
    messages = []
    splits: tuple[tuple[Split, Split, tuple[date, ...]], ...] = (
        ("train", "test", horizon.train_days),
        ("test", "train", horizon.test_days),
    )
    for split, other, own in splits:
        base, others = split_folder(config, split), horizon.test_days if split == "train" else horizon.train_days
        hours: dict[date, list[int]] = {}
        for found in (hour_of_folder(entry.name) for entry in base.iterdir() if entry.is_dir()) if base.is_dir() else ():
            if found is not None and found[0] not in own and day in (None, found[0]):
                hours.setdefault(found[0], []).append(found[1])
        limit = (config.data.train if split == "train" else config.data.test).max_partitions
        for missed, numbers in sorted(hours.items()):
            listed = _spans(sorted(numbers))
            if missed in others:
                messages.append(
                    f"day {missed} counts as {other}, so its {len(numbers)} hours under {base} are read by nobody: {listed}; "
                    f"move them to {split_folder(config, other)}, or deliver the day under one of the two folders only"
                )
            elif limit is None and missed not in config.data.gap_days:
                messages.append(
                    f"day {missed} lies outside data.dates, so its {len(numbers)} hours under {base} are read by nobody: {listed}; "
                    "add the day to data.dates, or to data.gap_days to leave it out on purpose"
                )
    return tuple(messages)


def _spans(hours: list[int]) -> str:
    """Hours of a day as text, with ranges: ``00-11, 13``."""
    spans: list[list[int]] = []
    for hour in hours:
        if spans and spans[-1][-1] == hour - 1:
            spans[-1][1:] = [hour]
        else:
            spans.append([hour])
    return ", ".join("-".join(f"{hour:02d}" for hour in span) for span in spans)


def mature_horizons(config: Config, day: date, on: date | None = None) -> frozenset[int]:
    """Label horizons (7, 14, 28 days) that are final for impressions of ``day``, as of day ``on``."""
    age = ((on or today()) - day).days
    needed = {
        7: config.windows.label_maturity_days_d7,
        14: config.windows.label_maturity_days_d14,
        28: config.windows.label_maturity_days_d28,
    }
    return frozenset(horizon for horizon, days in needed.items() if age > days or (days == 0 and age >= 0))
