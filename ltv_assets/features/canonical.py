"""The one reader of raw columns: convert any physical type of a file to the canonical Arrow type of the logical type.

What belongs here: every physical form of a column of the contract, its conversion, and the count of values that the
conversion loses. What does not: reading files (``flatten/``), statistics (``arrays.py``, ``sql.py``).
Next to read: ``arrays.py``.

| logical type | canonical Arrow type |
|---|---|
| number, timestamp (unix seconds) | double; non-finite is NULL |
| text | dictionary of string, valid UTF-8 |
| list of text | list of such text |
| map, map of maps | map from such text to double, to a map |
| identifier | string, valid UTF-8 |

``reads`` calls ``read_column`` on zero rows, so the two always agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ltv_assets.core.contract import HOUR_DOMAIN, Column
from ltv_assets.features.statistics import kind_of

FLOAT32_MAX = 3.4028234663852886e38
TEXT = pa.dictionary(pa.int32(), pa.string())
_NUMBERS = pa.map_(TEXT, pa.float64())

# The white space of the SQL engine's patterns; Python's has more characters.
_SPACE = r"[ \t\n\f\r]"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]+)?)?"
_OFFSET = r"Z|UTC|[+-](?:0[0-9]|1[0-5])(?::?[0-5][0-9])?"
TIMESTAMP_TEXT = rf"{_SPACE}*[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}(?:[T ]{_TIME}{_SPACE}?(?:{_OFFSET})?)?{_SPACE}*"
"""Text that is read as a moment: ISO 8601 with or without a time and an offset; without an offset it is UTC."""

NUMBER_TEXT = rf"{_SPACE}*[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:nan|inf|infinity)){_SPACE}*"
"""Text that is read as a number; a comma, a unit or a thousands separator does not match."""

_NUMBER = re.compile(NUMBER_TEXT, re.ASCII)
_TIMESTAMP = re.compile(TIMESTAMP_TEXT, re.ASCII)

Query = Callable[[str, pa.Table], pa.Table]
"""Runs SQL over a table that the SQL calls ``cells``; rows keep their order."""

Mask = NDArray[np.bool_]
Offsets = NDArray[np.int32]


class UnreadableTypeError(ValueError):
    """A physical type that cannot be read as the column's logical type."""


@dataclass(slots=True)
class Findings:
    """Counts of unusable values of one column.

    ``lost`` counts cells, map entries and list elements that are present and unreadable, ``example`` is the first as
    text; ``nonfinite`` counts NaN and infinite values, ``unreadable`` texts whose bytes that are not UTF-8 were replaced;
    ``illegible`` maps rows of an identifier that is not UTF-8 to its escaped bytes.
    """

    lost: int = 0
    example: str | None = None
    nonfinite: int = 0
    unreadable: int = 0
    illegible: dict[int, str] = field(default_factory=dict)

    def lose(self, mask: Mask, example: Callable[[int], object]) -> None:
        """Count the values of a mask as lost; ``example`` returns the value at a position."""
        count = int(np.count_nonzero(mask))
        if count:
            if self.example is None:
                text = str(example(int(np.argmax(mask))))
                self.example = text if len(text) <= EXAMPLE_LENGTH else f"{text[: EXAMPLE_LENGTH - 3]}..."
            self.lost += count


EXAMPLE_LENGTH = 60


def canonical_type(column: Column) -> pa.DataType:
    """Return the Arrow type that `read_column` yields for a column."""
    if column.is_key:
        return pa.string()
    if column.is_label:
        return pa.float64()
    return {
        "number": pa.float64(),
        "timestamp": pa.float64(),
        "text": TEXT,
        "list": pa.list_(TEXT),
        "nested_counts": pa.map_(TEXT, _NUMBERS),
        "nested_timestamps": pa.map_(TEXT, _NUMBERS),
    }.get(kind_of(column), _NUMBERS)


