"""Dask: the same functions on other processes, of this machine or of a cluster (``compute.engine: dask``).

What belongs here: finding workers, handing tasks to them, fitting one booster on all of them, and telling a lost worker
from a wrong input. What does not: what a task computes (``features/flatten/``, ``scoring/batch.py``, ``modeling``) and any
decision about models: tree counts, folds, calibration and gates are made by this process. Next to read: ``core/parallel.py``.

Boosters are fitted by LightGBM's own data-parallel learner, one LightGBM machine per worker. ``lightgbm.dask`` starts the
same learner, but deals rows to machines in an order that differs from run to run and waits for ever for a worker that is
gone; here the i-th worker always gets the same rows, and a lost worker ends the fit with a TransientError.

Tasks, arguments and results travel between processes in Dask's own serialization, which includes pickle: it is transport
between processes that trust each other, nothing of it is ever stored. What comes back from a fit is LightGBM's text.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from ltv_assets import __version__
from ltv_assets.core.config import Config
from ltv_assets.core.errors import ConfigError, PermanentError, TransientError
from ltv_assets.core.parallel import R, T, in_order

if TYPE_CHECKING:
    from distributed import Client, Future

    from ltv_assets.modeling.boosting import Params, RemoteFit
    from ltv_assets.modeling.dataset import Floats
    from ltv_assets.modeling.design_matrix import Matrix

CONNECT_SECONDS = 30.0
"""Longest wait for a scheduler, and then for its workers."""
"""Rows of a matrix that are read and sent at a time."""
MIN_ROWS_PER_WORKER = 500
"""With fewer rows a booster is fitted on fewer workers."""
LINK_MINUTES = 2
"""LightGBM's longest wait for its machines to find one another."""
STOPPING = ("early_stopping_round", "early_stopping_rounds", "early_stopping", "n_iter_no_change")
COMPARED = ("duckdb", "lightgbm", "numpy", "pyarrow")
"""Packages that decide about bytes, next to this one; workers need the same versions of them."""

logger = logging.getLogger(__name__)


def workers_of(config: Config) -> Cluster | None:
    """The cluster of the configuration, started or joined on first use and kept by this process; None with ``engine: local``.

    Raises TransientError when no scheduler or worker answers, PermanentError when workers cannot do the work.
    """
    if config.compute.engine == "local":
        return None
    key = (config.compute.scheduler, config.compute.threads)
    known = _CLUSTERS.pop(key, None)
    if known is not None and not known.is_alive:
        known.close()
        known = None
    if known is None:
        known = _join(config.compute.scheduler, config) if config.compute.scheduler else _start(config.compute.threads)
        # Registered after Dask's own handler and therefore called before it, while there is still something to close.
        atexit.register(close_clusters)
    _CLUSTERS[key] = known
    known.wait_for_workers()
    return known


def remote_fit(config: Config) -> RemoteFit | None:
    """Where served boosters are fitted: on the workers there are when a fit begins; None with ``engine: local``."""
    if config.compute.engine == "local":
        return None

    def fit(matrix: Matrix, label: Floats, params: Params, rounds: int, **rows: Any) -> str:
        refuse_early_stopping(params)
        cluster = workers_of(config)
        assert cluster is not None, "the engine is dask"
        return cluster.fit(matrix, label, params, rounds, **rows)

    return fit


_CLUSTERS: dict[tuple[str | None, int], Cluster] = {}
"""Of the process, not of a project or a run: `ltv run` makes a run for each partition, and workers take seconds to start."""


def close_clusters() -> None:
    """Leave every cluster this process has joined and stop those it has started."""
    while _CLUSTERS:
        _CLUSTERS.popitem()[1].close()


def _start(processes: int) -> Cluster:
    """Single-threaded worker processes on this machine that nobody else can reach."""
    from distributed import Client, LocalCluster

    loopback = "127.0.0.1"
    local = LocalCluster(
        n_workers=processes,
        threads_per_worker=1,
        host=loopback,
        dashboard_address=f"{loopback}:0",
        worker_dashboard_address=f"{loopback}:0",
        silence_logs=logging.CRITICAL,
    )
    return Cluster(Client(local), processes, stop=local.close)


