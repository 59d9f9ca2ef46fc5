"""The SQL of every feature, generated from the registry.

What belongs here: the intermediate values behind the statistics, and the assembly of one query from layers of named
expressions, each layer using only names of earlier ones, so that nothing is computed twice and any single column can be
printed with just what it needs (``explain_sql``). What does not: reading files, writing files (``flatten.py``).
Next to read: ``statistics.py`` (the formulas), ``normalise.py`` (the first layer).

A *step* is a name and its SQL over other names. The prefix says what it is: ``raw_`` the logical column, ``flat_`` the
inner values of a nested map, ``finite_`` and ``valid_`` a list or scalar without unusable values, ``sum_ min_ max_
count_`` totals, ``mass_`` the sum of the positive values, ``own_`` the impression's own entry. Features have no prefix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache

import pyarrow as pa

from ltv_assets.contract import BY_NAME, LABEL_NAMES, RAW_COLUMNS, Column
from ltv_assets.errors import ConfigError
from ltv_assets.features.normalise import form_of, logical_columns, scalar_text
from ltv_assets.features.registry import Registry, feature_name
from ltv_assets.features.statistics import CYCLE_LENGTH, MONTHS, OWN_KEY, available, kind_of, own_key_of

OLDEST_TIMESTAMP = 946684800
"""2000-01-01 00:00:00 UTC: earlier timestamps are placeholders, not events."""

ABSURD_REVENUE = 1e9
FLOAT32_MAX = 3.4028234663852886e38

STORED_LABELS: tuple[str, ...] = tuple(name for name in LABEL_NAMES if name != "registration" and not name.startswith("retention"))
"""Label columns that are carried along, by role, for training and evaluation."""

DEFAULT_SOURCE = (
    "SELECT *, epoch(strptime(datetime, '%Y-%m-%d-%H-00'))::BIGINT AS hour_start"
    " FROM read_parquet('train/*/*.parquet', hive_partitioning = true, hive_types_autocast = false)"
)

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")

Steps = dict[str, str]


def flatten_sql(
    registry: Registry, physical_types: Mapping[str, pa.DataType], *, source: str = DEFAULT_SOURCE, labelled: bool = True
) -> str:
    """Return the one query that defines every flattened column of a source with the given physical types.

    The source must yield ``hour_start`` (unix seconds, BIGINT) beside the raw columns; columns it does not have must be
    absent from ``physical_types``. The result has ``row_id``, the stored labels, every feature in the registry's order,
    and bookkeeping columns, whose names start with an underscore (see ``counts`` and ``verdict``).

    The flattener computes the same columns in parts: ``row_sql`` and ``nested_sql``, with array reductions in the place
    of the latter for the usual layouts, then ``interaction_sql``.
    """
    outputs = _keys_and_labels(labelled) | verdict(labelled) | counts(registry.source_columns, physical_types)
    outputs |= {feature.name: _output_sql(feature.name, feature.categorical) for feature in registry.features}
    return _assemble(_logical_steps(physical_types), _derived_steps(registry), outputs, source)


def row_sql(
    registry: Registry, physical_types: Mapping[str, pa.DataType], *, source: str, labelled: bool, texts: frozenset[str] = frozenset()
) -> str:
    """Return the query for everything about a row but its nested columns.

    Besides keys, labels, the features of scalars and bookkeeping, it yields what is needed to go on: the impression's
    own keys (``_own_<c>``), where columns are missing (``_absent_<c>``) and the inputs of interactions (``_input_<f>``).
    ``texts`` names text columns whose values are at hand elsewhere and are left out.
    """
    scalars = [name for name in registry.source_columns if not BY_NAME[name].is_nested]
    outputs = _keys_and_labels(labelled) | verdict(labelled) | counts(scalars, physical_types)
    outputs |= {f"_own_{name}": own for name, own in own_keys().items() if name not in texts}
    outputs |= _column_outputs(registry, scalars, texts)
    return _assemble(_logical_steps(physical_types), _derived_steps(registry), outputs, source)


def nested_sql(registry: Registry, physical_types: Mapping[str, pa.DataType], *, source: str, columns: Sequence[str]) -> str:
    """Return the query for the features, bookkeeping and ``_absent_`` and ``_input_`` columns of some nested columns."""
    outputs = counts(columns, physical_types) | _column_outputs(registry, columns)
    for group in registry.groups.values():
        for overlap in group.overlaps if group.enabled else ():
            if overlap.of in columns and overlap.within in columns:
                outputs |= {name: _output_sql(name) for name in (overlap.name, f"{overlap.name}_share")}
    return _assemble(_logical_steps(physical_types), _derived_steps(registry), outputs, source)


def _keys_and_labels(labelled: bool) -> Steps:
    return {"row_id": "raw_row_id"} | {name: _label_sql(name, labelled) for name in STORED_LABELS}


def _column_outputs(registry: Registry, columns: Sequence[str], texts: frozenset[str] = frozenset()) -> Steps:
    """Return the outputs made of single columns; what combines several of them is left to the caller."""
    combined = {name for group in registry.groups.values() for name in group.expressions}
    combined |= {f"missing__{indicator}" for group in registry.groups.values() for indicator in group.indicators}
    combined |= {name for group in registry.groups.values() for o in group.overlaps for name in (o.name, f"{o.name}_share")}
    outputs = {
        feature.name: _output_sql(feature.name, feature.categorical)
        for feature in registry.features
        if feature.name not in combined | texts and _column_of(feature.name) in columns
    }
    outputs |= {
        f"_absent_{name}": f"{_presence(BY_NAME[name])} IS NULL"
        for name in indicator_columns(registry)
        if name in columns and name not in texts
    }
    outputs |= {f"_input_{name}": f"{name}::DOUBLE" for name in interaction_inputs(registry) if _column_of(name) in columns}
    return outputs


def _column_of(feature: str) -> str:
    return feature.split("__", 1)[0]


def own_keys() -> dict[str, str]:
    """Return the SQL of the impression's own key (VARCHAR) by the column it is taken from."""
    return {name: "hour_key" if name == "hour" else f"raw_{name}" for name in OWN_KEY.values()}


