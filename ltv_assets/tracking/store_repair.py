"""Repair of the default MLflow store after the warehouse was moved.

MLflow stores absolute artifact locations in its SQLite database and has no API to change them. This file holds the only SQL
on MLflow's own tables; a test compares it with the schema of the installed MLflow.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

ARTIFACT_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)
"""Tables and columns of MLflow's database whose values start with the artifact root."""


def relocate_artifacts(database: Path, artifact_root: str) -> None:
    """Replace former artifact roots in an MLflow SQLite database by ``artifact_root``, a ``file:`` URL.

    A former root is a ``file:`` URL whose last folder has the same name. A missing database or table is left as it is.
    """
    if not database.is_file():
        return
    folder = artifact_root.rpartition("/")[2]
    with closing(sqlite3.connect(database)) as store, suppress(sqlite3.OperationalError), store:
        roots = {str(root) for (root,) in store.execute("SELECT artifact_location FROM experiments")}
        for former in roots - {artifact_root}:
            if former.startswith("file:") and former.endswith(f"/{folder}"):
                for table, column in ARTIFACT_LOCATIONS:
                    store.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (artifact_root, len(former) + 1, len(former), former),
                    )
