"""``ltv.duckdb``: one relation per asset over what the warehouse holds.

Large assets are views over the parquet files their manifests list, small ones are tables that are replaced partition by
partition. The file is a convenience and never the only copy: `sync` rebuilds whatever differs from the manifests, so a
lost, locked or outdated catalogue costs seconds. It is opened briefly, under an OS lock with a bounded wait, because
DuckDB lets one writing process at a time have a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from ltv_assets.core.asset_specs import ASSET_NAMES, IMPRESSION_ASSETS, RELATIONS, OutputColumn
from ltv_assets.core.errors import DataError, LtvError, TransientError, explained
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.storage.files import file_lock
from ltv_assets.storage.warehouse import Warehouse

_STATE_TABLE = "catalogue_state"
_OPEN_ELSEWHERE = ("lock on file", "same database file", "already attached")

Connector = Callable[[], duckdb.DuckDBPyConnection]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def open_catalogue(warehouse: Warehouse, *, timeout_seconds: float, connect: Connector) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open ``ltv.duckdb`` by ``connect`` for a short transaction.

    Raises TransientError naming the file if another process keeps it open, longer than ``timeout_seconds`` where that process
    is one of ours, or if it is damaged.
    """
    path = warehouse.database
    with file_lock(path.with_suffix(".lock"), timeout_seconds=timeout_seconds, what="the DuckDB catalogue"):
        try:
            connection = connect()
        except duckdb.Error as error:
            raise _unusable(path, error) from None
        try:
            yield connection
        except (duckdb.IOException, duckdb.SerializationException, duckdb.InternalException, duckdb.FatalException) as error:
            raise explained(error, path) or _unusable(path, error) from None
        finally:
            connection.close()


def _unusable(path: Path, error: duckdb.Error) -> TransientError:
    reason = " ".join(str(error).split()).partition(" See also ")[0]
    fault, remedy = "cannot be read", "delete the file, which is no only copy of anything,"
    if any(sign in reason.lower() for sign in _OPEN_ELSEWHERE):
        fault, remedy = "is open in another program", "close it"
    return TransientError(
        f"{path}: the DuckDB catalogue {fault} ({reason:.200}); {remedy} and run `ltv catalog`; the partitions themselves are safe"
    )


def sync(
    warehouse: Warehouse,
    flattened_columns: Sequence[OutputColumn],
    *,
    timeout_seconds: float,
    connect: Connector,
    rebuild: bool = False,
    problems: list[str] | None = None,
    relations: Mapping[str, Sequence[OutputColumn]] = RELATIONS,
) -> dict[str, int]:
    """Bring every relation in line with the manifests; returns {asset: partitions changed}.

    ``flattened_columns`` are the columns of ``flattened_features``, ``relations`` those of every other asset. With
    ``rebuild`` nothing present is trusted. Partitions that cannot be read are left out; why is appended to ``problems``.
    Raises TransientError if the catalogue stays locked.
    """
    warehouse.root.mkdir(parents=True, exist_ok=True)
    changed: dict[str, int] = {}
    problems = problems if problems is not None else []
    with open_catalogue(warehouse, timeout_seconds=timeout_seconds, connect=connect) as connection:
        if rebuild:
            _drop_everything(connection)
        connection.execute(f"CREATE TABLE IF NOT EXISTS {_STATE_TABLE} (asset VARCHAR, partition VARCHAR, fingerprint VARCHAR)")
        for asset in ASSET_NAMES:
            columns = flattened_columns if asset == "flattened_features" else relations[asset]
            usable = _usable(warehouse, asset, problems)
            keys = sorted(usable)
            wanted = {"columns": ",".join(f"{c.name} {c.type}" for c in columns)}
            wanted.update(usable.items())
            rows = connection.execute(f"SELECT partition, fingerprint FROM {_STATE_TABLE} WHERE asset = ?", [asset]).fetchall()
            stale = _differing(wanted, dict(rows))
            if not stale:
                continue
            connection.execute("BEGIN")
            if asset in IMPRESSION_ASSETS:
                _replace_view(connection, warehouse, asset, keys, columns)
            else:
                _replace_rows(connection, warehouse, asset, keys, columns, stale)
            connection.execute(f"DELETE FROM {_STATE_TABLE} WHERE asset = ?", [asset])
            connection.executemany(f"INSERT INTO {_STATE_TABLE} VALUES (?, ?, ?)", [[asset, k, f] for k, f in sorted(wanted.items())])
            connection.execute("COMMIT")
            changed[asset] = len(stale - {"columns"})
    return changed


