"""Where the files are and how their folders are named after time.

What belongs here: walking a folder, and the pattern of its day and hour folders in the words of strftime. What does not: opening
files (``sample.py``). Next to read: ``proposal.py``.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ltv_assets.core.config import FIRST_DAY, LAST_DAY
from ltv_assets.core.errors import DataError
from ltv_assets.ingestion.raw_days import DOCUMENTS, HIDDEN

MOST_FILES = 1_000_000

_WHOLE: tuple[tuple[str, str], ...] = (
    (r"(\d{4})-(\d{2})-(\d{2})-(\d{2})-00", "%Y-%m-%d-%H-00"),
    (r"(\d{4})-(\d{2})-(\d{2})[T_-](\d{2})", "%Y-%m-%d{}%H"),
    (r"(\d{4})-(\d{2})-(\d{2})", "%Y-%m-%d"),
    (r"(\d{4})_(\d{2})_(\d{2})", "%Y_%m_%d"),
    (r"(\d{4})\.(\d{2})\.(\d{2})", "%Y.%m.%d"),
    (r"(\d{4})(\d{2})(\d{2})(\d{2})", "%Y%m%d%H"),
    (r"(\d{4})(\d{2})(\d{2})", "%Y%m%d"),
)
"""Whole days, with the hour or without, as one folder's name writes them; the finest first."""

_PARTS: dict[str, re.Pattern[str]] = {
    "Y": re.compile(r"((?:year|yyyy|y)[=_-])?(\d{4})", re.IGNORECASE),
    "m": re.compile(r"((?:month|mm|m)[=_-])?(\d{1,2})", re.IGNORECASE),
    "d": re.compile(r"((?:day|dd|d)[=_-])?(\d{1,2})", re.IGNORECASE),
    "H": re.compile(r"((?:hour|hh|hr|h)[=_-])?(\d{1,2})", re.IGNORECASE),
}
"""One level each, for years, months, days and hours in folders of their own."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A parquet file: ``split`` is the folder of labelled or unlabelled days it stands below, or "" where there is none."""

    path: Path
    split: str
    day: date | None


@dataclass(frozen=True)
class Folders:
    """What was found below ``root``: ``pattern`` names the folders of a time (None: they say none), ``splits`` the folders above them.

    ``astray``: parquet files whose folders do not follow the pattern; ``below``: levels between a time's folder and its files.
    """

    root: Path
    pattern: str | None
    splits: tuple[str, ...]
    files: tuple[DataFile, ...]
    astray: tuple[Path, ...]
    below: tuple[str, ...] = ()

    @property
    def strangers(self) -> tuple[str, ...]:
        """Files beside the folders of days that are no data; markers and hidden ones are nobody's business."""
        if self.pattern is None:
            return ()
        beside = [entry for split in self.splits or ("",) for entry in (self.root / split).iterdir() if entry.is_file()]
        known = (".parquet", *DOCUMENTS)
        return tuple(sorted(entry.name for entry in beside if not entry.name.startswith(HIDDEN) and entry.suffix not in known))

    @property
    def has_hours(self) -> bool:
        """Whether a folder is of one hour."""
        return self.pattern is not None and ("%H" in self.pattern or "%-H" in self.pattern)

    @property
    def days(self) -> tuple[date, ...]:
        """Every day of a folder, in order."""
        return tuple(sorted({f.day for f in self.files if f.day is not None}))


def look(folder: Path) -> Folders:
    """Find the parquet files below a folder and the pattern of their folders' names.

    Raises DataError if the folder does not exist, holds no parquet file, or its days stand below different folders.
    """
    root = folder.expanduser().resolve()
    if not root.is_dir():
        raise DataError(f"{folder}: folder not found; give the folder that holds the parquet files")
    paths = sorted(_parquet_files(root))
    if not paths:
        raise DataError(f"{folder}: no file ending in .parquet below it; convert the table to parquet first, for example with DuckDB")
    names = [path.relative_to(root).parts[:-1] for path in paths]
    read = {parts: _read(parts) for parts in sorted(set(names))}
    patterns = Counter(found[1] for parts in names if (found := read[parts]) is not None)
    if not patterns:
        return _undivided(root, paths, names)
    pattern = min(patterns, key=lambda p: (-patterns[p], p))
    kept: list[DataFile] = []
    astray: list[Path] = []
    above: Counter[tuple[str, ...]] = Counter()
    below: Counter[str] = Counter()
    for path, parts in zip(paths, names, strict=True):
        found = read[parts]
        if found is None or found[1] != pattern:
            astray.append(path)
            continue
        start, _, day = found
        above[parts[:start]] += 1
        below.update(parts[start + len(pattern.split("/")) :])
        kept.append(DataFile(path, "/".join(parts[:start]), day))
    root, kept = _rooted(root, kept, sorted(above))
    splits = tuple(sorted({f.split for f in kept if f.split}))
    return Folders(root, _padded(pattern, kept, root), splits, tuple(kept), tuple(astray), tuple(sorted(below)))


