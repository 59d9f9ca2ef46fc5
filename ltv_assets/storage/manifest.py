"""Manifests: the small JSON file that says what a partition consists of and what it was made from.

A manifest holds no clock time and no run id, so equal inputs give equal bytes. Readers open what it lists and nothing
else; a file that is not listed does not exist for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ltv_assets.core.errors import DataError, ModelFileError
from ltv_assets.core.hashing import sha256_hex, short_hash
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.storage.files import sha256_file

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a partition. ``rows`` is set for files of the asset's relation, None for anything else."""

    name: str
    bytes: int
    sha256: str
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a partition consists of (``files``) and what it was made from (``inputs``, ``config``, ``code_version``).

    ``facts`` are a few deterministic figures that downstream assets and the UI want without opening the files.
    """

    asset: str
    partition: str
    code_version: str
    config: str
    inputs: dict[str, str]
    files: tuple[StoredFile, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Hash of the content alone: unchanged bytes keep downstream fresh whatever they were rebuilt for."""
        text = "\n".join(f"{f.name} {f.sha256}" for f in self.files)
        return short_hash(text)

    @property
    def rows(self) -> int:
        """Rows of the asset's relation in this partition."""
        return sum(f.rows or 0 for f in self.files)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(f.bytes for f in self.files)

    @property
    def relation_files(self) -> tuple[StoredFile, ...]:
        """The files that make up the asset's relation."""
        return tuple(f for f in self.files if f.rows is not None)

    def made_from(self, asset: str) -> tuple[PartitionKey, ...]:
        """The partitions of an asset among the inputs, in order."""
        return PartitionKey.among(name.removeprefix(f"{asset}/") for name in self.inputs if name.startswith(f"{asset}/"))

    def to_json(self) -> bytes:
        """Canonical bytes."""
        return (
            json.dumps({"manifest_version": MANIFEST_VERSION, **asdict(self)}, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"
        )


def read_manifest(folder: Path) -> Manifest | None:
    """Manifest of a published partition; None if there is none.

    Raises ModelFileError if the file is there but is not a manifest of this version.
    """
    path = folder / MANIFEST_NAME
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path}: not a readable manifest ({error}); run `ltv run`, which makes the partition again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); restore access and run again") from None
    if not isinstance(raw, dict) or raw.pop("manifest_version", None) != MANIFEST_VERSION:
        raise ModelFileError(f"{path}: expected manifest version {MANIFEST_VERSION}; run `ltv run`, which makes the partition again")
    try:
        manifest = Manifest(**{**raw, "files": tuple(StoredFile(**f) for f in raw["files"])})
    except (KeyError, TypeError) as error:
        raise ModelFileError(f"{path}: manifest lacks or adds a field ({error}); run `ltv run`, which makes the partition again") from None
    for stored in manifest.files:
        if not is_below(stored.name):
            raise ModelFileError(
                f"{path}: the file name {stored.name!r} leaves the partition's folder; run `ltv run`, which makes the partition again"
            )
    return manifest


def is_below(name: Any) -> bool:
    """True for a relative file name that stays in the folder it is joined to."""
    parts = PurePosixPath(name).parts if isinstance(name, str) and "\0" not in name else ()
    return bool(parts) and parts[0] != "/" and ".." not in parts


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compare every listed file with its recorded size and hash.

    Raises ModelFileError naming the first file that differs, DataError for one that cannot be opened.
    """
    for stored in manifest.files:
        path = folder / stored.name
        if not path.is_file():
            raise _missing(path, manifest)
        try:
            same = path.stat().st_size == stored.bytes and sha256_file(path) == stored.sha256
        except FileNotFoundError:
            raise _missing(path, manifest) from None
        except OSError as error:
            raise _closed(path, error) from None
        if not same:
            raise _differs(path, stored, manifest)


def read_files(folder: Path, manifest: Manifest, chosen: Iterable[StoredFile]) -> dict[str, bytes]:
    """Bytes of the ``chosen`` files by name; what is returned is what was hashed, however the folder changes meanwhile.

    Raises ModelFileError naming the first file that differs from its record.
    """
    contents = {}
    for stored in chosen:
        path = folder / stored.name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise _missing(path, manifest) from None
        except OSError as error:
            raise _closed(path, error) from None
        if len(data) != stored.bytes or sha256_hex(data) != stored.sha256:
            raise _differs(path, stored, manifest)
        contents[stored.name] = data
    return contents


def _missing(path: Path, manifest: Manifest) -> ModelFileError:
    return ModelFileError(f"{path}: listed in the manifest but missing; {_remedy(path, manifest)}")


def _differs(path: Path, stored: StoredFile, manifest: Manifest) -> ModelFileError:
    return ModelFileError(
        f"{path}: content differs from its recorded hash {stored.sha256[:12]}, it was changed or torn; {_remedy(path, manifest)}"
    )


def _closed(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror}); restore access and run again")


def _remedy(path: Path, manifest: Manifest) -> str:
    window = f" --window {manifest.partition}" if f"window={manifest.partition}" in path.parts else ""
    return f"run `ltv run{window}`, which makes {manifest.asset} {manifest.partition} again"
