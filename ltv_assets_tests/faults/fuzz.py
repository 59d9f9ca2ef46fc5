"""Random damage to tiny inputs: bytes of a file, types of its columns, values of its rows, text of a configuration.

Every generator takes a seeded ``random.Random``, so a failing case is repeated by its number. ``run`` tries cases one after the
other and counts their answers; anything but an answer is an exception. As a program it does so for some seconds:

    python -m ltv_assets_tests.faults.fuzz FOLDER SECONDS FIRST_CASE
"""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ltv_assets.core.config import PROJECT_ROOT, parse_config, walk_keys
from ltv_assets.core.errors import ConfigError
from ltv_assets.features.registry import load_registry
from ltv_assets.ingestion.calendar import discover
from ltv_assets_tests.faults.world import World, rows_of
from ltv_assets_tests.oracle.awkward_rows import write_hour

WORDS = (
    "",
    "a",
    "b1",
    "1.5",
    "-3",
    "nan",
    "inf",
    "1e400",
    "{",
    "[1",
    '{"a": 1}',
    '[["a", 2]]',
    "2025-10-01",
    "é🎮",
    "=1+1",
    "'; DROP",
    "x" * 300,
)
NUMBERS = (0.0, 1.0, -1.0, 0.5, 1e-320, 1e10, 1e38, 1e308, -1e308, math.nan, math.inf, -math.inf, 1.7e9, 1.7e12)
WHOLE = (0, 1, -1, 7, 255, 65_536, 2**31 - 1, -(2**31), 2**53, 2**63 - 1, -(2**63), 1_759_000_000)
MOMENTS = (datetime(1, 1, 1), datetime(1969, 12, 31), datetime(2025, 9, 30, 23), datetime(2200, 1, 1))


# ---------------------------------------------------------------------------------------------------------------- bytes


def _random_bytes(rng: random.Random, size: int) -> bytes:
    return bytes(rng.randrange(256) for _ in range(size))


def flip_bytes(data: bytes, rng: random.Random) -> bytes:
    """Overwrite one to eight bytes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Keep a part from the front or from the back."""
    at = rng.randrange(len(data))
    return data[:at] if rng.random() < 0.7 else data[at:]


def zero_stretch(data: bytes, rng: random.Random) -> bytes:
    """Overwrite a stretch with zeros, as a disk that lost a block does."""
    at, size = rng.randrange(len(data)), rng.choice((16, 512, 4096))
    return data[:at] + b"\0" * min(size, len(data) - at) + data[at + size :]


def insert(data: bytes, rng: random.Random) -> bytes:
    """Insert bytes, which moves everything behind them."""
    at = rng.randrange(len(data))
    return data[:at] + _random_bytes(rng, rng.choice((1, 3, 100))) + data[at:]


BYTE_DAMAGE: tuple[Callable[[bytes, random.Random], bytes], ...] = (flip_bytes, flip_bytes, cut, zero_stretch, insert)


# ---------------------------------------------------------------------------------------------------------------- types

SIMPLE: tuple[pa.DataType, ...] = (
    pa.null(),
    pa.bool_(),
    pa.int8(),
    pa.uint64(),
    pa.int32(),
    pa.int64(),
    pa.float16(),
    pa.float32(),
    pa.float64(),
    pa.decimal128(38, 9),
    pa.date32(),
    pa.time64("us"),
    pa.timestamp("s"),
    pa.timestamp("ms", "UTC"),
    pa.timestamp("ns"),
    pa.duration("ms"),
    pa.string(),
    pa.large_string(),
    pa.binary(),
    pa.binary(4),
    pa.dictionary(pa.int8(), pa.string()),
)


def any_type(rng: random.Random, depth: int = 0) -> pa.DataType:
    """A type parquet can hold: simple, or a list, struct or map of such."""
    shape = rng.random()
    if depth > 2 or shape < 0.5:
        return rng.choice(SIMPLE[1:] if depth else SIMPLE)
    if shape < 0.65:
        return rng.choice((pa.list_, pa.large_list))(any_type(rng, depth + 1))
    if shape < 0.8:
        return pa.struct([(name, any_type(rng, depth + 1)) for name in rng.sample(("key", "value", "a b", 'q"'), rng.randint(1, 3))])
    return pa.map_(rng.choice((pa.string(), pa.int32(), pa.binary())), any_type(rng, depth + 1))