def described(column: Column) -> str:
    """Return the kind of a column's values, in words for a message."""
    if column.is_key:
        return "text"
    if column.is_label:
        return "a number"
    return {
        "number": "a number",
        "timestamp": "a moment",
        "text": "text",
        "list": "a list of texts",
        "timestamp_map": "a map of moments",
        "nested_counts": "a map of maps of numbers",
        "nested_timestamps": "a map of maps of moments",
    }.get(kind_of(column), "a map of numbers")


@cache
def reads(column: Column, kind: pa.DataType) -> bool:
    """Tell whether values of a physical type can be read as the column's logical type."""
    try:
        read_column(column, pa.nulls(0, kind), _no_query)
    except UnreadableTypeError:
        return False
    return True


def read_column(column: Column, array: pa.Array, query: Query) -> tuple[pa.Array, Findings]:
    """Convert the values of a raw column to ``canonical_type(column)``, and count lost values.

    Raises UnreadableTypeError if the physical type cannot be read as the logical type.
    """
    reading = _Reading(query, Findings())
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), canonical_type(column)), reading.findings
    if column.is_key:
        values = reading.identifiers(array)
    elif column.is_label:
        # Not finite stays what it is: a row with such a label is quarantined later.
        values = reading.numbers(array)
    else:
        kind = kind_of(column)
        values = {
            "number": reading.scalars,
            "timestamp": reading.moments,
            "text": reading.texts,
            "list": reading.lists,
            "nested_counts": lambda a: reading.maps(a, lambda inner: reading.maps(inner, reading.numbers), nested=True),
            "nested_timestamps": lambda a: reading.maps(a, lambda inner: reading.maps(inner, reading.timestamps), nested=True),
            "timestamp_map": lambda a: reading.maps(a, reading.timestamps),
        }.get(kind, lambda a: reading.maps(a, reading.numbers, hours=column.keyed_by == HOUR_DOMAIN))(array)
    return values, reading.findings


def parse_number(text: str) -> float | None:
    """Return the number that a text is read as, None where it is lost; the single-value form of what `read_column` does."""
    return float(text) if _NUMBER.fullmatch(text) else None


def parse_timestamp(text: str) -> float | None:
    """Return the unix seconds that a text is read as, None where it is lost; the single-value form of what `read_column` does."""
    number = parse_number(text)
    if number is not None or not _TIMESTAMP.fullmatch(text):
        return number
    written = text.strip().replace("UTC", "+00:00")
    try:
        when = datetime.fromisoformat(written[:11] + written[11:].replace(" ", ""))
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _no_query(_: str, __: pa.Table) -> pa.Table:
    raise AssertionError("no values, no query")


