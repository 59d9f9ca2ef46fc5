"""Tasks in order: the one shape in which work is handed to threads or to other processes.

What belongs here: the order and the bound on what is under way. What does not: where tasks run (``training/dask_cluster.py``) and
what they compute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Task(Protocol[R_co]):
    """What both `concurrent.futures` and Dask call a future."""

    def result(self) -> R_co:
        """Wait for the result, or raise what the task raised."""
        ...


class Workers(Protocol):
    """Other processes that take tasks: importable functions with arguments that can be sent."""

    @property
    def lanes(self) -> int:
        """Tasks that run at the same time."""
        ...

    def map(self, function: Callable[..., R], items: Iterable[T], **shared: Any) -> Iterator[R]:
        """``function(item, **shared)`` for every item, results in the items' order; ``shared`` is sent to each process once."""
        ...


def in_order(submit: Callable[[T], Task[R]], items: Iterable[T], *, ahead: int) -> Iterator[R]:
    """Results of submitted items in their order, with at most ``ahead`` of them under way or waiting to be taken."""
    running: deque[Task[R]] = deque()
    for item in items:
        running.append(submit(item))
        if len(running) >= ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def on_threads(function: Callable[[T], R], items: Iterable[T], *, threads: int, ahead: int) -> Iterator[R]:
    """``function(item)`` for every item on so many threads, results in the items' order; ``ahead``: see `in_order`."""
    with ThreadPoolExecutor(threads) as pool:
        yield from in_order(lambda item: pool.submit(function, item), items, ahead=ahead)
