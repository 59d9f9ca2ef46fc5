"""Files of a simulation: the real folder layout, written atomically.

What belongs here: row ids, the parquet layout, atomic publication, `simulate`. What does not: any randomness except file
names. Next to read: ``population.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ltv_assets.core.columns import BY_NAME, LABEL_NAMES
from ltv_assets.core.errors import ConfigError, DataError
from ltv_assets.core.files import published_file
from ltv_assets.core.laws import LAWS, LawName
from ltv_assets.sampling.draws import splitmix64
from ltv_assets.simulator import facts
from ltv_assets.simulator.columns import ArrowBuilder, Impressions, context, draw_impressions
from ltv_assets.simulator.laws import (
    GOLDEN,
    Calibration,
    Truth,
    calibrate,
    describe_law,
    draw_effects,
    draw_labels,
    scores,
    truth_of,
    with_rare_levels,
)
from ltv_assets.simulator.population import People, World, build_world, draw_people, generator

GAP_DAYS = 1
"""Days between the last training day and the first test day, as in the real data (10-06 and 10-08)."""

MAX_LEVEL_SD = 2.0
PILOT_ROWS, PILOT_HOURS = 96_000, 8
PILOT_START, PILOT_STEP = datetime(2025, 10, 1, tzinfo=UTC), 33
ARROW_TYPES: dict[str, pa.DataType] = {"int32": pa.int32(), "int64": pa.int64(), "double": pa.float64()}


@dataclass(frozen=True)
class SimulationSummary:
    """Summary of a simulation: rows and hours by split, bytes of impressions, and the root folder."""

    out: Path
    seed: int
    law: LawName
    train_days: tuple[str, ...]
    test_days: tuple[str, ...]
    train_rows: int
    test_rows: int
    files: int
    bytes: int


class Simulator:
    """One seed and law: the world, the calibrated law, and any hour of it on demand."""

    def __init__(
        self, seed: int = 0, law: LawName = "additive", rows_per_hour: int = 600, level_sd: float = 0.0, independent: bool = False
    ) -> None:
        if law not in LAWS:
            raise ConfigError(f"law: expected one of {', '.join(LAWS)}, found {law!r}")
        if seed < 0:
            raise ConfigError(f"seed: expected a whole number >= 0, found {seed}")
        if not 1 <= rows_per_hour < 1 << 23:
            raise ConfigError(f"rows_per_hour: expected 1 .. {(1 << 23) - 1}, found {rows_per_hour}")
        if not 0.0 <= level_sd <= MAX_LEVEL_SD:
            raise ConfigError(f"level_sd: expected 0 .. {MAX_LEVEL_SD:g}, found {level_sd:g}")
        self.seed, self.law, self.rows_per_hour = seed, law, rows_per_hour
        self.level_sd, self.independent = level_sd, independent
        self.world: World = build_world(seed)
        self.effects = draw_effects(self.world)
        if law == "rare":
            self.effects = with_rare_levels(self.effects, self.world, [context(self.world, people).codes for people, _ in self._pilot()])
        self._phase = float(generator(seed, 7, LAWS.index(law)).random())
        self._arrow = ArrowBuilder(self.world)
        self.calibration: Calibration = self._calibrate()

    def _pilot(self) -> Iterator[tuple[People, np.random.Generator]]:
        """A pilot sample: hours of the first ten days of October, whatever is simulated later, and their generators."""
        for index in range(PILOT_HOURS):
            rng = generator(self.seed, 4, index)
            yield draw_people(self.world, rng, PILOT_ROWS // PILOT_HOURS, PILOT_START + timedelta(hours=index * PILOT_STEP)), rng

    def _calibrate(self) -> Calibration:
        """Calibrate on the pilot sample."""
        parts = [scores(draw_impressions(self.world, people, rng), self.effects, self.law) for people, rng in self._pilot()]
        buy, spend = (np.concatenate(part) for part in zip(*parts, strict=True))
        return calibrate(buy, spend)

    def impressions(self, moment: datetime) -> tuple[Impressions, Truth]:
        """The impressions of one hour with their truth."""
        rng = generator(self.seed, 5, self.rows_per_hour, _hour_number(moment))
        people = draw_people(self.world, rng, rows_in_hour(self.rows_per_hour, moment.hour), moment)
        hour = draw_impressions(self.world, people, rng)
        moved = replace(self.calibration, intercept=self.calibration.intercept + self.level(moment.date()))
        return hour, truth_of(*scores(hour, self.effects, self.law), moved)

    def level(self, day: date) -> float:
        """What a day adds to the log-odds of all its rows, and so, where few pay, to the log of its payer rate: normal, mean 0."""
        return self.level_sd * float(generator(self.seed, 9, day.toordinal()).normal()) if self.level_sd else 0.0

    def hour(self, moment: datetime) -> tuple[pa.Table, pa.Table]:
        """One hour as (impressions with labels, truth), in the published column order."""
        hour, truth = self.impressions(moment)
        rng = generator(self.seed, 6, LAWS.index(self.law), self.rows_per_hour, _hour_number(moment))
        offset = None if self.independent else (self._phase + GOLDEN * _hour_number(moment)) % 1.0
        labels = draw_labels(rng, hour, truth, self.calibration.shape, offset)
        columns = self._arrow.columns(hour)
        for name in LABEL_NAMES:
            columns[name] = pa.array(labels[name], from_pandas=True).cast(ARROW_TYPES[BY_NAME[name].type])
        columns["row_id"] = row_ids(self.seed, _hour_number(moment), len(truth.p))
        known = {
            "row_id": columns["row_id"],
            "p": truth.p,
            "oracle_log": truth.oracle[7],
            "oracle_log_d14": truth.oracle[14],
            "oracle_log_d28": truth.oracle[28],
            "revenue": labels["iap_revenue_d7"],
            "revenue_d14": labels["iap_revenue_d14"],
            "revenue_d28": labels["iap_revenue_d28"],
        }
        return pa.table({name: columns[name] for name in facts.COLUMN_ORDER}), pa.table(known)

    def describe(self) -> dict[str, Any]:
        """Seed, law and every constant of it, as JSON: enough to compute p of a row from its raw columns."""
        return {
            "seed": self.seed,
            "law": self.law,
            "rows_per_hour": self.rows_per_hour,
            "level_sd": self.level_sd,
            "independent": self.independent,
            "marginals": facts.SOURCE,
            "calibration": asdict(self.calibration),
            **describe_law(self.law),
            "effects": {
                what: {
                    column: {key: effect for key, effect in zip(self._arrow.values[column], table.tolist(), strict=True) if effect}
                    for column, table in tables.items()
                }
                for what, tables in (("buy", self.effects.buy), ("spend", self.effects.spend))
            },
        }


def _hour_number(moment: datetime) -> int:
    return int(moment.timestamp()) // 3600


def rows_in_hour(rows_per_hour: int, hour: int) -> int:
    """Rows of an hour of day: 20 % more in the evening than on average, 20 % less at night; 24 hours add up exactly."""

    def until(h: int) -> float:
        return rows_per_hour * (h - 0.2 * (np.cos(2 * np.pi * (h - 14) / 24) - np.cos(2 * np.pi * -14 / 24)) * 24 / (2 * np.pi))

    return round(until(hour + 1)) - round(until(hour))


_HEX = np.frombuffer("".join(f"{i:02x}" for i in range(256)).encode(), np.uint8).reshape(256, 2)


def row_ids(seed: int, hour_number: int, n: int) -> pa.Array:
    """UUID-shaped ids (version 4), unique within a seed: eight of their bytes are a bijection of (hour, row)."""
    counter = (np.uint64(hour_number) << np.uint64(24)) | np.arange(n, dtype=np.uint64)
    salt = np.uint64(int.from_bytes(hashlib.sha256(f"row ids {seed}".encode()).digest()[:8], "big"))
    unique = splitmix64(counter ^ salt).astype(">u8").view(np.uint8).reshape(n, 8)
    filler = splitmix64(splitmix64(counter) + salt).astype(">u8").view(np.uint8).reshape(n, 8)
    raw = np.concatenate([unique[:, :6], filler[:, :6], filler[:, 6:], unique[:, 6:]], axis=1)
    raw[:, 6] = raw[:, 6] & 0x0F | 0x40
    raw[:, 8] = raw[:, 8] & 0x3F | 0x80
    text = np.full((n, 36), ord("-"), np.uint8)
    letters = np.delete(np.arange(36), [8, 13, 18, 23])
    text[:, letters] = _HEX[raw].reshape(n, 32)
    offsets = np.arange(n + 1, dtype=np.int32) * 36
    return pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(text))


def _string_leaves(schema: pa.Schema) -> list[str]:
    """Parquet paths of the columns with a dictionary: all text except the row id."""
    paths = []
    for column in schema:
        logical = BY_NAME[column.name].type
        if column.name == "row_id":
            continue
        if logical == "string":
            paths.append(column.name)
        elif logical.startswith("list"):
            paths.append(f"{column.name}.list.element")
        elif logical.startswith("map"):
            paths.append(f"{column.name}.key_value.key")
            if logical.startswith("map<string,map"):
                paths.append(f"{column.name}.key_value.value.key_value.key")
    return paths


def simulate(
    out: Path,
    *,
    train_days: int = 6,
    test_days: int = 2,
    rows_per_hour: int = 600,
    seed: int = 0,
    law: LawName = "additive",
    first_day: str = "2025-10-01",
    gap_days: int = GAP_DAYS,
    level_sd: float = 0.0,
    independent: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> SimulationSummary:
    """Write simulated impressions in the real layout, with their truth.

    ``out/train/datetime=YYYY-MM-DD-HH-00/part-00000-<8 hex>.c000.snappy.parquet`` and the same under ``out/test``
    (without label columns), ``out/truth/{train,test}.parquet`` (``row_id``, ``p``, ``oracle_log`` = E[log1p(revenue) |
    row] for 7, 14 and 28 days, revenues in USD) and ``out/truth/law.json``. The test days follow ``gap_days`` after the
    training days. Memory is bounded by one hour.

    ``level_sd``: standard deviation of a day's level, by which the payer rate of whole days moves; ``p`` and the oracles are those of the
    day as it turned out, which no model can know beforehand. ``independent``: every row's label is drawn for itself. By default payers
    and amounts are spread evenly over an hour's rows, so that a small simulation already shows a law's means; sums of days and groups
    then scatter far less than real ones, and no interval of them can be judged.

    The bytes of an hour depend only on (seed, law, rows_per_hour, level_sd, independent, hour). ``progress(done, total)`` is called
    after each hour. Raises `DataError` if ``out`` holds hours or parts of another simulation.
    """
    out = Path(out)
    try:
        start = date.fromisoformat(first_day)
    except ValueError:
        raise ConfigError(f"first_day: expected YYYY-MM-DD, found {first_day!r}") from None
    if train_days < 1 or test_days < 0 or gap_days < 0:
        raise ConfigError(f"expected train_days >= 1, test_days >= 0, gap_days >= 0, found {train_days}, {test_days}, {gap_days}")
    days = {
        "train": [start + timedelta(days=i) for i in range(train_days)],
        "test": [start + timedelta(days=train_days + gap_days + i) for i in range(test_days)],
    }
    simulator = Simulator(seed, law, rows_per_hour, level_sd, independent)
    planned = {split: {_hour_path(simulator, out / split, moment): moment for moment in _hours(days[split])} for split in days}
    _refuse_foreign_files(out, {path for paths in planned.values() for path in paths})

    total, done, size = sum(map(len, planned.values())), 0, 0
    rows = dict.fromkeys(planned, 0)
    for split, paths in planned.items():
        if not paths:
            continue
        with published_file(out / "truth" / f"{split}.parquet") as truth_path:
            writer: pq.ParquetWriter | None = None
            for path, moment in paths.items():
                impressions, truth = simulator.hour(moment)
                if split == "test":
                    impressions = impressions.drop_columns(list(LABEL_NAMES))
                with published_file(path) as beside:
                    pq.write_table(
                        impressions, beside, compression="snappy", store_schema=False, use_dictionary=_string_leaves(impressions.schema)
                    )
                size += path.stat().st_size
                writer = writer or pq.ParquetWriter(truth_path, truth.schema, compression="snappy", use_dictionary=False)
                writer.write_table(truth)
                rows[split] += impressions.num_rows
                done += 1
                if progress is not None:
                    progress(done, total)
            assert writer is not None
            writer.close()
    with published_file(out / "truth" / "law.json") as law_path:
        law_path.write_text(json.dumps(simulator.describe(), sort_keys=True) + "\n")
    return SimulationSummary(
        out=out,
        seed=seed,
        law=law,
        train_days=tuple(map(str, days["train"])),
        test_days=tuple(map(str, days["test"])),
        train_rows=rows["train"],
        test_rows=rows["test"],
        files=total,
        bytes=size,
    )


def _hours(days: list[date]) -> Iterator[datetime]:
    for day in days:
        for hour in range(24):
            yield datetime(day.year, day.month, day.day, hour, tzinfo=UTC)


def _hour_path(simulator: Simulator, root: Path, moment: datetime) -> Path:
    name = f"{simulator.seed} {simulator.law} {simulator.rows_per_hour} {_hour_number(moment)}"
    if simulator.level_sd or simulator.independent:
        name += f" {simulator.level_sd} {simulator.independent}"
    part = hashlib.sha256(name.encode()).hexdigest()[:8]
    return root / f"datetime={moment:%Y-%m-%d-%H-00}" / f"part-00000-{part}.c000.snappy.parquet"


def _refuse_foreign_files(out: Path, planned: set[Path]) -> None:
    """Raise DataError for files of another simulation: two in one folder would be read as one data set."""
    for split in ("train", "test"):
        for path in sorted((out / split).glob("datetime=*/*.parquet")):
            if path not in planned:
                raise DataError(
                    f"{path}: belongs to another simulation (expected none or this one's); choose an empty folder or delete {out}"
                )
