"""What each column is for: which tells rows apart, when a row happened, what is known only afterwards, what gives a label away.

What belongs here: guesses from all columns together. What does not: a single column's type (``columns.py``), files that say it
(``write.py``). Next to read: ``proposal.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ltv_assets.ingestion.profile.columns import Facts, Floats, Ints, Mask, words_of
from ltv_assets.ingestion.profile.sample import shares
from ltv_assets.ingestion.separation import Separation, separate_codes, separate_numbers

LEAK_AUC, LEAK_EXCLUSIVE = 0.85, 0.9
"""Bounds for a column that is absent or constant where labels are; those of the check `no_leak`."""
SUSPECT_AUC, CERTAIN_AUC = 0.9, 0.98
"""Without days to compare with: from the first a column is named, from the second it is taken for a label."""

LEAK = "leak: "

_ID_WORDS = frozenset(["id", "uuid", "guid", "key", "no", "number", "ref", "reference", "code", "hash", "pk"])
_ROW_WORDS = frozenset(["row", "event", "impression", "install", "order", "record"])
_REVENUE = frozenset(
    [
        "ltv",
        "clv",
        "rev",
        "revenue",
        "iap",
        "spend",
        "spent",
        "gmv",
        "sales",
        "amount",
        "value",
        "monetary",
        "income",
        "payments",
        "usd",
        "eur",
    ]
)
_PAST = frozenset(
    ["past", "last", "prev", "previous", "prior", "trailing", "hist", "history", "before", "recent", "lookback", "ago", "lag"]
)
_PAYER = frozenset(
    [
        "payer",
        "buyer",
        "paying",
        "paid",
        "converted",
        "conversion",
        "purchaser",
        "purchased",
        "subscribed",
        "renewed",
        "buy",
        "bought",
        "spender",
    ]
)
_PLAIN_TARGETS = frozenset(["target", "label", "y", "ltv", "revenue", "clv"])
_DAYS_OF = {"d": 1, "day": 1, "days": 1, "w": 7, "week": 7, "weeks": 7, "m": 30, "month": 30, "months": 30, "y": 365, "year": 365}


@dataclass(frozen=True)
class Labels:
    """Columns known only afterwards: revenue by horizon in days, a payer flag, the rest; ``labelled`` rows have the first horizon."""

    revenue: Mapping[int, str]
    payer: str | None
    kept: tuple[str, ...]
    labelled: Mask
    why: str
    sure: float
    payer_why: str = ""
    kept_why: Mapping[str, str] = None  # type: ignore[assignment]

    @property
    def names(self) -> tuple[str, ...]:
        """Every label."""
        return (*self.revenue.values(), *([self.payer] if self.payer else []), *self.kept)


@dataclass(frozen=True)
class Afterwards:
    """A column that seems to be known only afterwards, or to give the label away: ``certain`` ones become labels."""

    source: str
    certain: bool
    why: str
    sure: float
    separation: Separation | None = None


# ------------------------------------------------------------------------------------------------------------ identifier


def identifier_of(columns: Sequence[Facts], day: Ints) -> tuple[str, str, float] | None:
    """(column, why, how sure) of what tells rows apart; None if nothing does."""
    best: tuple[float, str, str, float] | None = None
    for place, facts in enumerate(columns):
        values = facts.codes if facts.codes is not None else facts.numbers
        if values is None or facts.missing > 0 or facts.type == "double" or facts.meaning == "timestamp" or len(values) < 2:
            continue
        unique = len(np.unique(values)) / len(values)
        by_day = len(np.unique(np.stack([values.astype(np.float64), day.astype(np.float64)]), axis=1)[0]) / len(values)
        if by_day < 0.999:
            continue
        words = facts.words
        named = 2.0 if set(words[-1:]) & _ID_WORDS else 1.0 if set(words) & (_ID_WORDS | _ROW_WORDS) else 0.0
        score = 4.0 * (unique >= 0.999) + named + 0.5 * bool(set(words) & _ROW_WORDS) - 0.01 * place
        if named == 0.0 and facts.whole:
            score -= 3.0  # a large number may be unique by chance
        name = ", and its name says so" if named else ""
        if unique >= 0.999:
            why, sure = f"no value twice in {len(values)} rows{name}", 0.95 if named else 0.6
        else:
            why = f"no value twice within a day{name}; {1 - unique:.0%} of the rows have a value that another day has as well"
            sure = 0.5 if named else 0.3
        if score > 0 and (best is None or score > best[0]):
            best = (score, facts.source, why, sure)
    return best[1:] if best is not None else None


# ------------------------------------------------------------------------------------------------------------------ time


def moment_of(columns: Sequence[Facts]) -> tuple[str, str, float] | None:
    """(column, why, how sure) of when a row happened, where folders do not say it; None if no column does.

    The best sign is that labels end at a day of it; then its name; then that it covers several days without gaps.
    """
    best: tuple[float, str, str, float] | None = None
    ends = [f.present for f in columns if horizon_of(f.source) is not None and 0.02 < f.missing < 0.98]
    for place, facts in enumerate(columns):
        if facts.meaning != "timestamp" or facts.numbers is None or facts.missing > 0.01:
            continue
        days = np.floor(facts.numbers / 86_400)
        span = int(np.nanmax(days) - np.nanmin(days)) + 1
        if span < 2:
            continue
        covered = len(np.unique(days[~np.isnan(days)])) / span
        parted = any(_parts_days(days, present) for present in ends)
        words = set(facts.words)
        named = bool(words & {"event", "impression", "install", "installed", "timestamp", "ts", "datetime", "date", "created", "time"})
        score = 3.0 * parted + 1.0 * named + covered - min(span, 3650) / 3650 - 0.01 * place
        why = f"{span} days, {covered:.0%} of them with rows" + ("; labels end at one of them" if parted else "")
        if best is None or score > best[0]:
            best = (score, facts.source, why, 0.95 if parted else 0.7 if named and covered > 0.5 else 0.4)
    return best[1:] if best is not None else None


def _parts_days(days: Floats, present: Mask) -> bool:
    """Whether the days with labels all lie before those without."""
    known = ~np.isnan(days)
    if not (present & known).any() or not (~present & known).any():
        return False
    return bool(days[present & known].max() < days[~present & known].min())


# ---------------------------------------------------------------------------------------------------------------- labels


def horizon_of(name: str) -> tuple[int, tuple[str, ...]] | None:
    """(days, the other words) of a name such as revenue_d30, ltv_90, rev7, d1_revenue or spend_30d; None for other names."""
    words = list(words_of(name))
    for place, word in enumerate(words):
        if not word.isdigit() or not 1 <= int(word) <= 3650:
            continue
        before, after = (words[place - 1] if place else ""), (words[place + 1] if place + 1 < len(words) else "")
        if before in ("d", "day", "days"):
            return int(word), tuple(words[: place - 1] + words[place + 1 :])
        if after in _DAYS_OF:
            return int(word) * _DAYS_OF[after], tuple(words[:place] + words[place + 2 :])
        if before in ("w", "week", "m", "month"):
            return int(word) * _DAYS_OF[before], tuple(words[: place - 1] + words[place + 1 :])
        if place == len(words) - 1 and before in _REVENUE | _PAYER:
            return int(word), tuple(words[:place])
    return None


def labels_of(columns: Sequence[Facts], day: Ints, taken: Sequence[str]) -> Labels | None:
    """The labels among the columns; None if no column looks like revenue.

    ``day``: number of each row's day, -1 where unknown. A family is the columns that differ in their horizon only.
    """
    usual = {f.source: f for f in columns if f.source not in taken}
    families: dict[tuple[str, ...], dict[int, Facts]] = {}
    for facts in usual.values():
        found = horizon_of(facts.source)
        if found is not None and facts.numbers is not None and facts.present.any():
            families.setdefault(found[1], {}).setdefault(found[0], facts)
    ranked = sorted(((_as_revenue(stem, members, day), stem) for stem, members in families.items()), key=lambda r: (-r[0][0], r[1]))
    if ranked and ranked[0][0][0] >= 2.0:
        (score, why), stem = ranked[0]
        revenue = {h: families[stem][h].source for h in sorted(families[stem])}
        sure = 0.95 if score >= 4 else 0.75 if score >= 3 else 0.5
    else:
        plain = [f for f in usual.values() if f.numbers is not None and not f.is_binary and _is_plain_target(f)]
        if not plain:
            return None
        target = max(plain, key=lambda f: (f.missing > 0, bool(set(f.words) & _PLAIN_TARGETS)))
        revenue, sure = {7: target.source}, 0.3
        why = "its name says revenue but no horizon: 7 days is a guess, correct it"
    first = usual[next(iter(revenue.values()))]
    labelled = first.present
    payer, payer_why = _payer(usual, revenue, first, labelled)
    labels = Labels(revenue, payer, (), labelled, why, sure, payer_why, {})
    kept = _kept(usual, labels, families)
    return replace(labels, kept=tuple(kept), kept_why=kept)


def _is_plain_target(facts: Facts) -> bool:
    words = set(facts.words)
    return bool(words & _PLAIN_TARGETS) and not words & _PAST and horizon_of(facts.source) is None


def _as_revenue(stem: tuple[str, ...], members: Mapping[int, Facts], day: Ints) -> tuple[float, str]:
    """(how much a family looks like revenue of the days that follow, why)."""
    words, said = set(stem), []
    score = 0.0
    facts = [members[h] for h in sorted(members)]
    if any(f.is_binary for f in facts) or any(np.nanmin(f.numbers) < 0 for f in facts if f.numbers is not None):
        return -9.0, ""
    if words & _REVENUE:
        score += 2.0
        said.append(f"{'its' if len(facts) == 1 else 'their'} name says revenue within {', '.join(str(h) for h in sorted(members))} days")
    if words & _PAST:
        score -= 3.0
    if _ends(facts[0].present, day):
        score += 2.0
        said.append("the newest days have none")
    if len(facts) > 1:
        pairs = [(a.numbers, b.numbers) for a, b in pairwise(facts) if a.numbers is not None and b.numbers is not None]
        known = [(a[~np.isnan(a + b)], b[~np.isnan(a + b)]) for a, b in pairs]
        if all(shares(a <= b + 0.01) > 0.99 for a, b in known):
            score += 1.0
            said.append("a longer horizon is never less")
    values = facts[0].numbers
    zeros = shares(values[~np.isnan(values)] == 0) if values is not None else 0.0
    if zeros > 0.3:
        score += 0.5
        said.append(f"{zeros:.0%} are 0")
    return score, "; ".join(said)


def _ends(present: Mask, day: Ints) -> bool:
    """Whether whole days have no value, and all of them come after those that have."""
    if (day < 0).any():
        return False
    with_values, without = day[present], day[~present]
    return len(with_values) > 0 and len(without) > 0 and int(with_values.max()) < int(without.min())


def _payer(usual: Mapping[str, Facts], revenue: Mapping[int, str], first: Facts, labelled: Mask) -> tuple[str | None, str]:
    """The flag of those who paid within the shortest horizon, if there is one: a flag that agrees with revenue nearly everywhere."""
    assert first.numbers is not None
    paid = first.numbers[labelled] > 0
    best: tuple[float, str, str] | None = None
    for facts in usual.values():
        if facts.source in revenue.values() or facts.numbers is None or not facts.is_binary or (~facts.present[labelled]).any():
            continue
        flag = facts.numbers[labelled] > 0
        if paid.any() and shares(flag[paid]) < 0.98:
            continue
        agree, named = shares(flag == paid), bool(set(facts.words) & _PAYER)
        horizon = horizon_of(facts.source)
        if agree >= (0.9 if named else 0.999) and flag.any() and (horizon is None or horizon[0] == next(iter(revenue))):
            why = f"0 and 1, and 1 for {shares(flag[paid]):.0%} of those with revenue; agrees with it in {agree:.1%} of the rows"
            if best is None or (named, agree) > (best[0] >= 1, best[0] % 1):
                best = (named + min(agree, 0.9999), facts.source, why)
    return (best[1], best[2]) if best is not None else (None, "")


def _kept(usual: Mapping[str, Facts], labels: Labels, families: Mapping[tuple[str, ...], Mapping[int, Facts]]) -> dict[str, str]:
    """{column: why} of what else is there exactly where labels are."""
    found: dict[str, str] = {}
    if labels.labelled.all():
        members = [f for family in families.values() for f in family.values()]
        named = {f.source for f in members if set(f.words) & _PAYER and not is_past(f.source)}
        return dict.fromkeys(sorted(named - set(labels.names)), "its name says what was bought within a horizon")
    for facts in usual.values():
        if facts.source in labels.names or not facts.present.any():
            continue
        filled = shares(facts.present[labels.labelled])
        if filled > 0 and not facts.present[~labels.labelled].any() and filled * int((~labels.labelled).sum()) >= 20:
            found[facts.source] = f"filled in {filled:.0%} of the rows with labels and in none of the others"
    return found


# ----------------------------------------------------------------------------------------------------------------- leaks


def separation_of(facts: Facts, payer: Mask, rows: Mask) -> Separation | None:
    """How well a column alone tells payers apart among some rows; of a map or a list the best of its figures."""
    if facts.codes is not None:
        return separate_codes(facts.codes[rows], payer[rows])
    if facts.numbers is not None:
        return separate_numbers(facts.numbers[rows], payer[rows])
    found = [separate_numbers(values[rows], payer[rows]) for _, values in facts.parts]
    return max(found, key=lambda s: max(s.auc, s.exclusive)) if found else None


def afterwards(columns: Sequence[Facts], labels: Labels, target: Facts, day: Ints, hour_known: bool) -> dict[str, Afterwards]:
    """Columns that give the label away, each with the figure; ``certain`` ones must not become features."""
    assert target.numbers is not None
    payer = np.nan_to_num(target.numbers) > 0
    rows, others = labels.labelled, ~labels.labelled
    found: dict[str, Afterwards] = {}
    for facts in columns:
        name = facts.source
        if name in labels.revenue.values() or name == labels.payer or not facts.present.any():
            continue
        separation = separation_of(facts, payer, rows)
        late = _after_the_day(facts, day, rows) if hour_known else 0.0
        if separation is None:
            continue
        named = horizon_of(name) is not None or bool(set(facts.words) & _PAYER)
        if name in labels.kept and named:
            found[name] = Afterwards(name, True, f"{labels.kept_why[name]}; {separation.said()}", 0.9, separation)
            continue
        gone = others.any() and _silent(facts, others) and not _silent(facts, rows)
        if gone and separation.beyond(LEAK_AUC, LEAK_EXCLUSIVE):
            found[name] = Afterwards(
                name, True, f"{LEAK}{separation.said()}, and without labels it is {_what(facts, others)}", 0.95, separation
            )
        elif late > 0.5:
            found[name] = Afterwards(name, True, f"{LEAK}{late:.0%} of its moments lie after the row's day", 0.85, separation)
        elif separation.beyond(CERTAIN_AUC, 0.999) and not others.any():
            found[name] = Afterwards(name, True, f"{LEAK}{separation.said()}", 0.8, separation)
        elif separation.beyond(SUSPECT_AUC, LEAK_EXCLUSIVE):
            found[name] = Afterwards(name, False, f"leak? {separation.said()}; is it known when a row is scored?", 0.4, separation)
        elif name in labels.kept:
            found[name] = Afterwards(name, True, f"{labels.kept_why[name]}; {separation.said()}", 0.8, separation)
    return found


def _silent(facts: Facts, rows: Mask) -> bool:
    """Whether a column is absent, or has one value, in all of some rows."""
    if not facts.present[rows].any():
        return True
    for values in (facts.codes, facts.numbers, *(v for _, v in facts.parts)):
        if values is not None:
            part = values[rows]
            filled = part[part >= 0] if values is facts.codes else part[~np.isnan(part)]
            if len(filled) != len(part) or len(np.unique(filled)) > 1:
                return False
    return True


def _what(facts: Facts, rows: Mask) -> str:
    return "absent" if not facts.present[rows].any() else "the same everywhere"


def _after_the_day(facts: Facts, day: Ints, rows: Mask) -> float:
    """Share of a column's moments that lie more than a day after the beginning of their row's day."""
    if facts.meaning != "timestamp" or facts.numbers is None or (day < 0).any():
        return 0.0
    moments, start = facts.numbers[rows], day[rows].astype(np.float64) * 86_400
    known = ~np.isnan(moments)
    return shares(moments[known] > start[known] + 86_400)


def near_names(columns: Sequence[Facts]) -> str:
    """Columns that come nearest to telling rows apart, for a message."""
    near = []
    for facts in columns:
        values = facts.codes if facts.codes is not None else facts.numbers if facts.whole else None
        if values is not None and len(values):
            near.append((len(np.unique(values)) / len(values), facts.source))
    return ", ".join(f"{name} ({share:.0%} distinct)" for share, name in sorted(near, reverse=True)[:3]) or "none"


def is_past(name: str) -> bool:
    """Whether a name says that it looks back."""
    return bool(set(words_of(name)) & _PAST) or re.search(r"l\d+d", name.lower()) is not None
