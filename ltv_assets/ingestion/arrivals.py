"""Arrival of days: complete, unchanged for a while, and with which files. Pure and cheap: names, sizes and times only.

Sensors call this every half minute, so no file is opened here. The inventory (``inventory.py``) decides whether a file is
usable, when the day is ingested.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import date

from ltv_assets.core.config import Config
from ltv_assets.core.hashing import short_hash
from ltv_assets.core.time_layout import hour_day
from ltv_assets.ingestion.calendar import Horizon, hours_per_day, today
from ltv_assets.ingestion.raw_days import Split, hourly_folders


@dataclass(frozen=True, slots=True)
class Landing:
    """Content of the folders of one day: hours with at least one file, a fingerprint of names, sizes and times, and the newest change."""

    day: date
    split: Split
    hours: int
    fingerprint: str
    changed_at: float

    def waiting_for(self, config: Config, now: float) -> str | None:
        """Why the day has not landed yet, or None if it has; ``now`` in seconds since 1970."""
        settings = config.automation
        whole = hours_per_day(config)
        missing = whole - self.hours
        if missing > settings.allow_missing_hours:
            return f"{missing} of {whole} hours are missing (automation.allow_missing_hours = {settings.allow_missing_hours})"
        quiet = now - self.changed_at
        if quiet < settings.settle_seconds:
            return f"its files changed {max(quiet, 0):.0f} s ago (automation.settle_seconds = {settings.settle_seconds:g})"
        return None


def landings(config: Config, horizon: Horizon) -> tuple[Landing, ...]:
    """Every known day up to today with at least one file, in order of time."""
    found: list[Landing] = []
    last = today()
    splits: tuple[tuple[Split, tuple[date, ...]], ...] = (("train", horizon.train_days), ("test", horizon.test_days))
    for split, days in splits:
        entries: dict[date, list[tuple[str, int, int]]] = defaultdict(list)
        hours: dict[date, set[str]] = defaultdict(set)
        for key, hour in hourly_folders(config, split).items():
            day = hour_day(key)
            if day not in days or day > last:
                continue
            for path in hour.files():
                stat = path.lstat()
                entries[day].append((f"{key}/{path.name}", stat.st_size, stat.st_mtime_ns))
                hours[day].add(key)
        for day, files in entries.items():
            digest = short_hash(repr(sorted(files)))
            found.append(Landing(day, split, len(hours[day]), digest, max(f[2] for f in files) / 1e9))
    return tuple(sorted(found, key=lambda landing: landing.day))