def any_value(kind: pa.DataType, rng: random.Random) -> Any:
    """A value of a type, null now and then, odd often."""
    if rng.random() < 0.15 or pa.types.is_null(kind):
        return None
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return rng.random() < 0.5
    if pa.types.is_integer(kind):
        low, high = (
            (0, 2**kind.bit_width - 1)
            if pa.types.is_unsigned_integer(kind)
            else (-(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1)
        )
        return max(low, min(high, rng.choice(WHOLE)))
    if pa.types.is_float16(kind):
        return np.float16(rng.choice((0.0, 1.5, math.nan, math.inf)))
    if pa.types.is_floating(kind):
        return rng.choice(NUMBERS)
    if pa.types.is_decimal(kind):
        return Decimal(rng.choice(("0", "1.5", "-3", "99999999999999999999999999999.5")))
    if pa.types.is_date(kind):
        return rng.choice((date(1, 1, 1), date(2025, 9, 30), date(9999, 12, 31)))
    if pa.types.is_timestamp(kind):
        return rng.choice(MOMENTS[1:]) if kind.unit == "ns" else rng.choice(MOMENTS)
    if pa.types.is_time(kind) or pa.types.is_duration(kind):
        return rng.choice((0, 1, 86_399_000))
    if pa.types.is_fixed_size_binary(kind):
        return _random_bytes(rng, kind.byte_width)
    if pa.types.is_binary(kind):
        return rng.choice((b"", b"\xff\xfe", b"\0", b"ok", '{"é": 1}'.encode()))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return rng.choice(WORDS)
    if pa.types.is_map(kind):
        keys = [k for k in (any_value(kind.key_type, rng) for _ in range(rng.randint(0, 4))) if k is not None]
        return [(k, any_value(kind.item_type, rng)) for k in keys]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [any_value(kind.value_type, rng) for _ in range(rng.randint(0, 4))]
    return {f.name: any_value(f.type, rng) for f in kind}


def any_column(kind: pa.DataType, rows: int, rng: random.Random) -> pa.Array:
    """An array of a type with odd values."""
    return pa.array([any_value(kind, rng) for _ in range(rows)], kind)


def damage_schema(table: pa.Table, rng: random.Random) -> pa.Table:
    """Drop, retype, rename, repeat, reorder or add columns, one to five times."""
    for _ in range(rng.randint(1, 5)):
        if not table.num_columns:
            break
        index = rng.randrange(table.num_columns)
        name = table.column_names[index]
        action = rng.random()
        if action < 0.15:
            table = table.remove_column(index)
        elif action < 0.7:
            table = table.set_column(index, name, any_column(any_type(rng), table.num_rows, rng))
        elif action < 0.8:
            new = rng.choice((name.upper(), name + " ", "hour_start", "file_row_number", "row_id", 'we"ird', "ünï", ""))
            table = table.rename_columns([new if i == index else n for i, n in enumerate(table.column_names)])
        elif action < 0.9:
            order = list(range(table.num_columns))
            rng.shuffle(order)
            table = table.select(order)
        else:
            table = table.append_column(
                rng.choice(("extra", name, "filename", "file_index")), any_column(any_type(rng), table.num_rows, rng)
            )
    return table


def damage_values(table: pa.Table, rng: random.Random, names: Sequence[str] = ()) -> pa.Table:
    """Give some columns (``names``, or any) odd values of their own type."""
    for name in rng.sample(list(names) or table.column_names, rng.randint(1, 4)):
        index = table.column_names.index(name)
        kind = table.schema.field(index).type
        old = table.column(index).to_pylist()
        new = [any_value(kind, rng) if rng.random() < 0.5 else value for value in old]
        table = table.set_column(index, name, pa.array(new, kind))
    return table


def write(table: pa.Table, path: Path, rng: random.Random) -> None:
    """Write a table with a random choice of what parquet leaves to the writer."""
    pq.write_table(
        table,
        path,
        compression=rng.choice(("snappy", "zstd", "none", "gzip")),
        use_dictionary=rng.random() < 0.5,
        row_group_size=rng.choice((3, 1000)),
        data_page_version=rng.choice(("1.0", "2.0")),
        store_schema=rng.random() < 0.5,
    )


# -------------------------------------------------------------------------------------------------------- configuration

VALUES = (
    *("", "null", "true", "-1", "0", "1e999", ".nan", ".inf", "99999999999999999999", "0x1F", "2025-13-01", "2025-10-01"),
    *("abc", "[1, 2]", "{a: 1}", "../../etc", "/dev/null", "'", "&a [*a]", "!!python/object:os.system", "\x00", "${HOME}", "é" * 50),
)


def damage_text(text: str, rng: random.Random) -> str:
    """Edit a YAML text as a careless hand does: a character, a line, an indentation, a value, a key."""
    lines = text.splitlines() or [""]
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(lines))
        line, action = lines[at], rng.randrange(7)
        if action == 0 and line:
            place = rng.randrange(len(line))
            lines[at] = line[:place] + rng.choice(":{}[],'\"\t#&*!|>%@`-é") + line[place + rng.randint(0, 1) :]
        elif action == 1:
            lines[at] = " " * rng.randint(0, 5) + line.strip()
        elif action == 2:
            lines.insert(at, rng.choice(lines))
        elif action == 3 and len(lines) > 1:
            del lines[at]
        elif action == 4 and ":" in line:
            lines[at] = line.split(":")[0] + ": " + rng.choice(VALUES)
        elif action == 5 and ":" in line:
            lines[at] = line.replace(line.split(":")[0].strip(), rng.choice(("unknown", "data", "models", "1", "")), 1)
        else:
            lines[at] = line + rng.choice(VALUES)
    return "\n".join(lines) + "\n"


