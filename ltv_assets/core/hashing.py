"""Short hashes that identify content, settings and inputs. What does not belong here: hashes of rows (``sampling/draws.py``)."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def sha256_hex(data: bytes) -> str:
    """Hex SHA-256 of bytes (64 digits)."""
    return hashlib.sha256(data).hexdigest()


def short_hash(text: str) -> str:
    """First 16 hex digits of a text's SHA-256."""
    return sha256_hex(text.encode())[:16]


def json_hash(value: Any) -> str:
    """`short_hash` of a value's JSON with sorted keys: equal for equal settings."""
    return short_hash(json.dumps(value, sort_keys=True))
