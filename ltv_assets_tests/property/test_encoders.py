"""What no cutting, ordering or typing of the rows may change in the encoder's output."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from ltv_assets.modeling.encoding.group_ranks import GroupRanks
from ltv_assets_tests.unit.test_encoders import SPEND, fitted, window

X, REVENUE, PERIOD = window(1500)
ENCODER, PLAIN = fitted(X, {"payer": REVENUE > 0}, PERIOD)
OUT = ENCODER.transform(X)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, len(X)), max_size=6), st.booleans())
def test_chunks_change_nothing(cuts: list[int], categorical: bool) -> None:
    rows = X.astype({"country": "category", "advertiser_bundle": "category"}) if categorical else X
    edges = [0, *sorted(cuts), len(X)]
    parts = [ENCODER.transform(rows.iloc[a:b]) for a, b in itertools.pairwise(edges) if b > a]
    pd.testing.assert_frame_equal(pd.concat(parts), OUT, check_exact=True)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_row_order_changes_nothing(seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(X))
    _, shuffled = fitted(X.iloc[order], {"payer": REVENUE[order] > 0}, PERIOD[order])
    pd.testing.assert_frame_equal(shuffled.loc[PLAIN.index], PLAIN, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0, 2, 3]), st.sampled_from([0.0, 1.0, 1.5, 2.0, 7.0])), min_size=1, max_size=40),
    st.lists(st.sampled_from([-1.0, 0.0, 1.0, 1.2, 2.0, 9.0]), min_size=1, max_size=8),
)
def test_ranks_equal_searchsorted_in_each_group(train: list[tuple[int, float]], asked: list[float]) -> None:
    levels, values = np.array([t[0] for t in train]), np.array([t[1] for t in train], np.float32)
    order = np.argsort(values, kind="stable")
    ranks = GroupRanks.fit(values[order], levels[order], 4, min_count=1)
    for level in (0, 1, 2, 3):
        own = np.sort(values[levels == level])
        own = own if own.size >= 2 else np.sort(values)
        query = np.array(asked, np.float32)
        expected = 0.5 * (np.searchsorted(own, query, "left") + np.searchsorted(own, query, "right")) / own.size
        np.testing.assert_allclose(ranks.rank(query, np.full(query.size, level)), expected)
        expected = np.sign(query) * np.log1p(np.abs(query)) - np.log1p(np.median(own))
        np.testing.assert_allclose(ranks.deviation(query, np.full(query.size, level)), expected, atol=1e-6)


def test_a_single_row_equals_its_row_in_the_whole() -> None:
    for i in (0, 700, 1499):
        pd.testing.assert_frame_equal(ENCODER.transform(X.iloc[[i]]), OUT.iloc[[i]], check_exact=True)
    assert SPEND in OUT.columns
