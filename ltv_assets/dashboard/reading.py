"""Reading a warehouse that others write: no lock, no writing, and a state number that changes when something was published.

What belongs here: consistent reads of published files, and what was read last. What does not: figures (``snapshot.py``). The DuckDB
catalogue is not opened: its lock is exclusive, and what it shows are the same files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ltv_assets.core.asset_specs import ASSET_NAMES
from ltv_assets.core.errors import LtvError, ModelFileError, PermanentError
from ltv_assets.core.hashing import short_hash
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.storage.champion import CHAMPION_FILE
from ltv_assets.storage.files import STAGING_FOLDER, previous_of
from ltv_assets.storage.manifest import MANIFEST_NAME, Manifest
from ltv_assets.storage.warehouse import COMPARISONS, DOCUMENT_FOLDERS, Verdict, Warehouse

T = TypeVar("T")
ATTEMPTS = 20
PAUSE_SECONDS = 0.02
MAX_REMEMBERED = 4096
_UNREADABLE = (OSError, pa.ArrowException, ModelFileError)


class PublishedWarehouse(Warehouse):
    """A warehouse that is only looked at: it never writes, not even a mark of damage, and reads files without hashing them first."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._remembered: dict[str, Any] = {}
        self._manifests: dict[Path, tuple[tuple[int, int, int], Manifest]] = {}

    def write(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        raise PermanentError(f"{self.root}: this warehouse is open for reading only; publish partitions with `ltv run`")

    def record_verdict(self, verdict: Verdict) -> NoReturn:
        """Refused."""
        self.write()

    def files(self, asset: str, key: PartitionKey, *, verify: bool = False) -> tuple[Path, ...]:
        """Files of the partition's relation in manifest order; they are not hashed, whatever ``verify`` says."""
        return super().files(asset, key, verify=False)

    def manifest(self, asset: str, key: PartitionKey) -> Manifest | None:
        """As `Warehouse.manifest`, parsed once for each published file.

        Waits for a partition that is being replaced at this moment where that takes two renames.
        """
        folder = self.folder(asset, key)
        path = folder / MANIFEST_NAME
        for _ in range(ATTEMPTS):
            try:
                stat = path.stat()
            except OSError:
                if not previous_of(folder).exists():
                    return None
                time.sleep(PAUSE_SECONDS)
                continue
            mark = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            known = self._manifests.get(path)
            if known is not None and known[0] == mark:
                return known[1]
            found = super().manifest(asset, key)
            if found is not None:
                self._manifests[path] = (mark, found)
                return found
        return None

    def _consistently(self, asset: str, key: PartitionKey, read: Callable[[Manifest], T]) -> T:
        for attempt in range(ATTEMPTS):
            manifest = self.require(asset, key, f"materialize {asset} for {key} first")
            try:
                return read(manifest)
            except _UNREADABLE:
                if attempt == ATTEMPTS - 1 or self.manifest(asset, key) == manifest:
                    raise
        raise AssertionError("unreachable")

    def read(self, asset: str, key: PartitionKey, of: Callable[[list[Path]], T], *, name: str = "") -> T:
        """``of`` the files of a partition: of its relation, or the one called ``name``.

        Read again if the partition is replaced meanwhile. Raises StaleError if there is no such partition or file, DataError if it cannot
        be read.
        """
        folder = self.folder(asset, key)

        def opened(manifest: Manifest) -> T:
            chosen = [f.name for f in manifest.files if (f.name == name if name else f.rows is not None)]
            if name and not chosen:
                raise ModelFileError(f"{folder}: expected the file {name}, found {[f.name for f in manifest.files]}; run `ltv run`")
            return of([folder / f for f in chosen])

        try:
            return self._consistently(asset, key, opened)
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise ModelFileError(f"{asset} {key}: cannot be read ({reason:.200}); run `ltv status --verify`, then `ltv run`") from None

    def remembered(self, what: str, asset: str, key: PartitionKey, of: Callable[[], T]) -> T:
        """``of()``, made once for the present content of a partition."""
        return self.recalled(f"{what} {asset} {key} {self.fingerprint(asset, key)}", of)

    def recalled(self, identity: str, of: Callable[[], T]) -> T:
        """``of()``, made once for one text that says what it is made from."""
        if identity not in self._remembered:
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[identity] = of()
        found: T = self._remembered[identity]
        return found

    def rows(self, asset: str, key: PartitionKey) -> list[dict[str, Any]]:
        """Rows of a small relation, in the order of its files."""

        def make() -> list[dict[str, Any]]:
            return self.read(asset, key, lambda files: [row for f in files for row in pq.ParquetFile(f).read().to_pylist()])

        return self.remembered("rows", asset, key, make)

    def columns(self, asset: str, key: PartitionKey, names: Sequence[str], *, name: str = "") -> pa.Table:
        """Some columns of a partition's files, row group by row group; not remembered."""

        def make(files: list[Path]) -> pa.Table:
            return pa.concat_tables([pq.ParquetFile(f).read(columns=list(names), use_threads=False) for f in files])

        return self.read(asset, key, make, name=name)

    # ------------------------------------------------------------------------------------------------------------- state

    def state(self) -> str:
        """A short text that differs when anything was published, judged or promoted. Cheap: it looks at names and times only."""
        return short_hash("\n".join(self._marks()))

    def _marks(self) -> Iterator[str]:
        patterns = (
            f"lake/*/*/{MANIFEST_NAME}",
            f"models/*/*/{MANIFEST_NAME}",
            f"submissions/*/{MANIFEST_NAME}",
            *(f"{folder}/*/{MANIFEST_NAME}" for folder in DOCUMENT_FOLDERS.values()),
            "verdicts/*/*",
            f"{COMPARISONS}/*.json",
            "tracking/*/*/run.json",
            CHAMPION_FILE,
        )
        for pattern in patterns:
            for path in sorted(self.root.glob(pattern)):
                try:
                    stat = path.stat()
                except OSError:
                    continue
                yield f"{path.relative_to(self.root)} {stat.st_mtime_ns} {stat.st_ino}"
        yield from self.in_the_making()

    def in_the_making(self) -> tuple[str, ...]:
        """``asset key`` of partitions that are being written at this moment."""
        found = set()
        for folder in (self.root / STAGING_FOLDER).glob("*"):
            asset, _, rest = folder.name.partition("-")
            key = rest.rpartition("-")[0]
            if folder.suffix != ".lock" and asset in ASSET_NAMES and key:
                found.add(f"{asset} {key}")
        return tuple(sorted(found))


def by_partition(warehouse: PublishedWarehouse, asset: str, problems: list[str]) -> Mapping[PartitionKey, Any]:
    """{partition: rows} of every partition of a small relation that can be read; the others are named in ``problems``."""
    found = {}
    for key in warehouse.keys(asset):
        try:
            found[key] = warehouse.rows(asset, key)
        except LtvError as error:
            problems.append(str(error))
    return found
