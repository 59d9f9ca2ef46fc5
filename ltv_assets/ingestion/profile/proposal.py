"""What a folder of parquet files would be told to the project as: columns, labels, folders, features and bounds, each with a reason.

What belongs here: the order in which guesses are made, and what follows from them together. What does not: a single column
(``columns.py``), single roles (``roles.py``), the text of files (``write.py``). Nothing is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

import numpy as np

from ltv_assets.core.contract import _STEPS, _TAKEN, HOUR, HOUR_DOMAIN, ROW_ID, SCORE_COLUMNS, SQL_KEYWORDS, Column
from ltv_assets.core.database import open_duckdb
from ltv_assets.core.errors import DataError
from ltv_assets.features.statistics import available, kind_of
from ltv_assets.ingestion.profile import roles
from ltv_assets.ingestion.profile.columns import Facts, Ints, Mask, look_at
from ltv_assets.ingestion.profile.folders import Folders, look
from ltv_assets.ingestion.profile.sample import Sample, has_values, shares, take_sample

Role = Literal["identifier", "time", "label", "feature", "left out"]

FEATURE_BUDGET = 200
"""At most this many features are proposed: what a window of a few million rows holds in a few GB."""
OWN_KEY_SHARE = 0.3
"""From this share of a category's values among the keys of a map or the elements of a list they are the row's own."""
SEGMENTS = 3
MOST_SEGMENT_VALUES = 30
TRAINING_ROWS = 200_000
"""A window takes as many days as it needs for about this many rows, at least the usual week."""

GROUPS: Mapping[str, str] = {
    "context": "Context: the row itself",
    "behaviour": "Behaviour: how much and how often",
    "purchases": "Purchases: what was bought before",
    "moments": "Moments: how long ago",
    "collections": "Collections: maps and lists",
}
_BOUGHT = frozenset(
    ["order", "orders", "purchase", "purchases", "buy", "buys", "bought", "spend", "spent", "payment", "payments", "revenue"]
)
_NEW_VALUES = frozenset(["campaign", "product", "app", "bundle", "advertiser", "sku", "store", "creative", "game", "item", "merchant"])
_FULL: Mapping[str, tuple[str, ...]] = {
    "number_map": ("n_keys", "sum", "mean", "max", "min", "std", "entropy", "top1_share", "own", "own_share"),
    "timestamp_map": ("n_keys", "days_ago_min", "days_ago_max", "own_days_ago"),
    "histogram": ("n_keys", "entropy", "top1_share", "has_own", "own_share"),
    "nested_counts": ("n_bundles", "n_actions", "total", "has_own", "own_total"),
    "nested_timestamps": ("n_bundles", "days_ago_min", "days_ago_max", "own_days_ago"),
    "list": ("length", "n_unique", "has_own"),
    "timestamp": ("days_ago",),
    "number": ("value", "sin", "cos"),
    "text": ("value",),
}
_SHORT: Mapping[str, tuple[str, ...]] = {
    **_FULL,
    "number_map": ("n_keys", "sum", "max", "own"),
    "histogram": ("n_keys", "entropy", "own_share"),
}
_SHORTEST: Mapping[str, tuple[str, ...]] = {
    **_SHORT,
    "number_map": ("n_keys", "sum"),
    "histogram": ("n_keys",),
    "list": ("length",),
    "nested_counts": ("n_bundles", "total"),
    "number": ("value",),
}


@dataclass(frozen=True)
class Guess:
    """One line of what was guessed: about what, what, why, and how sure (0 to 1)."""

    about: str
    choice: str
    why: str
    sure: float

    @property
    def certainty(self) -> str:
        """How sure, in a word."""
        return "high" if self.sure >= 0.85 else "medium" if self.sure >= 0.6 else "low"


@dataclass(frozen=True)
class PlannedColumn:
    """A column of the files with its name and role in the contract, and the statistics that become features."""

    facts: Facts
    name: str
    role: Role
    why: str
    sure: float
    group: str | None = None
    keyed_by: str | None = None
    own_key: str | None = None
    statistics: tuple[str, ...] = ()
    suspect: str = ""
    noted: bool = True
    """Whether ``why`` says more than another line of the contract."""

    def declared(self) -> Column:
        """The column as the contract declares it."""
        return Column(
            name=self.name,
            type=self.facts.type,
            meaning=self.facts.meaning,
            unit=self.facts.unit,
            keyed_by=self.keyed_by,
            own_key=self.own_key,
            cycle=self.facts.cycle,
            calendar=self.facts.calendar,
            missing_rate=round(self.facts.missing, 4),
        )


@dataclass(frozen=True)
class Proposal:
    """Everything ``ltv init`` writes and prints."""

    name: str
    folders: Folders
    columns: tuple[PlannedColumn, ...]
    revenue: Mapping[int, str]
    """Horizon in days: name of the column, shortest first."""
    payer: str | None
    kept: tuple[str, ...]
    others: tuple[str, ...]
    moment: str | None
    own_keys: Mapping[str, str]
    segments: tuple[str, ...]
    cold_start: str | None
    indicators: Mapping[str, tuple[str, ...]]
    labelled_days: tuple[date, ...]
    unlabelled_days: tuple[date, ...]
    gap_days: tuple[date, ...]
    split_folders: tuple[str, str]
    """Folders of the labelled and of the unlabelled days below the root; both are . where they stand side by side."""
    window_days: tuple[int, int]
    bounds: Mapping[str, float]
    rows: int
    rows_a_day: int
    guesses: tuple[Guess, ...]
    edits: tuple[str, ...]
    """What has to be changed before a run."""
    notes: tuple[str, ...]
    """What somebody who knows the table should look at."""

    @property
    def features(self) -> int:
        """Number of features proposed."""
        return sum(len(c.statistics) for c in self.columns) + len(self.indicators)

    def column(self, role: Role) -> PlannedColumn:
        """The one column of a role."""
        return next(c for c in self.columns if c.role == role)


def propose(folder: Path, *, threads: int = 2, memory_limit: str = "1.0GB", progress: Callable[[int, int], None] | None = None) -> Proposal:
    """Look at a folder of parquet files and propose how the project should read it.

    Reads the footers of at most 64 files and about 40,000 of their rows, one column at a time; ``progress`` is told of each column.
    Raises DataError, with the edit that helps, if there are no files, nothing that tells rows apart, no revenue, or no time.
    """
    folders = look(folder)
    with open_duckdb(threads=threads, memory_limit=memory_limit) as connection:
        sample = take_sample(folders, connection)
        names = sample.names
        columns = []
        for number, name in enumerate(names):
            if progress is not None:
                progress(number, len(names))
            columns.append(look_at(sample, name))
        if progress is not None:
            progress(len(names), len(names))
    return _Reasoning(folders, sample, columns).proposal()


class _Reasoning:
    """The guesses in their order; each adds what it found to the list that is shown."""

    def __init__(self, folders: Folders, sample: Sample, columns: list[Facts]) -> None:
        self.folders = folders
        self.sample = sample
        self.columns = columns
        self.guesses: list[Guess] = []
        self.edits: list[str] = []
        self.notes: list[str] = []

    def proposal(self) -> Proposal:
        moment, day = self._time()
        identifier = self._identifier(day, moment)
        labels, late = self._labels(day, (identifier, moment))
        self._calendar(day)
        planned = self._planned(identifier, moment, labels, late)
        labelled_days, unlabelled_days = self._days(day, labels)
        first = self._facts(next(iter(labels.revenue.values())))
        rows = sum(f.rows_in_all for f in self.sample.files)
        all_rows = round(rows * len(self.folders.files) / max(len(self.sample.files), 1))
        days = len(labelled_days) + len(unlabelled_days)
        rows_a_day = max(1, round(all_rows / max(days, 1)))
        planned, own_keys = self._keys(planned)
        planned = self._budgeted(planned, labels, first, rows_a_day)
        named = {c.facts.source: c.name for c in planned}
        leaked = {name for name, found in late.items() if found.why.startswith(roles.LEAK)}
        kept = [c.name for c in planned if c.facts.source in labels.kept and c.facts.numbers is not None and c.facts.source not in leaked]
        others = [
            c.name
            for c in planned
            if c.role == "label" and c.name not in kept and c.facts.source not in (*labels.revenue.values(), labels.payer)
        ]
        segments, cold_start = self._segments(planned)
        gaps = tuple(d for d in _between(labelled_days) if d not in labelled_days and d not in unlabelled_days)
        windows = self._windows(labelled_days, rows_a_day, gaps)
        return Proposal(
            name=_word(self.folders.root.name) or "table",
            folders=self.folders,
            columns=tuple(planned),
            revenue={h: named[source] for h, source in labels.revenue.items()},
            payer=named.get(labels.payer or ""),
            kept=tuple(kept),
            others=tuple(others),
            moment=named.get(moment or ""),
            own_keys=own_keys,
            segments=segments,
            cold_start=cold_start,
            indicators=self._indicators(planned),
            labelled_days=labelled_days,
            unlabelled_days=unlabelled_days,
            gap_days=gaps,
            split_folders=self._splits(labels.labelled),
            window_days=windows,
            bounds=self._bounds(first, day, labels.labelled, rows_a_day),
            rows=all_rows,
            rows_a_day=rows_a_day,
            guesses=tuple(self.guesses),
            edits=tuple(self.edits),
            notes=tuple(self.notes),
        )

    def _facts(self, source: str) -> Facts:
        return next(f for f in self.columns if f.source == source)

    def _guess(self, about: str, choice: str, why: str, sure: float) -> None:
        self.guesses.append(Guess(about, choice, why, sure))

    # ------------------------------------------------------------------------------------------------------ time, identifier

    def _time(self) -> tuple[str | None, Ints]:
        """(column of moments or None, day of each row as days since 1970, -1 where it is not known)."""
        folders = self.folders
        if folders.pattern is not None:
            why = f"{len(folders.files)} files in {len(folders.days)} days, {_span(folders.days)}"
            self._guess("time", f"folders {folders.pattern}", why, 0.95 if not folders.astray else 0.7)
            if folders.astray:
                first = f"first {folders.astray[0].relative_to(folders.root)}"
                self.notes.append(
                    f"{len(folders.astray)} files stand in folders that do not follow {folders.pattern}, {first}; they are not read"
                )
            if folders.strangers:
                listed = ", ".join(folders.strangers[:3])
                self.notes.append(
                    f"{listed}: no folder of a day; `ltv check-data` reports it as a problem, `ltv run` leaves it out and says so"
                )
            if folders.below:
                listed = ", ".join(folders.below[:3])
                self.edits.append(
                    f"files stand in folders below their day ({listed}); move them up, values that only folder names have are not read"
                )
            return None, np.array([(d - _EPOCH).days if d is not None else -1 for d in self.sample.days()], dtype=np.int64)
        found = roles.moment_of(self.columns)
        if found is None:
            raise DataError(
                f"{folders.root}: no folder is named after a day and no column holds moments of several days; "
                "put the files into folders such as date=2025-10-01, or add a column with the moment of each row"
            )
        source, why, sure = found
        self._guess("time", f"column {source}", why, sure)
        numbers = self._facts(source).numbers
        assert numbers is not None
        return source, np.where(np.isnan(numbers), -1, np.nan_to_num(np.floor(numbers / 86_400))).astype(np.int64)

    def _identifier(self, day: Ints, moment: str | None) -> str:
        found = roles.identifier_of([f for f in self.columns if f.source != moment], day)
        if found is None:
            raise DataError(
                f"{self.folders.root}: no column tells rows apart; nearest are {roles.near_names(self.columns)}. "
                "Add one, for example with DuckDB: COPY (SELECT *, md5(filename || ':' || file_row_number) AS row_id "
                "FROM read_parquet('FILE', filename = true, file_row_number = true)) TO 'NEW FILE'"
            )
        source, why, sure = found
        self._guess("identifier", source, why, sure)
        if sure < 0.6 and "another day" in why:
            self.notes.append(
                f"{source} tells rows apart within a day only: rows of a customer on several days are compared with each other"
            )
        return source

    # ---------------------------------------------------------------------------------------------------------------- labels

    def _labels(self, day: Ints, taken: Sequence[str | None]) -> tuple[roles.Labels, dict[str, roles.Afterwards]]:
        labels = roles.labels_of(self.columns, day, [t for t in taken if t is not None])
        if labels is None:
            raise DataError(
                f"{self.folders.root}: no column looks like revenue within a number of days; expected a name such as "
                "revenue_d30, ltv_90, rev7 or spend_30d, with numbers of at least 0; "
                "rename the column, or add one that sums what is spent after a row"
            )
        shown = ", ".join(f"{h} days: {source}" for h, source in labels.revenue.items())
        self._guess("revenue", shown, labels.why, labels.sure)
        if len(labels.revenue) == 1 and roles.horizon_of(next(iter(labels.revenue.values()))) is None:
            self.edits.append("no horizon is named: correct the number of days under labels.revenue in contract.yaml")
        if labels.payer is not None:
            self._guess("payer flag", labels.payer, labels.payer_why, 0.9)
        target = self._facts(next(iter(labels.revenue.values())))
        late = roles.afterwards([f for f in self.columns if f.source not in taken], labels, target, day, hour_known=True)
        for name, found in sorted(late.items(), key=lambda item: -item[1].sure):
            choice = "known only afterwards: a label, never a feature" if found.certain else "a feature, to be looked at"
            self._guess(f"column {name}", choice, found.why, found.sure)
            if not found.certain:
                self.notes.append(
                    f"{name} tells payers apart suspiciously well ({found.why}); if it is known only afterwards, give it role: label"
                )
        for name in labels.kept:
            if name not in late:
                self._guess(f"column {name}", "known only afterwards: a label, never a feature", labels.kept_why[name], 0.8)
        return labels, late

    # --------------------------------------------------------------------------------------------------------------- columns

    def _calendar(self, day: Ints) -> None:
        """Mark numbers and categories that have one value a day: they move with the calendar, which is no drift."""
        known = np.unique(day[day >= 0])
        if len(known) < 3:
            return
        for place, facts in enumerate(self.columns):
            values = facts.codes if facts.codes is not None else facts.numbers if facts.meaning != "timestamp" else None
            if values is None or not facts.usable or facts.distinct < 2 or facts.missing > 0.5:
                continue
            pairs = np.unique(np.stack([day.astype(np.float64), values.astype(np.float64)]), axis=1, equal_nan=False).shape[1]
            if pairs <= len(known) and facts.distinct > 1:
                self.columns[place] = replace(facts, calendar=True)

    def _planned(
        self, identifier: str, moment: str | None, labels: roles.Labels, late: Mapping[str, roles.Afterwards]
    ) -> list[PlannedColumn]:
        planned: list[PlannedColumn] = []
        names = self._names({identifier, *([moment] if moment else [])}, set(labels.names) | {n for n, a in late.items() if a.certain})
        for facts in self.columns:
            source, why, sure, suspect = facts.source, facts.why, facts.sure, ""
            role: Role = "feature"
            if source == identifier:
                role = "identifier"
                facts = replace(facts, type="string", meaning="identifier", unit=None)
            elif source == moment:
                role = "time"
                facts = replace(facts, type="string", meaning="timestamp")
            elif source in labels.names or (source in late and late[source].certain):
                role, why = "label", late[source].why if source in late else labels.kept_why.get(source, labels.why)
            elif not facts.usable:
                role = "left out"
                self._guess(f"column {source}", "no feature", why, sure)
                if facts.edit:
                    self.notes.append(f"column {source}: {facts.edit}")
            elif source in late:
                suspect = late[source].why
            group = _group(facts) if role == "feature" else None
            noted = role == "feature" or source in late or source in labels.kept
            planned.append(PlannedColumn(facts, names[source], role, why, sure, group, suspect=suspect, noted=noted))
        return planned

    def _names(self, keys: set[str], labels: set[str]) -> dict[str, str]:
        """{name in files: name in the contract}, which has to be a word that no relation and no query uses otherwise."""
        horizons = [parsed[0] for source in labels if (parsed := roles.horizon_of(source)) is not None]
        scores = {*SCORE_COLUMNS, *(f"{stem}_d{h}" for h in horizons for stem in ("ltv", "expected_revenue"))}
        found: dict[str, str] = {}
        for facts in self.columns:
            source = facts.source
            name = _word(source)
            if name in SQL_KEYWORDS or name in _TAKEN or (name in (ROW_ID, HOUR) and source not in keys):
                name = f"{name}_value"
            if source in labels and name in scores:
                name = f"{name}_label"
            while name in found.values():
                name = f"{name}_2"
            found[source] = name
        for source, name in found.items():
            if any(name.startswith(f"{step}_") and name.removeprefix(f"{step}_") in found.values() for step in _STEPS):
                found[source] = f"{name}_value"
        return found

    def _keys(self, planned: list[PlannedColumn]) -> tuple[list[PlannedColumn], dict[str, str]]:
        """Maps and lists with what their keys are: values of a category, which then is the row's own key, or a kind of their own."""
        categories = [c for c in planned if c.role == "feature" and c.facts.meaning == "category" and c.facts.distinct > 1]
        hour = next((c for c in planned if c.role == "feature" and c.facts.cycle == 24), None)
        own_keys: dict[str, str] = {}
        shared: dict[str, list[float]] = {}
        result = []
        for column in planned:
            if column.role != "feature" or not column.facts.type.startswith(("map", "list")):
                result.append(column)
                continue
            if hour is not None and len(column.facts.keys) > 1 and column.facts.keys <= _HOURS:
                own_keys[HOUR_DOMAIN] = hour.name
                shared.setdefault(hour.facts.source, []).append(1.0)
                result.append(replace(column, keyed_by=HOUR_DOMAIN, own_key=hour.name))
                continue
            overlaps = [(len(column.facts.keys & c.facts.keys) / max(len(c.facts.keys), 1), c) for c in categories]
            share, own = max(overlaps, key=lambda item: item[0], default=(0.0, None))
            if own is None or share < OWN_KEY_SHARE or len(column.facts.keys) < 2:
                result.append(replace(column, keyed_by=column.name))
                continue
            own_keys[own.name] = own.name
            shared.setdefault(own.facts.source, []).append(share)
            result.append(replace(column, keyed_by=own.name, own_key=own.name))
        for source, found in shared.items():
            why = f"at least {min(found):.0%} of its values are keys or elements there"
            self._guess(f"keys of {len(found)} maps or lists", f"values of {source}", why, min(0.95, 0.5 + min(found) / 2))
        return result, own_keys

    def _budgeted(self, planned: list[PlannedColumn], labels: roles.Labels, target: Facts, rows_a_day: int) -> list[PlannedColumn]:
        """The columns with their statistics: as many as fit the budget, fewer of each map where they would not."""
        level, count, result = "", 0, planned
        for name, chosen in (("all statistics", _FULL), ("the main statistics of maps", _SHORT), ("size and total of maps", _SHORTEST)):
            level = name
            result = [replace(c, statistics=_statistics(c, chosen)) if c.role == "feature" else c for c in planned]
            count = sum(len(c.statistics) for c in result) + len(self._indicators(result))
            if count <= FEATURE_BUDGET:
                break
        if count > FEATURE_BUDGET:
            assert target.numbers is not None
            payer, rows = np.nan_to_num(target.numbers) > 0, labels.labelled
            merit = {c.name: _merit(c.facts, payer, rows) for c in result if c.role == "feature"}
            for name in sorted(merit, key=lambda n: merit[n]):
                place = next(i for i, c in enumerate(result) if c.name == name)
                why = f"beyond the budget of {FEATURE_BUDGET} features; alone it tells payers apart with AUC {merit[name]:.3f}"
                self._guess(f"column {result[place].facts.source}", "no feature", why, 0.6)
                result[place] = replace(result[place], statistics=(), why=why)
                count = sum(len(c.statistics) for c in result) + len(self._indicators(result))
                if count <= FEATURE_BUDGET:
                    break
            level += ", the most telling columns"
        size = 4 * count * rows_a_day / 1e6
        used = sum(bool(c.statistics) for c in result)
        self._guess("features", f"{count}, made of {used} columns", f"{level}; at most {size:.1f} MB a day before compression", 0.9)
        return result

    def _segments(self, planned: Sequence[PlannedColumn]) -> tuple[tuple[str, ...], str | None]:
        categories = [c for c in planned if c.role == "feature" and c.facts.meaning == "category" and not c.facts.calendar]
        few = [c for c in categories if 2 <= c.facts.distinct <= MOST_SEGMENT_VALUES and c.facts.missing < 0.5]
        segments = tuple(c.name for c in sorted(few, key=lambda c: c.facts.top_share)[:SEGMENTS])
        if segments:
            self._guess("segments", ", ".join(segments), f"categories of 2 to {MOST_SEGMENT_VALUES} values, the most even ones", 0.7)
        else:
            self._guess("segments", "none", "no category has few values", 0.9)
        new = [c for c in categories if set(c.facts.words) & _NEW_VALUES and c.facts.distinct > 5]
        return segments, max(new, key=lambda c: c.facts.distinct).name if new else None

    def _indicators(self, planned: Sequence[PlannedColumn]) -> dict[str, tuple[str, ...]]:
        """One indicator for each set of columns that are missing in the same rows."""
        sets: dict[bytes, list[PlannedColumn]] = {}
        for column in planned:
            if column.role == "feature" and column.statistics and 0.005 <= column.facts.missing <= 0.995:
                sets.setdefault(np.packbits(column.facts.present).tobytes(), []).append(column)
        return {members[0].name: tuple(c.name for c in members) for members in sets.values()}

    # ---------------------------------------------------------------------------------------------------------- days, bounds

    def _days(self, day: Ints, labels: roles.Labels) -> tuple[tuple[date, ...], tuple[date, ...]]:
        """Days with labels and days without, as the sample shows them; days between two that differ are looked up in their files."""
        seen = {int(d): shares(labels.labelled[day == d]) > 0 for d in np.unique(day[day >= 0])}
        target = next(iter(labels.revenue.values()))

        def labelled(number: int) -> bool:
            before, after = max((s for s in seen if s <= number), default=None), min((s for s in seen if s >= number), default=None)
            ends = {seen[s] for s in (before, after) if s is not None}
            if len(ends) == 1:
                return ends.pop()
            return has_values([f for f in self.folders.files if f.day == _EPOCH + timedelta(days=number)], target)

        known = [(d - _EPOCH).days for d in self.folders.days] or sorted(seen)
        with_labels = [d for d in known if labelled(d)]
        without = [d for d in known if d not in set(with_labels)]
        days = tuple(tuple(_EPOCH + timedelta(days=d) for d in part) for part in (with_labels, without))
        if days[0]:
            others = f"{_span(days[1])} have none and are scored" if days[1] else "there is no other day, so nothing is scored"
            self._guess("labelled days", f"{len(days[0])}: {_span(days[0])}", f"their rows have revenue; {others}", 0.9)
        return days[0], days[1]

    def _splits(self, labelled: Mask) -> tuple[str, str]:
        """(folder of labelled days, folder of days to be scored)."""
        splits = self.folders.splits
        if not splits:
            return ".", "."
        of_row = np.array(self.sample.of_files([f.file.split for f in self.sample.files]), dtype=object)
        known = {split: shares(labelled[of_row == split]) for split in splits}
        first = max(splits, key=lambda split: (known[split], split == "train"))
        others = [split for split in splits if split != first]
        both = [split for split in others if known[split] > 0.5]
        if both:
            self.edits.append(
                f"folders {first} and {both[0]} both have labels; put days with labels into one folder, days without into the other"
            )
        return first, others[0] if others else ("test" if first != "test" else "unlabelled")

    def _windows(self, labelled: Sequence[date], rows_a_day: int, gaps: Sequence[date]) -> tuple[int, int]:
        """(least, most) training days of a window."""
        usable = len(labelled) - 1
        if usable < 1:
            self.edits.append(
                f"a window needs a labelled day to train on and one to be measured on, found {len(labelled)}; add labelled days"
            )
            return 1, 7
        most = max(min(7, usable + len(gaps)), min(usable + len(gaps), 60, math.ceil(TRAINING_ROWS / rows_a_day)))
        least = min(2, usable)
        self._guess("window", f"{least} to {most} training days", f"{rows_a_day} rows a day, {len(labelled)} labelled days", 0.7)
        if gaps:
            self._guess("days without data", ", ".join(map(str, gaps[:5])), "no file between labelled days", 0.9)
        return least, most

    def _bounds(self, target: Facts, day: Ints, labelled: Mask, rows_a_day: int) -> dict[str, float]:
        """Bounds of checks that depend on the table: what a constant would reach, and how far days differ by chance."""
        assert target.numbers is not None
        revenue = np.maximum(target.numbers[labelled & ~np.isnan(target.numbers)], 0.0)
        constant = float(np.log1p(revenue).std())
        rate = shares(revenue > 0)
        by_day = [shares(target.numbers[labelled & (day == d)] > 0) for d in np.unique(day[labelled])]
        chance = 2 * math.sqrt(rate * (1 - rate) / max(rows_a_day, 1))
        tolerance = max(0.006, min(0.1, chance + 0.5 * float(np.std(by_day))))
        noise = math.sqrt(10 * rate * (1 - rate) / max(rows_a_day, 1))
        bounds = {
            "rmsle_max": max(0.01, _up(constant)),
            "zero_rate_tolerance": _up(tolerance, 3),
            "ece_max": _up(max(0.02, min(0.2, noise)), 2),
            "retrain_zero_rate_gap": _up(max(0.02, 2 * tolerance), 2),
        }
        why = f"{rate:.1%} pay; a constant has RMSLE {constant:.3f}; {rows_a_day} rows a day"
        self._guess(
            "bounds of checks", f"rmsle_max {bounds['rmsle_max']:g}, zero_rate_tolerance {bounds['zero_rate_tolerance']:g}", why, 0.7
        )
        return bounds


