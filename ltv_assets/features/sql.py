"""The SQL of every feature, generated from the registry.

What belongs here: the intermediate values behind the statistics, and the assembly of one query from layers of named
expressions, each layer using only names of earlier ones. Nothing is computed twice, and a single column can be printed with its own
inputs only (``explain_sql``). What does not: physical types (``canonical.py``), files (``flatten/``).
Next to read: ``statistics.py`` (the formulas).

The flattener runs ``row_sql`` over canonical scalars and reduces maps and lists as arrays; ``flatten_sql`` computes every
feature from the contract's types, for readers and for a test that compares both.

A *step* is a name and its SQL over other names. The prefix says what it is: ``raw_`` the logical column, ``flat_`` the
inner values of a nested map, ``finite_`` and ``valid_`` a list or scalar without unusable values, ``sum_ min_ max_
count_`` totals, ``mass_`` the sum of the positive values, ``own_`` the impression's own entry. Features have no prefix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from ltv_assets.core.contract import HOUR, Column, Contract
from ltv_assets.core.errors import ConfigError
from ltv_assets.features.canonical import FLOAT32_MAX
from ltv_assets.features.registry import Registry, feature_name
from ltv_assets.features.statistics import MONTHS, available, kind_of

OLDEST_TIMESTAMP = 946684800
"""2000-01-01 00:00:00 UTC: earlier timestamps are placeholders, not events."""

DISTANT_TIMESTAMP = 1e11
"""The year 5138: later timestamps are milliseconds or smaller units, taken for seconds."""

ABSURD_REVENUE = 1e9
ROUNDING_USD = 0.005
"""Largest difference (or a millionth of the amount) by which a longer horizon may be below a shorter one: rounding to cents."""

ROUNDING_SHARE = 1e-6


_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_WORD_OR_QUOTED = re.compile(f"{_QUOTED.pattern}|{_WORD.pattern}")

Steps = dict[str, str]


def files_sql(contract: Contract) -> str:
    """Return a query over all raw files of ``train/`` with ``hour_start``, to be run at the data root."""
    if contract.layout is None:
        moment = _quote(contract.by_name[contract.time.column or ""].in_files)
        return f"SELECT *, epoch(date_trunc('hour', {moment}::TIMESTAMP))::BIGINT AS hour_start FROM read_parquet('train/**/*.parquet')"
    folders = "/".join(["*"] * contract.layout.depth)
    if contract.layout.pattern == f"{HOUR}=%Y-%m-%d-%H-00":
        return (
            f"SELECT *, epoch(strptime({HOUR}, '%Y-%m-%d-%H-00'))::BIGINT AS hour_start"
            f" FROM read_parquet('train/{folders}/*.parquet', hive_partitioning = true, hive_types_autocast = false)"
        )
    named = f"array_to_string(string_split(filename, '/')[-{contract.layout.depth + 1}:-2], '/')"
    return (
        f"SELECT *, epoch(strptime({named}, '{contract.layout.pattern}'))::BIGINT AS hour_start"
        f" FROM read_parquet('train/{folders}/*.parquet', hive_partitioning = false, filename = true)"
    )


def flatten_sql(registry: Registry, *, source: str | None = None) -> str:
    """Return the one query that computes ``row_id`` and every feature from a source with the contract's own types.

    The source, by default all raw files, must have ``hour_start`` (unix seconds, BIGINT) and the raw columns.
    """
    source = source or files_sql(registry.contract)
    outputs = {"row_id": "raw_row_id"} | {feature.name: _output_sql(feature.name, feature.categorical) for feature in registry.features}
    return _assemble(_contract_steps(registry.contract), _derived_steps(registry), outputs, source)


def row_sql(registry: Registry, *, source: str, labelled: bool) -> str:
    """Return the query for everything of a row except its nested columns, from canonical scalars.

    Besides keys, labels, the numeric features of scalars and bookkeeping, it returns the inputs of later steps: the hour as
    own key (``_own_hour``), a hash of the identifier (``_row_hash``, NULL where there is none) and the inputs of interactions
    (``_input_<f>``). Text features are the canonical text itself.
    """
    contract = registry.contract
    scalars = [name for name in registry.source_columns if not contract.by_name[name].is_nested]
    outputs = _keys_and_labels(contract, labelled) | verdict(contract, labelled) | counts(contract, scalars)
    if contract.hour_key is not None:
        outputs["_own_hour"] = own_keys(contract)[contract.hour_key]
    outputs["_row_hash"] = "CASE WHEN raw_row_id <> '' THEN hash(raw_row_id) END"
    outputs |= _column_outputs(registry, scalars)
    return _assemble(_canonical_steps(contract, labelled), _derived_steps(registry), outputs, source)


def row_columns(registry: Registry, labelled: bool) -> tuple[str, ...]:
    """Return the scalar columns of the contract that a row is made of: identifier, labels, sources of features, own keys."""
    contract = registry.contract
    scalars = (name for name in registry.source_columns if not contract.by_name[name].is_nested)
    return tuple(dict.fromkeys((contract.identifier, *(contract.stored_labels if labelled else ()), *scalars, *own_keys(contract))))


def _keys_and_labels(contract: Contract, labelled: bool) -> Steps:
    return {"row_id": "raw_row_id"} | {name: _label_sql(contract, name, labelled) for name in contract.stored_labels}


def _column_outputs(registry: Registry, columns: Sequence[str]) -> Steps:
    """Return the numeric outputs made of single columns; combinations of several are left to the caller."""
    combined = {name for group in registry.groups.values() for name in group.expressions}
    outputs = {
        feature.name: _output_sql(feature.name)
        for feature in registry.features
        if not feature.categorical and feature.name not in combined and _column_of(feature.name) in columns
    }
    return outputs | {f"_input_{name}": f"{name}::DOUBLE" for name in interaction_inputs(registry) if _column_of(name) in columns}


def _column_of(feature: str) -> str:
    return feature.split("__", 1)[0]


def own_keys(contract: Contract) -> dict[str, str]:
    """Return the SQL of the impression's own key (VARCHAR) by the column it is taken from."""
    return {name: "hour_key" if name == contract.hour_key else f"raw_{name}" for name in contract.own_key_columns}


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
        near = get_close_matches(column, [*by_name, *registry.contract.by_name], n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ConfigError(f"{column}: no such feature, and no enabled feature is made of a raw column of this name{hint}")
    contract = registry.contract
    comments = [f"-- {feature.name} [{feature.unit or 'no unit'}]: {feature.description}" for feature in chosen]
    outputs = {"row_id": "raw_row_id", **{f.name: _output_sql(f.name, f.categorical) for f in chosen}}
    return "\n".join([*comments, _assemble(_contract_steps(contract), _derived_steps(registry), outputs, files_sql(contract))])


def scalar_features(registry: Registry) -> Steps:
    """Return the SQL of every numeric feature of a scalar column, written out over ``row_inputs``."""
    combined = {name for group in registry.groups.values() for name in group.expressions}
    scalars = {name for name in registry.source_columns if not registry.contract.by_name[name].is_nested}
    wanted = (f.name for f in registry.features if not f.categorical and f.name not in combined and _column_of(f.name) in scalars)
    return _written_out(registry, {name: name for name in wanted})


def written_own_keys(registry: Registry) -> tuple[str, ...]:
    """Return the SQL of the impression's own keys, in the order of ``own_keys``, written out over ``row_inputs``."""
    return tuple(_written_out(registry, own_keys(registry.contract)).values())


def interactions(registry: Registry) -> Steps:
    """Return the SQL of every enabled interaction, written out over ``row_inputs`` and the statistics of nested columns."""
    enabled = (group for group in registry.groups.values() if group.enabled)
    return _written_out(registry, {name: name for group in enabled for name in group.expressions})


def row_inputs(contract: Contract) -> dict[str, str]:
    """Return the logical scalar columns that a row's features are made of, in the contract's order, with their SQL types."""
    scalars = (c for c in contract.inputs if not c.is_nested)
    return {"hour_start": "BIGINT"} | {f"raw_{c.name}": "VARCHAR" if kind_of(c) == "text" else "DOUBLE" for c in scalars}


def _written_out(registry: Registry, chosen: Mapping[str, str]) -> Steps:
    """Replace every step in the chosen expressions by its own SQL, down to logical columns and statistics of nested columns."""
    steps = _derived_steps(registry)
    nested = [c for c in registry.contract.inputs if c.is_nested]
    last = {feature_name(c.name, statistic) for c in nested for statistic in available(c)} | row_inputs(registry.contract).keys()

    def written(sql: str) -> str:
        def replaced(found: re.Match[str]) -> str:
            word = found.group()
            return f"({written(steps[word])})" if word in steps and word not in last else word

        return _WORD_OR_QUOTED.sub(replaced, sql)

    return {name: written(sql) for name, sql in chosen.items()}


def counts(contract: Contract, columns: Sequence[str]) -> Steps:
    """Return the columns that count impossible timestamps: ``_future_<c>`` after the hour began, ``_distant_<c>`` too large for seconds,
    ``_ancient_<c>`` before 2000."""
    moments = [name for name in columns if kind_of(contract.by_name[name]) == "timestamp"]
    return {f"_{when}_{name}": f"{when}_{name}" for name in moments for when in ("future", "distant", "ancient")}


def verdict(contract: Contract, labelled: bool) -> Steps:
    """Return the columns that validate a row: ``_reason`` for its quarantine, ``_value`` is the invalid value.

    On labelled days ``_disagree`` is true where the payer flag contradicts the revenue, ``_no_flag`` where it is neither 0
    nor 1, and ``_rounded_<label>`` where a horizon was raised to the shorter one; all are only counted.
    """
    reasons = [("trim(coalesce(raw_row_id, '')) = ''", f"{contract.identifier} missing", "raw_row_id")]
    if contract.layout is None:
        reasons.append(("hour_start < 0", f"{contract.time.column} missing", "NULL"))
    reasons += _label_reasons(contract) if labelled else []
    whens = " ".join(f"WHEN {test} THEN '{reason}'" for test, reason, _ in reasons)
    values = " ".join(f"WHEN {test} THEN {value}::VARCHAR" for test, _, value in reasons)
    outputs = {"_reason": f"CASE {whens} END", "_value": f"CASE {values} END"}
    if labelled:
        if contract.payer is not None:
            outputs["_disagree"] = f"raw_{contract.payer} = 0 AND label_{contract.target} > 0"
            outputs["_no_flag"] = f"raw_{contract.payer} NOT IN (0, 1)"
        outputs |= {f"_rounded_{name}": f"(label_{name} <> raw_{name})::INTEGER" for name in contract.revenue}
    return outputs


def _label_steps(contract: Contract) -> Steps:
    """Return revenue as it is used: a longer horizon that is lower by rounding only becomes the shorter one."""

    def raised(x: str, to: str) -> str:
        near = f"{to} - {x} <= greatest({ROUNDING_USD!r}, {ROUNDING_SHARE!r} * {to})"
        return f"CASE WHEN {x} < {to} AND {near} THEN {to} ELSE {x} END"

    steps: Steps = {}
    for name in contract.revenue:
        # The longest shorter horizon that is known; the first always is.
        shorter = list(reversed(steps))
        steps[f"label_{name}"] = raised(
            f"raw_{name}", "0.0" if not shorter else shorter[0] if len(shorter) == 1 else f"coalesce({', '.join(shorter)})"
        )
    return steps


def _label_reasons(contract: Contract) -> list[tuple[str, str, str]]:
    target, first = contract.target, f"label_{contract.target}"
    reasons = [(f"{first} IS NULL", f"{target} missing", first)]
    if contract.payer is not None:
        reasons.append((f"raw_{contract.payer} IS NULL", f"{contract.payer} missing", f"raw_{contract.payer}"))
    for name in contract.revenue:
        x = f"label_{name}"
        reasons += [
            (f"NOT isfinite({x})", f"{name} not finite", x),
            (f"{x} < 0", f"{name} negative", x),
            (f"{x} > {ABSURD_REVENUE:.0f}", f"{name} above {ABSURD_REVENUE:.0e} USD", x),
        ]
    for place, name in enumerate(contract.revenue[1:], start=1):
        x, between = f"label_{name}", contract.revenue[1:place]
        if not between:
            reasons.append((f"{x} < {first}", f"{name} below {target}", x))
        else:
            shorter = ", ".join(f"coalesce(label_{other}, {first})" for other in between)
            reasons.append((f"{x} < greatest({first}, {shorter})", f"{name} below a shorter horizon", x))
    return reasons


def _label_sql(contract: Contract, name: str, labelled: bool) -> str:
    kind = {"int32": "INTEGER", "int64": "BIGINT", "double": "DOUBLE"}[contract.by_name[name].type]
    prefix = "label" if name in contract.revenue else "raw"
    return f"try_cast({prefix}_{name} AS {kind})" if labelled else f"NULL::{kind}"


def _output_sql(name: str, categorical: bool = False) -> str:
    # NaN, infinities and values beyond float32 all fail the comparison (DuckDB orders NaN above every number).
    return name if categorical else f"CASE WHEN abs({name}) <= {FLOAT32_MAX!r} THEN {name}::FLOAT END"


def _quote(name: str) -> str:
    return f'"{name}"'


def _canonical_steps(contract: Contract, labelled: bool) -> Steps:
    """Return the first layer over canonical scalars, which need no conversion."""
    steps: Steps = {"hour_start": "hour_start", "raw_row_id": _quote(contract.identifier)}
    for column in contract.columns:
        if column.name in contract.stored_labels and labelled:
            # In the longer horizons and the flag some writers use NaN for NULL; a row with a NaN target is quarantined.
            known = column.name == contract.target
            steps[f"raw_{column.name}"] = _quote(column.name) if known else f"CASE WHEN NOT isnan({column.name}) THEN {column.name} END"
        elif not column.is_label and not column.is_nested and not column.is_key:
            steps[f"raw_{column.name}"] = _quote(column.name)
    return steps


def _contract_steps(contract: Contract) -> Steps:
    """Return the first layer over columns that have the contract's own types."""
    steps: Steps = {"hour_start": "hour_start", "raw_row_id": _quote(contract.by_name[contract.identifier].in_files)}
    for column in contract.inputs:
        name, quoted = column.name, _quote(column.in_files)
        kind = kind_of(column)
        if kind in ("text", "list"):
            steps[f"raw_{name}"] = quoted
        elif kind in ("number", "timestamp"):
            number = f"try_cast({quoted} AS DOUBLE)"
            steps[f"raw_{name}"] = f"CASE WHEN abs({number}) <= {FLOAT32_MAX!r} THEN {number} END" if kind == "number" else number
        else:
            usable = f"list_transform(map_values({{}})::DOUBLE[], lambda x: CASE WHEN abs(x) <= {FLOAT32_MAX!r} THEN x END)"
            inner = f"list_transform(map_values({quoted}), lambda e: {usable.format('e')})"
            steps[f"raw_{name}_keys"] = f"map_keys({quoted})"
            steps[f"raw_{name}_values"] = inner if kind.startswith("nested") else usable.format(quoted)
    return steps


def _derived_steps(registry: Registry) -> Steps:
    """Return every step that a feature may need; unused steps are dropped when the query is assembled."""
    contract = registry.contract
    steps = _label_steps(contract)
    if contract.hour_key is not None:
        steps["hour_key"] = f"lpad(try_cast(raw_{contract.hour_key} AS INTEGER)::VARCHAR, 2, '0')"
    for column in contract.inputs:
        steps |= _column_steps(column, registry)
    for group in registry.groups.values():
        for overlap in group.overlaps:
            # list_intersect treats NULL as an empty list, hence the test.
            shared = f"len(list_intersect(raw_{overlap.of}, raw_{overlap.within}))"
            steps[overlap.name] = f"CASE WHEN raw_{overlap.of} IS NOT NULL AND raw_{overlap.within} IS NOT NULL THEN {shared} END"
            steps[f"{overlap.name}_share"] = f"{overlap.name} / nullif({overlap.of}__n_unique, 0)"
        for indicator, columns in group.indicators.items():
            tests = " AND ".join(f"{_presence(contract.by_name[name])} IS NULL" for name in columns)
            steps[f"missing__{indicator}"] = f"({tests})::INTEGER"
        steps |= {name: interaction.sql for name, interaction in group.expressions.items()}
    return steps


def _column_steps(column: Column, registry: Registry) -> Steps:
    c, kind = column.name, kind_of(column)
    own = own_keys(registry.contract)[column.own_key] if column.own_key is not None else None
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
            f"distant_{c}": f"CASE WHEN raw_{c} > {DISTANT_TIMESTAMP!r} THEN 1 END",
            f"ancient_{c}": f"CASE WHEN raw_{c} < {OLDEST_TIMESTAMP} THEN 1 END",
        }
    elif kind == "number":
        steps[f"valid_{c}"] = f"raw_{c}"
    tier = _tier_sql(f"valid_{c}", registry.price_tiers)
    for name, statistic in available(column).items():
        steps[feature_name(c, name)] = statistic.sql.format(c=c, own=own, period=column.cycle, tier=tier, months=list(MONTHS))
    return steps


