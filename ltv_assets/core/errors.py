"""The failures the project raises on purpose.

Two families, because they are treated differently: a *permanent* failure stays the same however often it is retried
(bad data, bad configuration, a broken model file); a *transient* one may pass (a lock that is held, a service that is
down), and only it is retried. Every message names what is at fault, what was expected, what was found and the remedy.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path


class LtvError(Exception):
    """Base of every error raised on purpose; its text is meant for a person."""


class PermanentError(LtvError):
    """Retrying changes nothing: data, configuration or code must change first."""


class TransientError(LtvError):
    """May pass by itself (a held lock, a full disk, an unreachable service); safe to retry a bounded number of times."""


class NoSpaceError(TransientError):
    """The disk is full: passes when somebody makes room, so a run is not held up by trying again within seconds."""


class ConfigError(PermanentError):
    """The configuration is wrong; raised before any work starts, naming file, key and line."""


class DataError(PermanentError):
    """Input data breaks the contract in a way that cannot be quarantined or degraded."""


class ModelFileError(PermanentError):
    """A stored model or plan is missing, torn, foreign or does not belong to what it is used with."""


class StaleError(PermanentError):
    """A partition needed upstream is missing, failed its checks or was built from other inputs."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXT = re.compile(r"No space left on device|disk is full|Disk quota exceeded|File too large", re.IGNORECASE)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_DENIED_TEXT = re.compile(r"Permission denied|Read-only file system|readonly database|unable to open database file", re.IGNORECASE)
_BROKEN_TEXT = re.compile(r"disk I/O error|Input/output error", re.IGNORECASE)
_NO_SPILL_TEXT = re.compile(r"max_temp_directory_size|failed to offload data block", re.IGNORECASE)
_QUOTED_PATH = re.compile(r"[\"'](/[^\"']+)[\"']")


def explained(error: BaseException, place: Path | None = None) -> LtvError | None:
    """What a failure of the machine means for the person who sees it: no space, no permission. None for anything else.

    Libraries report these in many types (OSError, DuckDB's and SQLite's errors, Dagster's wrappers of them), so number, text
    and causes are looked at. ``place`` is named where the error itself names no path.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        found = _explained(link, place)
        if found is not None:
            return found
        link = link.__cause__ or link.__context__
    return None


def _explained(error: BaseException, place: Path | None) -> LtvError | None:
    number = error.errno if isinstance(error, OSError) else None
    module = type(error).__module__.partition(".")[0]
    text = str(error) if module in ("duckdb", "_duckdb", "sqlite3", "sqlalchemy", "pyarrow", "builtins") else ""
    text = text if isinstance(error, OSError) or module != "builtins" else ""
    quoted = _QUOTED_PATH.search(text)
    named = error.filename if isinstance(error, OSError) and isinstance(error.filename, str) else quoted.group(1) if quoted else None
    where = named or place or "the warehouse"
    if _NO_SPILL_TEXT.search(text):
        return NoSpaceError(
            f"{where}: not enough memory, and no room for DuckDB's temporary files ({_first_line(text)}); "
            "raise compute.duckdb_memory_gb or make room on the disk, then run again; what is published is untouched"
        )
    if number in _FULL or _FULL_TEXT.search(text):
        return NoSpaceError(
            f"{where}: no space left on the disk; make room (`ltv gc` shows what may go) and run again; what is published is untouched"
        )
    if number == errno.EIO or _BROKEN_TEXT.search(text):
        return TransientError(
            f"{where}: the disk refuses to be used ({_first_line(str(error))}): full, gone or damaged; "
            "make room or look at the disk, and run again; what is published is untouched"
        )
    if number in _DENIED or _DENIED_TEXT.search(text):
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _first_line(text)
        return PermanentError(
            f"{where}: not permitted ({reason}); give this user the right to it, "
            "or choose another place with LTV_WAREHOUSE or LTV_DATA_ROOT"
        )
    return None


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:200] if text.strip() else "no details"