class _Reading:
    """Conversions of one column; each takes an array of any physical type and returns one of the canonical type."""

    def __init__(self, query: Query, findings: Findings) -> None:
        self._query = query
        self.findings = findings

    # ------------------------------------------------------------------------------------------------------- scalars

    def identifiers(self, array: pa.Array) -> pa.Array:
        """Strings; a value that is not UTF-8 is NULL and recorded with its bytes escaped."""
        values = self._texts(array, keep_illegible=True)
        return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values

    def texts(self, array: pa.Array) -> pa.DictionaryArray:
        """Text as dictionary codes; bytes that are not UTF-8 become U+FFFD."""
        values = self._texts(array)
        encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
        return encoded if encoded.type == TEXT else encoded.cast(TEXT)

    def scalars(self, array: pa.Array) -> pa.Array:
        """Finite doubles within the range of a float32."""
        return self._finite(self.numbers(array), largest=FLOAT32_MAX)

    def moments(self, array: pa.Array) -> pa.Array:
        """Finite unix seconds."""
        return self._finite(self.timestamps(array))

    def numbers(self, array: pa.Array) -> pa.Array:
        """Doubles from numbers of any width, booleans, or their text."""
        array = self._scalar(array)
        kind = array.type
        if pa.types.is_dictionary(kind):
            return self._through_dictionary(array, self._numbers_and_losses)
        values, lost = self._numbers_and_losses(array)
        self._lose(lost, array)
        return values

    def timestamps(self, array: pa.Array) -> pa.Array:
        """Unix seconds as doubles, from numbers of seconds, timestamps and dates of any unit and zone, or the text of either."""
        array = self._scalar(array)
        if pa.types.is_dictionary(array.type):
            return self._through_dictionary(array, self._timestamps_and_losses)
        values, lost = self._timestamps_and_losses(array)
        self._lose(lost, array)
        return values

    def _numbers_and_losses(self, array: pa.Array) -> tuple[pa.Array, Mask | None]:
        kind = array.type
        if pa.types.is_null(kind):
            return pa.nulls(len(array), pa.float64()), None
        if _is_text(kind):
            return self._parsed(array, "try_cast(trim(t) AS DOUBLE)", NUMBER_TEXT)
        if pa.types.is_decimal(kind):
            # Through text, which rounds once; Arrow's own conversion multiplies by an inexact power of ten.
            return array.cast(pa.string()).cast(pa.float64()), None
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            return array.cast(pa.float64(), safe=False), None
        raise UnreadableTypeError(str(kind))

    def _timestamps_and_losses(self, array: pa.Array) -> tuple[pa.Array, Mask | None]:
        kind = array.type
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return _seconds(array), None
        if _is_text(kind):
            numbers, no_number = self._numbers_and_losses(array)
            if no_number is None or not no_number.any():
                return numbers, None
            moments, no_moment = self._parsed(
                array, "epoch(try_cast(replace(regexp_replace(trim(t), ' ([-+U])', '\\1'), 'UTC', 'Z') AS TIMESTAMPTZ))", TIMESTAMP_TEXT
            )
            return pc.coalesce(numbers, moments), None if no_moment is None else no_number & no_moment
        return self._numbers_and_losses(array)

    def _parsed(self, array: pa.Array, sql: str, pattern: str) -> tuple[pa.Array, Mask | None]:
        """Doubles of the texts that match the pattern and that the engine can cast; other texts are lost."""
        if array.null_count == len(array):
            return pa.nulls(len(array), pa.float64()), None
        query = f"SELECT CASE WHEN regexp_full_match(t, '{pattern}') THEN {sql} END AS v FROM cells"
        found = self._query(query, pa.table({"t": self._texts(array)}))
        values = found.column("v").combine_chunks()
        return values, _valid(array) & ~_valid(values)

    def _through_dictionary(self, array: pa.DictionaryArray, convert: Callable[[pa.Array], tuple[pa.Array, Mask | None]]) -> pa.Array:
        values, lost = convert(array.dictionary)
        if lost is not None and lost.any():
            codes = array.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            self._lose(np.append(lost, False)[codes], array)
        return values.take(array.indices)

    def _finite(self, values: pa.Array, largest: float | None = None) -> pa.Array:
        """The values, NULL where they are NaN, infinite or beyond ``largest``; those are counted."""
        floats = _floats(values)
        usable = np.isfinite(floats) if largest is None else np.abs(floats) <= largest
        bad = len(floats) - int(np.count_nonzero(usable)) - values.null_count
        if not bad:
            return values
        self.findings.nonfinite += bad
        return pa.array(floats, mask=~usable)

    def _lose(self, lost: Mask | None, array: pa.Array) -> None:
        if lost is not None and lost.any():
            self.findings.lose(lost, lambda i: _shown(array[i]))

    # --------------------------------------------------------------------------------------------------------- texts

    def _scalar(self, array: pa.Array) -> pa.Array:
        """The array without an extension type; of the JSON type the texts of its values, which is not the text of the JSON."""
        return self._json_texts(array.storage) if isinstance(array.type, pa.JsonType) else _plain(array)

    def _texts(self, array: pa.Array, *, keep_illegible: bool = False) -> pa.Array:
        """A string or dictionary-of-string array of any scalar that has a text."""
        array = self._scalar(array)
        kind = array.type
        if pa.types.is_dictionary(kind) and not keep_illegible:
            if array.dictionary.null_count or not _is_text(kind.value_type):
                return self._texts(array.dictionary_decode())
            words = pa.DictionaryArray.from_arrays(array.indices.cast(pa.int32()), self._texts_counted(array.dictionary, array.indices))
            # Equal values must share a code. Some writers repeat a value, and replaced bytes can make two values equal.
            distinct = pc.count_distinct(words.dictionary).as_py() == len(words.dictionary)
            return words if distinct else words.dictionary_decode().dictionary_encode()
        if pa.types.is_dictionary(kind):
            array = array.dictionary_decode()
        return self._texts_counted(array, None, keep_illegible=keep_illegible)

    def _texts_counted(self, array: pa.Array, indices: pa.Array | None, *, keep_illegible: bool = False) -> pa.Array:
        """Strings of ``array``; replaced texts are counted as often as ``indices`` refers to them."""
        kind = array.type
        if isinstance(array, pa.UuidArray):
            return _uuid_texts(array.storage)
        if pa.types.is_null(kind):
            return pa.nulls(len(array), pa.string())
        if not _is_text(kind):
            return self._spelled(array)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            try:
                array.validate(full=True)
                return array if pa.types.is_string(kind) else array.cast(pa.string())
            except pa.ArrowInvalid:
                array = array.cast(pa.large_binary() if pa.types.is_large_string(kind) else pa.binary())
        elif pa.types.is_fixed_size_binary(kind):
            array = array.cast(pa.binary())
        try:
            return array.cast(pa.string())
        except pa.ArrowInvalid:
            return self._repaired(array, indices, keep_illegible=keep_illegible)

    def _repaired(self, array: pa.Array, indices: pa.Array | None, *, keep_illegible: bool) -> pa.Array:
        words = array.to_pylist()
        texts = [None if word is None else word.decode("utf-8", errors="replace") for word in words]
        bad = {i for i, (text, word) in enumerate(zip(texts, words, strict=True)) if text is not None and text.encode() != word}
        if keep_illegible:
            self.findings.illegible = {i: words[i].decode("utf-8", errors="backslashreplace") for i in sorted(bad)}
            texts = [None if i in bad else text for i, text in enumerate(texts)]
        elif indices is None:
            self.findings.unreadable += len(bad)
        else:
            changed = np.append(np.isin(np.arange(len(words)), list(bad)), False)
            self.findings.unreadable += int(changed[indices.fill_null(-1).to_numpy(zero_copy_only=False)].sum())
        return pa.array(texts, pa.string())

    def _spelled(self, array: pa.Array) -> pa.Array:
        """Numbers and dates as the engine writes them."""
        kind = array.type
        if not (pa.types.is_primitive(kind) or pa.types.is_decimal(kind)) or pa.types.is_time(kind) or pa.types.is_duration(kind):
            raise UnreadableTypeError(str(kind))
        if array.null_count == len(array):
            return pa.nulls(len(array), pa.string())
        if pa.types.is_float16(kind):
            array = array.cast(pa.float32())
        if pa.types.is_floating(kind):
            finite = pc.is_finite(array)
            self.findings.nonfinite += len(finite) - finite.null_count - finite.true_count
            array = pc.if_else(finite, array, pa.scalar(None, array.type))
        return self._query("SELECT t::VARCHAR AS t FROM cells", pa.table({"t": array})).column("t").combine_chunks().cast(pa.string())

    # ------------------------------------------------------------------------------------------------ lists and maps

    def lists(self, array: pa.Array) -> pa.ListArray:
        """Lists of text from any list layout or the JSON text of an array."""
        array = _plain(array)
        if pa.types.is_dictionary(array.type) or _is_text(array.type):
            valid, offsets, elements = self._json_list(array)
        else:
            valid, offsets, elements = _list_parts(array)
        return pa.ListArray.from_arrays(pa.array(offsets), self.texts(elements), mask=_mask(valid))

    def maps(self, array: pa.Array, convert: Callable[[pa.Array], pa.Array], *, nested: bool = False, hours: bool = False) -> pa.MapArray:
        """Maps from any map layout, list of key and value, or the JSON text of either; ``convert`` reads the values."""
        array = _plain(array)
        as_json = pa.types.is_dictionary(array.type) or _is_text(array.type)
        valid, offsets, keys, items = self._json_map(array) if as_json else _map_parts(array)
        words = _two_digits(self.texts(keys)) if hours else self.texts(keys)
        if words.null_count:
            nameless = ~_valid(words)
            # Without a key an entry belongs to nothing; in JSON it is an element that is no pair.
            self.findings.lose(nameless, lambda i: _shown(items[i]))
            named = pa.array(~nameless)
            offsets = np.append(0, np.cumsum(~nameless))[offsets].astype(np.int32)
            words, items = words.filter(named), items.filter(named)
        values = convert(self._json_texts(items) if as_json and not nested else items)
        if not nested:
            values = self._finite(values, largest=FLOAT32_MAX)
        return pa.MapArray.from_arrays(pa.array(offsets), words, values, mask=_mask(valid))

    def _json_list(self, array: pa.Array) -> tuple[Mask, Offsets, pa.Array]:
        found, valid = self._json(array, "CASE WHEN kind = 'ARRAY' THEN json_extract(j, '$[*]') END AS elements", ("ARRAY",))
        if found is None:
            return valid, np.zeros(len(array) + 1, np.int32), pa.nulls(0, pa.string())
        present, offsets, elements = _list_parts(found.column("elements").combine_chunks())
        return present, offsets, self._json_texts(elements)

    def _json_map(self, array: pa.Array) -> tuple[Mask, Offsets, pa.Array, pa.Array]:
        """Keys, and values as JSON; an element of a list that is no pair has no key and is itself the value."""
        key = (
            "CASE json_type(e)"
            " WHEN 'ARRAY' THEN CASE WHEN json_array_length(e) = 2 AND json_type(e, '$[0]') = 'VARCHAR' THEN e ->> '$[0]' END"
            " WHEN 'OBJECT' THEN CASE WHEN json_exists(e, '$.value') AND json_type(e, '$.key') = 'VARCHAR' THEN e ->> '$.key' END END"
        )
        item = f"CASE WHEN ({key}) IS NULL THEN e WHEN json_type(e) = 'ARRAY' THEN e -> '$[1]' ELSE e -> '$.value' END"
        elements = "list_transform(json_extract(j, '$[*]'), lambda e: {})"
        select = (
            f"CASE kind WHEN 'OBJECT' THEN json_keys(j) WHEN 'ARRAY' THEN {elements.format(key)} END AS keys,"
            f" CASE kind WHEN 'OBJECT' THEN json_extract(j, '$.*') WHEN 'ARRAY' THEN {elements.format(item)} END AS items"
        )
        found, valid = self._json(array, select, ("OBJECT", "ARRAY"))
        if found is None:
            nothing = pa.nulls(0, pa.string())
            return valid, np.zeros(len(array) + 1, np.int32), nothing, nothing
        present, offsets, keys = _list_parts(found.column("keys").combine_chunks())
        return present, offsets, keys, _list_parts(found.column("items").combine_chunks())[2]

    def _json(self, array: pa.Array, select: str, kinds: tuple[str, ...]) -> tuple[pa.Table | None, Mask]:
        """Run ``select`` over the JSON values ``j`` and their ``kind``; text that is not JSON of these kinds is lost.

        Text that was encoded twice, the JSON of a text, is decoded once more.
        """
        valid = _valid(array)
        if not valid.any():
            return None, valid
        words = self._texts(array)
        once = "SELECT t, CASE WHEN json_valid(t) THEN t END AS j FROM cells"
        twice = (
            "SELECT t, CASE WHEN json_type(j) = 'VARCHAR' THEN CASE WHEN json_valid(j ->> '$') THEN j ->> '$' ELSE j END ELSE j END AS j"
            f" FROM ({once})"
        )
        found = self._query(
            f"SELECT kind, {select} FROM (SELECT j, json_type(j) AS kind FROM ({twice}))",
            pa.table({"t": words.dictionary_decode() if pa.types.is_dictionary(words.type) else words}),
        )
        names = found.column("kind").combine_chunks()
        lost = valid & ~pc.is_in(names, pa.array([*kinds, "NULL"], names.type)).to_numpy(zero_copy_only=False)
        self._lose(lost, array)
        return found, pc.is_in(names, pa.array(kinds, names.type)).to_numpy(zero_copy_only=False)

    def _json_texts(self, elements: pa.Array) -> pa.Array:
        """The texts of JSON values that are texts or numbers; NULL stays NULL, everything else is lost."""
        elements = _plain(elements)
        if len(elements) == 0:
            return pa.nulls(0, pa.string())
        valid = "SELECT CASE WHEN json_valid(t) THEN t END AS j FROM cells"
        found = self._query(f"SELECT json_type(j) AS kind, j ->> '$' AS v FROM ({valid})", pa.table({"t": elements.cast(pa.string())}))
        names = found.column("kind").combine_chunks()
        lost = pc.is_in(names, pa.array(["BOOLEAN", "OBJECT", "ARRAY"], names.type)).to_numpy(zero_copy_only=False)
        lost |= _valid(elements) & ~_valid(names)
        self._lose(lost, elements)
        values = found.column("v").combine_chunks().cast(pa.string())
        return pc.if_else(pa.array(lost), pa.scalar(None, pa.string()), values) if lost.any() else values


