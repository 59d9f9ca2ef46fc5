"""Who becomes champion: every eligible window in order of time, each compared with the champion before it.

A challenger is compared on its own holdout day D, which its evaluated model never saw: with the champion's *served* model,
which was fitted on days before D only. It is refused when the lower end of the paired 95 % interval of (challenger -
champion) RMSLE lies above 0, that is, when it is worse beyond noise. Comparisons are remembered by content, so the
champion is a function of what the warehouse holds, not of the order in which runs finished.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow.parquet as pq

from ltv_assets.champion import CHAMPION_FILE, Champion, eligible_windows, read_champion
from ltv_assets.errors import StaleError
from ltv_assets.evaluating import SCORES_FILE
from ltv_assets.modeling.metrics import paired_bootstrap
from ltv_assets.project import Project
from ltv_assets.storage.files import write_atomic
from ltv_assets.windows import WindowRows, read_served


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
        """True when the challenger is worse beyond its interval."""
        return self.difference_low > 0


def update_champion(project: Project) -> Champion:
    """Recompute the champion from the warehouse and store it.

    Raises StaleError if no window is eligible.
    """
    windows = eligible_windows(project.warehouse)
    if not windows:
        raise StaleError("no window has passed its blocking checks, so there is no champion; run `ltv run`")
    champion = _record(project, windows[0], "the first window that passed its checks")
    for challenger in windows[1:]:
        comparison = compare(project, challenger, champion.window)
        text = (
            f"RMSLE {comparison.rmsle_challenger:.4f} against {comparison.rmsle_champion:.4f} of window {champion.window} on day {challenger}, "
            f"difference {comparison.difference_low:+.4f} .. {comparison.difference_high:+.4f}"
        )
        if comparison.refused:
            champion = Champion(champion.window, champion.fingerprint, f"{champion.why}; window {challenger} refused: {text}")
        else:
            champion = _record(project, challenger, f"not worse than its predecessor: {text}")
    if champion != read_champion(project.warehouse):
        data = json.dumps(asdict(champion), sort_keys=True, indent=1).encode() + b"\n"
        write_atomic(project.warehouse.root / CHAMPION_FILE, data)
    return champion


def _record(project: Project, window: str, why: str) -> Champion:
    return Champion(window, project.warehouse.fingerprint("served_model", window) or "", why)


def compare(project: Project, challenger: str, champion: str) -> Comparison:
    """Compare a challenger's evaluated model with an older champion's served model on the challenger's holdout day."""
    warehouse = project.warehouse
    identity = (warehouse.fingerprint("holdout_metrics", challenger) or "", warehouse.fingerprint("served_model", champion) or "")
    path = warehouse.root / "comparisons" / f"{challenger}_against_{champion}.json"
    if path.is_file():
        known = Comparison(**json.loads(path.read_bytes()))
        if (known.challenger_fingerprint, known.champion_fingerprint) == identity:
            return known
    comparison = _compare(project, challenger, champion, identity)
    write_atomic(path, json.dumps(asdict(comparison), sort_keys=True, indent=1).encode() + b"\n")
    return comparison


def _compare(project: Project, challenger: str, champion: str, identity: tuple[str, str]) -> Comparison:
    stored = pq.read_table(project.warehouse.folder("holdout_metrics", challenger) / SCORES_FILE).to_pandas()
    rows = WindowRows(project, challenger).holdout_rows()
    theirs = read_served(project.warehouse, champion).score(rows.X, project.config.compute.chunk_rows)["ltv_d7"].to_numpy()
    truth = np.log1p(stored["revenue_d7"].to_numpy())
    result = paired_bootstrap(
        (np.log1p(stored["ltv_d7"].to_numpy()) - truth) ** 2,
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
