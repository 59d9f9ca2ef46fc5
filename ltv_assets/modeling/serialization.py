"""Model files: LightGBM as text with its own hash, everything else as JSON. Never pickle.

What belongs here: bytes of one file and back, folders of files with a manifest. What does not: what is inside a model.
A truncated LightGBM text aborts the whole process inside the library, so a text is hashed and compared *before* the
library sees it. Next to read: ``boosting.py``.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltv_assets.core.errors import ModelFileError
from ltv_assets.core.hashing import sha256_hex
from ltv_assets.storage.files import publish_folder
from ltv_assets.storage.manifest import is_below

MANIFEST = "manifest.json"
FORMAT = "ltv_assets.model"
VERSION = 1

Files = dict[str, bytes]


def to_json(value: Any) -> bytes:
    """Deterministic JSON: sorted keys, shortest exact floats, NaN and infinities refused."""
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def from_json(files: Mapping[str, bytes], name: str) -> Any:
    """Parse one JSON file of a model; raises ModelFileError naming it when it is missing or not JSON."""
    try:
        return json.loads(_content(files, name))
    except ValueError as error:
        raise ModelFileError(f"{name}: not valid JSON ({error}); the model must be trained again") from None


def digest(files: Mapping[str, bytes]) -> str:
    """One hash for a set of files: over their sorted names and contents."""
    return sha256_hex("".join(f"{name}:{sha256_hex(files[name])}\n" for name in sorted(files)).encode())


def seal_text(text: str) -> bytes:
    """A LightGBM model text followed by a line with its own SHA-256."""
    return f"{text}\nsha256={sha256_hex(text.encode())}\n".encode()


def unseal_text(files: Mapping[str, bytes], name: str) -> str:
    """The model text, once its hash agrees; raises ModelFileError before LightGBM could see a torn or foreign file."""
    body, separator, seal = _content(files, name).decode("utf-8", errors="replace").rpartition("\nsha256=")
    if not separator or seal.rstrip("\n") != sha256_hex(body.encode()):
        raise ModelFileError(f"{name}: truncated or altered model text (its own hash disagrees); restore the file or train again")
    return body


def _content(files: Mapping[str, bytes], name: str) -> bytes:
    if name not in files:
        raise ModelFileError(f"{name}: missing from the model's files (found {sorted(files)[:8]}); restore it or train again")
    return files[name]


def prefixed(prefix: str, files: Mapping[str, bytes]) -> Files:
    """The same files below a folder name."""
    return {f"{prefix}/{name}": content for name, content in files.items()}


def below(prefix: str, files: Mapping[str, bytes]) -> Files:
    """The files below a folder name, without it."""
    start = f"{prefix}/"
    return {name[len(start) :]: content for name, content in files.items() if name.startswith(start)}


def write_folder(folder: str | os.PathLike[str], files: Mapping[str, bytes]) -> Path:
    """Write a model's files and their manifest into a folder that does not exist yet or is empty.

    Everything is written into a temporary sibling and published by one rename, so a crash leaves no half model.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target}: already exists and is not an empty folder; choose another folder or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    listing = {name: {"bytes": len(content), "sha256": sha256_hex(content)} for name, content in files.items()}
    manifest = to_json({"format": FORMAT, "version": VERSION, "files": listing})
    for name, content in {**files, MANIFEST: manifest}.items():
        path = staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    staging.chmod(0o755)
    publish_folder(staging, target)
    return target


def read_folder(folder: str | os.PathLike[str]) -> Files:
    """Read a model's files, each compared with the manifest's hash; raises ModelFileError naming the first that disagrees."""
    root = Path(folder)
    path = root / MANIFEST
    if not path.is_file():
        raise ModelFileError(f"{path}: no manifest; expected a folder written by LTVModel.save")
    manifest = from_json({MANIFEST: path.read_bytes()}, MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        found = manifest.get("format"), manifest.get("version") if isinstance(manifest, dict) else None
        raise ModelFileError(f"{path}: expected format {FORMAT} version {VERSION}, found {found}; train again with this version")
    return {name: _verified(root, name, entry) for name, entry in manifest["files"].items()}


def _verified(root: Path, name: str, entry: Mapping[str, Any]) -> bytes:
    if not is_below(name):
        raise ModelFileError(f"{root / MANIFEST}: the file name {name!r} leaves the model's folder; refuse to read it")
    path = root / name
    if not path.is_file():
        raise ModelFileError(f"{path}: listed in the manifest but missing; restore it or train again")
    content = path.read_bytes()
    if sha256_hex(content) != entry["sha256"]:
        raise ModelFileError(
            f"{path}: expected {entry['bytes']} bytes with sha256 {entry['sha256'][:12]}, found {len(content)} bytes with "
            f"{sha256_hex(content)[:12]}; restore it or train again"
        )
    return content
