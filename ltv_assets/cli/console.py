"""The console of the command line: output, errors as exit codes, signals, shared parameter types.

What belongs here: what every command uses. What does not: a command. Next to read: ``app.py``.
"""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ltv_assets.core.config import FIRST_DAY, LAST_DAY
from ltv_assets.core.errors import LtvError, PermanentError, TransientError, explained
from ltv_assets.core.partition_key import PartitionKey

PIPED_WIDTH = 180
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPED_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else PIPED_WIDTH)


class _Day(click.DateTime):
    """A day between the first and the last that an impression can be from, as the key of a partition."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx).date()
        if not FIRST_DAY <= found <= LAST_DAY:
            self.fail(f"{value!r} is not between {FIRST_DAY} and {LAST_DAY}.", param, ctx)
        return PartitionKey(found)


DAY = _Day(formats=["%Y-%m-%d"])
_NO_SUCH_PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENOENT, errno.EISDIR, errno.ELOOP, errno.EINVAL)


def readable(command: Callable[..., Any]) -> Callable[..., Any]:
    """Print the project's own errors as one message and exit 2 (1 for transient ones)."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            _end_by_signals()
            return command(*args, **kwargs)
        except LtvError as error:
            err.print(f"[bold red]error:[/] {escape(str(error))}")
            sys.exit(1 if isinstance(error, TransientError) else 2)
        except BrokenPipeError:
            sys.exit(0)
        except KeyboardInterrupt:
            err.print("interrupted: what was published stays; the same command goes on from there")
            sys.exit(130)
        except Exception as error:
            known = explained(error, _warehouse_root())
            if known is None and isinstance(error, OSError) and error.errno in _NO_SUCH_PATH and error.filename is not None:
                known = PermanentError(f"{error.filename!s:.200}: {error.strerror}; give another path")
            if known is None:
                raise
            err.print(f"[bold red]error:[/] {escape(str(known))}")
            sys.exit(1 if isinstance(known, TransientError) else 2)

    return wrapped


def _end_by_signals() -> None:
    """Let SIGINT and SIGTERM end the command, also one that `nohup` or a script's `&` has started with SIGINT ignored.

    Dagster hands SIGTERM to whatever handles SIGINT; a process that ignores the one could not be ended by the other.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)


def _warehouse_root() -> Path | None:
    from ltv_assets.core.config import load_config

    try:
        return load_config().warehouse.root
    except (LtvError, OSError):
        return None


def progress_bar() -> Progress:
    """A progress bar on standard error; it disappears at the end where it is not a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=not err.is_terminal,
    )
