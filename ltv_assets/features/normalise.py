"""From whatever type a file holds to the logical type of the contract, as SQL.

What belongs here: the classification of a column's physical type and the SQL expression that turns it into its logical
type: a map becomes two parallel lists (keys, values), a timestamp becomes unix seconds, text that is JSON is parsed.
What does not: statistics, reading files. Next to read: ``sql.py``.

Every file is judged by its own types, so an hour written with INT cannot turn another hour's 1.5 into 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import pyarrow as pa

from ltv_assets.contract import Column

Form = Literal["absent", "text", "bytes", "number", "timestamp", "map", "entries", "list", "unusable"]


def unwrap(kind: pa.DataType) -> pa.DataType:
    """Return the value type of a dictionary-encoded type, any other type unchanged."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def form_of(kind: pa.DataType | None) -> Form:
    """Classify a physical Arrow type; ``entries`` is a LIST of a STRUCT with two fields, read as (key, value)."""
    if kind is None or pa.types.is_null(kind):
        return "absent"
    kind = unwrap(kind)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_binary_view(kind):
        return "bytes"
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "timestamp"
    if pa.types.is_map(kind):
        return "map"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        element = unwrap(kind.value_type)
        if pa.types.is_struct(element):
            return "entries" if element.num_fields == 2 else "unusable"
        return "list"
    return "unusable"


def is_readable(column: Column, kind: pa.DataType | None) -> bool:
    """Tell whether a physical type can be turned into the column's logical type."""
    form = form_of(kind)
    if form == "absent":
        return True
    if column.type.startswith("map"):
        if form in ("text", "bytes"):
            return True
        if form not in ("map", "entries"):
            return False
        inner = form_of(_entry_types(kind)[1])
        return (
            inner in ("map", "entries", "text", "absent")
            if column.type.startswith("map<string,map")
            else inner in ("number", "timestamp", "text", "absent")
        )
    if column.type == "list<string>":
        return form in ("text", "bytes") or (form == "list" and form_of(unwrap(kind).value_type) in ("text", "bytes", "number", "absent"))
    if column.type == "string":
        return form in ("text", "bytes", "number", "timestamp")
    if column.meaning == "timestamp":
        return form in ("text", "number", "timestamp")
    return form in ("text", "number")


def scalar_text(x: str, kind: pa.DataType | None) -> str:
    """SQL of a VARCHAR from a scalar; bytes that are not UTF-8 become NULL."""
    form = form_of(kind)
    if form in ("absent", "unusable"):
        return "NULL::VARCHAR"
    if form == "bytes":
        return f"try(decode({x}))"
    return x if form == "text" else f"{x}::VARCHAR"


def scalar_number(x: str, kind: pa.DataType | None) -> str:
    """SQL of a DOUBLE from a scalar number or its text; text that is no number becomes NULL."""
    form = form_of(kind)
    if form == "number":
        return f"{x}::DOUBLE"
    return f"try_cast({x} AS DOUBLE)" if form == "text" else "NULL::DOUBLE"


def scalar_timestamp(x: str, kind: pa.DataType | None) -> str:
    """SQL of unix seconds (DOUBLE) from a number of seconds, a TIMESTAMP of any unit, a DATE or the text of either."""
    form = form_of(kind)
    if form == "timestamp":
        return f"epoch({x})::DOUBLE"
    if form == "text":
        return f"coalesce(try_cast({x} AS DOUBLE), epoch(try_cast({x} AS TIMESTAMP)))"
    return scalar_number(x, kind)


def string_list(x: str, kind: pa.DataType | None) -> str:
    """SQL of a VARCHAR[] from a list or from the JSON text of an array; other text becomes NULL."""
    form = form_of(kind)
    if form == "list":
        element = unwrap(kind).value_type
        inner = form_of(element)
        if inner == "text":
            return x
        return "list_transform({x}, lambda e: {e})".format(x=x, e=scalar_text("e", element)) if inner == "bytes" else f"{x}::VARCHAR[]"
    if form in ("text", "bytes"):
        text = _json(scalar_text(x, kind))
        return f"CASE json_type({text}) WHEN 'ARRAY' THEN list_transform(json_extract({text}, '$[*]'), lambda e: e ->> '$') END"
    return "NULL::VARCHAR[]"


def number_entries(x: str, kind: pa.DataType | None, variable: str = "e") -> tuple[str, str]:
    """SQL of the keys (VARCHAR[]) and values (DOUBLE[]) of a map of numbers in any layout; ``variable`` names the lambda's."""
    return _entries(x, kind, "DOUBLE[]", scalar_number, "try_cast({e} ->> '$' AS DOUBLE)", variable)


