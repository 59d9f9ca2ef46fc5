"""Select the champion: every eligible window in order of time, each compared with the champion before it.

A challenger is compared on its own holdout day D, which its evaluated model never saw: with the champion's *served* model,
which was fitted on days before D only. It is refused when it is significantly worse: the lower end of the paired 95 % interval
of (challenger - champion) RMSLE is above 0. Comparisons are stored by content, so the champion depends on the content of the
warehouse, not on the order in which runs finished. A window is only compared with older ones.

Users can pin any eligible window (`promote`), return to the previous champion (`rollback`) and remove the pin (`unpin`).
A pin ends automatically only when its window is no longer eligible. Next to read: ``storage/champion.py``, the record.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from ltv_assets.core.errors import LtvError, StaleError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.modeling.evaluation.metrics import paired_bootstrap
from ltv_assets.modeling.model_store import read_served
from ltv_assets.state.project import Project
from ltv_assets.storage.champion import (
    Champion,
    Reign,
    champion_lock,
    eligible_windows,
    has_failed,
    ineligible_because,
    read_champion,
    read_history,
    write_champion,
)
from ltv_assets.storage.files import write_atomic
from ltv_assets.storage.warehouse import SCORES_FILE
from ltv_assets.training.windows import WindowRows

ROLLED_BACK = "rolled back by hand"


@dataclass(frozen=True, slots=True)
class Comparison:
    """RMSLE of challenger and champion on the challenger's holdout, and the interval of their difference."""

    challenger: str
    champion: str
    challenger_fingerprint: str
    champion_fingerprint: str
    rmsle_challenger: float
    rmsle_champion: float
    difference_low: float
    difference_high: float

    @property
    def refused(self) -> bool:
        """True when the challenger is significantly worse."""
        return self.difference_low > 0

    def __str__(self) -> str:
        return (
            f"RMSLE {self.rmsle_challenger:.4f} against {self.rmsle_champion:.4f} of window {self.champion} on day {self.challenger}, "
            f"difference {self.difference_low:+.4f} .. {self.difference_high:+.4f}"
        )


# ------------------------------------------------------------------------------------------------------------ by itself


def update_champion(project: Project) -> Champion:
    """Recompute the champion from the warehouse and store it; a pinned one stays while it is eligible.

    Raises StaleError if no window is eligible (the record then says so), TransientError if another process keeps it locked.
    """
    with champion_lock(project.warehouse, project.config.warehouse.lock_timeout_seconds):
        champion = _decide(project)
        write_champion(project.warehouse, champion)
    if champion is None:
        raise StaleError("no window has passed its blocking checks, so there is no champion; `ltv status` says which failed and why")
    return champion


def settle_champion(project: Project) -> None:
    """Make the record again where its champion failed a blocking check since: the promotion step, which reads the verdict.

    Reading (`champion_in_use`) lets that champion give way already; here newer windows are compared with what is in its place.
    Raises TransientError if another process keeps the record locked.
    """
    champion = read_champion(project.warehouse)
    if champion is not None and has_failed(project.warehouse, champion.window) is not None:
        with suppress(StaleError):
            update_champion(project)


def _decide(project: Project) -> Champion | None:
    pinned = _pinned(project)
    if pinned is not None:
        problem = ineligible_because(project.warehouse, pinned.window)
        if problem is None:
            return Champion(pinned.window, project.warehouse.fingerprint("served_model", pinned.window) or "", pinned.why, pinned=True)
        return _chain(project, remark=f"the pin on window {pinned.window} ended because {problem}")
    return _chain(project)


def _pinned(project: Project) -> Champion | None:
    try:
        champion = read_champion(project.warehouse)
    except LtvError:
        return None
    return champion if champion is not None and champion.pinned else None


def _chain(project: Project, remark: str | None = None) -> Champion | None:
    """The champion of the eligible windows in order of time."""
    windows = eligible_windows(project.warehouse)
    if not windows:
        return None
    champion = _record(project, windows[0], "the first window that passed its checks")
    for challenger in windows[1:]:
        try:
            comparison = compare(project, challenger, champion.window)
        except LtvError as error:
            champion = replace(champion, why=f"{champion.why}; window {challenger} could not be compared: {error}")
            continue
        if comparison.refused:
            champion = replace(champion, why=f"{champion.why}; window {challenger} refused: {comparison}")
        else:
            champion = _record(project, challenger, f"not worse than its predecessor: {comparison}")
    return champion if remark is None else replace(champion, why=f"{champion.why}; {remark}")


def _record(project: Project, window: PartitionKey, why: str) -> Champion:
    return Champion(window, project.warehouse.fingerprint("served_model", window) or "", why)


# -------------------------------------------------------------------------------------------------------------- by hand


