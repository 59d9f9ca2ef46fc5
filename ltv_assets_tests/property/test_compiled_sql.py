"""Whatever an interaction says: its compiled form has the engine's result for every row."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ltv_assets.core.config import load_config
from ltv_assets.core.database import open_duckdb
from ltv_assets.features.compiled_sql import compile_sql
from ltv_assets.features.registry import load_registry
from ltv_assets.features.sql import interactions, row_inputs, scalar_features, written_own_keys

DATABASE = open_duckdb(threads=1, memory_limit="200MB")
TYPES = {"hour_start": "BIGINT", "a": "DOUBLE", "b": "DOUBLE", "raw_text": "VARCHAR"}
NUMBERS = st.one_of(
    st.none(),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1e-300, 1e300, 3.4e38, math.inf, -math.inf, math.nan]),
    st.floats(-1e6, 1e6),
)
ODD_TEXTS = ["", "14.1.2", "9", "2024_march", "x_MAY", "1_000", " 7 ", "1e3", "ünï", "17.4.99999", "2147483647_july", "32767_july"]
TEXTS = st.one_of(st.none(), st.sampled_from(ODD_TEXTS), st.text(max_size=6))
HOURS = st.integers(262_968, 555_555).map(lambda hour: 3600 * hour)


def expressions() -> st.SearchStrategy[str]:
    """Expressions over a and b of the words that the registry allows."""

    def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        two = st.tuples(inner, inner)
        truth = st.one_of(
            st.tuples(inner, st.sampled_from(["=", "<>", "<", ">", "<=", ">="]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            st.tuples(inner, inner, inner).map(lambda t: f"({t[0]} BETWEEN {t[1]} AND {t[2]})"),
            inner.map(lambda x: f"({x} IS NULL)"),
            inner.map(lambda x: f"(NOT ({x} > 1))"),
        )
        both = st.tuples(truth, st.sampled_from(["AND", "OR"]), truth).map(lambda t: f"({t[0]} {t[1]} {t[2]})")
        return st.one_of(
            st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            st.tuples(st.sampled_from(["nullif", "coalesce", "least", "pow"]), two).map(lambda t: f"{t[0]}({t[1][0]}, {t[1][1]})"),
            st.tuples(st.sampled_from(["abs", "exp", "ln", "sqrt", "log10", "floor", "ceil", "sin", "cos", "-"]), inner).map(
                lambda t: f"({t[0]}({t[1]}))"
            ),
            st.tuples(st.one_of(truth, both), inner, inner).map(lambda t: f"(CASE WHEN {t[0]} THEN {t[1]} ELSE {t[2]} END)"),
            st.tuples(truth, inner).map(lambda t: f"(CASE WHEN {t[0]} THEN {t[1]} END)"),
        )

    return st.recursive(st.sampled_from(["a", "b", "2.5::DOUBLE", "30::DOUBLE", "(a + 1)", "(b / 60)"]), grown, max_leaves=6)


def by_engine(sql: list[str], types: dict[str, str], values: list[Any]) -> list[Any]:
    given_values = ", ".join(f'?::{kind} AS "{name}"' for name, kind in types.items())
    columns = ", ".join(f"({expression}) AS r{i}" for i, expression in enumerate(sql))
    row = DATABASE.execute(f"SELECT {columns} FROM (SELECT {given_values})", values).fetchone()
    assert row is not None
    return list(row)


def same(ours: Any, theirs: Any) -> bool:
    if ours is None or theirs is None or isinstance(theirs, str):
        return ours == theirs
    a, b = float(ours), float(theirs)
    return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-15)


@settings(max_examples=300)
@example("nullif(a, b)", math.nan, math.nan)
@given(expressions(), NUMBERS, NUMBERS)
def test_any_interaction_has_the_engines_result(sql: str, a: float | None, b: float | None) -> None:
    values = [1_759_842_000, a, b, None]
    assert same(compile_sql([sql], TYPES, DATABASE)(values)[0], by_engine([sql], TYPES, values)[0])


@pytest.fixture(scope="module")
def registered() -> tuple[list[str], dict[str, str], Any]:
    registry = load_registry(load_config().features)
    combined = interactions(registry)
    inputs = row_inputs(registry.contract)
    named = set(re.findall(r"\w+__\w+", " ".join(combined.values())))
    types = inputs | dict.fromkeys(sorted(named), "DOUBLE")
    sql = [*written_own_keys(registry), *scalar_features(registry).values(), *combined.values()]
    return sql, types, compile_sql(sql, types, DATABASE)


@settings(max_examples=100)
@given(st.data())
def test_every_scalar_and_interaction_of_the_registry_has_the_engines_result(registered: Any, data: st.DataObject) -> None:
    sql, types, compiled = registered
    usual = st.one_of(st.none(), st.floats(0, 2e9), st.sampled_from([0.0, 1.0, 13.0, 99.99, 100.0]))
    drawn = {"BIGINT": HOURS, "VARCHAR": TEXTS, "DOUBLE": usual}
    values = [data.draw(drawn[kind]) for kind in types.values()]
    for expression, ours, theirs in zip(sql, compiled(values), by_engine(sql, types, values), strict=True):
        assert same(ours, theirs), f"{expression}: {ours!r}, expected {theirs!r}"
