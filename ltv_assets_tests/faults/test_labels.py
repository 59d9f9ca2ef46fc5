"""Windows and labels from which no honest model can be made are refused; degenerate ones take a path that is written down."""

from __future__ import annotations

from datetime import date, timedelta
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ltv_assets.core.config import CalibrationConfig, Config
from ltv_assets.core.errors import DataError, StaleError
from ltv_assets.ingestion.calendar import Horizon
from ltv_assets.modeling import LTVModel
from ltv_assets.modeling.calibration import fit_calibrator
from ltv_assets.modeling.dataset import prepare_window
from ltv_assets.modeling.folds import make_folds
from ltv_assets.training.windows import require_mature
from ltv_assets_tests.faults.catalogue import Fault, fault
from ltv_assets_tests.model_world import SMALL, fitted, world

DAYS = tuple(date(2025, 10, 1) + timedelta(days=i) for i in range(6))


def horizon(days: tuple[date, ...] = DAYS, **changes: Any) -> Horizon:
    values = {"min_train_days": 2, "max_train_days": 7, "embargo_days": 0, "gap_days": frozenset()} | changes
    return Horizon(days, (), **values)


LABELS = "revenue d7: <nan> NaN, <infinite> infinite and <negative> negative of <rows> labels; "
LABELS += "expected finite USD >= 0: quarantine those rows before training"


@fault(
    "labels and windows",
    "no payer in the window",
    answer="reject",
    message="no payer among <rows> training rows (revenue d7 is 0 everywhere): a revenue model would be meaningless; "
    "widen the window or check that labels have matured",
    inject=lambda labels: labels * 0,
)
@fault("labels and windows", "NaN label", answer="reject", message=LABELS, inject=lambda labels: labels.where(labels.index != 3))
@fault(
    "labels and windows", "infinite label", answer="reject", message=LABELS, inject=lambda labels: labels.mask(labels.index == 3, np.inf)
)
@fault("labels and windows", "negative label", answer="reject", message=LABELS, inject=lambda labels: labels.mask(labels.index == 3, -1.0))
def test_labels_no_model_can_be_made_of_are_refused(fault: Fault) -> None:
    """LightGBM's native interface would train on NaN and infinity without a word."""
    w = world(200, 4)
    labels = fault.inject(w.revenue["d7"].reset_index(drop=True))
    with pytest.raises(DataError) as caught:
        LTVModel(models=SMALL, random_state=0).fit(w.X, labels, period=w.period)
    fault.told(str(caught.value))


@fault(
    "labels and windows",
    "no training row",
    answer="reject",
    message="the training window has 0 row(s) and <features> feature(s) (shape=<shape>) while a minimum of 1 is required: "
    "check the window's days and filters",
)
def test_empty_window_is_refused(fault: Fault) -> None:
    with pytest.raises(DataError) as caught:
        prepare_window(pd.DataFrame({"x": []}), pd.Series([], dtype=float))
    fault.told(str(caught.value))


@fault(
    "labels and windows",
    "fewer rows than folds",
    answer="reject",
    message="found <rows> sample(s) in one period; folds in time need at least 4 rows: widen the window",
)
def test_fewer_rows_than_folds_are_refused(fault: Fault) -> None:
    with pytest.raises(DataError) as caught, pytest.warns(UserWarning):
        make_folds(np.zeros(3, np.int64), 5)
    fault.told(str(caught.value))


@fault(
    "labels and windows",
    "all rows in one period",
    answer="degrade",
    message="all rows are in one period: folds are contiguous blocks in row order",
)
def test_one_period_is_cut_into_blocks_with_a_warning(fault: Fault) -> None:
    with pytest.warns(UserWarning) as warned:
        folds = make_folds(np.zeros(12, np.int64), 3)
    assert fault.told(str(warned[0].message)) == {}
    assert sorted(set(folds.fold.tolist())) == [0, 1, 2]