def promote(project: Project, window: PartitionKey) -> Champion:
    """Pin a window as champion, whatever the comparisons say.

    Raises StaleError naming the reason if the window is not eligible: a failed check cannot be overridden by hand.
    """
    return _pin(project, window, "promoted by hand")


def rollback(project: Project) -> Champion:
    """Pin the window that was champion before the current one.

    Raises StaleError if there was none, or if none of them is still eligible.
    """
    history = read_history(project.warehouse)
    *earlier, present = _not_taken_back(history) or (None,)
    for window in reversed(earlier):
        if window is not None and window != present and ineligible_because(project.warehouse, window) is None:
            return _pin(project, window, f"{ROLLED_BACK} from window {present}")
    raise StaleError(
        f"no earlier champion to go back to: {len(history)} in the history, none but window {present} still has a served model that "
        "passed its checks; train an older window with `ltv run --window DAY` and promote it with `ltv promote DAY`"
    )


def _not_taken_back(history: Sequence[Reign]) -> list[PartitionKey]:
    """Windows of the champions in order, without those undone by a rollback: two rollbacks return to the champion before last."""
    windows: list[PartitionKey] = []
    for reign in history:
        if reign.why.startswith(ROLLED_BACK) and reign.window in windows:
            del windows[len(windows) - windows[::-1].index(reign.window) :]
        elif not windows or windows[-1] != reign.window:
            windows.append(reign.window)
    return windows


def _pin(project: Project, window: PartitionKey, why: str) -> Champion:
    with champion_lock(project.warehouse, project.config.warehouse.lock_timeout_seconds):
        problem = ineligible_because(project.warehouse, window)
        if problem is not None:
            possible = ", ".join(eligible_windows(project.warehouse)) or "none"
            raise StaleError(f"window {window} cannot be champion: {problem}; windows that can: {possible}")
        champion = Champion(window, project.warehouse.fingerprint("served_model", window) or "", why, pinned=True)
        write_champion(project.warehouse, champion)
    return champion


def unpin(project: Project) -> Champion:
    """Remove the pin and select by the comparisons. Raises StaleError if no window is eligible."""
    with champion_lock(project.warehouse, project.config.warehouse.lock_timeout_seconds):
        champion = _chain(project)
        write_champion(project.warehouse, champion)
    if champion is None:
        raise StaleError("no window has passed its blocking checks, so there is no champion; `ltv status` says which failed and why")
    return champion


# ---------------------------------------------------------------------------------------------------------- comparisons


def compare(project: Project, challenger: PartitionKey, champion: PartitionKey) -> Comparison:
    """Compare a challenger's evaluated model with an older champion's served model on the challenger's holdout day.

    Raises StaleError if the holdout day was rebuilt since the challenger was evaluated on it.
    """
    warehouse = project.warehouse
    identity = (warehouse.fingerprint("holdout_metrics", challenger) or "", warehouse.fingerprint("served_model", champion) or "")
    path = warehouse.comparison(challenger, champion)
    known = _stored(path)
    if known is not None and (known.challenger_fingerprint, known.champion_fingerprint) == identity:
        return known
    comparison = _compare(project, challenger, champion, identity)
    write_atomic(path, json.dumps(asdict(comparison), sort_keys=True, indent=1).encode() + b"\n")
    return comparison


def _stored(path: Path) -> Comparison | None:
    """A stored comparison; None if it is missing or damaged, which makes it again."""
    try:
        return Comparison(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _compare(project: Project, challenger: PartitionKey, champion: PartitionKey, identity: tuple[str, str]) -> Comparison:
    warehouse = project.warehouse
    evaluated = warehouse.require("holdout_metrics", challenger, "train the window first")
    if evaluated.inputs.get(f"flattened_features/{challenger}") != warehouse.fingerprint("flattened_features", challenger):
        raise StaleError(f"day {challenger} was rebuilt after window {challenger} was evaluated on it; train that window again")
    rows = WindowRows(project, challenger).holdout_rows()
    stored = pq.read_table(warehouse.folder("holdout_metrics", challenger) / SCORES_FILE).to_pandas()
    names, compute = project.contract.scores, project.config.compute
    ltv = names.ltv[0]
    theirs = read_served(warehouse, champion).score(rows.X, compute.chunk_rows, compute.threads)[ltv].to_numpy()
    truth = np.log1p(stored[names.observed].to_numpy())
    result = paired_bootstrap(
        (np.log1p(stored[ltv].to_numpy()) - truth) ** 2,
        (np.log1p(theirs) - truth) ** 2,
        replicates=project.config.evaluation.bootstrap_repeats,
        seed=project.config.seed,
    )
    return Comparison(
        challenger,
        champion,
        *identity,
        rmsle_challenger=result.model.value,
        rmsle_champion=result.reference.value,
        difference_low=result.difference.low,
        difference_high=result.difference.high,
    )
