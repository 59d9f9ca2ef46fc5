"""How far the newest days are followed, and what out-of-fold scores say about a window whose level moves."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from ltv_assets.core.config import GatingConfig
from ltv_assets.modeling import LTVModel
from ltv_assets.modeling.boosting import sigmoid
from ltv_assets.modeling.folds import TimeFolds, make_folds
from ltv_assets.modeling.levels import (
    MAX_SHIFT,
    Level,
    follow_days,
    follow_level,
    movement,
    on_window_level,
    scores_on_window_level,
    shift_to,
    shifted,
)
from ltv_assets_tests.model_world import SMALL, world

ROWS, RATE = 14_400, 0.029
NAMES = tuple("abcdef")


def window(rates: NDArray[np.float64], rows: int = ROWS) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Payer flags and days whose payer rates are exactly ``rates``."""
    payers = np.rint(rates * rows).astype(int)
    return np.concatenate([np.arange(rows) < k for k in payers]).astype(np.float64), np.repeat(np.arange(len(rates)), rows)


def simulated_errors(steps: float, own: float = 0.0, days: int = 6, windows: int = 400) -> dict[str, float]:
    """Root mean squared relative error of the next day's level: followed, of the window, of the newest day.

    ``steps``, ``own``: standard deviations of the log level's lasting and passing movement.
    """
    rng = np.random.default_rng(7)
    walk = np.cumsum(rng.normal(0.0, steps, (windows, days + 1)), axis=1) + rng.normal(0.0, own, (windows, days + 1))
    level = RATE * np.exp(walk - walk[:, :1])
    rates = rng.binomial(ROWS, level[:, :-1]) / ROWS
    pooled, truth = rates.mean(axis=1), level[:, -1]
    followed = np.empty(windows)
    for i, (r, p) in enumerate(zip(rates, pooled, strict=True)):
        noise = np.full(days, p * (1 - p) / ROWS)
        variance = movement(r, noise)
        followed[i] = r @ follow_days(r, noise, variance)[0] if variance > 0 else p
    found = {"followed": followed, "window": pooled, "newest": rates[:, -1]}
    return {name: float(np.sqrt(np.mean((value / truth - 1.0) ** 2))) for name, value in found.items()}


class TestLevel:
    def test_days_that_differ_by_chance_alone_are_pooled(self) -> None:
        payer, period = window(RATE + np.array([0.0003, -0.0002, 0.0001, -0.0003, 0.0002, 0.0004]))
        level = follow_level(payer, period, NAMES)
        assert level.movement_sd == 0.0
        assert level.rate == pytest.approx(level.pooled, rel=1e-12)
        assert level.rate == pytest.approx(payer.mean(), rel=1e-12)

    def test_days_count_by_their_rows_where_nothing_moved(self) -> None:
        payer = np.concatenate([np.arange(1000) < 30, np.arange(4000) < 121]).astype(np.float64)
        level = follow_level(payer, np.repeat([0, 1], [1000, 4000]), ("a", "b"))
        assert level.weights == pytest.approx((0.2, 0.8))

    def test_a_level_that_stepped_is_followed(self) -> None:
        payer, period = window(np.array([0.018, 0.018, 0.018, 0.026, 0.026, 0.026]))
        level = follow_level(payer, period, NAMES)
        assert level.rate == pytest.approx(0.026, abs=0.0005)
        assert level.pooled == pytest.approx(0.022, abs=0.0001)
        assert level.lasting_share > 0.5

    def test_a_single_odd_day_is_followed_part_of_the_way(self) -> None:
        payer, period = window(np.array([0.018, 0.018, 0.018, 0.018, 0.018, 0.026]))
        level = follow_level(payer, period, NAMES)
        assert 0.020 < level.rate < 0.0255

    def test_a_day_of_few_rows_moves_nothing(self) -> None:
        payer = np.concatenate([*(np.arange(ROWS) < 418 for _ in range(5)), np.arange(50) < 4]).astype(np.float64)
        level = follow_level(payer, np.repeat(np.arange(6), [ROWS] * 5 + [50]), NAMES)
        assert level.rate == pytest.approx(418 / ROWS, rel=0.02)

    def test_window_instead_of_follow_treats_all_rows_alike(self) -> None:
        payer, period = window(np.array([0.01, 0.02, 0.06]))
        level = follow_level(payer, period, ("a", "b", "c"), follow=False)
        assert level.rate == pytest.approx(0.03)
        assert level.row_weights(period) == pytest.approx(np.full(3 * ROWS, 1 / (3 * ROWS)))

    @pytest.mark.parametrize("rates", [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.02], [0.0, 0.0, 0.03], [0.03, 0.0, 0.0]])
    def test_degenerate_days_have_a_level(self, rates: list[float]) -> None:
        payer, period = window(np.array(rates), 1000)
        level = follow_level(payer, period, NAMES[: len(rates)])
        assert 0.0 <= level.rate <= 1.0
        assert sum(level.weights) == pytest.approx(1.0)
        assert all(w >= 0 for w in level.weights)

    def test_what_is_stored_can_be_read_and_says_the_days(self) -> None:
        payer, period = window(np.array([0.01, 0.02, 0.06]))
        level = follow_level(payer, period, ("2025-10-01", "2025-10-02", "2025-10-03"))
        stored = json.loads(json.dumps(level.to_dict()))
        assert Level.from_dict(stored) == level
        assert stored["daily"][-1] == {"day": "2025-10-03", "rows": ROWS, "payers": 864, "payer_rate": 0.06, "weight": level.weights[-1]}

    def test_rows_share_the_weight_of_their_day(self) -> None:
        level = Level(("a", "b"), (10, 10), (1, 2), (0.3, 0.7), 0.1, 1.0)
        weight = level.row_weights(np.array([0, 0, 0, 1]))
        assert weight == pytest.approx([0.1, 0.1, 0.1, 0.7])


