"""The champion's model in memory, and its exchange when another window becomes champion.

What belongs here: noticing a new champion, loading and proving its model beside the one in use, putting it in its place. What
does not: who is champion (``storage/champion.py``). Next to read: ``app.py``.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from ltv_assets.core.config import Config
from ltv_assets.core.errors import LtvError, ModelFileError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.scoring.online import OnlineModel
from ltv_assets.scoring.window_model import read_model
from ltv_assets.serving.metrics import Metrics
from ltv_assets.storage.champion import Champion, champion_in_use
from ltv_assets.storage.warehouse import Warehouse

log = logging.getLogger("ltv.serve")

FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds until a refused champion is tried again; doubled from try to try."""


@dataclass(frozen=True, eq=False)
class Served:
    """A model that answers, and which one it is."""

    model: OnlineModel
    champion: Champion
    loaded_at: datetime

    @property
    def window(self) -> PartitionKey:
        """The holdout day that names the window."""
        return self.champion.window

    @property
    def fingerprint(self) -> str:
        """The content hash of the model."""
        return self.champion.fingerprint


class ServedChampion:
    """The model in use. `refresh` is called by one thread at a time; ``current`` may be read by any."""

    def __init__(self, config: Config, warehouse: Warehouse, metrics: Metrics) -> None:
        self._config, self._warehouse, self._metrics = config, warehouse, metrics
        self.current: Served | None = None
        self.problem: str | None = None
        """Why the champion of record is not the model in use; None while it is."""
        self._refused: tuple[str, str] | None = None
        self._pause, self._try_at = FIRST_PAUSE, 0.0

    def refresh(self) -> bool:
        """Exchange the model if the warehouse has another champion; returns whether it did.

        A champion that is missing, damaged or not the one of record is refused: the model in use stays, ``problem`` says why.
        """
        try:
            champion = champion_in_use(self._warehouse)
            if champion is None:
                raise ModelFileError("there is no champion; `ltv run` trains one, `ltv status` says what failed")
        except (LtvError, OSError) as error:
            self._refuse(None, str(error))
            return False
        wanted = (champion.window, champion.fingerprint)
        served = self.current
        if served is not None and wanted == (served.window, served.fingerprint):
            self.problem = self._refused = None
            return False
        if wanted == self._refused and time.monotonic() < self._try_at:
            return False
        try:
            model = self._load(champion)
        except Exception as error:  # whatever is wrong with a new model, the one in use goes on
            described = str(error) if isinstance(error, LtvError) else f"{type(error).__name__}: {error}"
            self._refuse(wanted, f"window {champion.window}: {described}")
            return False
        self.current = Served(model, champion, datetime.now(UTC))
        self.problem = self._refused = None
        self._metrics.swaps.labels("swapped").inc()
        log.info("serving window %s, model %s", champion.window, champion.fingerprint)
        return True

    def _load(self, champion: Champion) -> OnlineModel:
        self._require_content(champion)
        model = read_model(self._config, self._warehouse, champion.window)
        # What was read is what the record names only if it was not replaced meanwhile.
        self._require_content(champion)
        model.warm_up()
        return model

    def _require_content(self, champion: Champion) -> None:
        found = self._warehouse.fingerprint("served_model", champion.window)
        if found != champion.fingerprint:
            raise ModelFileError(
                f"its served model has content {found or 'none'}, the champion's record names {champion.fingerprint}; "
                f"run `ltv promote {champion.window}` to serve it, or restore the model"
            )

    def _refuse(self, wanted: tuple[str, str] | None, problem: str) -> None:
        again = wanted is not None and wanted == self._refused
        self._pause = min(2 * self._pause, LONGEST_PAUSE) if again else FIRST_PAUSE
        self._try_at = time.monotonic() + self._pause
        if problem != self.problem:
            self._metrics.swaps.labels("refused").inc()
            log.warning("champion not served: %s", problem)
        self._refused, self.problem = wanted, problem
