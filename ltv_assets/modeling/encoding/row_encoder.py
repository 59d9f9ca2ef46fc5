"""A window's encoder for one row: encodings by look-up, ranks by bisection.

What belongs here: the tables of a fitted ``WindowEncoder`` laid out for single rows. What does not: fitting, frames
(``window_encoder.py``). The values are those of ``WindowEncoder.transform``, bit for bit; a test compares them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltv_assets.core.errors import DataError
from ltv_assets.modeling.dataset import signed_log
from ltv_assets.modeling.encoding.category_map import FIRST_KNOWN, MISSING, UNSEEN
from ltv_assets.modeling.encoding.group_ranks import GroupRanks, rank_name
from ltv_assets.modeling.encoding.target_encoding import encoding_limits
from ltv_assets.modeling.encoding.window_encoder import MAX_CATEGORIES, WindowEncoder

Row = NDArray[np.float32]


class RowEncoder:
    """Encodes single rows whose numbers and categories come in a stated order.

    numeric, categorical : names of the columns of a row, in the order in which `encode` gets them. Raises DataError unless they
    are those the encoder was fitted on.
    """

    def __init__(self, encoder: WindowEncoder, numeric: Sequence[str], categorical: Sequence[str]) -> None:
        if {*numeric} != {*encoder.numeric_features_} or {*categorical} != {*encoder.categorical_features_}:
            differing = {*numeric, *categorical} ^ {*encoder.numeric_features_, *encoder.categorical_features_}
            raise DataError(
                f"the model was trained on other columns than config/features.yaml describes: {sorted(differing)[:5]}; "
                "restore the file, or train again with `ltv run`"
            )
        self._kept = encoder._kept
        self._width = len(encoder._all_names)
        self._numbers = np.array([list(numeric).index(c) for c in encoder.numeric_features_], np.int64)
        self._numeric_at = np.array(encoder._numeric_at, np.int64)
        self._categories = []
        for c in encoder.categorical_features_:
            table = np.append(_codes(encoder._maps[c].size)[:, None], _table(encoder, c), axis=1)
            self._categories.append((list(categorical).index(c), encoder._maps[c].level, table))
        at, places = len(encoder._columns), []
        for code_at in encoder._codes_at:
            places.append(np.array([code_at, *range(at, at + len(encoder.targets_) + 1)]))
            at += len(encoder.targets_) + 1
        self._category_at = np.concatenate([*places, np.empty(0, np.int64)]).astype(np.int64)
        order = {c: i for i, c in enumerate(encoder.categorical_features_)}
        self._pairs = [_Pair.of(encoder, name, order[first], order[second]) for name, (first, second) in encoder._pairs.items()]
        self._pairs_at = slice(at, at + len(self._pairs) * (len(encoder.targets_) + 1))
        self._spend_at = np.array([encoder._spend_at[c] for c in encoder._spends], np.int64)
        self._ranks = [[(order[g], _Ranks.of(encoder._ranks[rank_name(c, g)])) for g in encoder._groups] for c in encoder._spends]
        self._aggregates_at = slice(self._pairs_at.stop, self._width)

    def encode(self, numbers: Row, texts: Sequence[str | None]) -> Row:
        """Encoded columns (m,) of one row: numbers (n,) with NaN for gaps, none infinite; texts of its categories, None where missing."""
        out = np.empty(self._width, np.float32)
        numeric = numbers[self._numbers]
        out[self._numeric_at] = numeric
        levels, found = [], []
        for place, level_of, table in self._categories:
            text = texts[place]
            level = level_of.get(text, UNSEEN) if text else MISSING
            levels.append(level)
            found.append(table[level])
        if found:
            out[self._category_at] = np.concatenate(found)
        if self._pairs:
            out[self._pairs_at] = np.concatenate([pair.encode(levels) for pair in self._pairs])
        if self._ranks:
            spends = numeric[self._spend_at].astype(np.float64)
            logs = signed_log(spends).tolist()
            out[self._aggregates_at] = [
                value
                for spend, log, groups in zip(spends.tolist(), logs, self._ranks, strict=True)
                for value in (
                    *(ranks.rank(spend, levels[group]) for group, ranks in groups),
                    log - groups[0][1].median_log[levels[groups[0][0]]],
                )
            ]
        return out if len(self._kept) == self._width else out[self._kept]


def _codes(size: int) -> Row:
    """The code of every level: rare values share that of unseen ones."""
    levels = np.arange(size)
    return np.where(levels < MAX_CATEGORIES + FIRST_KNOWN, levels, UNSEEN).astype(np.float32)


def _table(encoder: WindowEncoder, name: str) -> Row:
    """Encodings of every level of a column or pair, (levels, targets + 1)."""
    encoding = encoder._encodings[name]
    return np.column_stack([*(encoding.means[target][0] for target in encoder.targets_), encoding.log_count[0]]).astype(np.float32)


@dataclass(frozen=True)
class _Pair:
    """Two columns that are encoded together: the known pairs' encodings, and what the columns say of any other pair."""

    first: int
    second: int
    width: int
    slot: dict[int, int]
    table: Row
    unknown: list[tuple[list[float], list[float], float, float, float]]

    @classmethod
    def of(cls, encoder: WindowEncoder, name: str, first: int, second: int) -> _Pair:
        a, b = (encoder._encodings[c] for c in encoder._pairs[name])
        unknown = []
        for target in encoder.targets_:
            low, high = encoding_limits(a.means[target], b.means[target])
            limits = (float(low[0, 0]), float(high[0, 0]), float(a.prior[target][0, 0]))
            unknown.append((a.means[target][0].tolist(), b.means[target][0].tolist(), *limits))
        slots = {key: i + 1 for i, key in enumerate(encoder._pair_keys[name].tolist())}
        return cls(first, second, encoder._maps[encoder._pairs[name][1]].size, slots, _table(encoder, name), unknown)

    def encode(self, levels: Sequence[int]) -> Any:
        first, second = levels[self.first], levels[self.second]
        slot = self.slot.get(first * self.width + second)
        if slot is not None:
            return self.table[slot]
        means = [min(max(a[first] + b[second] - overall, low), high) for a, b, low, high, overall in self.unknown]
        return np.array([*means, self.table[0, -1]], np.float32)


@dataclass(frozen=True)
class _Ranks:
    """Sorted values of each level's segment, and the signed log of its median."""

    start: list[int]
    stop: list[int]
    values: list[float]
    median_log: list[float]

    @classmethod
    def of(cls, ranks: GroupRanks) -> _Ranks:
        start, stop = ranks.start[ranks.slot].tolist(), ranks.start[ranks.slot + 1].tolist()
        return cls(start, stop, ranks.values.tolist(), signed_log(ranks.median)[ranks.slot].tolist())

    def rank(self, value: float, level: int) -> float:
        low, high = self.start[level], self.stop[level]
        if value != value or low == high:
            return float("nan")
        below, upto = bisect_left(self.values, value, low, high), bisect_right(self.values, value, low, high)
        return (0.5 * (below + upto) - low) / (high - low)
