"""Files that survive a crash: staged beside their target, flushed, hashed, then published by one rename.

Nothing here knows what the files mean. The guarantees rest on two facts of POSIX file systems: ``rename`` within one
file system is atomic, and a lock taken with ``flock`` dies with its holder.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from ltv_assets.core.errors import PermanentError, TransientError

STAGING_FOLDER = ".staging"
TEMPORARY_SUFFIX = ".tmp"
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: readers see the old bytes or the new ones, also after a crash.

    The file it is written to first is locked until it has its name, so `sweep_temporary` can tell a killed writer's from a live one's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    descriptor = _locked(temporary)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as handle:
            handle.write(data)
        os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    fsync_path(path.parent)


@lru_cache(maxsize=1)
def _renameat2() -> Any:
    library = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    return getattr(library, "renameat2", None)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one atomic step; False where the system cannot."""
    call = _renameat2()
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def previous_of(final: Path) -> Path:
    """Where the old folder waits during the two-step fallback of `publish_folder`."""
    return final.with_name(f".{final.name}.previous")


def publish_folder(staged: Path, final: Path) -> None:
    """Make ``staged`` become ``final`` and delete what ``final`` was.

    One rename where nothing was there; an atomic exchange (Linux ``renameat2``) where something was. Without that call
    the old folder is first moved to `previous_of`; `recover_folder` undoes an interruption between the two renames.
    """
    for path in sorted(staged.rglob("*")):
        fsync_path(path)
    fsync_path(staged)
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.is_symlink() or final.is_file():
        raise PermanentError(f"{final}: expected a folder of the warehouse, found something else; move it away and run again")
    if not final.exists():
        try:
            staged.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            fsync_path(final.parent)
            return
    if not _exchange(staged, final):
        old = previous_of(final)
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        staged.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    fsync_path(final.parent)
    shutil.rmtree(staged, ignore_errors=True)


def recover_folder(final: Path) -> None:
    """Bring back the old folder if a crash hit the gap of the two-step fallback."""
    old = previous_of(final)
    if old.exists():
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(final)


@contextmanager
def staging(root: Path, label: str) -> Iterator[Path]:
    """Yield a private folder under ``root/.staging``; whatever is left in it afterwards is deleted.

    The folder is locked while it is in use, so `sweep_staging` can tell the leftovers of a killed process from live work.
    """
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in label)
    folder = root / STAGING_FOLDER / f"{safe}-{secrets.token_hex(6)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_suffix(".lock")
    descriptor = _locked(lock)
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(lock: Path) -> int:
    """Create and lock a file; tried again if a sweep removed it between the two steps."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if lock.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)


def _abandoned(lock: Path) -> int | None:
    """A locked descriptor of a file whose process is gone; None while it lives, or when the file is gone itself."""
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def sweep_staging(root: Path) -> list[str]:
    """Delete staging folders whose process is gone; returns their names."""
    swept: list[str] = []
    base = root / STAGING_FOLDER
    if not base.is_dir():
        return swept
    for lock in sorted(base.glob("*.lock")):
        descriptor = _abandoned(lock)
        if descriptor is not None:
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
            os.close(descriptor)
            swept.append(lock.stem)
    # A folder lives and dies under its lock, so one without a lock belongs to nobody.
    for folder in sorted(p for p in base.iterdir() if p.is_dir()):
        if not folder.with_suffix(".lock").exists():
            shutil.rmtree(folder, ignore_errors=True)
            swept.append(folder.name)
    return swept


def sweep_temporary(folder: Path, *, deep: bool = True) -> list[str]:
    """Delete what killed `write_atomic` calls left in ``folder`` (``deep``: and below it); returns the file names."""
    swept: list[str] = []
    pattern = f"**/.*{TEMPORARY_SUFFIX}" if deep else f".*{TEMPORARY_SUFFIX}"
    for path in sorted(folder.glob(pattern)):
        descriptor = _abandoned(path)
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            swept.append(path.name)
    return swept


@contextmanager
def file_lock(path: Path, *, timeout_seconds: float, what: str) -> Iterator[None]:
    """Hold an exclusive OS lock on ``path``; it is released even if the process is killed.

    Raises TransientError naming ``what`` and the wait after ``timeout_seconds``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + timeout_seconds
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TransientError(
                        f"{path}: {what} is held by another process for more than {timeout_seconds:g} s; try again when it has finished"
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
