"""Freshness: the inputs of each partition, and whether they are unchanged.

A partition is *fresh* when its manifest names the inputs, the configuration and the code version that would be used now.
This is read from the warehouse itself, not from an event log. `Lineage` is used by `ltv status`, `ltv run` and every asset,
which rejects stale inputs. Pure: it reads manifests, never data.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from ltv_assets.core.asset_specs import CODE_VERSIONS, CONFIG_KEYS, SPECS, WINDOW_UPSTREAM
from ltv_assets.core.check_specs import blocking_checks, check_bounds
from ltv_assets.core.config import Config
from ltv_assets.core.contract import Contract, contract_of
from ltv_assets.core.errors import LtvError, StaleError
from ltv_assets.core.hashing import json_hash, sha256_hex
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.ingestion.calendar import Horizon, mature_horizons
from ltv_assets.ingestion.inventory import NO_PERMISSION, HashCache, candidate_files, name_below
from ltv_assets.ingestion.raw_days import hourly_folders, split_folder
from ltv_assets.storage.champion import Champion, champion_in_use
from ltv_assets.storage.warehouse import Verdict, Warehouse

MAX_HISTORY = 28
"""Windows whose errors a forecast rests on, at most."""
SEGMENTED = ("holdout_metrics", "cohort_forecast", "cohort_errors")
"""Assets with groups of rows by the contract's segments."""

State = Literal["fresh", "stale", "failed", "missing"]


@dataclass(frozen=True, slots=True)
class Status:
    """State of one partition and the reason for it."""

    asset: str
    partition: PartitionKey
    state: State
    why: str = ""


