"""The champion: which window's model scores new days.

``champion.json`` in the warehouse is the record: the champion of now, whether a person pinned it, and the champions
before it. Who *should* be champion is decided in ``promotion/promotion.py`` from stored verdicts; here the record is only read,
written and explained. A champion whose blocking check fails later gives way wherever the champion is read
(`champion_in_use`). A window is *eligible* when its blocking checks passed on its present content and its served model
belongs to that evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ltv_assets.core.check_specs import blocking_checks
from ltv_assets.core.errors import DataError, LtvError, ModelFileError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.storage.files import file_lock, write_atomic
from ltv_assets.storage.warehouse import Warehouse

CHAMPION_FILE = "champion.json"
MAX_HISTORY = 50


@dataclass(frozen=True, slots=True)
class Champion:
    """The window whose served model is in use, the model's content hash, why it was chosen, and whether a person did."""

    window: PartitionKey
    fingerprint: str
    why: str
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Reign:
    """One line of the record's history: a champion, and the UTC second from which it was in use."""

    window: PartitionKey
    fingerprint: str
    why: str
    pinned: bool
    since: str


def _path(warehouse: Warehouse) -> Path:
    return warehouse.root / CHAMPION_FILE


def _read(warehouse: Warehouse) -> dict[str, Any]:
    path = _path(warehouse)
    try:
        raw = json.loads(path.read_bytes())
        return {**raw, "history": raw.get("history", [])}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"{path}: not a readable champion record ({error}); delete it and run `ltv promote --unpin`") from None


def read_champion(warehouse: Warehouse) -> Champion | None:
    """The champion of record; None before the first one. Raises ModelFileError if the record is damaged."""
    raw = _read(warehouse)
    if not raw or raw.get("window") is None:
        return None
    try:
        return Champion(PartitionKey(raw["window"]), raw["fingerprint"], raw["why"], bool(raw.get("pinned", False)))
    except (KeyError, TypeError, DataError) as error:
        raise ModelFileError(
            f"{_path(warehouse)}: the champion record lacks a field or has a wrong one ({error}); delete it and run `ltv promote --unpin`"
        ) from None


def read_history(warehouse: Warehouse) -> tuple[Reign, ...]:
    """Every champion so far, oldest first, the present one last. Raises ModelFileError if the record is damaged."""
    try:
        return tuple(Reign(**{**entry, "window": PartitionKey(entry["window"])}) for entry in _read(warehouse).get("history", []))
    except (KeyError, TypeError, DataError) as error:
        raise ModelFileError(f"{_path(warehouse)}: the history is damaged ({error}); delete it and run `ltv promote --unpin`") from None


