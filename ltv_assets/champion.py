"""The champion: which window's model scores new days.

``champion.json`` in the warehouse is the record. It is recomputed from stored verdicts in window order, so the order in
which runs finish cannot matter: a window is eligible when its blocking checks passed on its present content and its
served model exists; a newer eligible window replaces an older one unless it was measured to be worse.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from ltv_assets.errors import ModelFileError
from ltv_assets.storage.files import write_atomic
from ltv_assets.storage.warehouse import Warehouse

CHAMPION_FILE = "champion.json"
REQUIRED_CHECKS = ("zero_rate", "rmsle")


@dataclass(frozen=True, slots=True)
class Champion:
    """The window whose served model is in use, the model's content hash, and why it was chosen."""

    window: str
    fingerprint: str
    why: str


def read_champion(warehouse: Warehouse) -> Champion | None:
    """The champion of record; None before the first one. Raises ModelFileError if the record is damaged."""
    path = warehouse.root / CHAMPION_FILE
    try:
        return Champion(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"{path}: not a readable champion record ({error}); run `ltv run` to write it again") from None


def eligible_windows(warehouse: Warehouse) -> tuple[str, ...]:
    """Windows whose evaluation passed every blocking check and whose served model belongs to that evaluation."""
    eligible = []
    for key in warehouse.keys("served_model"):
        model = warehouse.manifest("served_model", key)
        metrics = warehouse.fingerprint("holdout_metrics", key)
        verdicts = {v.check: v.passed for v in warehouse.verdicts("holdout_metrics", key)}
        if model is not None and model.inputs.get(f"holdout_metrics/{key}") == metrics and all(verdicts.get(c) for c in REQUIRED_CHECKS):
            eligible.append(key)
    return tuple(eligible)
