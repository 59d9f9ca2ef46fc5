"""What a refit takes over from the evaluated models: their settings, and their scores of rows that they never saw.

What belongs here: out-of-fold rows of a window, joined by its holdout day. What does not: fits (``stages``). Next to read:
``stages.py``.

The evaluated models were fitted on the days before the holdout. Their scores of the holdout day are therefore out of fold, and of
the newest day at that. With the stored out-of-fold scores of the window's own days they are all that calibration, cap, blend, meta
learner and gate need, so a refit fits nothing twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ltv_assets.core.errors import ModelFileError
from ltv_assets.modeling.classifier import Arrays
from ltv_assets.modeling.dataset import BLOCK_ROWS, Ints, WindowData
from ltv_assets.modeling.design_matrix import Design, encode
from ltv_assets.modeling.folds import HeldOutRows
from ltv_assets.sampling.draws import hash_uniform

if TYPE_CHECKING:
    from ltv_assets.modeling.model_set import WindowModels

HOLDOUT_DRAW = 0x0A0E
"""Separates the draw of holdout rows from those of ``design_matrix`` under the same seed."""


@dataclass(frozen=True, eq=False)
class Evaluated:
    """The models of a window, and rows they did not see: the auxiliary rows out of fold, then rows of the holdout day.

    ``rows``: labels, with periods of the window and its holdout together. ``oof``: every stage's out-of-fold arrays by name, each
    as long as ``rows``.
    """

    models: WindowModels
    rows: HeldOutRows
    oof: Arrays


def see_holdout(models: WindowModels, design: Design, holdout: WindowData, together: WindowData) -> Evaluated:
    """The evaluated models with their scores of the holdout day.

    ``design``: of the window they were fitted on. ``together``: its rows, then those of the holdout. Of a large holdout as large a
    share is drawn as the auxiliary rows are of the window. Raises ModelFileError for models without their out-of-fold arrays.
    """
    own = {name: values for stage in models.stages.values() for name, values in stage.oof.items()}
    count = len(design.auxiliary)
    if any(len(values) != count for values in own.values()) or not own:
        raise ModelFileError(
            f"the evaluated models bring out-of-fold scores of {sorted({len(v) for v in own.values()})} rows, the window has {count} "
            "auxiliary ones: materialize the window's stages again before its refit"
        )
    drawn = _drawn(design, holdout)
    scored = []
    for low in range(0, len(drawn), BLOCK_ROWS):
        block = holdout.rows(drawn[low : low + BLOCK_ROWS])
        scored.append(models.held_out_arrays(encode(models.classifier.encoder, block.X)))
    later = {name: np.concatenate([block[name] for block in scored]) for name in scored[0]}
    numbers = np.concatenate([design.auxiliary, len(design.data) + drawn])
    rows = HeldOutRows(together.d7[numbers], together.period[numbers], design.folds.with_later_day(len(drawn)))
    return Evaluated(models, rows, {name: np.concatenate([values, later[name]]) for name, values in own.items() if name in later})


def _drawn(design: Design, holdout: WindowData) -> Ints:
    share = len(design.auxiliary) / len(design.data)
    count = max(1, round(share * len(holdout)))
    if count >= len(holdout):
        return np.arange(len(holdout))
    draw = hash_uniform(holdout.hashes, design.seed, HOLDOUT_DRAW)
    return np.sort(np.argpartition(draw, count)[:count])