@fault(
    "labels and windows",
    "labels not mature",
    answer="reject",
    message="day <day>: its D7 labels are final only from <final> on (today is <today>); "
    "train an older window, raise windows.embargo_days, or lower windows.label_maturity_days of 7",
)
def test_immature_labels_are_refused_with_the_day_they_will_be_final(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTV_TODAY", "2025-10-08")
    config = Config()
    config = config.model_copy(update={"windows": config.windows.model_copy(update={"label_maturity_days": {7: 7}})})
    with pytest.raises(StaleError) as caught:
        require_mature(config, [date(2025, 9, 30), date(2025, 10, 1)])
    assert fault.told(str(caught.value)) == {"day": "2025-10-01", "final": "2025-10-09", "today": "2025-10-08"}


@fault(
    "labels and windows",
    "a window that starts before the data",
    answer="reject",
    message="window <window>: needs at least 2 labelled days in <first> .. <last>, found <found>; "
    "choose a later window (the first is <possible>) or lower windows.min_train_days",
)
def test_window_before_the_data_is_refused(fault: Fault) -> None:
    with pytest.raises(StaleError) as caught:
        horizon().training_days(date(2025, 10, 2))
    assert fault.told(str(caught.value))["possible"] == "2025-10-03"


@fault(
    "labels and windows",
    "a day missing inside a window",
    answer="reject",
    message="window <window>: no data for <days>; add the missing hours, or list the days in data.gap_days",
)
def test_missing_day_inside_a_window_is_refused(fault: Fault) -> None:
    days = tuple(d for d in DAYS if d.day != 3)
    with pytest.raises(StaleError) as caught:
        horizon(days).training_days(date(2025, 10, 6))
    assert fault.told(str(caught.value))["days"] == "2025-10-03"
    assert len(horizon(days, gap_days=frozenset({date(2025, 10, 3)})).training_days(date(2025, 10, 6))) == 4


@fault("labels and windows", "training days and holdout overlapping", answer="accept", message="")
def test_training_days_and_holdout_never_overlap(fault: Fault) -> None:
    """There is nothing to overlap: the holdout day is the window's key and training ends the day before."""
    for embargo in (0, 1):
        for window in horizon(embargo_days=embargo).window_keys():
            assert max(horizon(embargo_days=embargo).training_days(window)) < window - timedelta(days=embargo)
    fault.silent()


@fault("labels and windows", "calibration slice without payers, or with payers only", answer="accept", message="")
def test_calibration_on_one_class_leaves_the_probabilities_as_they_are(fault: Fault) -> None:
    odds = np.linspace(-4, 2, 50)
    least = CalibrationConfig().min_payers
    for payer in (np.zeros(50), np.ones(50), (np.arange(50) < least - 1).astype(float)):
        for kind in ("sigmoid", "isotonic"):
            found = fit_calibrator(kind, odds, payer, least)
            assert found.kind == "none"
            np.testing.assert_allclose(found.probability(odds), 1 / (1 + np.exp(-odds)))
    fault.silent()


@cache
def trained() -> tuple[LTVModel, pd.DataFrame]:
    model, _, last = fitted()
    return model, last.X.reset_index(drop=True)


@fault("labels and windows", "categories never seen in training", answer="accept", message="")
def test_unseen_categories_score_like_one_another(fault: Fault) -> None:
    """A category without a code of its own must not land on the branch of one that has."""
    model, X = trained()
    one, other = (X.assign(country=pd.Categorical([name] * len(X))) for name in ("zz", "yy"))
    scores = model.predict(one)
    np.testing.assert_array_equal(scores, model.predict(other))
    assert np.isfinite(scores).all()
    fault.silent()


@fault("labels and windows", "columns in another order than in training", answer="accept", message="")
def test_columns_are_found_by_name(fault: Fault) -> None:
    model, X = trained()
    np.testing.assert_array_equal(model.predict(X[X.columns[::-1]]), model.predict(X))
    fault.silent()


@pytest.mark.filterwarnings("ignore")
@fault("labels and windows", "all scores tied", answer="accept", message="")
def test_features_that_say_nothing_give_one_score_to_all(fault: Fault) -> None:
    w = world(600, 4)
    X = pd.DataFrame({"constant": np.ones(600)})
    model = LTVModel(models=SMALL, random_state=0).fit(X, w.revenue, period=w.period)
    frame = model.predict_frame(X)
    assert frame["ltv_d7"].nunique() == 1
    assert np.isfinite(frame.select_dtypes("number").to_numpy(dtype=float)).all()
    fault.silent()


@pytest.mark.filterwarnings("ignore")
@fault("labels and windows", "payers only", answer="accept", message="")
def test_window_of_payers_only_is_trained(fault: Fault) -> None:
    w = world(400, 4)
    revenue = w.revenue + 1.0
    model = LTVModel(models=SMALL, random_state=0).fit(w.X, revenue, period=w.period)
    frame = model.predict_frame(w.X)
    assert frame["buyer_probability"].min() > 0.5
    assert np.isfinite(frame.select_dtypes("number").to_numpy(dtype=float)).all()
    fault.silent()