# ------------------------------------------------------------------------------------------------------- physical forms


def _is_text(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _plain(array: pa.Array) -> pa.Array:
    """The array without an extension type around it; a UUID keeps it, because only the type shows how it is written."""
    while isinstance(array.type, pa.BaseExtensionType) and not isinstance(array, pa.UuidArray):
        array = array.storage
    return array


def _shown(value: pa.Scalar) -> object:
    found = value.as_py()
    return found.decode("utf-8", errors="backslashreplace") if isinstance(found, bytes) else found


def _seconds(array: pa.Array) -> pa.Array:
    """Unix seconds of timestamps and dates, converted as doubles, because whole numbers of a smaller unit can overflow."""
    kind = array.type
    if pa.types.is_date32(kind):
        return pc.multiply(array.cast(pa.int32()).cast(pa.float64()), 86400.0)
    unit = "ms" if pa.types.is_date64(kind) else kind.unit
    if unit == "ns":
        unit, array = "us", array.cast(pa.timestamp("us", tz=kind.tz), safe=False)
    return pc.divide(array.cast(pa.int64()).cast(pa.float64(), safe=False), {"s": 1.0, "ms": 1e3, "us": 1e6}[unit])


def _two_digits(words: pa.DictionaryArray) -> pa.DictionaryArray:
    """Hours of the day as the contract writes them: the keys 5, 5.0 and 05 are one."""
    hours = pc.replace_substring_regex(words.dictionary, r"^([0-9]{1,2})\.0$", r"\1")
    hours = pc.replace_substring_regex(hours, r"^([0-9])$", r"0\1")
    if hours.equals(words.dictionary):
        return words
    return pa.DictionaryArray.from_arrays(words.indices, hours).dictionary_decode().dictionary_encode()


def _uuid_texts(storage: pa.FixedSizeBinaryArray) -> pa.Array:
    """The usual text of UUIDs: 8-4-4-4-12 lower-case hexadecimal digits."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    raw = np.frombuffer(b"".join(storage.fill_null(bytes(16)).to_pylist()), np.uint8).reshape(-1, 16)
    text = np.full((len(raw), 36), ord("-"), np.uint8)
    places = [i for i in range(36) if i not in (8, 13, 18, 23)]
    text[:, places[0::2]], text[:, places[1::2]] = digits[raw >> 4], digits[raw & 15]
    offsets = pa.py_buffer(np.arange(0, 36 * len(raw) + 1, 36, dtype=np.int32))
    texts = pa.StringArray.from_buffers(len(raw), offsets, pa.py_buffer(text.tobytes()))
    return pc.if_else(storage.is_valid(), texts, pa.scalar(None, pa.string())) if storage.null_count else texts


def _list_parts(array: pa.Array) -> tuple[Mask, Offsets, pa.Array]:
    """Which rows of any list layout are present, where their elements begin and end, and the elements one after the other."""
    array = _unwrapped(_plain(array))
    kind = array.type
    if pa.types.is_map(kind) or not _is_list(kind):
        raise UnreadableTypeError(str(kind))
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    elements = array.flatten()
    if not isinstance(elements.type, pa.JsonType):
        elements = _plain(elements)
    if pa.types.is_struct(elements.type) and elements.type.num_fields == 1:
        elements = elements.flatten()[0]
    return _valid(array), offsets, elements


def _map_parts(array: pa.Array) -> tuple[Mask, Offsets, pa.Array, pa.Array]:
    """Which rows of a map or of a list of key and value are present, where their entries begin and end, keys and values."""
    array = _unwrapped(_plain(array))
    if pa.types.is_map(array.type):
        valid = _valid(array)
        offsets = array.offsets.to_numpy(zero_copy_only=False) if len(array) else np.zeros(1, np.int32)
        first, last = int(offsets[0]), int(offsets[-1])
        offsets = offsets - offsets[0] if first else offsets
        keys, items = array.keys.slice(first, last - first), array.items.slice(first, last - first)
        gone = np.flatnonzero(~valid) if array.null_count else np.empty(0, np.int64)
        if (offsets[gone + 1] != offsets[gone]).any():
            lengths = np.diff(offsets)
            kept = pa.array(np.repeat(valid, lengths))
            keys, items = keys.filter(kept), items.filter(kept)
            offsets = np.append(0, np.cumsum(np.where(valid, lengths, 0))).astype(np.int32)
        return valid, offsets, keys, items
    valid, offsets, entries = _list_parts(array)
    if not pa.types.is_struct(entries.type):
        raise UnreadableTypeError(str(array.type))
    names = [entries.type.field(i).name.casefold() for i in range(entries.type.num_fields)]
    if sorted(n for n in names if n in ("key", "value")) == ["key", "value"]:
        places = [names.index("key"), names.index("value")]
    elif len(names) == 2:
        places = [0, 1]
    else:
        raise UnreadableTypeError(str(array.type))
    columns = entries.flatten()
    return valid, offsets, columns[places[0]], columns[places[1]]


def _unwrapped(array: pa.Array) -> pa.Array:
    """A list that an older writer put into a struct of its own (``struct<list: list<...>>``), any other array unchanged."""
    while pa.types.is_struct(array.type) and array.type.num_fields == 1:
        array = _plain(array.flatten()[0])
    return array


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def _mask(valid: Mask) -> pa.Array | None:
    return None if valid.all() else pa.array(~valid)


def _valid(array: pa.Array) -> Mask:
    return pc.is_valid(array).to_numpy(zero_copy_only=False)


def _floats(values: pa.Array) -> NDArray[np.float64]:
    """Values with NaN for NULL."""
    return values.to_numpy(zero_copy_only=False)