def _usable(warehouse: Warehouse, asset: str, problems: list[str]) -> dict[PartitionKey, str]:
    """{partition: content hash} of every partition that DuckDB will be able to open."""
    found = {}
    for key in warehouse.keys(asset):
        try:
            manifest = warehouse.require(asset, key, "run `ltv run`")
            for file in manifest.relation_files:
                _require_openable(warehouse.folder(asset, key) / file.name, file.bytes)
        except LtvError as error:
            problems.append(f"{asset} {key} is left out of the catalogue: {error}")
        else:
            found[key] = manifest.fingerprint
    return found


def _require_openable(path: Path, size: int) -> None:
    """Raise DataError unless a file has its size and, if it is parquet, a footer that can be read."""
    try:
        found = path.stat().st_size
        if found != size:
            raise DataError(f"{path}: expected {size} bytes, found {found}; run `ltv status --verify`, then `ltv run`")
        if path.suffix == ".parquet":
            pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        text = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be opened ({text:.160}); run `ltv status --verify`, then `ltv run`") from None


def _differing(wanted: dict[str, str], known: dict[str, str]) -> set[str]:
    return {key for key in wanted.keys() | known.keys() if wanted.get(key) != known.get(key)}


def _drop_everything(connection: duckdb.DuckDBPyConnection) -> None:
    rows = connection.execute("SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = 'main'").fetchall()
    for name, kind in rows:
        connection.execute(f"DROP {'VIEW' if kind == 'VIEW' else 'TABLE'} {_identifier(name)}")


def _relation_files(warehouse: Warehouse, asset: str, keys: Sequence[PartitionKey]) -> list[Path]:
    files = []
    for key in keys:
        manifest = warehouse.manifest(asset, key)
        if manifest is not None:
            files += [warehouse.folder(asset, key) / f.name for f in manifest.relation_files]
    return files


def _empty(columns: Sequence[OutputColumn]) -> str:
    return "SELECT " + ", ".join(f"CAST(NULL AS {c.type}) AS {_identifier(c.name)}" for c in columns) + " WHERE false"


def _select(files: Sequence[Path], columns: Sequence[OutputColumn]) -> str:
    if not files:
        return _empty(columns)
    listed = "[" + ", ".join(_quoted(str(f.absolute())) for f in files) + "]"
    if files[0].suffix == ".csv":
        types = "{" + ", ".join(f"{_quoted(c.name)}: {_quoted(c.type)}" for c in columns) + "}"
        return f"SELECT * FROM read_csv({listed}, header = true, columns = {types})"
    wanted = ", ".join(f"CAST({_identifier(c.name)} AS {c.type}) AS {_identifier(c.name)}" for c in columns)
    return f"SELECT {wanted} FROM read_parquet({listed}, hive_partitioning = false)"


def _replace_view(
    connection: duckdb.DuckDBPyConnection, warehouse: Warehouse, asset: str, keys: Sequence[PartitionKey], columns: Sequence[OutputColumn]
) -> None:
    if asset == "submission":
        keys = keys[-1:]
    files = [f for f in _relation_files(warehouse, asset, keys) if f.name != "submission_ungated.csv"]
    connection.execute(f"CREATE OR REPLACE VIEW {_identifier(asset)} AS {_select(files, columns)}")


def _replace_rows(
    connection: duckdb.DuckDBPyConnection,
    warehouse: Warehouse,
    asset: str,
    keys: Sequence[PartitionKey],
    columns: Sequence[OutputColumn],
    stale: set[str],
) -> None:
    name = _identifier(asset)
    if "columns" in stale:
        connection.execute(f"CREATE OR REPLACE TABLE {name} AS {_empty(columns)}")
        stale = stale | set(keys)
    key_column = columns[0].name
    for key in sorted(stale - {"columns"}):
        connection.execute(f"DELETE FROM {name} WHERE {_identifier(key_column)} = ?", [key])
        files = _relation_files(warehouse, asset, [k for k in keys if k == key])
        if files:
            connection.execute(f"INSERT INTO {name} {_select(files, columns)}")