def indicator_columns(registry: Registry) -> tuple[str, ...]:
    """Return the columns that any enabled missing indicator looks at."""
    names = (name for group in registry.groups.values() if group.enabled for columns in group.indicators.values() for name in columns)
    return tuple(dict.fromkeys(names))


def interaction_inputs(registry: Registry) -> tuple[str, ...]:
    """Return the features that any enabled interaction refers to."""
    interactions = (i for group in registry.groups.values() if group.enabled for i in group.expressions.values())
    return tuple(dict.fromkeys(name for interaction in interactions for name in interaction.inputs))


def interaction_sql(registry: Registry, source: str) -> str:
    """Return the query that computes the enabled interactions from a source with their inputs as DOUBLE columns."""
    derived = {name: i.sql for group in registry.groups.values() if group.enabled for name, i in group.expressions.items()}
    logical = {name: _quote(name) for name in interaction_inputs(registry)}
    return _assemble(logical, derived, {name: _output_sql(name) for name in derived}, f"SELECT * FROM {source}")


def explain_sql(registry: Registry, column: str) -> str:
    """Return a runnable query that computes one feature, or every enabled feature of one raw column, for contract types.

    Raises:
        ConfigError: the name is neither a feature nor a raw column that contributes one.
    """
    by_name = {feature.name: feature for feature in registry.features}
    if column in by_name:
        chosen = [by_name[column]]
    else:
        chosen = [feature for feature in registry.features if feature.name == column or feature.name.startswith(f"{column}__")]
    if not chosen:
        near = get_close_matches(column, [*by_name, *BY_NAME], n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ConfigError(f"{column}: no such feature, and no enabled feature is made of a raw column of this name{hint}")
    comments = [f"-- {feature.name} [{feature.unit or 'no unit'}]: {feature.description}" for feature in chosen]
    outputs = {"row_id": "raw_row_id", **{f.name: _output_sql(f.name, f.categorical) for f in chosen}}
    return "\n".join([*comments, _assemble(_logical_steps(contract_types()), _derived_steps(registry), outputs, DEFAULT_SOURCE)])


@lru_cache(maxsize=1)
def contract_types() -> Mapping[str, pa.DataType]:
    """Return the Arrow type of every raw column as the contract declares it."""
    numbers = {"int32": pa.int32(), "int64": pa.int64(), "double": pa.float64(), "string": pa.string()}
    nested = {
        "list<string>": pa.list_(pa.string()),
        "map<string,double>": pa.map_(pa.string(), pa.float64()),
        "map<string,int64>": pa.map_(pa.string(), pa.int64()),
        "map<string,map<string,int64>>": pa.map_(pa.string(), pa.map_(pa.string(), pa.int64())),
    }
    return {column.name: {**numbers, **nested}[column.type] for column in RAW_COLUMNS}


def counts(columns: Sequence[str], physical_types: Mapping[str, pa.DataType]) -> Steps:
    """Return the columns that count what is unusable in a row: name -> SQL.

    ``_future_<c>`` and ``_ancient_<c>`` count timestamps after the hour began and before 2000, ``_nonfinite_<c>`` NaN and
    infinite values, ``_malformed_<c>`` text that should be JSON and is not.
    """
    outputs: Steps = {}
    for name in columns:
        kind = kind_of(BY_NAME[name])
        if kind in ("timestamp", "timestamp_map", "nested_timestamps"):
            outputs |= {f"_future_{name}": f"future_{name}", f"_ancient_{name}": f"ancient_{name}"}
        if kind in ("number", "number_map", "histogram", "nested_counts"):
            outputs[f"_nonfinite_{name}"] = f"nonfinite_{name}"
        if BY_NAME[name].is_nested and form_of(physical_types.get(name)) in ("text", "bytes"):
            outputs[f"_malformed_{name}"] = f"malformed_{name}"
    return outputs


def verdict(labelled: bool) -> Steps:
    """Return the columns that judge a row: ``_reason`` says why it must be set aside, ``_value`` shows the offending value.

    On labelled days ``_disagree`` is true where the payer flag contradicts the revenue, which is only counted.
    """
    reasons = [("trim(coalesce(raw_row_id, '')) = ''", "row_id missing", "raw_row_id"), *(_label_reasons() if labelled else [])]
    whens = " ".join(f"WHEN {test} THEN '{reason}'" for test, reason, _ in reasons)
    values = " ".join(f"WHEN {test} THEN {value}::VARCHAR" for test, _, value in reasons)
    outputs = {"_reason": f"CASE {whens} END", "_value": f"CASE {values} END"}
    return outputs | ({"_disagree": "raw_buyer_d7 = 0 AND raw_iap_revenue_d7 > 0"} if labelled else {})


def _label_reasons() -> list[tuple[str, str, str]]:
    d7, d14, d28 = "raw_iap_revenue_d7", "raw_iap_revenue_d14", "raw_iap_revenue_d28"
    reasons = [
        (f"{d7} IS NULL", "iap_revenue_d7 missing", d7),
        ("raw_buyer_d7 IS NULL", "buyer_d7 missing", "raw_buyer_d7"),
    ]
    for x in (d7, d14, d28):
        name = x.removeprefix("raw_")
        reasons += [
            (f"NOT isfinite({x})", f"{name} not finite", x),
            (f"{x} < 0", f"{name} negative", x),
            (f"{x} > {ABSURD_REVENUE:.0f}", f"{name} above {ABSURD_REVENUE:.0e} USD", x),
        ]
    reasons += [
        (f"{d14} < {d7}", "iap_revenue_d14 below iap_revenue_d7", d14),
        (f"{d28} < greatest({d7}, coalesce({d14}, {d7}))", "iap_revenue_d28 below a shorter horizon", d28),
    ]
    return reasons


def _label_sql(name: str, labelled: bool) -> str:
    kind = {"int32": "INTEGER", "int64": "BIGINT", "double": "DOUBLE"}[BY_NAME[name].type]
    return f"try_cast(raw_{name} AS {kind})" if labelled else f"NULL::{kind}"


def _output_sql(name: str, categorical: bool = False) -> str:
    # NaN, infinities and what does not fit a float32 all fail the comparison (DuckDB orders NaN above every number).
    return name if categorical else f"CASE WHEN abs({name}) <= {FLOAT32_MAX!r} THEN {name}::FLOAT END"


def _quote(name: str) -> str:
    return f'"{name}"'


def _logical_steps(physical_types: Mapping[str, pa.DataType]) -> Steps:
    """Return the first layer: every column of the contract as its logical type, labels as numbers."""
    steps: Steps = {"hour_start": "hour_start"}
    for column in RAW_COLUMNS:
        kind = physical_types.get(column.name)
        if column.name in STORED_LABELS:
            column = Column(column.name, "label", "double", "number", column.description)
        elif column.is_label or column.name == "datetime":
            continue
        steps |= logical_columns(column, kind)
        if column.is_nested and form_of(kind) in ("text", "bytes"):
            text = scalar_text(_quote(column.name), kind)
            steps[f"malformed_{column.name}"] = f"CASE WHEN NOT json_valid({text}) THEN 1 END"
    return steps


def _derived_steps(registry: Registry) -> Steps:
    """Return every step any feature may need; those that nothing uses are dropped when the query is assembled."""
    steps: Steps = {"hour_key": "lpad(try_cast(raw_hour AS INTEGER)::VARCHAR, 2, '0')"}
    for column in RAW_COLUMNS:
        if not column.is_label and column.role != "key":
            steps |= _column_steps(column, registry)
    for group in registry.groups.values():
        for overlap in group.overlaps:
            # list_intersect takes NULL for an empty list, hence the test.
            shared = f"len(list_intersect(raw_{overlap.of}, raw_{overlap.within}))"
            steps[overlap.name] = f"CASE WHEN raw_{overlap.of} IS NOT NULL AND raw_{overlap.within} IS NOT NULL THEN {shared} END"
            steps[f"{overlap.name}_share"] = f"{overlap.name} / nullif({overlap.of}__n_unique, 0)"
        for indicator, columns in group.indicators.items():
            tests = " AND ".join(f"{_presence(BY_NAME[name])} IS NULL" for name in columns)
            steps[f"missing__{indicator}"] = f"({tests})::INTEGER"
        steps |= {name: interaction.sql for name, interaction in group.expressions.items()}
    return steps


def _column_steps(column: Column, registry: Registry) -> Steps:
    c, own, kind = column.name, _own_sql(column), kind_of(column)
    steps: Steps = {}
    values = f"raw_{c}_values"
    if kind.startswith("nested"):
        values = f"flat_{c}"
        steps[values] = f"flatten(raw_{c}_values)"
    if kind in ("number_map", "histogram", "nested_counts"):
        steps |= _number_steps(c, values, own)
    elif kind in ("timestamp_map", "nested_timestamps"):
        steps |= _timestamp_steps(c, values, own)
    elif kind == "timestamp":
        steps |= {
            f"valid_{c}": f"CASE WHEN raw_{c} BETWEEN {OLDEST_TIMESTAMP} AND hour_start THEN raw_{c} END",
            f"future_{c}": f"CASE WHEN raw_{c} > hour_start THEN 1 END",
            f"ancient_{c}": f"CASE WHEN raw_{c} < {OLDEST_TIMESTAMP} THEN 1 END",
        }
    elif kind == "number":
        steps |= {
            f"valid_{c}": f"CASE WHEN isfinite(raw_{c}) THEN raw_{c} END",
            f"nonfinite_{c}": f"CASE WHEN NOT isfinite(raw_{c}) THEN 1 END",
        }
    tier = _tier_sql(f"valid_{c}", registry.price_tiers)
    for name, statistic in available(column).items():
        steps[feature_name(c, name)] = statistic.sql.format(c=c, own=own, period=CYCLE_LENGTH.get(c), tier=tier, months=list(MONTHS))
    return steps


def _number_steps(c: str, values: str, own: str | None) -> Steps:
    # A sum is finite exactly when every value is, short of overflow: one cheap pass decides whether the list needs cleaning.
    suspect = f"NOT isfinite(list_sum({values}))"
    steps = {
        f"finite_{c}": f"CASE WHEN {suspect} THEN list_transform({values}, lambda x: CASE WHEN isfinite(x) THEN x END) ELSE {values} END",
        f"nonfinite_{c}": f"CASE WHEN {suspect} THEN len(list_filter({values}, lambda x: NOT isfinite(x))) END",
        **{f"{total}_{c}": f"list_{total}(finite_{c})" for total in ("sum", "min", "max", "count")},
        f"mass_{c}": f"CASE WHEN min_{c} >= 0 THEN sum_{c} ELSE list_sum(list_filter(finite_{c}, lambda x: x > 0)) END",
        f"entropy_{c}": f"0 - list_sum(list_transform(finite_{c}, lambda x: CASE WHEN x > 0 THEN x / mass_{c} * ln(x / mass_{c}) END))",
    }
    if own is None:
        return steps
    if values.startswith("flat_"):
        steps[f"own_flat_{c}"] = _own_entries(c, own, f"raw_{c}_values", "flatten({})")
        steps[f"own_{c}"] = f"list_sum(list_filter(own_flat_{c}, lambda x: isfinite(x)))"
    else:
        steps[f"own_{c}"] = _own_entries(c, own, f"finite_{c}", "list_sum({})")
    return steps


def _timestamp_steps(c: str, values: str, own: str | None) -> Steps:
    usable = f"x BETWEEN {OLDEST_TIMESTAMP} AND hour_start"
    # NaN and infinity order above every number, so an unusable value shows in the minimum or in the maximum.
    future, ancient = f"list_max({values}) > hour_start", f"list_min({values}) < {OLDEST_TIMESTAMP}"
    cleaned = f"list_transform({values}, lambda x: CASE WHEN {usable} THEN x END)"
    steps = {
        f"finite_{c}": f"CASE WHEN {future} OR {ancient} THEN {cleaned} ELSE {values} END",
        f"future_{c}": f"CASE WHEN {future} THEN len(list_filter({values}, lambda x: x > hour_start)) END",
        f"ancient_{c}": f"CASE WHEN {ancient} THEN len(list_filter({values}, lambda x: x < {OLDEST_TIMESTAMP})) END",
        **{f"{total}_{c}": f"list_{total}(finite_{c})" for total in ("min", "max")},
    }
    if own is not None and values.startswith("flat_"):
        steps[f"own_{c}"] = _own_entries(c, own, f"raw_{c}_values", f"list_max(list_filter(flatten({{}}), lambda x: {usable}))")
    elif own is not None:
        steps[f"own_{c}"] = _own_entries(c, own, f"finite_{c}", "list_max({})")
    return steps


def _own_entries(c: str, own: str, values: str, reduce: str) -> str:
    # The test first: most rows do not hold their own key, and only those that do pay for the filter.
    entries = f"list_filter({values}, lambda x, i: raw_{c}_keys[i] = {own})"
    return f"CASE WHEN list_contains(raw_{c}_keys, {own}) THEN {reduce.format(entries)} END"


def _own_sql(column: Column) -> str | None:
    own = own_key_of(column)
    return own_keys()[own] if own is not None else None


def _presence(column: Column) -> str:
    return f"raw_{column.name}_keys" if column.type.startswith("map") else f"raw_{column.name}"


def _tier_sql(x: str, edges: Sequence[float]) -> str:
    return f"CASE WHEN {x} IS NOT NULL THEN {' + '.join(f'({x} >= {edge})::INTEGER' for edge in edges)} END"


def _words(sql: str) -> list[str]:
    return _WORD.findall(_QUOTED.sub(" ", sql))


def _assemble(logical: Steps, derived: Steps, outputs: Mapping[str, str], source: str) -> str:
    """Join the steps that the outputs need into layers of one query; each layer selects what later ones use, nothing else."""
    depth: dict[str, int] = {}
    last_use: dict[str, int] = {}

    def visit(name: str) -> int:
        if name not in depth:
            inner = [word for word in _words(derived[name]) if word in derived or word in logical] if name in derived else []
            depth[name] = 1 + max(map(visit, inner), default=0) if name in derived else 0
            for word in inner:
                last_use[word] = max(last_use.get(word, 0), depth[name])
        return depth[name]

    used = [word for sql in outputs.values() for word in _words(sql) if word in derived or word in logical]
    final = 1 + max(map(visit, used))
    last_use.update(dict.fromkeys(used, final))
    layers = [f"source AS (\n  {source}\n)"]
    previous = "source"
    for layer in range(final):
        columns = [
            f"{(derived.get(name) or logical[name])} AS {_quote(name)}" if at == layer else _quote(name)
            for name, at in depth.items()
            if at <= layer < last_use[name]
        ]
        name = "logical" if layer == 0 else f"layer_{layer}"
        layers.append(f"{name} AS (\n  SELECT\n    " + ",\n    ".join(columns) + f"\n  FROM {previous}\n)")
        previous = name
    selected = [f"{sql} AS {_quote(name)}" for name, sql in outputs.items()]
    return "WITH " + ",\n".join(layers) + "\nSELECT\n  " + ",\n  ".join(selected) + f"\nFROM {previous}"