class TestNextDay:
    """Days drawn many times over: 400 windows of six days of 14,400 rows."""

    @pytest.mark.parametrize("steps", [0.1, 0.2])
    def test_a_level_that_walks_is_forecast_better_than_by_the_window(self, steps: float) -> None:
        errors = simulated_errors(steps)
        assert errors["followed"] < 0.85 * errors["window"]
        assert errors["followed"] < 1.1 * errors["newest"]

    def test_a_constant_level_is_forecast_as_well_as_by_the_window(self) -> None:
        errors = simulated_errors(0.0)
        assert errors["followed"] < errors["window"] + 0.003  # the payer rate of one day is known to 0.048 of itself
        assert errors["followed"] < 0.5 * errors["newest"]

    def test_days_that_differ_each_by_itself_are_averaged(self) -> None:
        errors = simulated_errors(0.0, own=0.15)
        assert errors["followed"] < errors["newest"]
        assert errors["followed"] < 1.2 * errors["window"]


class TestWindowLevel:
    def drifting(self) -> tuple[NDArray[np.float64], NDArray[np.int64], TimeFolds]:
        payer, period = window(np.array([0.01, 0.01, 0.02, 0.02, 0.03, 0.03]), 5000)
        return payer, period, make_folds(period, 3)

    def test_models_that_know_their_rows_rate_only_are_brought_to_the_windows(self) -> None:
        """Rows alike, each fold scored by a model that says the payer rate of the other folds."""
        payer, _, folds = self.drifting()
        said = np.array([payer[folds.fold != k].mean() for k in range(3)])[folds.fold]
        odds = on_window_level(np.log(said / (1 - said)), payer, folds)
        assert sigmoid(odds) == pytest.approx(np.full(len(odds), payer.mean()))

    def test_scores_of_one_component_and_of_a_blend_are_brought_to_the_windows(self) -> None:
        payer, _, folds = self.drifting()
        log_revenue = payer * 2.0
        component = np.array([log_revenue[folds.fold != k].mean() for k in range(3)])[folds.fold]
        whole = log_revenue.mean()
        assert scores_on_window_level(component, log_revenue, folds, None) == pytest.approx(np.full(len(payer), whole))
        # A blend fitted on the other folds multiplies by what they were over what their components said.
        factor = [log_revenue[folds.fold != k].sum() / component[folds.fold != k].sum() for k in range(3)]
        blend = component * np.array(factor)[folds.fold]
        served = whole * log_revenue.sum() / component.sum()
        assert scores_on_window_level(blend, log_revenue, folds, component) == pytest.approx(np.full(len(payer), served))

    def test_shift_meets_the_level_and_knows_its_limits(self) -> None:
        p = np.random.default_rng(0).uniform(0.001, 0.4, 2000)
        weight = np.full(2000, 1 / 2000)
        for rate in (0.12, 0.2, 0.35):
            assert shifted(p, shift_to(p, weight, rate)).mean() == pytest.approx(rate, rel=1e-6)
        assert shift_to(p, weight, 0.0) == -MAX_SHIFT
        assert shift_to(p, weight, 1.0) == MAX_SHIFT


@pytest.mark.contest
class TestServed:
    """A window whose payer rate doubles on its last two of five days, whatever the rows are like."""

    @pytest.fixture(scope="class")
    @staticmethod
    def models() -> dict[str, tuple[LTVModel, dict[str, float]]]:
        data = world(12_000, 6)
        rng = np.random.default_rng(1)
        keep = (data.revenue["d7"] == 0).to_numpy() | (data.period >= 3) | (rng.random(12_000) < 0.5)
        past, last = data.rows(keep & (data.period < 5)), data.rows(data.period == 5)
        found = {}
        for level in ("follow", "window"):
            settings = SMALL.model_copy(update={"gating": GatingConfig(level=level)})
            model = LTVModel(models=settings).fit(past.X, past.revenue, past.period, past.row_id)
            frame, paid = model.predict_frame(last.X), (last.revenue["d7"] > 0).mean()
            found[level] = (
                model,
                {
                    "probability": float(frame["buyer_probability"].mean() / paid),
                    "open": float((~frame["predicted_zero"]).mean() / paid),
                    "ltv_d7": float(frame["ltv_d7"].sum()),
                    "expected": float(frame["expected_revenue_d7"].sum() / np.minimum(last.revenue["d7"], model.models_.cap_usd).sum()),
                },
            )
        return found

    def test_gate_probability_and_money_are_nearer_to_the_next_day(self, models: dict[str, tuple[LTVModel, dict[str, float]]]) -> None:
        followed, pooled = models["follow"][1], models["window"][1]
        for name in ("probability", "open", "expected"):
            assert abs(np.log(followed[name])) < abs(np.log(pooled[name])), name
        assert 0.8 < followed["probability"] < 1.2
        assert 0.8 < followed["open"] < 1.2

    def test_what_rmsle_is_decided_by_does_not_follow(self, models: dict[str, tuple[LTVModel, dict[str, float]]]) -> None:
        assert models["follow"][1]["ltv_d7"] == models["window"][1]["ltv_d7"]

    def test_a_saved_model_scores_at_the_same_level(
        self, models: dict[str, tuple[LTVModel, dict[str, float]]], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        model, rows = models["follow"][0], world(12_000, 6).X.iloc[:200]
        folder = tmp_path_factory.mktemp("level") / "model"
        model.save(folder)
        assert model.models_.gating.level_ratio > 1.1
        assert LTVModel.load(folder).predict_frame(rows).equals(model.predict_frame(rows))