def _number_steps(c: str, values: str, own: str | None) -> Steps:
    # A sum is finite exactly when every value is, short of overflow: one cheap pass shows whether the list needs cleaning.
    suspect = f"NOT isfinite(list_sum({values}))"
    steps = {
        f"finite_{c}": f"CASE WHEN {suspect} THEN list_transform({values}, lambda x: CASE WHEN isfinite(x) THEN x END) ELSE {values} END",
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
        **{f"{total}_{c}": f"list_{total}(finite_{c})" for total in ("min", "max")},
    }
    if own is not None and values.startswith("flat_"):
        steps[f"own_{c}"] = _own_entries(c, own, f"raw_{c}_values", f"list_max(list_filter(flatten({{}}), lambda x: {usable}))")
    elif own is not None:
        steps[f"own_{c}"] = _own_entries(c, own, f"finite_{c}", "list_max({})")
    return steps


def _own_entries(c: str, own: str, values: str, reduce: str) -> str:
    # The test first: most rows lack their own key, and only rows with it need the filter.
    entries = f"list_filter({values}, lambda x, i: raw_{c}_keys[i] = {own})"
    return f"CASE WHEN list_contains(raw_{c}_keys, {own}) THEN {reduce.format(entries)} END"


def _presence(column: Column) -> str:
    return f"raw_{column.name}_keys" if column.type.startswith("map") else f"raw_{column.name}"


def _tier_sql(x: str, edges: Sequence[float]) -> str:
    return f"CASE WHEN {x} IS NOT NULL THEN {' + '.join(f'({x} >= {edge})::INTEGER' for edge in edges)} END"


def _words(sql: str) -> list[str]:
    return _WORD.findall(_QUOTED.sub(" ", sql))


def _assemble(logical: Steps, derived: Steps, outputs: Mapping[str, str], source: str) -> str:
    """Join the steps that the outputs need into layers of one query; each layer selects only what later ones use."""
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
