"""Impressions in any JSON form are read alike, and a malformed one is named without harm to its neighbours."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ltv_assets.core.columns import BY_NAME, LABEL_NAMES, RAW_COLUMNS
from ltv_assets.core.columns import INPUTS as COLUMNS
from ltv_assets.core.config import load_config
from ltv_assets.core.errors import DataError
from ltv_assets.features.canonical import read_column
from ltv_assets.features.impressions import example_impression, read_impressions
from ltv_assets.features.registry import load_registry
from ltv_assets.features.rows import RowFlattener
from ltv_assets.features.schema import feature_names
from ltv_assets.features.statistics import kind_of
from ltv_assets.modeling import LTVModel
from ltv_assets.scoring.online import OnlineModel
from ltv_assets_tests.cells import query
from ltv_assets_tests.model_world import SMALL

pytestmark = pytest.mark.contest

EXAMPLE = example_impression()


def table(**changed: Any) -> pa.Table:
    row = {**EXAMPLE, **changed}
    found = read_impressions({name: [value] for name, value in row.items()}, 1)
    assert found.problems == {}
    return found.table


def problem(**changed: Any) -> str:
    found = read_impressions({name: [value] for name, value in {**EXAMPLE, **changed}.items()}, 1)
    return found.problems.get(0, "")


def as_pairs(value: Any) -> Any:
    return [[k, as_pairs(v)] for k, v in value.items()] if isinstance(value, dict) else value


def as_entries(value: Any) -> Any:
    return [{"key": k, "value": as_entries(v)} for k, v in value.items()] if isinstance(value, dict) else value


@pytest.mark.parametrize("form", [as_pairs, as_entries, json.dumps, lambda v: json.dumps(as_pairs(v)), lambda v: json.dumps(as_entries(v))])
def test_every_json_form_of_a_nested_column_is_read_alike(form: Any) -> None:
    nested = {c.name: EXAMPLE[c.name] for c in COLUMNS if c.is_nested}
    assert len(nested) == 42
    assert table(**{name: form(value) for name, value in nested.items()}).equals(table())


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("cpm", '{"a": 1.5, "a": 2.5, "b": null}'),
        ("cpm", '[["a", 1], ["a", "2"], {"key": "b", "value": 0.5, "more": 1}]'),
        ("cpm", json.dumps('{"a": 1.5}')),
        ("cpm", "null"),
        ("user_actions_bundles_action_count", '{"a": {"x": 1, "x": 2}, "b": null, "c": "{\\"y\\": 3}"}'),
        ("last_buy_ts_bundle", '{"a": "2025-10-01T17:30:00+05:30", "b": 1759276800}'),
        ("bundles_ins", '["a", 7, null, "a"]'),
        ("bundles_ins", "[]"),
        ("country", "us"),
        ("last_buy", "2025-10-01T17:30:00+05:30"),
        ("wifi_ratio", " 0.5 "),
    ],
)
def test_a_served_text_is_read_as_a_column_of_a_file_reads_it(column: str, text: str) -> None:
    served = table(**{column: text}).column(column).combine_chunks()
    of_file, findings = read_column(BY_NAME[column], pa.array([text]), query)
    assert findings.lost == 0
    assert read_column(BY_NAME[column], served, query)[0].to_pylist() == of_file.to_pylist()


def test_arrays_and_tuples_of_a_data_frame_are_read_like_lists() -> None:
    assert table(bundles_ins=np.array(["a", "b"], dtype=object)).equals(table(bundles_ins=["a", "b"]))
    assert table(bcat=[("x", 1.0)]).equals(table(bcat={"x": 1.0}))


def test_timestamps_may_be_numbers_or_text() -> None:
    moment = {"a": 1759276800}
    for form in ({"a": "1759276800"}, {"a": "2025-10-01T00:00:00Z"}, {"a": "2025-10-01 00:00:00"}, {"a": "2025-10-01T02:00:00+02:00"}):
        assert table(last_buy_ts_bundle=form).equals(table(last_buy_ts_bundle=moment))


def test_missing_is_null_nothing_and_nan_alike_and_empty_is_not_missing() -> None:
    absent = {k: v for k, v in EXAMPLE.items() if k != "bcat"}
    found = read_impressions({name: [value] for name, value in absent.items()}, 1)
    assert found.table.equals(table(bcat=None)) and found.table.equals(table(bcat=float("nan")))
    assert table(bcat={}).column("bcat").null_count == 0
    assert table(bcat=None).column("bcat").null_count == 1


def test_labels_are_never_read() -> None:
    with_labels = {name: [1.0] for name in LABEL_NAMES} | {name: [value] for name, value in EXAMPLE.items()}
    assert read_impressions(with_labels, 1).table.equals(table())
    assert {c.name for c in COLUMNS} == {c.name for c in RAW_COLUMNS} - set(LABEL_NAMES) - {"row_id", "datetime"}


MALFORMED = [
    ({"bcat": 5}, "row 0, column bcat: expected an object, a list of pairs, or the JSON text of either, found a number 5"),
    ({"bcat": "{broken"}, 'row 0, column bcat: expected an object, a list of pairs, or the JSON text of either, found text "{broken"'),
    ({"bcat": {"x": "much"}}, "row 0, column bcat, key 'x': expected a number, found text \"much\""),
    ({"bcat": [["x", 1, 2]]}, 'row 0, column bcat: expected [key, value] or {"key": ..., "value": ...}, found a list ["x", 1, 2]'),
    ({"bcat": [[1, 2]]}, "row 0, column bcat, key 1: expected text, found a number 1"),
    ({"bcat": {"x": True}}, "row 0, column bcat, key 'x': expected a number, found true or false true"),
    (
        {"user_actions_bundles_action_count": {"a": {"b": [1]}}},
        "row 0, column user_actions_bundles_action_count, key 'a', key 'b': expected a number, found a list [1]",
    ),
    ({"bundles_ins": {"a": 1}}, 'row 0, column bundles_ins: expected a list of texts or its JSON text, found an object {"a": 1}'),
    ({"bundles_ins": ["a", 7.5]}, "row 0, column bundles_ins, element 1: expected text, found a number 7.5"),
    ({"bundles_ins": '["a", {"b": 1}]'}, 'row 0, column bundles_ins, element 1: expected text, found an object {"b": 1}'),
    ({"country": 3.4}, "row 0, column country: expected text, found a number 3.4"),
    ({"weeks_since_first_seen": "1_000"}, 'row 0, column weeks_since_first_seen: expected a number, found text "1_000"'),
    (
        {"bcat": '[{"k": "a", "v": 1}]'},
        'row 0, column bcat: expected [key, value] or {"key": ..., "value": ...}, found an object {"k": "a", "v": 1}',
    ),
    ({"release_msrp": "dear"}, 'row 0, column release_msrp: expected a number, found text "dear"'),
    ({"last_buy": "long ago"}, 'row 0, column last_buy: expected a timestamp (unix seconds or ISO 8601 text), found text "long ago"'),
    ({"datetime": "2025-10-07"}, 'row 0, column datetime: expected the hour as text such as 2025-10-07-13-00, found text "2025-10-07"'),
    ({"datetime": None}, "row 0, column datetime: expected the hour as text such as 2025-10-07-13-00, found nothing"),
    ({"datetime": ["2025"]}, 'row 0, column datetime: expected the hour as text such as 2025-10-07-13-00, found a list ["2025"]'),
]


@pytest.mark.parametrize(("changed", "message"), MALFORMED, ids=[m.split(": ")[0] + str(i) for i, (_, m) in enumerate(MALFORMED)])
def test_malformed_value_is_named_with_row_column_expected_and_found(changed: dict[str, Any], message: str) -> None:
    assert problem(**changed) == message


def nested(depth: int) -> Any:
    value: Any = 1.0
    for _ in range(depth):
        value = [value]
    return value


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError


class Incomparable(float):
    def __ne__(self, other: object) -> bool:
        raise RuntimeError


def test_what_is_said_of_a_value_is_short_and_can_be_sent() -> None:
    for value in ("\udcff", {"\ud800": 1}, {"k" * 10_000: "x"}, "x" * 10_000, 10**5000, nested(50_000), "[" * 100_000):
        said = problem(release_msrp=value) + problem(bcat=value)
        assert len(said.encode()) < 600


COLUMNS_OF_EVERY_KIND = ["bcat", "bundles_ins", "country", "last_buy", "release_msrp", "advertiser_actions_action_count", "datetime"]
JUNK = [
    "[" * 100_000 + "]" * 100_000,
    '{"a":' * 100_000 + "1" + "}" * 100_000,
    nested(900),
    nested(50_000),
    10**5000,
    {"\ud800": 1},
    '{"\\ud800": 1}',
    '{"a": 1e400}',
    {1, 2},
    Unspeakable(),
    Incomparable(1.0),
    np.complex128(1j),
    np.timedelta64(1, "D"),
    np.datetime64("NaT"),
    np.array([None, {}], dtype=object),
    pd.NaT,
    pd.NA,
    datetime.max,
    "0001-01-01T00:00:00+14:00",
    "9999-12-31-23-00",
    object(),
    b"bytes",
    float("inf"),
    10**400,
    "\udcff",
    {"k": object()},
    [[]],
    [None],
    {"k": {"k": {"k": 1}}},
]


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
@pytest.mark.parametrize("column", COLUMNS_OF_EVERY_KIND)
def test_no_value_whatever_raises(column: str, junk: Any) -> None:
    row = {**EXAMPLE, column: junk}
    found = read_impressions({name: [value, EXAMPLE.get(name)] for name, value in row.items()}, 2)
    assert found.table.num_rows == 2
    assert 1 not in found.problems, "its neighbour is not to blame"


class Refusing(RowFlattener):
    """Cannot flatten a device of 13 USD, nor anything handed to it together with one."""

    def features(self, table: pa.Table) -> pa.Table:
        if 13.0 in table.column("release_msrp").to_pylist():
            raise RuntimeError("unlucky\nprice")
        return super().features(table)


@pytest.fixture(scope="module")
def online() -> OnlineModel:
    """A model of the features of invented impressions, of which the dearer devices buy."""
    registry = load_registry(load_config().features)
    rows = [{**EXAMPLE, "release_msrp": float(20 + i % 50)} for i in range(200)]
    flattener = Refusing(registry)
    X = flattener.features(read_impressions({name: [row[name] for row in rows] for name in EXAMPLE}, len(rows)).table).to_pandas()
    revenue = np.where(X["release_msrp"] > 60, 5.0, 0.0)
    return OnlineModel(LTVModel(models=SMALL).fit(X, revenue, period=np.arange(200) // 50).models_, flattener)


BAD: dict[str, dict[str, Any]] = {
    "text without end": {"bcat": "[" * 100_000},
    "value without end": {"bcat": nested(50_000)},
    "number without end": {"release_msrp": 10**5000},
    "what the engine refuses": {"release_msrp": 13.0},
    "half a pair": {"row_id": "\udcff", "country": "\udcff"},
    "hour that is none": {"last_buy": datetime.max, "datetime": "9999-12-31-24-00"},
}


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "together"])
@pytest.mark.parametrize("name", BAD)
def test_one_bad_row_of_a_request_never_costs_its_neighbours(
    online: OnlineModel, name: str, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = BAD[name]
    if together:
        monkeypatch.setattr("ltv_assets.scoring.online.FEW_ROWS", 0)
    elif name == "what the engine refuses":
        monkeypatch.setattr(online._one, "features", lambda row, number: 1 / (row["release_msrp"] - 13.0))
    alone = online.predict(pd.DataFrame([EXAMPLE]))
    rows = [EXAMPLE, EXAMPLE, {**EXAMPLE, **bad}, EXAMPLE, EXAMPLE]
    answer = online.predict(pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=object) for name in EXAMPLE}))
    assert answer["error"].notna().tolist() == [False, False, True, False, False]
    assert answer["error"][2].startswith("row 2") and "\n" not in answer["error"][2]
    for name in alone.columns.drop(["row_id", "error"]):
        assert answer[name].tolist() == [*[alone[name][0]] * 2, None, *[alone[name][0]] * 2]


@pytest.mark.parametrize("row_id", [[1, 2], np.array([1, 2]), pd.NA, {"a": 1}, "\udcff", 10**400], ids=range(6))
def test_row_id_of_any_kind_is_given_back(online: OnlineModel, row_id: Any) -> None:
    columns = {name: pd.Series([value, value], dtype=object) for name, value in EXAMPLE.items()}
    answer = online.predict(pd.DataFrame({**columns, "row_id": pd.Series([row_id, "b"], dtype=object)}))
    assert answer["row_id"][0] is (None if row_id is pd.NA else row_id)
    assert answer["error"].isna().all()


def test_column_given_twice_is_refused_by_its_name(online: OnlineModel) -> None:
    request = pd.DataFrame([EXAMPLE])
    request.insert(0, "bcat", [{}], allow_duplicates=True)
    with pytest.raises(DataError, match="the request has column bcat more than once; expected each column once"):
        online.predict(request)


def test_one_row_or_many_give_the_same_features() -> None:
    registry = load_registry(load_config().features)
    flattener = RowFlattener(registry)
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for hour in range(24):
        row = {**EXAMPLE, "datetime": f"2025-10-07-{hour:02d}-00", "hour": f"{hour:02d}"}
        for column in COLUMNS:
            if rng.random() < 0.4:
                row[column.name] = None
            elif kind_of(column) in ("number_map", "histogram"):
                row[column.name] = {f"k{i}": float(v) for i, v in enumerate(rng.exponential(size=rng.integers(0, 9)))}
        rows.append(row)
    columns = {name: [row[name] for row in rows] for name in EXAMPLE}
    together = flattener.features(read_impressions(columns, len(rows)).table).to_pandas()
    assert list(together.columns) == feature_names(registry)
    for i, row in enumerate(rows):
        alone = flattener.features(read_impressions({name: [value] for name, value in row.items()}, 1).table).to_pandas()
        pd.testing.assert_frame_equal(
            alone.astype(object), together.iloc[[i]].reset_index(drop=True).astype(object), check_exact=True, check_dtype=False
        )
