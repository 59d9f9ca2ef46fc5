"""From features to the scored columns: the one function behind ``predictions``, ``submission``, ``LTVModel`` and serving.

What belongs here: loading and verifying a window's models, applying them chunk by chunk. What does not: any fit. Next to
read: ``ltv_model.py``.

Every step treats each row on its own, so neither the size of chunks nor the order of rows changes a prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltv_assets.core.contract import Scores
from ltv_assets.core.errors import ModelFileError
from ltv_assets.core.parallel import on_threads
from ltv_assets.modeling.base_learners import COMPONENTS
from ltv_assets.modeling.classifier import BuyerClassifier
from ltv_assets.modeling.dataset import BLOCK_ROWS, RowStore, as_frame
from ltv_assets.modeling.design_matrix import Matrix, encode, encoded_columns
from ltv_assets.modeling.encoding.row_encoder import RowEncoder
from ltv_assets.modeling.gating import BuyerGating
from ltv_assets.modeling.meta_learner import Signals
from ltv_assets.modeling.regressor import RevenueRegressor
from ltv_assets.modeling.serialization import Files, below, digest, prefixed
from ltv_assets.modeling.stacker import Stacker, staged_digests
from ltv_assets.modeling.stages import STAGE_NAMES, STAGE_SPECS, STAGES

SCORE_NEEDS = STAGE_SPECS["stacker"].needs
"""Stages that the final gate belongs to."""
CHUNK_ROWS = 65_536

RowScorer = Callable[[NDArray[np.float32], Sequence[str | None]], dict[str, float | bool]]
"""Scored columns of one row from its numbers, NaN where missing, and the texts of its categories, None where missing."""


@dataclass(eq=False)
class WindowModels:
    """The fitted stages of one window; ``score`` applies the four that have a role in it."""

    classifier: BuyerClassifier
    gating: BuyerGating
    regressor: RevenueRegressor
    stacker: Stacker
    others: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, fitted: Mapping[str, Any]) -> WindowModels:
        """The models of fitted stages by name; what is no stage is left out."""
        roles = {stage.role: fitted[stage.name] for stage in STAGES if stage.role}
        return cls(**roles, others={stage.name: fitted[stage.name] for stage in STAGES if not stage.role})

    @property
    def stages(self) -> dict[str, Any]:
        """Fitted stages by name, in order."""
        return {stage.name: getattr(self, stage.role) if stage.role else self.others[stage.name] for stage in STAGES}

    @property
    def cap_usd(self) -> float:
        """The amount at which expected revenue counts a row's revenue."""
        return self.regressor.expected.cap_usd

    @property
    def names(self) -> Scores:
        """What horizons and scores are called."""
        return self.regressor.names

    def score(self, X: Any, chunk_rows: int = CHUNK_ROWS, threads: int = 1, *, reference: bool = False) -> pd.DataFrame:
        """Scored columns for the rows of X, with X's index; columns in the order of ``names.columns``.

        ``threads`` chunks are scored side by side. ``reference``: with ``reference_log``, the score of the pinned reference in log1p USD,
        as the last column; raises ModelFileError for refitted models, which have none. Raises DataError when a training column is
        missing; columns may come in any order.
        """

        def scored(frame: pd.DataFrame) -> pd.DataFrame:
            matrix = encode(self.classifier.encoder, frame)
            more = {"reference_log": self.regressor.reference_score(matrix)} if reference else {}
            return pd.DataFrame(self._scored(matrix) | more, index=frame.index)

        frames = _chunks(X, chunk_rows)
        parts = list(map(scored, frames) if threads == 1 else on_threads(scored, frames, threads=threads, ahead=2 * threads))
        return pd.concat(parts, ignore_index=isinstance(X, RowStore)) if parts else scored(as_frame(X))

    def signals(self, matrix: Matrix) -> Signals:
        """What the stages before the stacker say about encoded rows."""
        odds = self.classifier.log_odds(matrix)
        return Signals(
            probability=np.minimum(self.classifier.probability(odds), self.gating.cap),
            log_odds=odds,
            log_revenue=self.regressor.log_revenue_if_buyer(matrix),
            whale=self.gating.whale_probability(matrix),
        )

    def held_out_arrays(self, matrix: Matrix) -> dict[str, Any]:
        """What the stages' out-of-fold arrays hold, by name, for encoded rows that the models did not see."""
        signals, stacker = self.signals(matrix), self.stacker
        components = stacker.components(signals, matrix)
        reference = self.regressor.reference_score(matrix) if stacker.serves_reference else None
        arrays = {
            "buyer_log_odds": signals.log_odds,
            "buyer_probability": self.classifier.probability(signals.log_odds),
            "capped_probability": signals.probability,
            "whale_probability": signals.whale,
            "log_revenue_if_buyer": signals.log_revenue,
            "score": reference if reference is not None else stacker.score_components(components, signals, matrix),
        }
        names = COMPONENTS if stacker.base is not None else ()
        arrays |= {f"component_{name}": components[:, i] for i, name in enumerate(names)}
        return arrays | {f"context_{matrix.names[i]}": matrix.values[:, i] for i in stacker.context}

    def _scored(self, matrix: Matrix) -> dict[str, NDArray[Any]]:
        """The columns of scores for encoded rows, (n,) each."""
        signals = self.signals(matrix)
        whale = self.gating.likely_whale(signals.whale)
        probability = self.gating.at_level(signals.probability)
        # The stacker's parts were fitted without the level; where there is none, the probability that is served makes the score.
        reference = self.regressor.reference_score(matrix) if self.stacker.serves_reference else None
        score = self.stacker.score(replace(signals, probability=probability) if self.stacker.base is None else signals, matrix, reference)
        score = np.where(whale, np.minimum(score * self.stacker.gate.whale_factor, self.stacker.log_max), score)
        zero = self.stacker.gate.is_zero(score, signals.log_odds, whale)
        names, ltv = self.names, np.expm1(score)
        found = {
            "buyer_probability": probability,
            "log_revenue_if_buyer": signals.log_revenue,
            names.ltv[0]: ltv,
            names.expected: self.regressor.expected.predict(signals.probability, signals.log_revenue, signals.whale),
        }
        for horizon, name in zip(names.names[1:], names.ltv[1:], strict=True):
            score = score + self.regressor.increment(horizon, matrix)
            found[name] = np.expm1(score)
        return found | {"predicted_zero": zero, names.target: np.where(zero, 0.0, ltv)}

    def row_scorer(self, numeric: Sequence[str], categorical: Sequence[str]) -> RowScorer:
        """Scores single rows, whose numbers and categories come in the order of these names.

        Raises DataError unless they are the columns that the models were trained on.
        """
        encoder = self.classifier.encoder
        rows, columns = RowEncoder(encoder, numeric, categorical), encoded_columns(encoder)

        def score(numbers: NDArray[np.float32], texts: Sequence[str | None]) -> dict[str, float | bool]:
            scored = self._scored(Matrix(rows.encode(numbers, texts)[None, :], *columns))
            return {name: values.item() for name, values in scored.items()}

        return score

    def reference_ltv(self, X: Any) -> Any:
        """The pinned reference's prediction of revenue within the shortest horizon, USD, (n,): what the stacker is compared with.

        Raises ModelFileError for refitted models, which have none.
        """
        scores = [self.regressor.reference_score(encode(self.classifier.encoder, frame)) for frame in _chunks(X, CHUNK_ROWS)]
        return np.expm1(np.concatenate([np.zeros(0), *scores]))

    def to_files(self) -> Files:
        """``<stage>/<file>`` for every stage."""
        return {path: content for name, stage in self.stages.items() for path, content in prefixed(name, stage.to_files()).items()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> WindowModels:
        """Load the stages and verify that cap, rules and gate belong to exactly these models."""
        parts = {name: below(name, files) for name in STAGE_NAMES}
        models = cls.of({stage.name: stage.load(parts[stage.name]) for stage in STAGES})
        verify_chain(models, {name: digest(parts[name]) for name in SCORE_NEEDS})
        return models


def _chunks(X: Any, chunk_rows: int) -> Iterator[pd.DataFrame]:
    if isinstance(X, RowStore):
        for low in range(0, len(X), BLOCK_ROWS):
            yield from _chunks(X.read(low, min(low + BLOCK_ROWS, len(X))), chunk_rows)
        return
    frame = as_frame(X)
    for low in range(0, len(frame), chunk_rows):
        yield frame.iloc[low : low + chunk_rows]


def verify_chain(models: WindowModels, found: Mapping[str, str] | None = None) -> None:
    """Raise ModelFileError unless the gating files and the final gate belong to the models beside them.

    ``found``: digests of the stages' files as stored; None computes them from the loaded objects.
    """
    found = found or staged_digests(models.classifier, models.gating, models.regressor)
    if models.gating.classifier_digest != found["buyer_classifier"]:
        raise ModelFileError("buyer_gating.json belongs to another buyer classifier than the one beside it; materialize buyer_gating again")
    for stage in SCORE_NEEDS:
        if models.stacker.belongs_to[stage] != found[stage]:
            raise ModelFileError(f"score_gate.json was fitted with another {stage} than the one beside it; materialize the stacker again")