def timestamp_entries(x: str, kind: pa.DataType | None, variable: str = "e") -> tuple[str, str]:
    """SQL of the keys (VARCHAR[]) and unix seconds (DOUBLE[]) of a map of timestamps in any layout."""
    json_value = "coalesce(try_cast({e} ->> '$' AS DOUBLE), epoch(try_cast({e} ->> '$' AS TIMESTAMP)))"
    return _entries(x, kind, "DOUBLE[]", scalar_timestamp, json_value, variable)


def nested_entries(x: str, kind: pa.DataType | None, *, timestamps: bool) -> tuple[str, str]:
    """SQL of the outer keys (VARCHAR[]) and the inner values (DOUBLE[][]) of a nested map in any layout; inner keys are not used."""
    inner = timestamp_entries if timestamps else number_entries
    json_value = inner("({e})::VARCHAR", pa.string(), "i")[1]
    return _entries(x, kind, "DOUBLE[][]", lambda value, value_kind: inner(value, value_kind, "i")[1], json_value, "e")


def logical_columns(column: Column, kind: pa.DataType | None) -> Mapping[str, str]:
    """Return the canonical columns of a contract column: name -> SQL over the physical column.

    Maps yield ``raw_<column>_keys`` and ``raw_<column>_values``, everything else ``raw_<column>``. An absent or unreadable
    type yields typed NULLs.
    """
    name = column.name
    quoted = f'"{name}"'
    if not is_readable(column, kind):
        kind = None
    if column.type.startswith("map"):
        if column.type.startswith("map<string,map"):
            keys, values = nested_entries(quoted, kind, timestamps=column.meaning == "timestamp")
        elif column.meaning == "timestamp":
            keys, values = timestamp_entries(quoted, kind)
        else:
            keys, values = number_entries(quoted, kind)
        return {f"raw_{name}_keys": keys, f"raw_{name}_values": values}
    if column.type == "list<string>":
        return {f"raw_{name}": string_list(quoted, kind)}
    if column.type == "string" and column.meaning != "number":
        return {f"raw_{name}": scalar_text(quoted, kind)}
    if column.meaning == "timestamp":
        return {f"raw_{name}": scalar_timestamp(quoted, kind)}
    return {f"raw_{name}": scalar_number(quoted, kind)}


def _entry_types(kind: pa.DataType | None) -> tuple[pa.DataType, pa.DataType]:
    kind = unwrap(kind)
    if pa.types.is_map(kind):
        return kind.key_type, kind.item_type
    element = unwrap(kind.value_type)
    return element.field(0).type, element.field(1).type


def _json(text: str) -> str:
    return f"CASE WHEN json_valid({text}) THEN {text} END"


def _entries(
    x: str, kind: pa.DataType | None, empty: str, convert: Callable[[str, pa.DataType], str], json_value: str, variable: str
) -> tuple[str, str]:
    form = form_of(kind)
    each = f"lambda {variable}:"
    if form == "map":
        key_type, value_type = _entry_types(kind)
        keys, values = f"map_keys({x})", f"map_values({x})"
        key, value = scalar_text(variable, key_type), convert(variable, value_type)
        if key != variable:
            keys = f"list_transform({keys}, {each} {key})"
        # A cast of the whole list is cheaper than a lambda that casts each value.
        values = f"{values}::DOUBLE[]" if value == f"{variable}::DOUBLE" else f"list_transform({values}, {each} {value})"
        return keys, values
    if form == "entries":
        key_type, value_type = _entry_types(kind)
        struct = unwrap(unwrap(kind).value_type)
        key = scalar_text(f'{variable}."{struct.field(0).name}"', key_type)
        value = convert(f'{variable}."{struct.field(1).name}"', value_type)
        return f"list_transform({x}, {each} {key})", f"list_transform({x}, {each} {value})"
    if form in ("text", "bytes"):
        text = _json(scalar_text(x, kind))
        elements = f"json_extract({text}, '$[*]')"
        pair_key = f"coalesce({variable} ->> '$.key', {variable} ->> '$[0]')"
        pair_value = f"coalesce({variable} -> '$.value', {variable} -> '$[1]')"
        keys = (
            f"CASE json_type({text}) WHEN 'OBJECT' THEN json_keys({text})"
            f" WHEN 'ARRAY' THEN list_transform({elements}, {each} {pair_key}) END"
        )
        values = (
            f"CASE json_type({text})"
            f" WHEN 'OBJECT' THEN list_transform(json_extract({text}, '$.*'), {each} {json_value.format(e=variable)})"
            f" WHEN 'ARRAY' THEN list_transform({elements}, {each} {json_value.format(e=pair_value)}) END"
        )
        return keys, values
    return "NULL::VARCHAR[]", f"NULL::{empty}"