def write_champion(warehouse: Warehouse, champion: Champion | None) -> None:
    """Replace the record if ``champion`` differs from it; a new window or content opens a new line of the history.

    None records that no window deserves to be champion any more; the history stays.
    """
    path = _path(warehouse)
    try:
        before, history = read_champion(warehouse), list(read_history(warehouse))
    except LtvError:
        before, history = None, []
    if champion == before and path.is_file():
        return
    if champion is not None and (before is None or replace(champion, why="") != replace(before, why="")):
        history.append(Reign(**asdict(champion), since=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")))
    elif champion is not None and history:
        history[-1] = replace(history[-1], why=champion.why)
    present = asdict(champion) if champion is not None else {"window": None}
    record = {**present, "history": [asdict(entry) for entry in history[-MAX_HISTORY:]]}
    write_atomic(path, json.dumps(record, sort_keys=True, indent=1).encode() + b"\n")


@contextmanager
def champion_lock(warehouse: Warehouse, timeout_seconds: float) -> Iterator[None]:
    """Hold while the champion is recomputed: the last one to hold it has seen every window that was published before.

    Raises TransientError after ``timeout_seconds``.
    """
    with file_lock(warehouse.root / "champion.lock", timeout_seconds=timeout_seconds, what="the champion's record"):
        yield


def ineligible_because(warehouse: Warehouse, key: PartitionKey) -> str | None:
    """Why a window cannot be champion, or None if it can."""
    try:
        model = warehouse.manifest("served_model", key)
        metrics = warehouse.fingerprint("holdout_metrics", key)
    except LtvError as error:
        return str(error)
    if model is None:
        return "it has no served model"
    if model.inputs.get(f"holdout_metrics/{key}") != metrics:
        return "its served model belongs to another evaluation"
    return _unpassed_check(warehouse, key)


def _unpassed_check(warehouse: Warehouse, key: PartitionKey, *, only_failed: bool = False) -> str | None:
    """The first blocking check that the window's present evaluation has not passed, in words; None if there is none."""
    verdicts = {v.check: v for v in warehouse.verdicts("holdout_metrics", key)}
    for check in blocking_checks("holdout_metrics"):
        verdict = verdicts.get(check)
        if verdict is None and not only_failed:
            return f"its check {check} has not run on its present content"
        if verdict is not None and not verdict.passed:
            return f"its check {check} failed: {verdict.message}"
    return None


def eligible_windows(warehouse: Warehouse) -> tuple[PartitionKey, ...]:
    """Windows whose evaluation passed every blocking check and whose served model belongs to that evaluation, in order of time."""
    return tuple(key for key in warehouse.keys("served_model") if ineligible_because(warehouse, key) is None)


def champion_in_use(warehouse: Warehouse) -> Champion | None:
    """The champion of record while no blocking check of its window has failed since; otherwise the one in its place.

    That one follows from stored verdicts and comparisons, in order of time, so a check that fails changes who scores new days
    at once and writes nothing but its verdict. Windows that were never compared wait until the record is made again.
    """
    record = read_champion(warehouse)
    problem = None if record is None else has_failed(warehouse, record.window)
    if record is None or problem is None:
        return record
    champion: Champion | None = None
    for key in eligible_windows(warehouse):
        if champion is None or _was_refused(warehouse, key, champion) is False:
            why = f"window {record.window} gave way because {problem}"
            champion = Champion(key, warehouse.fingerprint("served_model", key) or "", why)
    return champion


def has_failed(warehouse: Warehouse, key: PartitionKey) -> str | None:
    """Which blocking check failed on the present evaluation of a window, in words; None if none has."""
    try:
        return _unpassed_check(warehouse, key, only_failed=True)
    except LtvError:
        return None


def is_judged(warehouse: Warehouse, key: PartitionKey) -> bool:
    """Whether the record and the champion's card have taken an eligible window into account.

    False if its run was killed before it was compared, before the comparison it had won reached the record, or before the
    card of the new champion was written.
    """
    champion = read_champion(warehouse)
    if champion is not None and has_failed(warehouse, champion.window) is not None:
        return False
    if champion is not None and (champion.window, champion.fingerprint) == (key, warehouse.fingerprint("served_model", key)):
        card = warehouse.manifest("model_card", key)
        return card is not None and card.inputs.get(f"served_model/{key}") == champion.fingerprint
    if ineligible_because(warehouse, key) is not None:
        return True
    if champion is None or champion.window == key:
        return False
    if champion.pinned:
        return ineligible_because(warehouse, champion.window) is None
    if champion.window > key:
        return bool(warehouse.comparisons_of(challenger=key))
    return _was_refused(warehouse, key, champion) is True


def _was_refused(warehouse: Warehouse, key: PartitionKey, champion: Champion) -> bool | None:
    """Whether a window's present content was refused when it was compared with that of the champion; None if it never was compared."""
    try:
        found = json.loads(warehouse.comparison(key, champion.window).read_bytes())
        contents = (found["challenger_fingerprint"], found["champion_fingerprint"])
        same = contents == (warehouse.fingerprint("holdout_metrics", key), champion.fingerprint)
        return bool(found["difference_low"] > 0) if same else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
