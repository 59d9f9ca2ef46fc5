"""One opened project: the configuration in force, the days it knows, its feature registry and its warehouse.

The command line and the Dagster resource open the same object, so both paths compute the same thing. It holds no
results, only their locations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from ltv_assets.core.asset_specs import OutputColumn, relations
from ltv_assets.core.config import Config, load_config
from ltv_assets.core.contract import Contract, contract_of, load_contract
from ltv_assets.core.database import open_duckdb
from ltv_assets.core.errors import StaleError, TransientError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.ingestion.calendar import Horizon, discover
from ltv_assets.state.freshness import Lineage
from ltv_assets.state.plan import submission_keys
from ltv_assets.storage.catalog import Connector, sync
from ltv_assets.storage.warehouse import Warehouse

if TYPE_CHECKING:
    from ltv_assets.features.registry import Registry
    from ltv_assets.storage.object_store import Lake


@lru_cache(maxsize=4)
def _load_registry(path: Path, mtime_ns: int, contract: Path, contract_mtime_ns: int) -> Registry:
    from ltv_assets.features.registry import load_registry

    return load_registry(path, load_contract(contract))


@dataclass(frozen=True)
class Project:
    """Configuration, horizon and warehouse, read together once.

    ``kept``: what one step of a run leaves for the next in memory, by its identity: the rows of the window in training.
    """

    config: Config
    horizon: Horizon
    warehouse: Warehouse
    kept: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def open(cls, path: Path | None = None, kept: dict[str, Any] | None = None) -> Project:
        """Open what ``LTV_CONFIG``, ``LTV_DATA_ROOT`` and ``LTV_WAREHOUSE`` describe, or the configuration at ``path``.

        Raises ConfigError if the configuration is wrong.
        """
        config = load_config(path)
        return cls(config, discover(config), Warehouse(config.warehouse.root), {} if kept is None else kept)

    @cached_property
    def registry(self) -> Registry:
        """The feature registry of the configuration; raises ConfigError if it is wrong."""
        self.contract  # noqa: B018 - what is wrong with it is said before what is wrong with the registry
        places = (self.config.features, self.config.contract)
        times = [path.stat().st_mtime_ns if path.is_file() else 0 for path in places]
        return _load_registry(places[0], times[0], places[1], times[1])

    @property
    def contract(self) -> Contract:
        """What a row of the data is; raises ConfigError if the contract is wrong."""
        return contract_of(self.config)

    @cached_property
    def lake(self) -> Lake | None:
        """The lake of the configuration; raises PermanentError if fsspec cannot open its URL."""
        from ltv_assets.storage.object_store import Lake

        url = self.config.warehouse.lake
        return Lake(url) if url is not None else None

    def lineage(self) -> Lineage:
        """A fresh view of what is fresh."""
        return Lineage(self.config, self.horizon, self.warehouse, self.registry.fingerprint())

    @cached_property
    def flattened_columns(self) -> tuple[OutputColumn, ...]:
        """Columns of the relation ``flattened_features``, which follow from the registry."""
        from ltv_assets.features.schema import column_table

        types = {"string": "VARCHAR", "category": "VARCHAR", "int32": "INTEGER", "int64": "BIGINT", "double": "DOUBLE", "float": "FLOAT"}
        return tuple(OutputColumn(name, types[kind], text, unit or None) for name, kind, unit, text in column_table(self.registry))

    def open_duckdb(self, **settings: Any) -> duckdb.DuckDBPyConnection:
        """A DuckDB database under the configured threads and memory, in memory unless ``database`` names a file; the caller closes it.

        ``settings`` are those of `ltv_assets.core.database.open_duckdb`; they override the configuration.
        """
        compute = self.config.compute
        return open_duckdb(**{"threads": compute.threads, "memory_limit": compute.duckdb_limit, **settings})

    def sync_catalogue(
        self, *, rebuild: bool = False, connect: Connector | None = None, problems: list[str] | None = None
    ) -> dict[str, int]:
        """Bring ``ltv.duckdb`` in line with the warehouse; see `ltv_assets.storage.catalog.sync`."""
        timeout = self.config.warehouse.lock_timeout_seconds
        connect = connect or partial(self.open_duckdb, database=self.warehouse.database)
        return sync(
            self.warehouse,
            self.flattened_columns,
            timeout_seconds=timeout,
            connect=connect,
            rebuild=rebuild,
            problems=problems,
            relations=relations(self.contract),
        )

    def refresh_catalogue(self) -> list[str]:
        """`sync_catalogue` as the last step of a command: problems are returned as messages and left to `ltv catalog`."""
        problems: list[str] = []
        try:
            self.sync_catalogue(problems=problems)
        except TransientError as error:
            problems.append(str(error))
        return problems

    @property
    def submission_key(self) -> PartitionKey:
        """Partition of the submission: first and last test day. Raises StaleError if there is no test day."""
        keys = submission_keys(self.horizon)
        if not keys:
            raise StaleError(
                f"no test day under {self.config.data.root / self.config.data.test_folder}; run `make demo` for simulated data, "
                "or set LTV_DATA_ROOT to a folder with train/ and test/ and run `ltv run`"
            )
        return keys[0]

    def window_or_last(self, window: PartitionKey | None) -> PartitionKey:
        """``window``, or the newest possible one. Raises StaleError if there is none."""
        if window is not None:
            self.horizon.training_days(window.day)
            return window
        last = self.horizon.last_window
        if last is None:
            found = ", ".join(str(d) for d in self.horizon.train_days) or "none"
            raise StaleError(
                f"no window can be trained: it needs {self.horizon.min_train_days} labelled days before its holdout day, found: {found} "
                f"under {self.config.data.root}; run `ltv simulate`, or set LTV_DATA_ROOT to a folder with train/ and test/"
            )
        return PartitionKey(last)