class Lineage:
    """Freshness of every partition of one warehouse under one configuration. Results are cached: make a new one after a change."""

    def __init__(self, config: Config, horizon: Horizon, warehouse: Warehouse, registry_fingerprint: str) -> None:
        self.config = config
        self.horizon = horizon
        self.warehouse = warehouse
        self.registry_fingerprint = registry_fingerprint
        self._statuses: dict[tuple[str, str], Status] = {}

    # ----------------------------------------------------------------------------------------------- what it is made from

    def config_hash(self, asset: str, key: PartitionKey) -> str:
        """Hash of the configuration values that shape the bytes of one partition."""
        dumped = self.config.model_dump(mode="json")
        picked: dict[str, Any] = {}
        for pattern in CONFIG_KEYS[asset]:
            name = pattern
            if "{split}" in pattern:
                name = pattern.format(split=self.horizon.split_of(key.day))
            value: Any = dumped
            for part in name.split("."):
                value = value[part]
            picked[pattern] = self.registry_fingerprint if name == "features" else value
        # What the shipped contract says was part of the code before there were contracts; what was made then is as good.
        contract = contract_of(self.config)
        if asset == "raw_partitions" and not contract.is_shipped:
            picked["contract"] = contract.fingerprint()
        if asset in SEGMENTED and (segments := contract.part_beyond_shipped("segments")) is not None:
            picked["contract.segments"] = segments
        if SPECS[asset].folder == "models" and (encodings := contract.part_beyond_shipped("encodings")) is not None:
            picked["contract.encodings"] = encodings
        if asset == "submission" and picked["data.sample_submission"]:
            picked["data.sample_submission"] = sha256_hex(Path(picked["data.sample_submission"]).read_bytes())
        return json_hash(picked)

    def bounds_hash(self, check: str) -> str:
        """Hash of the configured bounds one check judges by."""
        dumped = self.config.model_dump(mode="json")
        picked = {name: dumped[name.split(".")[0]][name.split(".")[1]] for name in check_bounds().get(check, ())}
        return json_hash(picked)

    def upstream(self, asset: str, key: PartitionKey) -> tuple[tuple[str, PartitionKey], ...]:
        """(asset, partition) pairs that one partition is made from."""
        spec = SPECS[asset]
        days: dict[str, tuple[date, ...]] = {"test": self.horizon.test_days, "champion": (), "history": (), "published": ()}
        if spec.partitions == "window":
            window = key.day
            if window not in self.horizon.train_days:
                # A backfill over days offers every later window too; without its holdout a window could be trained but never judged.
                last = self.horizon.last_window
                raise StaleError(f"window {key}: its holdout day has no labelled data; the newest possible window is {last or 'none yet'}")
            days["training"] = tuple(self.horizon.training_days(window))
            days["training and holdout"] = (*days["training"], window)
        return tuple((u.asset, k) for u in spec.upstream for k in ([key] if u.days == "same" else map(PartitionKey, days[u.days])))

    def champion(self) -> Champion | None:
        """The champion that scores new days, as stored verdicts have it."""
        return champion_in_use(self.warehouse)

    def history(self, asset: str) -> tuple[PartitionKey, ...]:
        """The newest partitions of a window asset, at most `MAX_HISTORY` and none newer than the champion."""
        champion = self.champion()
        return tuple(k for k in self.warehouse.keys(asset) if champion is not None and k <= champion.window)[-MAX_HISTORY:]

    def inputs(self, asset: str, key: PartitionKey) -> dict[str, str]:
        """{asset/partition: content hash} of everything one partition is made from, as it lies in the warehouse now.

        Raises StaleError naming what is missing and the command that makes it.
        """
        found: dict[str, str] = {}
        for name, partition in self.upstream(asset, key):
            fingerprint = self.warehouse.fingerprint(name, partition)
            if fingerprint is None:
                raise StaleError(f"{asset} {key}: {name} {partition} is not in the warehouse; {self.remedy(name, partition)}")
            found[f"{name}/{partition}"] = fingerprint
        if any(u.days == "champion" for u in SPECS[asset].upstream):
            champion = self.champion()
            if champion is None:
                raise StaleError(
                    f"{asset} {key}: no window has passed its checks yet, so there is no champion; `ltv status` says which failed"
                )
            found[f"champion/{champion.window}"] = champion.fingerprint
        for above in SPECS[asset].upstream:
            if above.days == "history":
                found |= {f"{above.asset}/{k}": self.warehouse.fingerprint(above.asset, k) or "" for k in self.history(above.asset)}
            elif above.days == "published":
                fingerprint = self.warehouse.fingerprint(above.asset, key)
                if fingerprint is None:
                    raise StaleError(
                        f"{asset} {key}: there is no {above.asset} of {key}, so there is nothing to compare; score days before"
                    )
                found[f"{above.asset}/{key}"] = fingerprint
        if asset in WINDOW_UPSTREAM:
            found["label_horizons"] = ",".join(str(h) for h in sorted(mature_horizons(self.config, key.day)))
        return found

    def window_identity(self, key: PartitionKey) -> str:
        """Hash of the days and the configuration that a window's models are made from, the same wherever the warehouse lies."""
        parts = {"days": self.inputs("histos_train", key), "config": [self.config_hash(a, key) for a in ("histos_train", "stacker")]}
        return json_hash(parts)

    def require_ready(self, asset: str, key: PartitionKey) -> dict[str, str]:
        """Inputs of a partition, each verified to be fresh and to have passed its blocking checks.

        Raises StaleError naming the first input that is not, why, and the command that repairs it.
        """
        if asset in WINDOW_UPSTREAM:
            self._refuse_failed_holdout(asset, key)
        for name, partition in self.upstream(asset, key):
            status = self.status(name, partition)
            if status.state != "fresh":
                raise StaleError(
                    f"{asset} {key}: its input {name} {partition} is {status.state} ({status.why}); {self.remedy(name, partition)}"
                )
        return self.inputs(asset, key)

    def remedy(self, asset: str, key: PartitionKey) -> str:
        """Remedy for one partition: the command that makes it, or its missing raw hours."""
        if asset in ("raw_partitions", "flattened_features") and not has_raw_data(self.config, self.horizon, key.day):
            folder = split_folder(self.config, self.horizon.split_of(key.day))
            listed = "list it in data.gap_days" if key.day in self.horizon.train_days else "change data.dates.test"
            return f"there is no hour of {key} in {folder}: add the hours, or {listed}"
        return remedy(asset, key)

    def _refuse_failed_holdout(self, asset: str, key: PartitionKey) -> None:
        """Raise StaleError if the holdout day failed its checks, before a model is trained; it may be missing still."""
        for name in ("raw_partitions", "flattened_features"):
            status = self.status(name, key)
            if status.state == "failed":
                raise StaleError(
                    f"{asset} {key}: the holdout day of its window failed ({name} {key}: {status.why}); {self.remedy(name, key)}"
                )

    # ----------------------------------------------------------------------------------------------------------- freshness

    def status(self, asset: str, key: PartitionKey) -> Status:
        """State of one partition."""
        known = self._statuses.get((asset, key))
        if known is None:
            known = self._statuses[(asset, key)] = self._judge(asset, key)
        return known

    def _judge(self, asset: str, key: PartitionKey) -> Status:
        def status(state: State, why: str = "") -> Status:
            return Status(asset, key, state, why)

        try:
            manifest = self.warehouse.manifest(asset, key)
        except LtvError as error:
            return status("stale", str(error))
        if manifest is None:
            return status("missing", "never materialized")
        damage = self.warehouse.damage(asset, key)
        if damage is not None:
            return status("stale", damage)
        if SPECS[asset].job == "score_days" and key.day in self.horizon.train_days:
            # What was said of a day before its labels came is a record: it is compared with them, not made again with their help.
            judged = self._judge_verdicts(asset, key)
            return judged if judged.state == "failed" else status("fresh", "kept as it was published: the day has labels")
        if manifest.code_version != CODE_VERSIONS[asset]:
            return status("stale", f"made by code version {manifest.code_version}, now {CODE_VERSIONS[asset]}")
        try:
            if manifest.config != self.config_hash(asset, key):
                return status("stale", "the configuration changed")
            if asset == "raw_partitions":
                changed = self._changed_files(key)
                if changed:
                    return status("stale", changed)
            for name, partition in self.upstream(asset, key):
                above = self.status(name, partition)
                if above.state != "fresh":
                    return status("stale", f"{name} {partition} is {above.state}")
            inputs = self.inputs(asset, key)
        except LtvError as error:
            return status("stale", str(error))
        if inputs != manifest.inputs:
            different = sorted(k for k in inputs.keys() | manifest.inputs.keys() if inputs.get(k) != manifest.inputs.get(k))
            return status("stale", f"{different[0]} changed")
        return self._judge_verdicts(asset, key)

    def _judge_verdicts(self, asset: str, key: PartitionKey) -> Status:
        known: dict[str, Verdict] = {v.check: v for v in self.warehouse.verdicts(asset, key)}
        for check in blocking_checks(asset):
            verdict = known.get(check)
            if verdict is None or verdict.bounds != self.bounds_hash(check):
                return Status(asset, key, "stale", f"check {check} has not run on this content with the present bounds")
            if not verdict.passed:
                return Status(asset, key, "failed", f"check {check}: {verdict.message}")
        return Status(asset, key, "fresh")

    def _changed_files(self, key: PartitionKey) -> str | None:
        """Difference between the raw files of a day and the stored inventory; None if there is none.

        Compares sizes and modification times; a file with new ones is hashed, so a copy with the same content is unchanged.
        """
        cache = HashCache.load(hash_cache_path(self.warehouse, key, contract_of(self.config)))
        now = {name_below(self.config.data.root, p): p for p in candidate_files(self.config, self.horizon, key.day)}
        before = {row["path"]: row for row in _read_inventory(self.warehouse, key)}
        for path in sorted(now.keys() | before.keys()):
            if path not in before:
                return f"new file {path}"
            if path not in now:
                return f"file {path} disappeared"
            known = before[path]
            if known["sha256"] is None:
                readable_now = known["reason"] == NO_PERMISSION and os.access(now[path], os.R_OK)
                if readable_now or now[path].lstat().st_size != known["bytes"]:
                    return f"file {path} was rewritten"
            elif not now[path].is_file() or cache.digest(now[path]) != known["sha256"]:
                return f"file {path} was rewritten"
        return None


def hash_cache_path(warehouse: Warehouse, key: PartitionKey, contract: Contract) -> Path:
    """Path of the cached hashes of a day's raw files; one for all days where a file may have rows of many."""
    name = key if contract.layout is not None else "every_day"
    return warehouse.root / "cache" / "raw_hashes" / f"{name}.json"


def _read_inventory(warehouse: Warehouse, key: PartitionKey) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    files = warehouse.files("raw_partitions", key)
    return [row for f in files for row in pq.ParquetFile(f).read().to_pylist()]


def remedy(asset: str, key: PartitionKey) -> str:
    """The command that makes one partition."""
    if asset == "submission":
        return "run `ltv run`"
    return f"run `ltv run`, or `dagster asset materialize --select {asset} --partition {key}`"


def has_raw_data(config: Config, horizon: Horizon, day: date) -> bool:
    """True if at least one hourly folder of the day exists."""
    split = horizon.split_of(day)
    prefix = f"{day:%Y-%m-%d}-"
    return any(key.startswith(prefix) for key in hourly_folders(config, split))
