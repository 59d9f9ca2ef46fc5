"""The ablation table compares complete fits on one holdout."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from ltv_assets.cli.console import PIPED_WIDTH
from ltv_assets.cli.models import _ablation
from ltv_assets.core.config import SamplingConfig
from ltv_assets.modeling.dataset import prepare_window
from ltv_assets.modeling.evaluation.ablation import COLUMNS, REFITTED, VARIANTS, ablate
from ltv_assets.modeling.evaluation.metrics import rmsle
from ltv_assets.modeling.stages import WindowContext, fit_window, refit
from ltv_assets_tests.model_world import SMALL, world


@pytest.mark.contest
def test_each_variant_is_a_complete_fit_beside_the_reference() -> None:
    data = world(2500, 4)
    train, last = data.rows(data.period < 3), data.rows(data.period == 3)
    context = WindowContext(prepare_window(train.X, train.revenue, train.period, train.row_id), SMALL, SamplingConfig())
    holdout = prepare_window(last.X, last.revenue, last.period, last.row_id)
    said: list[str] = []
    chosen = {name: VARIANTS[name] for name in ("all parts", "no gate", "no stacker")}
    table = ablate(context, holdout, replicates=50, variants=chosen, progress=said.append).set_index("variant")
    assert ["variant", *table.columns] == list(COLUMNS)
    assert list(table.index) == ["reference", *chosen, REFITTED]
    assert said == [*chosen, REFITTED]
    models = fit_window(context)
    frame = models.score(last.X)
    assert table.loc["all parts", "rmsle"] == pytest.approx(rmsle(last.revenue["d7"], frame["ltv_d7"]))
    assert table.loc["reference", "rmsle"] == pytest.approx(rmsle(last.revenue["d7"], models.reference_ltv(last.X)))
    assert table.loc["reference", "minus_reference"] == 0.0
    assert table.loc["no gate", "rmsle_gated"] == table.loc["no gate", "rmsle"]
    assert (table["rmsle_low"] <= table["rmsle"]).all()
    assert np.isfinite(table.drop(index="reference").to_numpy()).all()
    assert table.loc["all parts", "minus_all_parts"] == 0.0
    assert table.loc["no stacker", "minus_all_parts"] == pytest.approx(table.loc["no stacker", "rmsle"] - table.loc["all parts", "rmsle"])
    early, newest = train.rows(train.period < 2), train.rows(train.period == 2)
    before = WindowContext(prepare_window(early.X, early.revenue, early.period, early.row_id), SMALL, SamplingConfig())
    served = refit(fit_window(before), before, prepare_window(newest.X, newest.revenue, newest.period, newest.row_id))
    assert table.loc[REFITTED, "rmsle"] == pytest.approx(rmsle(last.revenue["d7"], served.score(last.X)["ltv_d7"]))


def test_every_part_has_a_variant_that_changes_the_settings() -> None:
    default = (SMALL, SamplingConfig())
    for name, change in VARIANTS.items():
        assert (change(*default, 5000) == default) == (name == "all parts")


def test_printed_table_holds_every_variant_whole_and_leaves_open_what_was_not_measured() -> None:
    names = ["reference", *VARIANTS, REFITTED]
    frame = pd.DataFrame(0.25, index=range(len(names)), columns=list(COLUMNS)).assign(variant=names)
    frame[["minus_reference", "minus_reference_low", "minus_reference_high"]] = -0.0123, -0.02, 0.001
    frame.loc[0, ["auc", "ece", "expected_revenue_ratio", "cpu_seconds"]] = np.nan
    told = io.StringIO()
    Console(file=told, width=PIPED_WIDTH).print(_ablation(frame))
    rows = [row for row in told.getvalue().splitlines() if row.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == names
    assert all("-0.0123 (-0.0200 .. +0.0010)" in row for row in rows)
    assert "nan" not in told.getvalue() and "…" not in told.getvalue()
    assert [cell.strip() for cell in rows[0].split("│")[5:10]] == ["", "0.2500", "", "", ""]
