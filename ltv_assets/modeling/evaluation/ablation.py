"""What each part contributes: the same holdout, one part switched off at a time.

What belongs here: the variants and their table. What does not: metrics (``metrics``) and the stages. Next to read:
``modeling/stages.py``.

Every variant is a complete fit with its own tree counts, calibration and gate, so a row answers "what if the project did
not have this part", not "what if the part were removed from a model tuned with it".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from ltv_assets.core.config import ModelsConfig, SamplingConfig
from ltv_assets.modeling.dataset import Floats, WindowData
from ltv_assets.modeling.evaluation.metrics import auc, bias_ratio, ece, paired_bootstrap, rmsle
from ltv_assets.modeling.model_set import WindowModels
from ltv_assets.modeling.stages import WindowContext, fit_window, refit

Settings = tuple[ModelsConfig, SamplingConfig]
Change = Callable[[ModelsConfig, SamplingConfig, int], Settings]
"""What a variant's settings are, from those of the window and its number of rows."""


def _models(section: str, **values: object) -> Change:
    def change(models: ModelsConfig, sampling: SamplingConfig, _: int) -> Settings:
        part = getattr(models, section).model_copy(update=values)
        return models.model_copy(update={section: part}), sampling

    return change


def _sampling(**values: object) -> Change:
    return lambda models, sampling, _: (models, sampling.model_copy(update=values))


def _half_of_the_rows(models: ModelsConfig, sampling: SamplingConfig, rows: int) -> Settings:
    return models.model_copy(update={"zero_budget_rows": max(1000, min(rows, models.zero_budget_rows or rows) // 2)}), sampling


VARIANTS: Mapping[str, Change] = {
    "all parts": lambda models, sampling, _: (models, sampling),
    "no HistOS": _sampling(classifier="none"),
    "no HHISTUS": _sampling(regressor="none"),
    "no calibration": _models("calibration", method="none"),
    "no gate": _models("gating", zero_rate="off"),
    "no followed level": _models("gating", level="window"),
    "no steps in the lines": _models("linear", steps=False),
    "a ridge for the lines": _models("linear", steps=False, l1_ratio=0.0),
    "no elastic net": _models("stacker", without=("elastic_net",)),
    "no forest": _models("stacker", without=("forest",)),
    "no boosting": _models("stacker", without=("boosting",)),
    "no stacker": _models("stacker", enabled=False),
    "all zeros for whales and increments": lambda models, sampling, _: (models.model_copy(update={"zeros_per_payer": None}), sampling),
    "zeros drawn, half of the rows": _half_of_the_rows,
}
"""Name of a variant and what it changes in the settings."""
REFITTED = "refitted with the newest day"
"""The window without its newest day, refitted with it as a served model is with its holdout: the cheap fit of the same rows."""

COLUMNS: tuple[str, ...] = (
    "variant",
    "rmsle",
    "rmsle_low",
    "rmsle_high",
    "minus_reference",
    "minus_reference_low",
    "minus_reference_high",
    "minus_all_parts",
    "minus_all_parts_low",
    "minus_all_parts_high",
    "cpu_seconds",
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

    Columns: RMSLE of the shortest horizon with its 95 % bootstrap interval; its paired difference to the pinned reference, and to the first
    variant, with intervals (negative: better than those); processor seconds of the fit; RMSLE of the gated column, AUC and ECE of
    ``buyer_probability``, and sum of expected revenue over sum of capped revenue. The reference is that of the first variant; it
    has no probability, so its last three figures are NaN, and no fit of its own, so its seconds are. The last line, `REFITTED`, is the
    refit of a window that ends a day earlier, without that window's own fit; it needs three days in memory. ``progress`` is called with the
    name of each variant before its fit.
    """
    losses: dict[str, Floats] = {}
    lines: list[dict[str, object]] = []

    def line(name: str, ltv: Floats) -> dict[str, object]:
        losses.setdefault(name, (np.log1p(ltv) - holdout.log_d7) ** 2)
        bars = (losses["reference"], losses.get(first, losses["reference"]))
        return _line(name, ltv, losses[name], bars, holdout, replicates, context.seed)

    first = next(iter(variants))
    for name in [*variants, *([REFITTED] if _can_be_refitted(context.data) else [])]:
        if progress is not None:
            progress(name)
        fit = _refit(context) if name == REFITTED else partial(fit_window, _changed(context, variants[name]))
        began = time.process_time()
        fitted = fit()
        seconds = time.process_time() - began
        frame = fitted.score(holdout.X, threads=context.threads, reference=name == first)
        if name == first:
            reference = np.expm1(frame["reference_log"].to_numpy())
            losses["reference"] = (np.log1p(reference) - holdout.log_d7) ** 2
            losses[first] = (np.log1p(frame[holdout.names.ltv[0]].to_numpy()) - holdout.log_d7) ** 2
            lines.append(line("reference", reference))
        lines.append(
            line(name, frame[holdout.names.ltv[0]].to_numpy()) | _of_probabilities(fitted, frame, holdout) | {"cpu_seconds": seconds}
        )
    return pd.DataFrame(lines, columns=list(COLUMNS))


def _can_be_refitted(data: WindowData) -> bool:
    return len(data.period_names) > 2 and isinstance(data.X, pd.DataFrame)


def _changed(context: WindowContext, change: Change) -> WindowContext:
    models, sampling = change(context.models, context.sampling, len(context.data))
    return WindowContext(context.data, models, sampling, context.seed, context.threads)


def _refit(context: WindowContext) -> Callable[[], WindowModels]:
    """The refit with the newest day of a window that ended before it, whose own fit is done already."""
    data = context.data
    last = len(data.period_names) - 1
    early, newest = (data.rows(np.flatnonzero(part)) for part in (data.period < last, data.period == last))
    early = replace(early, period_names=data.period_names[:last])
    newest = replace(newest, period=np.zeros(len(newest), dtype=np.int64), period_names=data.period_names[last:])
    before = replace(context, data=early)
    return partial(refit, fit_window(before), before, newest)


def _of_probabilities(fitted: WindowModels, frame: pd.DataFrame, holdout: WindowData) -> dict[str, object]:
    probability = frame["buyer_probability"].to_numpy()
    return {
        "rmsle_gated": rmsle(holdout.d7, frame[holdout.names.target].to_numpy()),
        "auc": auc(holdout.payer, probability),
        "ece": ece(holdout.payer, probability),
        "expected_revenue_ratio": bias_ratio(holdout.d7, frame[holdout.names.expected].to_numpy(), fitted.cap_usd),
    }


def _line(
    name: str, ltv: Floats, loss: Floats, bars: tuple[Floats, Floats], holdout: WindowData, replicates: int, seed: int
) -> dict[str, object]:
    to_reference, to_all = (paired_bootstrap(loss, bar, replicates=replicates, seed=seed) for bar in bars)
    own, difference, worth = to_reference.model, to_reference.difference, to_all.difference
    return {
        "variant": name,
        "rmsle": own.value,
        "rmsle_low": own.low,
        "rmsle_high": own.high,
        "minus_reference": difference.value,
        "minus_reference_low": difference.low,
        "minus_reference_high": difference.high,
        "minus_all_parts": worth.value,
        "minus_all_parts_low": worth.low,
        "minus_all_parts_high": worth.high,
        "cpu_seconds": float("nan"),
        "rmsle_gated": rmsle(holdout.d7, ltv),
        "auc": float("nan"),
        "ece": float("nan"),
        "expected_revenue_ratio": float("nan"),
    }
