"""The warehouse folder: one place per asset and partition, written atomically, read through manifests.

    lake/<asset>/day=D/          parquet of large relations, one folder per day
    lake/<asset>/window=D/       the same for small relations of windows
    models/window=D/<asset>/     LightGBM text, JSON and the asset's relation
    submissions/<first>_<last>/  submission.csv, submission_ungated.csv
    reports/window=D/            report.html of a window and its pictures
    ablations/window=D/          what `ltv ablate` measured
    champions/window=D/          model_card.md of a window that is or was champion
    verdicts/<asset>/<key>/      one JSON per check: what passed, for which content
    quarantine/<asset>/day=D/    rows and files set aside, with their reasons

`Warehouse.write` stages a partition, hashes it and publishes it by one rename; `Warehouse.files` returns what the
manifest lists. `Warehouse.record_verdict` and `Warehouse.verdicts` carry check results from one run to the next, which
Dagster's blocking checks do not do. ``catalog.py`` shows all of it as DuckDB relations.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ltv_assets.core.asset_specs import SPECS
from ltv_assets.core.errors import DataError, LtvError, ModelFileError, NoSpaceError, PermanentError, StaleError, explained
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.storage.files import (
    publish_folder,
    recover_folder,
    sha256_file,
    staging,
    sweep_staging,
    sweep_temporary,
    write_atomic,
)
from ltv_assets.storage.manifest import MANIFEST_NAME, Manifest, StoredFile, read_files, read_manifest, verify_files

T = TypeVar("T")
SCORES_FILE = "holdout_scores.parquet"
"""Scores of a window's holdout rows, beside its metrics."""

DOCUMENT_FOLDERS: Mapping[str, str] = {"report": "reports", "ablation": "ablations", "model_card": "champions"}
"""What describes a window for readers: published like a partition, but nothing is made from it."""
COMPARISONS = "comparisons"
PLAIN_FOLDERS = ("verdicts", COMPARISONS, "tracking", "quarantine", "cache")
"""Folders of single files, each replaced by `write_atomic`."""
LEAST_FREE_BYTES = 4 << 20
"""Room without which a run does not start: the databases of Dagster, MLflow and DuckDB alone need about as much."""

DAMAGE_NAME = ".damaged"
"""Left in a partition whose files were found to differ from their hashes; the partition then counts as stale."""

WARNING = "warning"
"""The figure that is true where a blocking check passes and yet warns."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of one asset check for one content (``fingerprint``) of one partition, under one set of bounds (hash ``bounds``)."""

    asset: str
    partition: PartitionKey
    check: str
    passed: bool
    blocking: bool
    fingerprint: str
    bounds: str
    message: str
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def remark(self) -> str:
        """The message where there is something to be told: a failure, or a blocking check that passed with a warning."""
        return self.message if not self.passed or self.figures.get(WARNING) else ""


