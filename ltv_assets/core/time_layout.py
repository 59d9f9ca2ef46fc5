"""How the folders of raw files are named after the time of their rows.

What belongs here: patterns in the words of strftime, compiled into an exact reader and writer of folder names. What does not: the
files below the folders (``ingestion/``). Next to read: ``contract.py``, which says the pattern.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property, lru_cache
from typing import Final

HOUR_KEY: Final = "%Y-%m-%d-%H-00"
"""How an hour is written as a key of the warehouse, whatever folders are called."""

_DIGITS: Final = {
    "%Y": r"(?P<Y>\d{4})",
    "%m": r"(?P<m>\d{2})",
    "%-m": r"(?P<m>\d{1,2})",
    "%d": r"(?P<d>\d{2})",
    "%-d": r"(?P<d>\d{1,2})",
    "%j": r"(?P<j>\d{3})",
    "%H": r"(?P<H>\d{2})",
    "%-H": r"(?P<H>\d{1,2})",
    "%%": "%",
}
_TOKEN: Final = re.compile(r"%-?.|%|[^%]+", re.DOTALL)
EXAMPLES: Final = "datetime=%Y-%m-%d-%H-00, date=%Y-%m-%d or dt=%Y%m%d/hour=%H"


@dataclass(frozen=True)
class TimeLayout:
    """A pattern of folder names; one level for each part between slashes."""

    pattern: str

    @cached_property
    def _levels(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(_expression(level), re.ASCII) for level in self.pattern.split("/"))

    @property
    def depth(self) -> int:
        """Levels of folders above the files."""
        return self.pattern.count("/") + 1

    @property
    def has_hours(self) -> bool:
        """Whether a folder is of one hour; otherwise it is of one day."""
        return any(token in ("%H", "%-H") for token in _TOKEN.findall(self.pattern))

    @property
    def spelled(self) -> str:
        """The pattern as people write dates: ``datetime=YYYY-MM-DD-HH-00``."""
        words = {"%Y": "YYYY", "%m": "MM", "%-m": "M", "%d": "DD", "%-d": "D", "%j": "DDD", "%H": "HH", "%-H": "H", "%%": "%"}
        return "".join(words.get(token, token) for token in _TOKEN.findall(self.pattern))

    @property
    def example(self) -> str:
        """A folder as this pattern writes it."""
        return self.folder(date(2025, 10, 1), 0)

    def matches(self, level: int, name: str) -> bool:
        """Whether a folder of this name may stand on a level, from 0."""
        return self._levels[level].fullmatch(name) is not None

    def read(self, names: Sequence[str]) -> tuple[date, int] | None:
        """(day, hour) of the folder that is reached through ``names``, one for each level; None if they are of another kind.

        The hour is 0 where the pattern has none.
        """
        found: dict[str, str] = {}
        if len(names) != self.depth:
            return None
        for level, name in zip(self._levels, names, strict=True):
            match = level.fullmatch(name)
            if match is None:
                return None
            for key, text in match.groupdict().items():
                if found.setdefault(key, text) != text:
                    return None
        year, hour = int(found["Y"]), int(found.get("H", 0))
        try:
            if "j" in found:
                day = date(year, 1, 1) + timedelta(days=int(found["j"]) - 1)
                day = day if day.year == year and int(found["j"]) else None  # type: ignore[assignment]
            else:
                day = date(year, int(found["m"]), int(found["d"]))
        except (ValueError, OverflowError):
            return None
        return (day, hour) if day is not None and hour < 24 else None

    def folder(self, day: date, hour: int) -> str:
        """The path of a day's and hour's folder."""
        values = {
            "%Y": f"{day.year:04d}",
            "%m": f"{day.month:02d}",
            "%-m": str(day.month),
            "%d": f"{day.day:02d}",
            "%-d": str(day.day),
            "%j": f"{day.timetuple().tm_yday:03d}",
            "%H": f"{hour:02d}",
            "%-H": str(hour),
            "%%": "%",
        }
        return "".join(values.get(token, token) for token in _TOKEN.findall(self.pattern))


def hour_key(day: date, hour: int) -> str:
    """``YYYY-MM-DD-HH-00``: an hour as a key of the warehouse."""
    return f"{day:%Y-%m-%d}-{hour:02d}-00"


def hour_day(key: str) -> date:
    """The day of an hour's key."""
    return date.fromisoformat(key[:10])


def layout_problem(pattern: str) -> str | None:
    """What is wrong with a pattern, with the remedy; None if it can be read."""
    if pattern != pattern.strip() or pattern.startswith("/") or any(level in ("", ".", "..") for level in pattern.split("/")):
        return f"expected folder names below the data root, such as {EXAMPLES}, found {pattern!r}; begin and end with a name"
    tokens = [token for token in _TOKEN.findall(pattern) if token.startswith("%")]
    unknown = next((token for token in tokens if token not in _DIGITS), None)
    if unknown is not None:
        return f"unknown directive {unknown!r} in {pattern!r}; expected %Y, %m, %d, %j, %H, their short forms %-m, %-d, %-H, or %%"
    kinds = {token.replace("-", "") for token in tokens}
    if not {"%Y", "%m", "%d"} <= kinds and not {"%Y", "%j"} <= kinds:
        return (
            f"the pattern {pattern!r} has no day; expected %Y, %m and %d (or %Y and %j), as in {EXAMPLES}; "
            "for files that are not divided by time write layout: null and name their column of moments"
        )
    if {"%j", "%d"} <= kinds or {"%j", "%m"} <= kinds:
        return f"the pattern {pattern!r} says the day twice; keep %j, or %m and %d"
    for level in pattern.split("/"):
        names = [token.replace("-", "") for token in _TOKEN.findall(level) if token.startswith("%")]
        twice = next((name for name in names if name != "%%" and names.count(name) > 1), None)
        if twice is not None:
            return f"{twice} stands twice in {level!r}; write it once in a folder's name"
    return None


@lru_cache(maxsize=64)
def time_layout(pattern: str) -> TimeLayout:
    """The layout of a pattern that was checked by `layout_problem`."""
    return TimeLayout(pattern)


def _expression(level: str) -> str:
    return "".join(_DIGITS.get(token) or re.escape(token) for token in _TOKEN.findall(level))
