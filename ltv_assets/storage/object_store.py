"""Published partitions on any file system that fsspec knows: another disk, S3, Google Cloud Storage, memory.

The warehouse stays where the work is done; a lake is what several machines share and what outlives them. Object stores
know neither rename nor fsync, so publication is another one than in ``files.py``: the files first, under names that hold
their hash and are therefore never overwritten with anything else, then the manifest, whose appearance is the commit. A
reader takes the manifest and then exactly the files it lists, each compared with its hash, so it sees the old partition
or the new one. The files of the partition before are kept for readers that hold its manifest, older ones are deleted.

    <lake>/<folder of the partition>/<first 16 digits of the hash>/<file>
    <lake>/<folder of the partition>/manifest.json
    <lake>/verdicts/…, <lake>/comparisons/…, <lake>/champion.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import fsspec

from ltv_assets.core.asset_specs import ASSETS, SHARED_ASSETS
from ltv_assets.core.errors import LtvError, ModelFileError, PermanentError, StaleError, TransientError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.storage.files import publish_folder, recover_folder, staging, write_atomic
from ltv_assets.storage.manifest import MANIFEST_NAME, Manifest, StoredFile, is_below, read_manifest, verify_files
from ltv_assets.storage.warehouse import COMPARISONS, Warehouse

STATE = ("champion.json", COMPARISONS)
"""Files and folders beside the partitions that say which window scores new days, and why."""

Progress = Callable[[str], None]


class Lake:
    """Partitions below one URL, such as ``s3://bucket/ltv`` or ``file:///mnt/lake``.

    Raises PermanentError if fsspec does not know the kind of URL or lacks the package for it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self.fs, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise PermanentError(f"warehouse.lake {url}: {error}") from None
        except ValueError as error:
            raise PermanentError(f"warehouse.lake {url}: not a URL that fsspec knows ({error})") from None
        self.root = root.rstrip("/")

    # ------------------------------------------------------------------------------------------------------------- all

    def push_all(self, warehouse: Warehouse, progress: Progress = lambda _: None) -> int:
        """Bring the lake up to what the warehouse holds; returns the partitions sent. Damaged ones are left out and named."""
        sent = 0
        with self._reached():
            for asset in SHARED_ASSETS:
                for key in warehouse.keys(asset):
                    try:
                        if self.push(warehouse, asset, key):
                            sent += 1
                            progress(f"{asset} {key}")
                    except ModelFileError as error:
                        progress(f"{asset} {key} is left out: {error}")
            for path in _files_of(warehouse.root, STATE):
                self._commit(path.relative_to(warehouse.root).as_posix(), path.read_bytes())
        return sent

    def pull_all(self, warehouse: Warehouse, progress: Progress = lambda _: None) -> int:
        """Fetch every partition that the warehouse does not have; returns how many."""
        fetched = 0
        with self._reached():
            for asset, key in self.partitions():
                if key not in warehouse.keys(asset):
                    self.pull(warehouse, asset, key)
                    fetched += 1
                    progress(f"{asset} {key}")
            for name in self._find(*STATE):
                if is_below(name) and not (warehouse.root / name).exists():
                    write_atomic(warehouse.root / name, self.fs.cat_file(f"{self.root}/{name}"))
        return fetched

    def partitions(self) -> list[tuple[str, PartitionKey]]:
        """(asset, key) of every partition in the lake."""
        patterns = ("lake/*/*", "models/*/*", "submissions/*")
        folders = [PurePosixPath(self._relative(p)).parent for q in patterns for p in self.fs.glob(f"{self.root}/{q}/{MANIFEST_NAME}")]
        found: list[tuple[str, str]] = []
        for folder in folders:
            top, *rest = folder.parts
            if top == "submissions":
                found += [(a.name, rest[0]) for a in ASSETS if a.folder == top]
            else:
                asset, clock = reversed(rest) if top == "models" else rest
                found.append((asset, clock.partition("=")[2]))
        return sorted((asset, PartitionKey(key)) for asset, key in found if asset in SHARED_ASSETS)

    # -------------------------------------------------------------------------------------------------------- partition

    def push(self, warehouse: Warehouse, asset: str, key: PartitionKey) -> bool:
        """Send one partition and its verdicts; False if the lake had it already.

        Raises ModelFileError if a file differs from its hash: what is damaged here does not get there.
        """
        with self._reached():
            folder = warehouse.folder(asset, key)
            manifest = warehouse.require(asset, key, "nothing to send")
            base = folder.relative_to(warehouse.root).as_posix()
            before = self._manifest(base)
            changed = before is None or before.to_json() != manifest.to_json()
            if changed:
                verify_files(folder, manifest)
                for stored in manifest.files:
                    self._send(folder / stored.name, f"{self.root}/{_object(base, stored)}", stored.bytes)
                self._commit(f"{base}/{MANIFEST_NAME}", manifest.to_json())
                kept = {_object(base, f) for m in (before, manifest) if m is not None for f in m.files} | {f"{base}/{MANIFEST_NAME}"}
                for name in sorted(set(self._find(base)) - kept):
                    self.fs.rm_file(f"{self.root}/{name}")
            for path in _files_of(warehouse.root, (f"verdicts/{asset}/{key}",)):
                self._commit(path.relative_to(warehouse.root).as_posix(), path.read_bytes())
            return changed

    def pull(self, warehouse: Warehouse, asset: str, key: PartitionKey) -> Manifest:
        """Fetch one partition and its verdicts, compare every file with its hash, and publish it in the warehouse.

        Raises StaleError if the lake does not have it, ModelFileError if a file differs from its hash.
        """
        final = warehouse.folder(asset, key)
        base = final.relative_to(warehouse.root).as_posix()
        with self._reached(), staging(warehouse.root, f"pull-{asset}-{key}") as folder:
            content = folder / "content"
            content.mkdir()
            data = self._read(f"{base}/{MANIFEST_NAME}")
            if data is None:
                raise StaleError(f"{asset} {key}: not in the lake {self.url}; run `ltv lake push` where it was made")
            (content / MANIFEST_NAME).write_bytes(data)
            manifest = read_manifest(content)
            if manifest is None or (manifest.asset, manifest.partition) != (asset, key):
                raise ModelFileError(f"{self.url}/{base}: its manifest is not that of {asset} {key}; push the partition again")
            for stored in manifest.files:
                (content / stored.name).parent.mkdir(parents=True, exist_ok=True)
                self.fs.get_file(f"{self.root}/{_object(base, stored)}", str(content / stored.name))
            verify_files(content, manifest)
            recover_folder(final)
            publish_folder(content, final)
            for name in self._find(f"verdicts/{asset}/{key}"):
                if is_below(name):
                    write_atomic(warehouse.root / name, self.fs.cat_file(f"{self.root}/{name}"))
        return manifest

    # ----------------------------------------------------------------------------------------------------------- objects

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turn what a file system says into one sentence; whatever is not ours may pass."""
        try:
            yield
        except LtvError:
            raise
        except OSError as error:
            raise TransientError(f"warehouse.lake {self.url}: {type(error).__name__}: {error}; nothing was published, try again") from error

    def _relative(self, path: str) -> str:
        return str(self.fs._strip_protocol(path))[len(self.root) + 1 :]

    def _find(self, *folders: str) -> list[str]:
        """Files at or below the folders, relative to the lake."""
        self.fs.invalidate_cache()
        return [self._relative(path) for folder in folders for path in self.fs.find(f"{self.root}/{folder}")]

    def _read(self, name: str) -> bytes | None:
        try:
            return bytes(self.fs.cat_file(f"{self.root}/{name}"))
        except FileNotFoundError:
            return None

    def _manifest(self, base: str) -> Manifest | None:
        """The manifest in the lake; None if there is none that can be read, and the partition is sent again."""
        data = self._read(f"{base}/{MANIFEST_NAME}")
        try:
            raw = json.loads(data or b"null")
            raw.pop("manifest_version")
            return Manifest(**{**raw, "files": tuple(StoredFile(**f) for f in raw["files"])})
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def _send(self, source: Path, target: str, size: int) -> None:
        if self.fs.exists(target) and self.fs.size(target) == size:
            return
        self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        self.fs.put_file(str(source), target)

    def _commit(self, name: str, data: bytes) -> None:
        """Write a small file in one step: one request to an object store, a rename on a disk."""
        if self._read(name) == data:
            return
        target = f"{self.root}/{name}"
        if "file" in self.fs.protocol:
            write_atomic(Path(target), data)
        else:
            self.fs.pipe_file(target, data)


def _object(base: str, stored: StoredFile) -> str:
    return f"{base}/{stored.sha256[:16]}/{stored.name}"


def _files_of(root: Path, names: tuple[str, ...]) -> list[Path]:
    """Finished files at or below some names."""
    found = [p for name in names for p in ([root / name] if (root / name).is_file() else sorted((root / name).rglob("*")))]
    return [p for p in found if p.is_file() and not p.name.startswith(".")]
