"""What each part contributes: the same holdout, one part switched off at a time.

What belongs here: the variants and their table. What does not: metrics (``metrics``) and the stages. Next to read:
``stages``.

Every variant is a complete fit with its own tree counts, calibration and gate, so a row answers "what if the project did
not have this part", not "what if the part were removed from a model tuned with it".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from ltv_assets.core.config import ModelsConfig, SamplingConfig
from ltv_assets.modeling.dataset import Floats, WindowData
from ltv_assets.modeling.evaluation.metrics import auc, bias_ratio, ece, paired_bootstrap, rmsle
from ltv_assets.modeling.model_set import WindowModels
from ltv_assets.modeling.stages import WindowContext, fit_window

Settings = tuple[ModelsConfig, SamplingConfig]
Change = Callable[[ModelsConfig, SamplingConfig], Settings]


def _models(section: str, **values: object) -> Change:
    def change(models: ModelsConfig, sampling: SamplingConfig) -> Settings:
        part = getattr(models, section).model_copy(update=values)
        return models.model_copy(update={section: part}), sampling

    return change


def _sampling(**values: object) -> Change:
    return lambda models, sampling: (models, sampling.model_copy(update=values))


VARIANTS: Mapping[str, Change] = {
    "all parts": lambda models, sampling: (models, sampling),
    "no HistOS": _sampling(classifier="none"),
    "no HHISTUS": _sampling(regressor="none"),
    "no calibration": _models("calibration", method="none"),
    "no gate": _models("gating", zero_rate="off"),
    "no followed level": _models("gating", level="window"),
    "no stacker": _models("stacker", enabled=False),
}
"""Name of a variant and what it changes in the settings."""

COLUMNS: tuple[str, ...] = (
    "variant",
    "rmsle",
    "rmsle_low",
    "rmsle_high",
    "minus_reference",
    "minus_reference_low",
    "minus_reference_high",
    "rmsle_gated",
    "auc",
    "ece",
    "expected_revenue_ratio",
)


def ablate(
    context: WindowContext,
    holdout: WindowData,
    *,
    replicates: int = 500,
    variants: Mapping[str, Change] = VARIANTS,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Fit every variant on the window and measure it on the holdout; one line per variant and one for the reference.

    Columns: RMSLE of the shortest horizon with its 95 % bootstrap interval, its paired difference to the pinned reference with
    interval (negative: better than the reference), RMSLE of the gated column, AUC and ECE of ``buyer_probability``, and
    sum of expected revenue over sum of capped revenue. The reference is that of the first variant; it has no
    probability, so its last three figures are NaN. ``progress`` is called with the name of each variant before its fit.
    """
    reference_loss: Floats | None = None
    lines = []
    for name, change in variants.items():
        if progress is not None:
            progress(name)
        models, sampling = change(context.models, context.sampling)
        fitted = fit_window(WindowContext(context.data, models, sampling, context.seed, context.threads))
        if reference_loss is None:
            reference = fitted.reference_ltv(holdout.X)
            reference_loss = (np.log1p(reference) - holdout.log_d7) ** 2
            lines.append(_line("reference", reference, reference_loss, holdout, replicates, context.seed))
        lines.append(_measured(name, fitted, reference_loss, holdout, replicates, context.seed))
    return pd.DataFrame(lines, columns=list(COLUMNS))


def _measured(
    name: str, fitted: WindowModels, reference_loss: Floats, holdout: WindowData, replicates: int, seed: int
) -> dict[str, object]:
    frame = fitted.score(holdout.X)
    probability = frame["buyer_probability"].to_numpy()
    line = _line(name, frame[holdout.names.ltv[0]].to_numpy(), reference_loss, holdout, replicates, seed)
    return line | {
        "rmsle_gated": rmsle(holdout.d7, frame[holdout.names.target].to_numpy()),
        "auc": auc(holdout.payer, probability),
        "ece": ece(holdout.payer, probability),
        "expected_revenue_ratio": bias_ratio(holdout.d7, frame[holdout.names.expected].to_numpy(), fitted.cap_usd),
    }


def _line(name: str, ltv: Floats, reference_loss: Floats, holdout: WindowData, replicates: int, seed: int) -> dict[str, object]:
    loss = (np.log1p(ltv) - holdout.log_d7) ** 2
    intervals = paired_bootstrap(loss, reference_loss, replicates=replicates, seed=seed)
    own, difference = intervals.model, intervals.difference
    return {
        "variant": name,
        "rmsle": own.value,
        "rmsle_low": own.low,
        "rmsle_high": own.high,
        "minus_reference": difference.value,
        "minus_reference_low": difference.low,
        "minus_reference_high": difference.high,
        "rmsle_gated": rmsle(holdout.d7, ltv),
        "auc": float("nan"),
        "ece": float("nan"),
        "expected_revenue_ratio": float("nan"),
    }