def any_setting(rng: random.Random) -> str:
    """A configuration that sets one to three random keys to random values."""
    tree: dict[str, Any] = {}
    for _ in range(rng.randint(1, 3)):
        *path, last = rng.choice(_keys()).split(".")
        node = tree
        for part in path:
            inner = node.setdefault(part, {})
            node = inner if isinstance(inner, dict) else node
        node[last] = rng.choice(VALUES)
    return _yaml(tree)


@cache
def _keys() -> tuple[str, ...]:
    return tuple(key for key, _ in walk_keys())


def _yaml(tree: dict[str, Any], depth: int = 0) -> str:
    lines = []
    for key, value in tree.items():
        lines.append("  " * depth + (f"{key}:\n{_yaml(value, depth + 1)}" if isinstance(value, dict) else f"{key}: {value}\n"))
    return "".join(lines)


# ---------------------------------------------------------------------------------------------------------------- cases

LABELS = ("row_id", "iap_revenue_d7", "iap_revenue_d14", "iap_revenue_d28", "buyer_d7", "buyer_d14")
DATA_KINDS = ("bytes", "schema", "values", "labels")
TEXT_KINDS = ("configuration", "settings", "registry")


@cache
def hour_table() -> pa.Table:
    """The rows of one good hour."""
    with tempfile.TemporaryDirectory() as folder:
        write_hour(rows_of(1), Path(folder) / "hour.parquet")
        return pq.read_table(Path(folder) / "hour.parquet", partitioning=None)


def write_damaged(path: Path, kind: str, rng: random.Random) -> None:
    """Write one good hour with damage. Raises an error of Arrow's if there is no such file."""
    if kind == "bytes":
        pq.write_table(hour_table(), path)
        path.write_bytes(rng.choice(BYTE_DAMAGE)(path.read_bytes(), rng))
    elif kind == "schema":
        write(damage_schema(hour_table(), rng), path, rng)
    else:
        write(damage_values(hour_table(), rng, LABELS if kind == "labels" else ()), path, rng)


def data_case(world: World, kind: str, rng: random.Random) -> str:
    """Damage hour 1 of a day whose hour 0 is good and look at both; returns the answer, or "unwritable" if there is no such file."""
    try:
        write_damaged(world.file(1), kind, rng)
    except (pa.ArrowException, OverflowError, ValueError):
        return "unwritable"
    findings = world.check()
    bad = [p for p in findings.problems if "datetime=2025-10-01-00-00" in p]
    assert not bad, f"the good hour was blamed: {bad}"
    if any("required column" in p or ": expected " in p for p in findings.problems):
        return "reject"
    hours = {"day 2025-10-01: 22 of 24 hours are missing"}
    warnings = [w for w in findings.warnings if not any(w.startswith(h) for h in hours)]
    return "quarantine" if findings.problems else "degrade" if warnings else "accept"


def text_case(world: World, kind: str, rng: random.Random) -> str:
    """Damage a configuration or the feature registry; returns "reject" or "accept"."""
    file = world.root / f"{kind}.yaml"
    shipped = PROJECT_ROOT / "config"
    try:
        if kind == "registry":
            file.write_text(damage_text((shipped / "features.yaml").read_text(), rng))
            load_registry(file)
        else:
            source = (shipped / rng.choice(("config.yaml", "config_test.yaml"))).read_text()
            config = parse_config(any_setting(rng) if kind == "settings" else damage_text(source, rng), file)
            discover(config)
    except ConfigError as error:
        assert str(file) in str(error), f"the message does not name the file: {error}"
        return "reject"
    return "accept"


def case(world: World, number: int) -> tuple[str, str]:
    """One numbered case; returns its kind and its answer."""
    rng = random.Random(number)
    kind = (*DATA_KINDS, *TEXT_KINDS)[number % (len(DATA_KINDS) + len(TEXT_KINDS))]
    return kind, data_case(world, kind, rng) if kind in DATA_KINDS else text_case(world, kind, rng)


def run(folder: Path, seconds: float, first: int) -> dict[str, int]:
    """Try cases from number ``first`` on for some seconds; returns how often each kind had each answer.

    The number of the case at hand stands in ``FOLDER/case``, should it end the process.
    """
    answers: Counter[str] = Counter()
    world = World(folder)
    world.put(0)
    started = time.monotonic()
    number = first
    while time.monotonic() - started < seconds:
        (folder / "case").write_text(str(number))
        try:
            kind, answer = case(world, number)
        except Exception as error:
            raise AssertionError(f"case {number} ended in {type(error).__name__}: {error}") from error
        answers[f"{kind}: {answer}"] += 1
        number += 1
    return dict(sorted(answers.items()))


if __name__ == "__main__":
    here = Path(sys.argv[1])
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    print(json.dumps(run(here, float(sys.argv[2]), int(sys.argv[3]))))
