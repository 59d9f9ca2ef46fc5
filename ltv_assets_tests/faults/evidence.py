"""What the fault tests compare: whole folders before and after, and everything a command printed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from click.testing import CliRunner


def tree(root: Path) -> dict[str, str]:
    """{path below ``root``: hash of its bytes} of every file, links by their target."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(root))] = f"-> {path.readlink()}"
        elif path.is_file():
            found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Files that were added, removed or rewritten."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


@contextmanager
def nothing_changes(root: Path, *, but: tuple[str, ...] = ()) -> Iterator[None]:
    """Assert that no file below ``root`` is added, removed or rewritten, save those that match a pattern of ``but``."""
    before = tree(root)
    yield
    touched = [name for name in changed(before, tree(root)) if not any(fnmatch(name, pattern) for pattern in but)]
    assert not touched, f"changed below {root}: {touched}"


def ltv(*words: str | Path) -> tuple[int, str]:
    """Run one command in this process; returns its exit code and everything it printed. A library's exception is a failure."""
    from ltv_assets.cli.app import main

    done = CliRunner().invoke(main, [str(w) for w in words], catch_exceptions=False)
    assert "Traceback (most recent call last)" not in done.output, done.output
    return done.exit_code, done.output