_EPOCH = date(1970, 1, 1)
_HOURS = frozenset(text for n in range(24) for text in (str(n), f"{n:02d}", f"{n}.0"))
"""Keys that are hours of a day, as the reader takes them."""


def _statistics(column: PlannedColumn, chosen: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    declared = column.declared()
    known = available(declared)
    if kind_of(declared) == "text" and column.facts.why.endswith("version") and "version" in known:
        return ("version",)
    return tuple(s for s in chosen[kind_of(declared)] if s in known)


def _merit(facts: Facts, payer: Mask, rows: Mask) -> float:
    separation = roles.separation_of(facts, payer, rows)
    return separation.auc if separation is not None else 0.5


def _group(facts: Facts) -> str:
    if set(facts.words) & _BOUGHT or (facts.meaning == "amount" and not facts.type.startswith("map")):
        return "purchases"
    if facts.type.startswith(("map", "list")):
        return "collections"
    if facts.meaning == "timestamp":
        return "moments"
    return "context" if facts.meaning in ("category", "flag") or facts.calendar else "behaviour"


def _word(name: str) -> str:
    """A name as the contract takes it: lower-case words joined by single underscores, beginning with a letter."""
    lower = re.sub(r"_+", "_", re.sub(r"[^a-z0-9]+", "_", name.lower())).strip("_")
    return lower if re.match(r"[a-z]", lower) else f"c_{lower}" if lower else ""


def _between(days: Sequence[date]) -> list[date]:
    return [days[0] + timedelta(days=i) for i in range((days[-1] - days[0]).days + 1)] if days else []


def _span(days: Sequence[date]) -> str:
    return str(days[0]) if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _up(value: float, digits: int = 2) -> float:
    """Rounded up, so that the value itself is within the bound."""
    return math.ceil(value * 10**digits - 1e-9) / 10**digits