class Warehouse:
    """Paths, atomic writes and verified reads below one root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # ------------------------------------------------------------------------------------------------------------ paths

    def folder(self, asset: str, key: PartitionKey) -> Path:
        """Folder of one partition."""
        if asset in DOCUMENT_FOLDERS:
            return self.root / DOCUMENT_FOLDERS[asset] / f"window={key}"
        spec = SPECS[asset]
        if spec.folder == "submissions":
            return self.root / spec.folder / key
        if spec.folder == "models":
            return self.root / spec.folder / f"window={key}" / asset
        return self.root / spec.folder / asset / f"{spec.partitions}={key}"

    @property
    def database(self) -> Path:
        """The DuckDB catalogue."""
        return self.root / "ltv.duckdb"

    def comparison(self, challenger: PartitionKey, champion: PartitionKey) -> Path:
        """File of the comparison of a window with the champion it met."""
        return self.root / COMPARISONS / f"{challenger}_against_{champion}.json"

    def comparisons_of(self, challenger: PartitionKey | None = None, champion: PartitionKey | None = None) -> list[Path]:
        """Files of all comparisons of one challenger, with one champion, or of all."""
        return sorted((self.root / COMPARISONS).glob(f"{challenger or '*'}_against_{champion or '*'}.json"))

    def keys(self, asset: str) -> tuple[PartitionKey, ...]:
        """Published partitions of an asset, in order."""
        folder = DOCUMENT_FOLDERS.get(asset) or SPECS[asset].folder
        if folder == "models":
            folders = (p / asset for p in (self.root / "models").glob("window=*"))
            found = (p.parent.name.partition("=")[2] for p in folders if (p / MANIFEST_NAME).is_file())
        else:
            base = self.root / folder / asset if folder == "lake" else self.root / folder
            listed = list(base.glob("*")) if base.is_dir() else []
            found = (p.name.rpartition("=")[2] for p in listed if (p / MANIFEST_NAME).is_file())
        return PartitionKey.among(found)

    # ------------------------------------------------------------------------------------------------------------ write

    def write(
        self,
        asset: str,
        key: PartitionKey,
        fill: Callable[[Path], Mapping[str, int | None]],
        *,
        code_version: str,
        config: str,
        inputs: Mapping[str, str],
        facts: Callable[[], Mapping[str, Any]] | Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Stage, hash and publish one partition.

        ``fill`` writes files into the folder it is given and returns {file name: rows, or None for files outside the
        relation}. ``facts`` may be a function, called after ``fill``. A partition that would not change is left alone.
        """
        final = self.folder(asset, key)
        recover_folder(final)
        with staging(self.root, f"{asset}-{key}") as folder:
            content = folder / "content"
            content.mkdir()
            listed = fill(content)
            stored = []
            for name, rows in sorted(listed.items()):
                path = content / name
                digest = sha256_file(path)
                if rows is not None and path.suffix == ".parquet":
                    # The hash in the name keeps a reader of an old manifest from opening a new file under an old name.
                    path = path.rename(path.with_name(f"{path.stem}-{digest[:12]}.parquet"))
                stored.append(StoredFile(path.relative_to(content).as_posix(), path.stat().st_size, digest, rows))
            extra = facts() if callable(facts) else (facts or {})
            manifest = Manifest(asset, key, code_version, config, dict(sorted(inputs.items())), tuple(stored), dict(extra))
            data = manifest.to_json()
            if self._is_published(final, manifest, data):
                return manifest
            (content / MANIFEST_NAME).write_bytes(data)
            publish_folder(content, final)
        return manifest

    @staticmethod
    def _is_published(final: Path, manifest: Manifest, data: bytes) -> bool:
        try:
            if (final / MANIFEST_NAME).read_bytes() != data:
                return False
            verify_files(final, manifest)
        except (OSError, ModelFileError):
            return False
        present = {p.relative_to(final).as_posix() for p in final.rglob("*") if p.is_file()}
        return present == {MANIFEST_NAME, *(f.name for f in manifest.files)}

    def sweep(self) -> list[str]:
        """Delete what killed processes left and undo half-done publications; returns the names. The work of the living is spared."""
        for pattern in (
            "lake/*/.*.previous",
            "models/*/.*.previous",
            "submissions/.*.previous",
            *(f"{folder}/.*.previous" for folder in DOCUMENT_FOLDERS.values()),
        ):
            for previous in self.root.glob(pattern):
                recover_folder(previous.with_name(previous.name[1:].removesuffix(".previous")))
        plain = [name for folder in (self.root, self.root / "dagster") for name in sweep_temporary(folder, deep=False)]
        deep = [name for folder in PLAIN_FOLDERS for name in sweep_temporary(self.root / folder)]
        return [*sweep_staging(self.root), *plain, *deep]

    # ------------------------------------------------------------------------------------------------------------- read

    def manifest(self, asset: str, key: PartitionKey) -> Manifest | None:
        """Manifest of a partition, None if it was never published. Raises ModelFileError if it is damaged or another partition's."""
        folder = self.folder(asset, key)
        manifest = read_manifest(folder)
        if manifest is not None and (manifest.asset, manifest.partition) != (asset, key):
            raise ModelFileError(
                f"{folder / MANIFEST_NAME}: expected the manifest of {asset} {key}, found that of {manifest.asset} {manifest.partition}; "
                "run `ltv run`, which makes the partition again"
            )
        return manifest

    def require(self, asset: str, key: PartitionKey, remedy: str) -> Manifest:
        """Manifest of a partition that must exist; raises StaleError with ``remedy`` otherwise."""
        manifest = self.manifest(asset, key)
        if manifest is None:
            raise StaleError(f"{asset} {key}: not in the warehouse {self.root}; {remedy}")
        return manifest

    def files(self, asset: str, key: PartitionKey, *, verify: bool = True) -> tuple[Path, ...]:
        """Files of the partition's relation, in manifest order, verified against their hashes.

        Raises StaleError if the partition does not exist, ModelFileError if a file differs from its hash.
        """
        folder = self.folder(asset, key)

        def listed(manifest: Manifest) -> tuple[Path, ...]:
            if verify:
                verify_files(folder, manifest)
            return tuple(folder / f.name for f in manifest.relation_files)

        return self._consistently(asset, key, listed)

    def artifacts(self, asset: str, key: PartitionKey) -> dict[str, bytes]:
        """Verified bytes of every file of a partition that is not part of its relation.

        Raises StaleError if the partition does not exist, ModelFileError if a file differs from its hash.
        """
        folder = self.folder(asset, key)
        return self._consistently(asset, key, lambda manifest: read_files(folder, manifest, [f for f in manifest.files if f.rows is None]))

    def _consistently(self, asset: str, key: PartitionKey, read: Callable[[Manifest], T]) -> T:
        """``read`` the manifest's files; once more with the new manifest if the partition was replaced meanwhile."""
        while True:
            manifest = self.require(asset, key, f"materialize {asset} for {key} first")
            try:
                return read(manifest)
            except ModelFileError as error:
                if self.manifest(asset, key) == manifest:
                    # Whoever asks next learns it from the partition, without reading every byte again.
                    with suppress(OSError):
                        (self.folder(asset, key) / DAMAGE_NAME).write_text(str(error))
                    raise

    def verify(self, asset: str, key: PartitionKey) -> str | None:
        """Compare a partition's files with their hashes; returns what is wrong, None if nothing is or it was never published."""
        try:
            if self.manifest(asset, key) is not None:
                self._consistently(asset, key, lambda manifest: verify_files(self.folder(asset, key), manifest))
        except LtvError as error:
            return str(error)
        return None

    def damage(self, asset: str, key: PartitionKey) -> str | None:
        """What was found wrong with a partition's files when they were last read, None if nothing was."""
        try:
            return (self.folder(asset, key) / DAMAGE_NAME).read_text(errors="replace")
        except OSError:
            return None

    def damaged(self) -> tuple[str, ...]:
        """Folders (relative to the root) of partitions whose files were found damaged."""
        found = (p for pattern in ("lake/*/*", "models/*/*", "submissions/*") for p in self.root.glob(f"{pattern}/{DAMAGE_NAME}"))
        return tuple(sorted(p.parent.relative_to(self.root).as_posix() for p in found))

    def fingerprint(self, asset: str, key: PartitionKey) -> str | None:
        """Content hash of a partition, None if it was never published."""
        manifest = self.manifest(asset, key)
        return manifest.fingerprint if manifest else None

    # --------------------------------------------------------------------------------------------------------- verdicts

    def record_verdict(self, verdict: Verdict) -> None:
        """Store a check's result; the newest one for a partition and check replaces the former."""
        key = verdict.partition
        folder = self.root / "verdicts" / verdict.asset / key
        data = json.dumps(asdict(verdict), sort_keys=True, indent=1, default=str).encode() + b"\n"
        write_atomic(folder / f"{verdict.check}.json", data)

    def verdicts(self, asset: str, key: PartitionKey) -> tuple[Verdict, ...]:
        """Stored results for the partition's present content; results for older content are left out."""
        fingerprint = self.fingerprint(asset, key)
        folder = self.root / "verdicts" / asset / key
        if not folder.is_dir():
            return ()
        loaded = (_read_verdict(p) for p in sorted(folder.glob("*.json")))
        return tuple(v for v in loaded if v is not None and v.fingerprint == fingerprint)

    # ----------------------------------------------------------------------------------------------------------- extras

    def writable(self) -> None:
        """Create the root and prove that it can be written; raises PermanentError naming it otherwise,
        NoSpaceError if the disk is full.
        """
        try:
            with staging(self.root, "probe"):
                free = shutil.disk_usage(self.root).free
        except OSError as error:
            raise explained(error, self.root) or PermanentError(
                f"{self.root}: the warehouse cannot be written ({error.strerror}); choose another with LTV_WAREHOUSE"
            ) from None
        if free < LEAST_FREE_BYTES:
            raise NoSpaceError(
                f"{self.root}: {free / 1e6:.1f} MB left on the disk, a run needs {LEAST_FREE_BYTES / 1e6:.1f} MB to start; "
                "make room (`ltv gc` shows what may go) and run again"
            )


def _read_verdict(path: Path) -> Verdict | None:
    """A stored verdict; None for a file that is none, because the check then simply has not run."""
    try:
        raw = json.loads(path.read_bytes())
        return Verdict(**{**raw, "partition": PartitionKey(raw["partition"])})
    except (OSError, ValueError, TypeError, KeyError, DataError):
        return None