def _parquet_files(root: Path) -> Iterator[Path]:
    found = 0
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(HIDDEN))
        for name in files:
            if name.endswith(".parquet") and not name.startswith(HIDDEN):
                found += 1
                if found > MOST_FILES:
                    raise DataError(f"{root}: more than {MOST_FILES} parquet files; give the folder of one table")
                yield Path(folder, name)


def _undivided(root: Path, paths: Sequence[Path], names: Sequence[tuple[str, ...]]) -> Folders:
    """Files whose folders say no time; two folders side by side may be labelled and unlabelled rows."""
    tops = sorted({parts[0] for parts in names if parts})
    splits = tuple(tops) if len(tops) == 2 and all(names) else ()
    files = tuple(DataFile(path, parts[0] if splits else "", None) for path, parts in zip(paths, names, strict=True))
    return Folders(root, None, splits, files, ())


def _rooted(root: Path, files: list[DataFile], above: Sequence[tuple[str, ...]]) -> tuple[Path, list[DataFile]]:
    """The data root and the files below it: folders that all days share belong to the root, the next one is the split's.

    A root that has only one split's folder is found by its usual names.
    """
    shared = above[0]
    for parts in above[1:]:
        shared = tuple(a for a, b in zip(shared, parts, strict=False) if a == b) if parts[: len(shared)] != shared else shared
    if len(above) == 1 and shared and shared[-1].lower() in ("train", "test"):
        shared = shared[:-1]
    rest = {"/".join(parts[len(shared) :]) for parts in above}
    if any("/" in part for part in rest) or len(rest) > 2:
        listed = ", ".join(sorted(rest)[:4])
        raise DataError(
            f"{root.joinpath(*shared)}: days stand below {len(rest)} folders ({listed}); expected them side by side, or in one folder "
            "of labelled and one of unlabelled days; give the folder of one table"
        )
    cut = len("/".join(shared)) + 1 if shared else 0
    return root.joinpath(*shared), [DataFile(f.path, f.split[cut:] if len(f.split) > cut else "", f.day) for f in files]


def _read(parts: tuple[str, ...]) -> tuple[int, str, date] | None:
    """(levels above the time, pattern, day) of the folders above a file; None if they say no day."""
    for start in range(len(parts)):
        whole = _whole_day(parts[start])
        if whole is not None:
            pattern, day = whole
            hour = _PARTS["H"].fullmatch(parts[start + 1]) if "%H" not in pattern and start + 1 < len(parts) else None
            if hour is not None and int(hour[2]) < 24:
                pattern += f"/{_literal(hour[1] or '')}%H"
            return start, pattern, day
        levels = [_PARTS[k].fullmatch(p) for k, p in zip("Ymd", parts[start : start + 3], strict=False)]
        if len(levels) == 3 and all(level is not None for level in levels):
            year, month, day_of_month = (int(level[2]) for level in levels if level is not None)
            found = _day(year, month, day_of_month)
            if found is None:
                continue
            words = [f"{_literal(level[1] or '')}%{k}" for k, level in zip("Ymd", levels, strict=True) if level is not None]
            hour = _PARTS["H"].fullmatch(parts[start + 3]) if start + 3 < len(parts) else None
            if hour is not None and int(hour[2]) < 24:
                words.append(f"{_literal(hour[1] or '')}%H")
            return start, "/".join(words), found
    return None


def _whole_day(name: str) -> tuple[str, date] | None:
    for expression, words in _WHOLE:
        match = re.search(rf"(?<!\d){expression}(?!\d)", name)
        if match is None:
            continue
        day = _day(*(int(g) for g in match.groups()[:3]))
        if day is None or (len(match.groups()) == 4 and int(match[4]) > 23):
            continue
        separator = match[0][10:11] if "{}" in words else ""
        return f"{_literal(name[: match.start()])}{words.format(separator)}{_literal(name[match.end() :])}", day
    return None


def _day(year: int, month: int, day: int) -> date | None:
    try:
        found = date(year, month, day)
    except ValueError:
        return None
    return found if FIRST_DAY <= found <= LAST_DAY else None


def _literal(text: str) -> str:
    return text.replace("%", "%%")


def _padded(pattern: str, files: Sequence[DataFile], root: Path) -> str:
    """The pattern with the short forms of months, days and hours that some folder writes with one digit."""
    levels = pattern.split("/")
    for number, level in enumerate(levels):
        for long, short in (("%m", "%-m"), ("%d", "%-d"), ("%H", "%-H")):
            if level.endswith(long) and level.count("%") == 1:
                names = {f.path.relative_to(root / f.split).parts[number] for f in files}
                if any(re.search(r"(?<!\d)\d$", name) for name in names):
                    levels[number] = level.removesuffix(long) + short
    return "/".join(levels)
