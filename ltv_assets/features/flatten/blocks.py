"""Blocks: the rows that are flattened together.

What belongs here: the interface of a block, blocks of consecutive files, and a flattened block on its way to the output. What
does not: the computation (``engine.py``). Next to read: ``engine.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from ltv_assets.features.arrays import Sparse
from ltv_assets.features.canonical import Findings
from ltv_assets.features.flatten.decoding import decoding
from ltv_assets.features.flatten.sources import Source, read_columns

BLOCK_ROWS = 131_072
"""Files are flattened together up to this many rows, which spares small hours a query each; a larger file stands alone, and
is divided between its row groups where it has several."""

SMALL_BLOCK = 16_384
"""A day is not divided between lanes into blocks below this: a block costs as much as some thousand rows before its first row."""


def file_blocks(sources: Sequence[Source], *, largest: int = BLOCK_ROWS) -> Iterator[FileBlock]:
    """Yield stretches of files, in order, that together have at most ``largest`` rows; a part of a file stands alone."""
    members: list[Source] = []
    for source in sources:
        if not source.rows:
            continue
        apart = bool(members) and (source.part is not None or members[-1].part is not None)
        if members and (apart or sum(member.rows for member in members) + source.rows > largest):
            yield FileBlock(tuple(members))
            members = []
        members.append(source)
    if members:
        yield FileBlock(tuple(members))


class Block(Protocol):
    """Rows that are flattened together, wherever they are: in files, or in memory."""

    @property
    def rows(self) -> int: ...

    @property
    def name(self) -> str:
        """Name of the rows in error messages."""
        ...

    def hour_start(self) -> np.ndarray:
        """Unix seconds of each row's hour, (rows,)."""
        ...

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
        """The named raw columns piece by piece, in order of rows, each piece with the name of its file."""
        ...

    def sizes(self) -> Mapping[str, int]:
        """About how many bytes each column decodes to."""
        ...


@dataclass(frozen=True, slots=True)
class FileBlock:
    """Consecutive files that are flattened together."""

    sources: tuple[Source, ...]

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)

    @property
    def name(self) -> str:
        return ", ".join(str(source.file.path) for source in self.sources[:3]) + (" ..." if len(self.sources) > 3 else "")

    def hour_start(self) -> np.ndarray:
        return np.concatenate([source.hour_of_rows() for source in self.sources])

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
        for source in self.sources:
            with decoding(str(source.file.path)):
                yield str(source.file.path), read_columns(source, names)

    def sizes(self) -> Mapping[str, int]:
        together: Counter[str] = Counter()
        for source in self.sources:
            together.update(source.sizes)
        return together


class FlatBlock:
    """A flattened block: finished columns, counts, and the inputs of indicators and interactions.

    ``hours``: unix seconds of each row's hour, where files say it themselves.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.columns: dict[str, pa.ChunkedArray | pa.Array] = {}
        self.counts: dict[str, int] = {}
        self.inputs: dict[str, pa.ChunkedArray | pa.Array] = {}
        self.absent: dict[str, np.ndarray] = {}
        self.lost: dict[str, tuple[int, str]] = {}
        self.illegible: dict[int, str] = {}
        self.hours: np.ndarray | None = None

    def lose(self, name: str, findings: Findings, file: str) -> None:
        """Add the values of a column that are lost; ``file`` has the first of them."""
        count, example = self.lost.get(name, (0, f"'{findings.example}' in {file}"))
        self.lost[name] = count + findings.lost, example

    def note(self, name: str, findings: Findings, start: int) -> None:
        """Add what else was found in a column from row ``start`` of the block on."""
        for key, count in (("_nonfinite_", findings.nonfinite), ("_unreadable_", findings.unreadable)):
            if count:
                self.counts[f"{key}{name}"] = self.counts.get(f"{key}{name}", 0) + count
        self.illegible |= {start + row: key for row, key in findings.illegible.items()}

    def put(self, name: str, sparse: Sparse, wanted: frozenset[str], inputs: frozenset[str]) -> None:
        if name in wanted:
            self.columns[name] = sparse.to_arrow(self.rows)
        if name in inputs:
            self.inputs[name] = pa.array(sparse.dense(self.rows), from_pandas=True)
