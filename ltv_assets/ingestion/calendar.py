"""Calendar: the days that exist, and the training days of a window.

Pure calendar logic over the configuration and the names of the hourly folders; no file is opened. Both
partition dimensions are defined here: *days* (the day of the impression) and *windows* (key D = the holdout day; the days before D
are for training). Next to read: ``defs/partitions.py``, the same for Dagster.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from ltv_assets.core.config import Config, DateRanges, parse_day
from ltv_assets.core.contract import contract_of
from ltv_assets.core.errors import ConfigError, DataError, StaleError
from ltv_assets.core.time_layout import hour_day
from ltv_assets.ingestion.raw_days import Split, found_hours, hourly_folders, shares_root, split_folder

FALLBACK_FIRST_DAY = date(2025, 10, 1)
FALLBACK_LAST_DAY = date(2025, 10, 11)


def today() -> date:
    """Today, for label maturity: ``LTV_TODAY`` (YYYY-MM-DD) if set, else the UTC day."""
    text = os.environ.get("LTV_TODAY")
    if not text:
        return datetime.now(UTC).date()
    try:
        return parse_day(text)
    except ValueError:
        raise ConfigError(f"environment variable LTV_TODAY: expected a day such as 2025-11-01, found {text!r:.80}") from None


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


def days_of(hours: Iterable[str]) -> tuple[date, ...]:
    """Days of some hour keys, in order."""
    return tuple(sorted({hour_day(key) for key in hours}))


def discover(config: Config) -> Horizon:
    """Horizon of a configuration: its explicit dates, or with ``dates: auto`` every day found under the data root."""
    if isinstance(config.data.dates, DateRanges):
        train, test = config.data.dates.train.days(), config.data.dates.test.days()
        train = tuple(d for d in train if d not in config.data.gap_days)
    else:
        train = days_of(hourly_folders(config, "train"))
        test = tuple(d for d in days_of(hourly_folders(config, "test")) if d not in train)
    return Horizon(
        train,
        test,
        config.windows.min_train_days,
        config.windows.max_train_days,
        config.windows.embargo_days,
        frozenset(config.data.gap_days),
    )


def nothing_found(config: Config) -> str:
    """What is said of a data root without any raw file of any day."""
    contract, data = contract_of(config), config.data
    where = "" if data.train_folder == "." else f"{data.train_folder}/"
    if contract.layout is None:
        return f"no row with a day found; expected {where}**/*.parquet with moments in column {contract.time.column}"
    kind = "hourly folder" if contract.layout.has_hours else "folder of a day"
    return f"no {kind} found; expected {where}{contract.layout.spelled}/*.parquet"


def hours_per_day(config: Config) -> int:
    """Folders a whole day has: 24, or 1 where folders or files are of days."""
    layout = contract_of(config).layout
    return 24 if layout is not None and layout.has_hours else 1


def uncovered_hours(config: Config, horizon: Horizon, day: date | None = None) -> tuple[str, ...]:
    """A message for each day (or for ``day``) with hourly folders that no partition reads.

    A day belongs to one split, so its hours under the other's folder are not read, nor is a day outside explicit dates.
    """
    messages = []
    whole_hours = hours_per_day(config) > 1
    splits: tuple[tuple[Split, Split, tuple[date, ...]], ...] = (
        ("train", "test", horizon.train_days),
        ("test", "train", horizon.test_days),
    )
    if shares_root(config):
        splits = (("train", "test", (*horizon.train_days, *horizon.test_days)),)
    for split, other, own in splits:
        base, others = split_folder(config, split), horizon.test_days if split == "train" else horizon.train_days
        hours: dict[date, list[int]] = {}
        for key in found_hours(config, split):
            found = hour_day(key)
            if found not in own and day in (None, found):
                hours.setdefault(found, []).append(int(key[11:13]))
        limit = (config.data.train if split == "train" else config.data.test).max_partitions
        for missed, numbers in sorted(hours.items()):
            listed = f"its {len(numbers)} hours under {base} are read by nobody: {_spans(sorted(numbers))}"
            if not whole_hours:
                listed = f"its files under {base} are read by nobody"
            if missed in others:
                messages.append(
                    f"day {missed} counts as {other}, so {listed}; "
                    f"move them to {split_folder(config, other)}, or deliver the day under one of the two folders only"
                )
            elif limit is None and missed not in config.data.gap_days:
                messages.append(
                    f"day {missed} lies outside data.dates, so {listed}; "
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
    """Label horizons of the contract, in days, that are final for impressions of ``day``, as of day ``on``."""
    age = ((on or today()) - day).days
    needed = {horizon: config.windows.maturity_days(horizon) for horizon in contract_of(config).horizons}
    return frozenset(horizon for horizon, days in needed.items() if age > days or (days == 0 and age >= 0))