def _join(address: str, config: Config) -> Cluster:
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_SECONDS, direct_to_workers=True)
    except (OSError, TimeoutError) as error:
        raise TransientError(
            f"compute.scheduler {address}: no Dask scheduler answers within {CONNECT_SECONDS:g} s ({type(error).__name__}); "
            "start one with `dask scheduler`, or set compute.scheduler: null for a cluster on this machine"
        ) from None
    cluster = Cluster(client, 1, stop=lambda: None)
    try:
        cluster.wait_for_workers()
        cluster.check_workers([path for path in (config.data.root, config.warehouse.root) if path.is_dir()])
    except BaseException:
        cluster.close()
        raise
    return cluster


@dataclass(frozen=True, eq=False)
class Cluster:
    """A connection to a scheduler. ``expected``: workers without which nothing begins; ``stop`` ends what was started here."""

    client: Client
    expected: int
    stop: Callable[[], object]

    @property
    def is_alive(self) -> bool:
        """True while the scheduler answers."""
        try:
            return self.client.status == "running" and self.client.nthreads() is not None
        except Exception:  # whatever a broken connection raises
            return False

    @property
    def lanes(self) -> int:
        """Threads of all workers: tasks that run at the same time."""
        return max(sum(self.client.nthreads().values()), 1)

    def close(self) -> None:
        """Disconnect, and stop the workers if this process has started them."""
        with suppress(Exception):
            self.client.close()
        with suppress(Exception):
            self.stop()

    def wait_for_workers(self) -> None:
        """Raises TransientError if the expected workers are not there after a while."""
        with suppress(TimeoutError):
            self.client.wait_for_workers(self.expected, timeout=CONNECT_SECONDS)
            return
        found = len(self.client.nthreads())
        address = self.client.scheduler_info(n_workers=0)["address"]
        raise TransientError(
            f"Dask scheduler {address}: expected at least {self.expected} workers, found {found} after {CONNECT_SECONDS:g} s; "
            f"start some with `dask worker {address}`"
        )

    def check_workers(self, folders: Sequence[Path]) -> None:
        """Raises PermanentError naming the first worker with other packages than ours or without the project's folders."""
        try:
            found: dict[str, tuple[dict[str, str], list[str]]] = self.client.run(look_around, [str(f) for f in folders])
        except ImportError as error:
            raise PermanentError(f"Dask workers cannot import this project ({error}); install the same ltv-assets on them") from None
        ours = look_around([])[0]
        for worker, (versions, missing) in sorted(found.items()):
            different = [f"{name} {versions.get(name)} (here {ours[name]})" for name in ours if versions.get(name) != ours[name]]
            if different:
                raise PermanentError(f"Dask worker {worker} has {', '.join(different)}; install the same requirements.lock on every worker")
            if missing:
                raise PermanentError(
                    f"Dask worker {worker} does not see {missing[0]}; mount data.root and warehouse.root at the same paths on every worker"
                )

    # ---------------------------------------------------------------------------------------------------------- tasks

    def map(self, function: Callable[..., R], items: Iterable[T], **shared: Any) -> Iterator[R]:
        """``function(item, **shared)`` on the workers for every item, results in the items' order.

        Raises what a task raises; TransientError when workers or the connection are lost more often than Dask repeats tasks.
        """
        with _losses_are_transient():
            [sent] = self.client.scatter([shared], broadcast=True, hash=False)

            def submit(item: T) -> Future:
                return self.client.submit(call, function, item, sent, pure=False)

            yield from in_order(submit, items, ahead=self.lanes + 2)

    # ----------------------------------------------------------------------------------------------------------- fits

    def fit(
        self,
        matrix: Matrix,
        label: Floats,
        params: Params,
        rounds: int,
        *,
        weight: NDArray[Any] | None = None,
        start: Floats | float | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> str:
        """LightGBM's text of a booster with exactly ``rounds`` trees, fitted on all workers; arguments as in `Trainer.train`.

        The same rows on the same number of workers give the same text. Raises ConfigError for parameters that would stop
        early, TransientError when a worker is lost: its surviving partners are restarted, so a retry finds none that waits.
        """
        refuse_early_stopping(params)
        from distributed import Lock

        chosen = np.arange(len(matrix)) if rows is None else rows
        # Two fits on the same workers would wait for each other's machines for ever.
        with _losses_are_transient(), self.client.as_current(), Lock("ltv-fit"):
            threads: Mapping[str, int] = self.client.nthreads()
            addresses = sorted(threads)[: max(1, len(chosen) // MIN_ROWS_PER_WORKER)]
            hands = self._deal(addresses, matrix, label, weight, start, chosen)
            machines = self._machines(addresses)
            futures = [
                self.client.submit(
                    fit_part,
                    rank,
                    machines,
                    params | {"num_threads": threads[address]},
                    rounds,
                    (matrix.categorical, matrix.max_bin),
                    hands[rank],
                    workers=[address],
                    allow_other_workers=False,
                    pure=False,
                )
                for rank, address in enumerate(addresses)
            ]
            self._watch(futures, addresses)
            return without_network(str(futures[0].result()))

    def _deal(
        self,
        addresses: Sequence[str],
        matrix: Matrix,
        label: Floats,
        weight: NDArray[Any] | None,
        start: Floats | float | None,
        rows: NDArray[np.int64],
    ) -> list[list[Future]]:
        """Send every n-th row to the n-th worker, so that each sees all of the window's time; block by block, to bound memory."""
        from ltv_assets.modeling.dataset import BLOCK_ROWS

        hands: list[list[Future]] = [[] for _ in addresses]
        for low in range(0, len(matrix), BLOCK_ROWS):
            high = min(low + BLOCK_ROWS, len(matrix))
            first, last = np.searchsorted(rows, [low, high])
            if first == last:
                continue
            values = matrix.rows(low, high)[rows[first:last] - low]
            for rank, address in enumerate(addresses):
                own = np.arange(first, last)[rank :: len(addresses)]
                part = (
                    np.ascontiguousarray(values[rank :: len(addresses)]),
                    label[own],
                    None if weight is None else weight[own],
                    None if start is None else np.broadcast_to(np.asarray(start, dtype=np.float64), (len(rows),))[own].copy(),
                )
                hands[rank] += self.client.scatter([part], workers=[address], hash=False)
        return hands

    def _machines(self, addresses: Sequence[str]) -> list[tuple[str, int]]:
        """Host and a free port of each worker, in order of rank."""
        ports = [self.client.submit(free_port, workers=[a], allow_other_workers=False, pure=False) for a in addresses]
        self._watch(ports, addresses)
        return [(urlsplit(address).hostname or "", port.result()) for address, port in zip(addresses, ports, strict=True)]

    def _watch(self, futures: Sequence[Future], addresses: Sequence[str]) -> None:
        """Wait for all futures; raises what one raised, or TransientError as soon as one of the workers is gone."""
        while any(f.status == "pending" for f in futures):
            failed = [f for f in futures if f.status in ("error", "lost", "cancelled")]
            if failed or not set(addresses) <= set(self.client.nthreads()):
                break
            time.sleep(0.1)
        if all(f.status == "finished" for f in futures):
            return
        errors = [error for f in futures if f.status == "error" and (error := f.exception()) is not None]
        self.client.cancel(list(futures))
        self._restart(addresses)
        if errors and not any(_is_broken_link(error) for error in errors):
            raise errors[0]
        raise TransientError(
            f"a Dask worker was lost while a booster was fitted on {len(addresses)} of them; nothing was published, try again"
            + (f" ({errors[0]})" if errors else "")
        )

    def _restart(self, addresses: Sequence[str]) -> None:
        """Workers inside LightGBM cannot be interrupted; their nannies replace them, under new addresses."""
        deadline = time.monotonic() + CONNECT_SECONDS
        left = sorted(set(addresses) & set(self.client.nthreads()))
        try:
            self.client.restart_workers(left, timeout=CONNECT_SECONDS, raise_for_error=False)
        except ValueError:
            logger.warning("Dask workers without a nanny cannot be restarted; start them with `dask worker --nanny`")
            return
        while set(addresses) & set(self.client.nthreads()) and time.monotonic() < deadline:
            time.sleep(0.1)  # the scheduler still lists a worker that is gone


def _is_broken_link(error: BaseException) -> bool:
    """True for what LightGBM says when it cannot reach another of its machines."""
    return type(error).__name__ == "LightGBMError" and re.search("socket|connect|port|machine", str(error), re.IGNORECASE) is not None


@contextmanager
def _losses_are_transient() -> Iterator[None]:
    """Turn the loss of workers, of their data or of the connection into a TransientError."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.comm import CommClosedError

    try:
        yield
    except (KilledWorker, CommClosedError, CancelledError, TimeoutError) as error:
        raise TransientError(f"the Dask cluster lost a worker or its data ({type(error).__name__}: {error}); try again") from error


def refuse_early_stopping(params: Mapping[str, Any]) -> None:
    """Raises ConfigError if LightGBM would stop a distributed fit early: its machines would not stop together."""
    given = [name for name in STOPPING if params.get(name)]
    if given:
        raise ConfigError(
            f"{given[0]}: early stopping is not possible on Dask workers; choose the number of trees on a local sample "
            "(models.max_auxiliary_rows) and fit exactly that many, or set compute.engine: local"
        )


def without_network(text: str) -> str:
    """A model text without the hosts and ports it was trained on, which differ from run to run."""
    text = re.sub(r"^\[machines: .*\]$", "[machines: ]", text, flags=re.MULTILINE)
    return re.sub(r"^\[local_listen_port: \d+\]$", "[local_listen_port: 12400]", text, flags=re.MULTILINE)


# ------------------------------------------------------------------------------------------- functions that run on workers


def call(function: Callable[..., R], item: Any, shared: Mapping[str, Any]) -> R:
    """One task of `Cluster.map`."""
    return function(item, **shared)


def look_around(folders: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Versions of the packages that decide about bytes, and which of the folders cannot be seen from here."""
    versions = {"ltv-assets": __version__, **{name: version(name) for name in COMPARED}}
    return versions, [f for f in folders if not Path(f).is_dir()]


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def fit_part(
    rank: int,
    machines: Sequence[tuple[str, int]],
    params: Params,
    rounds: int,
    columns: tuple[Sequence[int], int],
    parts: Sequence[tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]],
) -> str | None:
    """One LightGBM machine's share of a fit; the first machine returns the model's text.

    ``columns``: numbers of the categorical columns, and histogram bins. ``parts``: (values, label, weight, start) of this
    machine's rows.
    """
    import lightgbm as lgb

    from ltv_assets.modeling.design_matrix import bin_params

    categorical, max_bin = columns
    values, label, weight, start = (list(column) for column in zip(*parts, strict=True))
    dataset = lgb.Dataset(
        values,
        label=np.concatenate(label),
        weight=None if weight[0] is None else np.concatenate(weight),
        init_score=None if start[0] is None else np.concatenate(start),
        categorical_feature=list(categorical),
        params=bin_params(max_bin),
    )
    network: dict[str, Any] = {}
    if len(machines) > 1:
        network = {
            "tree_learner": "data",
            "pre_partition": True,
            "num_machines": len(machines),
            "machines": ",".join(f"{host}:{port}" for host, port in machines),
            "local_listen_port": machines[rank][1],
            "time_out": LINK_MINUTES,
        }
    with _quiet():
        booster = lgb.train({**params, **network}, dataset, rounds)
        text = booster.model_to_string() if rank == 0 else None
        booster.free_network()
    return text


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on standard output: LightGBM's listening thread knows neither the logger nor how much it is to say."""
    with Path(os.devnull).open("wb") as nowhere:
        kept = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)
