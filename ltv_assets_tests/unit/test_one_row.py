"""One impression alone has the bits it has among others: features, encodings, trees and scores."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ltv_assets.core.columns import BY_NAME, INPUTS, SCORED_COLUMNS
from ltv_assets.core.config import load_config
from ltv_assets.core.contract import Column
from ltv_assets.core.errors import DataError
from ltv_assets.features.impressions import MalformedRow, read_impressions
from ltv_assets.features.one_row import OneRow
from ltv_assets.features.registry import Registry, load_registry
from ltv_assets.features.rows import RowFlattener
from ltv_assets.features.statistics import kind_of
from ltv_assets.modeling.design_matrix import encode
from ltv_assets.modeling.encoding.row_encoder import RowEncoder
from ltv_assets_tests.model_world import fitted
from ltv_assets_tests.oracle.awkward_rows import awkward_rows

pytestmark = pytest.mark.contest

HOUR = "2025-10-07-13-00"
ODD_KEYS = {"hour": ["5", "5.0", "05", "05.0", "5.00", "٥"]}


def as_json(column: Column, value: Any, rng: random.Random) -> Any:
    """A nested value in one of the forms a caller may write it in; of keys that repeat, an object has the last."""
    if value is None or not column.is_nested:
        return value
    if column.type == "list<string>":
        elements = [None if rng.random() < 0.1 else element for element in value]
        return json.dumps(elements) if rng.random() < 0.3 else elements
    if kind_of(column).startswith("nested"):
        inner = BY_NAME["last_buy_ts_bundle" if column.meaning == "timestamp" else "num_buys_bundle"]
        value = [(key, as_json(inner, entries, rng)) for key, entries in value]
    elif column.keyed_by in ODD_KEYS:
        value = [(rng.choice([key, *ODD_KEYS[column.keyed_by]]), entry) for key, entry in value]
    form = rng.choice(["object", "pairs", "entries"])
    found: Any = [list(pair) for pair in value]
    if form == "object":
        found = dict(value)
    elif form == "entries":
        found = [{"key": key, "value": entry} for key, entry in value]
    return json.dumps(found) if rng.random() < 0.2 else found


def awkward(count: int, seed: int) -> list[dict[str, Any]]:
    """Impressions with every oddity, as a caller would write them."""
    rng = random.Random(seed)
    rows = awkward_rows(count, seed, 1_759_842_000)
    return [{"datetime": HOUR, **{c.name: as_json(c, row[c.name], rng) for c in INPUTS}} for row in rows]


def table(rows: list[dict[str, Any]]) -> Any:
    found = read_impressions({name: [row.get(name) for row in rows] for name in rows[0]}, len(rows))
    assert found.problems == {}
    return found.table


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry(load_config().features)


def test_features_of_awkward_impressions_are_those_of_the_engine_bit_for_bit(registry: Registry) -> None:
    rows = awkward(1_500, 5)
    one = OneRow(registry)
    expected = RowFlattener(registry).features(table(rows)).to_pandas()
    numbers = expected[one.numeric].to_numpy(dtype=np.float32)
    texts = expected[one.categorical].astype(object).where(expected[one.categorical].notna(), None).to_numpy()
    assert np.isnan(numbers).mean() < 0.6 and len(one.numeric) > 300
    for i, row in enumerate(rows):
        flat = one.features(row)
        np.testing.assert_array_equal(flat.numbers, numbers[i], err_msg=f"row {i}")
        assert flat.texts == list(texts[i])


def test_switched_off_groups_and_new_interactions_follow_the_registry(registry: Registry) -> None:
    groups = dict(registry.groups)
    groups["behaviour"] = groups["behaviour"].model_copy(update={"enabled": False})
    sql = "CASE WHEN cpm__max BETWEEN 1 AND 5 OR wifi_ratio IS NULL THEN round(sqrt(abs(cpm__sum)), 2) ELSE -ln(ctr__own) / hour END"
    made = groups["interactions"].expressions["engagement"].model_copy(update={"sql": sql})
    groups["interactions"] = groups["interactions"].model_copy(update={"expressions": {"made_up": made}})
    changed = Registry(price_tiers=registry.price_tiers, groups=groups)
    rows, one = awkward(150, 6), OneRow(changed)
    expected = RowFlattener(changed).features(table(rows)).to_pandas()[one.numeric].to_numpy(dtype=np.float32)
    at = one.numeric.index("made_up")
    assert 0.05 < np.isnan(expected[:, at]).mean() < 0.95
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(one.features(row).numbers, expected[i], err_msg=f"row {i}")


def test_malformed_impression_is_described_as_among_others(registry: Registry) -> None:
    one = OneRow(registry)
    row = {"datetime": "noon", "bcat": 5, "cpm": {"a": "dear"}, "user_actions_bundles_action_count": {"a": {"b": [1]}}, "country": 3.5}
    expected = read_impressions({name: [value] for name, value in row.items()}, 1, first=7).problems[7]
    with pytest.raises(MalformedRow) as found:
        one.features(row, 7)
    assert sorted(str(found.value).split("; ")) == sorted(expected.split("; "))
    assert len(expected.split("; ")) == 5


def test_null_in_a_list_is_nobodys_own_key(registry: Registry) -> None:
    one, flattener = OneRow(registry), RowFlattener(registry)
    rows = [{"datetime": HOUR, "advertiser_bundle": name, "user_bundles": [None, "x"]} for name in ("unknown", "x")]
    at = one.numeric.index("user_bundles__has_own")
    assert [one.features(row).numbers[at] for row in rows] == [0.0, 1.0]
    assert [flattener.features(table([row])).column("user_bundles__has_own")[0].as_py() for row in rows] == [0.0, 1.0]


def test_encodings_of_a_row_are_those_of_the_frame_bit_for_bit() -> None:
    model, train, last = fitted()
    encoder = model.models_.classifier.encoder
    X = pd.concat([train.X.iloc[:200], last.X.iloc[:200]], ignore_index=True).astype({"country": object, "make": object})
    X.loc[0, "country"], X.loc[1, "make"], X.loc[2, "country"] = "never seen", "", None
    numeric, categorical = encoder.numeric_features_[::-1], encoder.categorical_features_[::-1]
    rows = RowEncoder(encoder, numeric, categorical)
    expected = encode(encoder, X).values
    for i in range(len(X)):
        texts = [None if value != value else value for value in X[categorical].iloc[i]]
        found = rows.encode(X[numeric].iloc[i].to_numpy(dtype=np.float32), texts)
        np.testing.assert_array_equal(found, expected[i], err_msg=f"row {i}")
    with pytest.raises(DataError, match=r"trained on other columns .*'spend'"):
        RowEncoder(encoder, [name for name in numeric if name != "spend"], categorical)


def test_scores_of_a_row_are_those_of_the_frame_in_every_thread() -> None:
    model, _, last = fitted()
    encoder = model.models_.classifier.encoder
    score = model.models_.row_scorer(encoder.numeric_features_, encoder.categorical_features_)
    X = last.X.iloc[:200].astype({"country": object, "make": object})
    expected = model.models_.score(X)
    numbers = X[encoder.numeric_features_].to_numpy(dtype=np.float32)
    texts = [[None if value != value else value for value in row] for row in X[encoder.categorical_features_].to_numpy().tolist()]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda i: score(numbers[i % 200], texts[i % 200]), range(800)))
    for i, row in enumerate(found):
        for name in SCORED_COLUMNS:
            np.testing.assert_allclose(float(row[name]), float(expected[name].iloc[i % 200]), rtol=1e-12, atol=0, err_msg=f"{i} {name}")
