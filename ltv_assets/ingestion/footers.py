"""Footers of raw parquet files, read in a process of their own, so that no file can end this one.

Libraries abort on some footers (an encrypted column, level histograms that contradict the type), which no ``except`` can
catch. A file that passed here is safe to open in this process. Next to read: ``footer_reader.py``, the other process. It
serves many files, is limited in time and memory, and is restarted when a file ended it.
"""

from __future__ import annotations

import atexit
import base64
import json
import os
import selectors
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Lock

import pyarrow as pa

from ltv_assets.core.errors import TransientError

SECONDS = 20
"""Processor seconds for one footer. One of 85 columns takes a few thousandths."""

WAIT = 6
"""Wall-clock limit as a multiple of ``SECONDS``, for a busy machine or a slow disk."""

MEMORY = 2 << 30
PROGRAM = Path(__file__).with_name("footer_reader.py")


@dataclass(frozen=True, slots=True)
class Footer:
    """Content of a valid footer."""

    rows: int
    schema: pa.Schema


class _EndedError(Exception):
    """The reading process ended; the text says how."""


@dataclass(eq=False)
class FooterReader:
    """One reading process and the pipes to it; thread-safe, not used by a forked process."""

    seconds: int = SECONDS
    memory: int = MEMORY
    _lock: Lock = field(default_factory=Lock)
    _process: subprocess.Popen[bytes] | None = None

    def read(self, path: Path) -> Footer | str:
        """The footer of a file, or why the file cannot be used.

        Raises OSError if the file cannot be opened, TransientError if no process can be started.
        """
        path.open("rb").close()
        with self._lock:
            try:
                answer = self._ask(path)
            except _EndedError:
                # A second attempt distinguishes a file that ends its reader from a reader that was killed or idle.
                try:
                    answer = self._ask(path)
                except _EndedError as error:
                    return f"reading its footer {error}; deliver the file again"
        if "problem" in answer:
            return str(answer["problem"])
        return Footer(int(answer["rows"]), _schema(str(answer["schema"])))

    def close(self) -> None:
        """End the process; the next file starts another one."""
        process = self._let_go()
        if process is not None:
            process.kill()
            process.wait()

    def forget(self) -> None:
        """Drop the process, and a lock that another thread may hold, after a fork: they belong to the parent."""
        self._lock = Lock()
        self._let_go()

    def _let_go(self) -> subprocess.Popen[bytes] | None:
        process, self._process = self._process, None
        for pipe in (process.stdin, process.stdout) if process is not None else ():
            assert pipe is not None
            pipe.close()
        return process

    def _ask(self, path: Path) -> dict[str, int | str]:
        process = self._process or self._start()
        assert process.stdin is not None
        # If the process ended, the missing answer shows how.
        with suppress(OSError):
            process.stdin.write(json.dumps(os.fspath(path)).encode() + b"\n")
        return self._answer(process)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", str(PROGRAM), str(self.seconds), str(self.memory)]
        environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
        try:
            # Unbuffered, because a fork would copy the buffers.
            self._process = subprocess.Popen(
                command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
            )
            self._answer(self._process)
        except (OSError, _EndedError) as error:
            raise TransientError(f"the process that reads footers does not start ({error}); free memory and run again") from error
        return self._process

    def _answer(self, process: subprocess.Popen[bytes]) -> dict[str, int | str]:
        line = self._line(process)
        if line is not None and line.endswith(b"\n"):
            found: dict[str, int | str] = json.loads(line)
            return found
        code = process.wait() if line is not None else -signal.SIGXCPU
        self.close()
        raise _EndedError(f"takes more than {self.seconds} s" if code == -signal.SIGXCPU else f"ends the reader ({_how(code)})")

    def _line(self, process: subprocess.Popen[bytes]) -> bytes | None:
        """Output of the process up to the end of a line or of the process; None after the time limit."""
        assert process.stdout is not None
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(self.seconds * WAIT):
                    return None
                part = process.stdout.read(1 << 16)
                if not part:
                    break
                line += part
        return line


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


@lru_cache(maxsize=64)
def _schema(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


_READER = FooterReader()
atexit.register(_READER.close)
os.register_at_fork(after_in_child=_READER.forget)


def read_footer(path: Path) -> Footer | str:
    """`FooterReader.read` of the one reader of this process."""
    return _READER.read(path)


def end_reader() -> None:
    """End the other process, so that its memory is not counted in a measurement."""
    _READER.close()
