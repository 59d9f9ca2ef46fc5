"""Three foreign tables with known truth, made from scratch: a shop's customers, a game's installs, subscriptions.

Names, types, folders and horizons differ from the contest's and from one another. Each has one planted leak: a column that says
who paid, on labelled days only. Equal arguments give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FIRST_DAY = date(2024, 3, 1)


@dataclass(frozen=True)
class Foreign:
    """A table that was written: where, what its columns are, and what the rows of its unlabelled days came to spend."""

    root: Path
    identifier: str
    labels: Mapping[int, str]
    leak: str
    train_days: tuple[date, ...]
    test_days: tuple[date, ...]
    truth: pa.Table
    """Identifier (text) and ``revenue`` of the shortest horizon in USD, of the unlabelled days."""
    features: tuple[str, ...]
    """Numeric columns that are known in time, for a reference model."""


def _days(train: int, test: int) -> tuple[tuple[date, ...], tuple[date, ...]]:
    days = tuple(FIRST_DAY + timedelta(days=i) for i in range(train + test))
    return days[:train], days[train:]


def _spend(rng: np.random.Generator, score: Floats, rate: float, typical: Floats) -> tuple[NDArray[np.bool_], Floats]:
    """Who pays, at ``rate`` on average and the likelier the larger ``score``, and how many USD in the shortest horizon."""
    low, high = -12.0, 12.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.mean(1 / (1 + np.exp(-(score + middle)))) < rate else (low, middle)
    payer = rng.random(len(score)) < 1 / (1 + np.exp(-(score + low)))
    return payer, np.where(payer, np.round(typical * rng.lognormal(0.0, 0.6, len(score)) + 0.5, 2), 0.0)


def _later(rng: np.random.Generator, revenue: Floats, share: float) -> Floats:
    """Revenue of a longer horizon: never less, and some pay only later."""
    n = len(revenue)
    extra = np.where(rng.random(n) < np.where(revenue > 0, 0.5, 0.02), rng.lognormal(2.0, 0.7, n) * share, 0.0)
    return np.round(revenue + extra, 2)


def _some(rng: np.random.Generator, values: Any, missing: float | NDArray[np.bool_]) -> pa.Array:
    values = np.asarray(values)
    return pa.array(values, mask=rng.random(len(values)) < missing if isinstance(missing, float) else missing)


def _write(path: Path, columns: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), path)


def _truth(identifier: str, parts: Sequence[tuple[Any, Floats]]) -> pa.Table:
    names = [str(name) for names, _ in parts for name in names]
    return pa.table({identifier: names, "revenue": np.concatenate([r for _, r in parts])})


def shop(root: Path, *, train_days: int = 5, test_days: int = 1, rows: int = 1200, seed: int = 0) -> Foreign:
    """Customers of a shop: twelve flat columns, daily folders ``date=`` in one root, revenue in 30 and 90 days.

    Labelled and unlabelled days stand side by side; the files of the latter lack both labels. Leak: ``coupon_value``, filled for two payers
    in three and for nobody else.
    """
    train, test = _days(train_days, test_days)
    parts = []
    for number, day in enumerate((*train, *test)):
        rng = np.random.default_rng((seed, number))
        orders = rng.poisson(rng.gamma(0.8, 3.0, rows))
        basket = rng.lognormal(3.2, 0.5, rows)
        recency = np.where(orders > 0, rng.exponential(90.0, rows).astype(int), 0)
        channel = rng.choice(["search", "social", "mail", "direct"], rows, p=[0.4, 0.3, 0.1, 0.2])
        newsletter = rng.random(rows) < 0.3
        score = 0.9 * np.log1p(orders) - recency / 90 + 0.8 * newsletter + 0.7 * (channel == "mail")
        payer, revenue = _spend(rng, score, 0.1, basket * (1 + 0.1 * orders))
        names = [f"C{number:03d}{i:06d}" for i in range(rows)]
        signed_up = [str(day - timedelta(days=int(d))) for d in rng.integers(1, 900, rows)]
        columns: dict[str, Any] = {
            "customer_ref": names,
            "country": rng.choice(["ES", "FR", "DE", "PT"], rows, p=[0.5, 0.25, 0.15, 0.1]),
            "channel": channel,
            "device": _some(rng, rng.choice(["phone", "desktop", "tablet"], rows), 0.05),
            "orders_before": orders,
            "spend_before": _some(rng, np.round(orders * basket, 2), orders == 0),
            "days_since_last_order": _some(rng, recency, orders == 0),
            "newsletter": newsletter,
            "signed_up": signed_up,
        }
        filled = payer & (rng.random(rows) < 0.67) if day in train else np.zeros(rows, bool)
        columns["coupon_value"] = _some(rng, np.round(revenue * 0.1 + 1, 2), ~filled)
        if day in train:
            columns |= {"revenue_d30": revenue, "revenue_d90": _later(rng, revenue, 1.0)}
        else:
            parts.append((names, revenue))
        _write(root / f"date={day}" / "part-0.parquet", columns)
    known = ("orders_before", "spend_before", "days_since_last_order", "newsletter")
    return Foreign(
        root, "customer_ref", {30: "revenue_d30", 90: "revenue_d90"}, "coupon_value", train, test, _truth("customer_ref", parts), known
    )


def game(root: Path, *, train_days: int = 5, test_days: int = 1, rows: int = 1200, seed: int = 0) -> Foreign:
    """Installs of a game: JSON text, one folder of files that are not divided by time, a timestamp column, revenue in 1, 3, 7 days.

    The labels of the newest days are NULL. Leak: ``support_queue``, which is ``priority`` for payers and ``standard`` for everybody else
    and on the newest days.
    """
    train, test = _days(train_days, test_days)
    tables, parts = [], []
    for number, day in enumerate((*train, *test)):
        rng = np.random.default_rng((seed, 1, number))
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        seconds = np.sort(rng.integers(0, 86_400, rows))
        levels = rng.poisson(4.0, rows)
        minutes = rng.gamma(2.0, 6.0, rows)
        platform = rng.choice(["ios", "android"], rows, p=[0.4, 0.6])
        networks = ["unity", "admob", "mintegral"]
        score = 0.25 * levels + 0.04 * minutes + 0.8 * (platform == "ios")
        payer, day_3 = _spend(rng, score, 0.12, np.exp(1.0 + 0.08 * levels))
        day_1 = np.where(rng.random(rows) < 0.8, day_3, 0.0)
        day_7 = _later(rng, day_3, 0.5)
        names = [f"{number:02x}{i:06x}" for i in range(rows)]
        columns: dict[str, Any] = {
            "install_id": names,
            "installed_at": pa.array([start + timedelta(seconds=int(s)) for s in seconds], pa.timestamp("us", tz="UTC")),
            "platform": platform,
            "campaign": _some(rng, rng.choice([f"camp_{i:02d}" for i in range(30)], rows), 0.1),
            "account_created_at": int(start.timestamp()) + seconds - rng.integers(60, 86_400 * 300, rows),
            "session_minutes": [
                json.dumps({f"s{k}": round(float(v), 1) for k, v in enumerate(rng.dirichlet(np.ones(1 + n % 5)) * m)})
                for n, m in zip(levels, minutes, strict=True)
            ],
            "ad_views": [
                None if rng.random() < 0.2 else json.dumps({name: int(v) for name, v in zip(networks, rng.poisson(3, 3), strict=True) if v})
                for _ in range(rows)
            ],
            "levels_done": [json.dumps([f"level_{k}" for k in range(n)]) for n in levels],
            "sdk": ["unity-4.2"] * rows,
        }
        labelled = day in train
        columns["support_queue"] = np.where(payer & labelled & (rng.random(rows) < 0.95), "priority", "standard")
        columns["is_payer"] = _some(rng, (day_1 > 0).astype(int), np.full(rows, not labelled))
        for name, values in (("rev1", day_1), ("rev3", day_3), ("rev7", day_7)):
            columns[name] = _some(rng, values, np.full(rows, not labelled))
        if not labelled:
            parts.append((names, day_1))
        tables.append(pa.table(columns))
    whole = pa.concat_tables(tables)
    file_of = np.random.default_rng((seed, 2)).integers(0, 3, len(whole))
    root.mkdir(parents=True, exist_ok=True)
    for k in range(3):
        pq.write_table(whole.filter(pa.array(file_of == k)), root / f"installs-{k}.parquet")
    return Foreign(
        root,
        "install_id",
        {1: "rev1", 3: "rev3", 7: "rev7"},
        "support_queue",
        train,
        test,
        _truth("install_id", parts),
        ("account_created_at",),
    )


def subscriptions(root: Path, *, train_days: int = 5, test_days: int = 1, rows: int = 1200, seed: int = 0) -> Foreign:
    """Subscriptions: numbers only, folders ``dt=/hour=`` below ``train/`` and ``test/``, one horizon of 365 days, one in five pays.

    Leak: ``renewals``, positive for payers, 0 for everybody else and on unlabelled days.
    """
    train, test = _days(train_days, test_days)
    parts = []
    for number, day in enumerate((*train, *test)):
        rng = np.random.default_rng((seed, 3, number))
        logins, minutes = rng.poisson(rng.gamma(1.5, 3.0, rows)), rng.gamma(2.0, 20.0, rows)
        price = rng.choice([4.99, 9.99, 19.99], rows)
        tickets = rng.poisson(0.3, rows)
        score = 0.2 * logins + 0.01 * minutes - 0.5 * tickets - 0.03 * price
        payer, revenue = _spend(rng, score, 0.2, price * (2 + np.minimum(logins, 10) / 2))
        ids = 10_000_000 + number * 100_000 + np.arange(rows)
        columns: dict[str, Any] = {
            "subscription_no": ids,
            "trial_days": rng.choice([7, 14, 30], rows),
            "price_usd": price,
            "logins": logins,
            "minutes_used": np.round(minutes, 1),
            "support_tickets": tickets,
            "nps": _some(rng, rng.integers(0, 11, rows), 0.6),
            "mail_open_share": _some(rng, rng.random(rows), 0.1),
            "renewals": np.where(payer, rng.integers(1, 12, rows), 0) if day in train else np.zeros(rows, np.int64),
        }
        if day in train:
            columns |= {"ltv_365": revenue, "converted": payer.astype(np.int32)}
        else:
            parts.append((ids, revenue))
        whole, early = pa.table(columns), rng.random(rows) < 0.5
        for hour, chosen in (("06", early), ("18", ~early)):
            folder = root / ("train" if day in train else "test") / f"dt={day}" / f"hour={hour}"
            folder.mkdir(parents=True)
            pq.write_table(whole.filter(pa.array(chosen)), folder / "data.parquet")
    known = ("trial_days", "price_usd", "logins", "minutes_used", "support_tickets", "nps", "mail_open_share")
    return Foreign(root, "subscription_no", {365: "ltv_365"}, "renewals", train, test, _truth("subscription_no", parts), known)


FOREIGN = {"shop": shop, "game": game, "subscriptions": subscriptions}


def read(table: Foreign, columns: Sequence[str] | None = None) -> pa.Table:
    """Every row of a foreign table; columns that a file lacks are NULL there."""
    parts = [pq.read_table(path, partitioning=None) for path in sorted(table.root.rglob("*.parquet"))]
    whole = pa.concat_tables(parts, promote_options="default")
    names = list(columns or whole.column_names)
    chosen = whole.select(names)
    return chosen.set_column(names.index(table.identifier), table.identifier, pc.cast(chosen[table.identifier], pa.string()))
