"""What each stage of a window promises, on a small window with a known law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import ElasticNet, LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits

from ltv_assets.core.config import CalibrationConfig, GatingConfig, LinearConfig, SamplingConfig
from ltv_assets.core.errors import DataError
from ltv_assets.modeling import linear
from ltv_assets.modeling.base_learners import BASE_COMPONENTS, COMPONENTS, choose_base, fewest_within_noise, fit_base
from ltv_assets.modeling.blend import component_cap, fit_blend
from ltv_assets.modeling.boosting import Chosen, Params, Trainer, booster_params, log_odds, narrowed, sigmoid
from ltv_assets.modeling.calibration import Calibrator, choose_kind, fit_calibrator, prior_shift, top_rows, upper_bound
from ltv_assets.modeling.dataset import Floats, JoinedRows, RowStore, concat_windows, prepare_window
from ltv_assets.modeling.design_matrix import Design, EncodedFile, EncodedRows, Matrix, encode
from ltv_assets.modeling.folds import make_folds
from ltv_assets.modeling.gating import ScoreGate, _whale_factor, fit_score_gate, probability_cap
from ltv_assets.modeling.linear import LinearModels, Penalties, _Logistic, _Sums, choose_linear, fit_linear
from ltv_assets.modeling.meta_learner import winner
from ltv_assets.modeling.model_set import WindowModels
from ltv_assets.modeling.preprocessing import ShapedRows, Shaper, missed_steps
from ltv_assets.modeling.regressor import ExpectedRevenue, fit_expected_revenue, revenue_cap
from ltv_assets.modeling.selection import most_telling, varying_columns
from ltv_assets.modeling.stages import WindowContext, fit_window, hhistus_plan, histos_plan, refit, repeatable
from ltv_assets_tests.model_world import SMALL, World, fitted, world

pytestmark = pytest.mark.contest


def _context(data: World, **changes: object) -> WindowContext:
    window = prepare_window(data.X, data.revenue, data.period, data.row_id)
    return WindowContext(window, SMALL.model_copy(update=changes), SamplingConfig())


class TestFolds:
    def test_every_row_is_held_out_once_and_never_by_its_own_period(self) -> None:
        period = np.repeat(np.arange(5), 10)
        folds = make_folds(period, 3)
        held = np.concatenate([folds.split(k)[1] for k in range(folds.n_folds)])
        assert sorted(held) == list(range(50))
        for k in range(folds.n_folds):
            train, out = folds.split(k)
            assert not set(period[train]) & set(period[out])

    def test_last_fold_is_scored_by_the_past_alone(self) -> None:
        period = np.repeat(np.arange(6), 4)
        folds = make_folds(period, 3)
        train, held = folds.split(2)
        assert period[train].max() < period[held].min()
        earlier, later = folds.earlier_split()
        assert period[earlier].max() < period[later].min()
        assert period[later].max() < period[folds.last_fold].min()

    def test_two_periods_make_two_folds(self) -> None:
        folds = make_folds(np.repeat([0, 1], 9), 3)
        assert folds.n_folds == 2
        assert folds.earlier_split()[1].tolist() == [6, 7, 8]

    def test_one_period_becomes_blocks_with_a_warning(self) -> None:
        with pytest.warns(UserWarning, match="one period"):
            folds = make_folds(np.zeros(30, dtype=np.int64), 3)
        assert folds.n_folds == 3
        assert (np.diff(folds.fold) >= 0).all()

    def test_too_few_rows_are_refused_with_the_number_needed(self) -> None:
        with pytest.raises(DataError, match="at least 4 rows"):
            make_folds(np.zeros(3, dtype=np.int64), 3)


class TestWindow:
    def test_bad_labels_are_refused_with_counts(self) -> None:
        with pytest.raises(DataError, match="1 NaN, 1 infinite and 2 negative of 6"):
            prepare_window(np.zeros((6, 1)), np.array([np.nan, np.inf, -1.0, -2.0, 0.0, 1.0]))

    def test_window_without_payers_is_refused_with_the_remedy(self) -> None:
        with pytest.raises(DataError, match=r"no payer among 4 training rows.*widen the window"):
            prepare_window(np.zeros((4, 1)), np.zeros(4))

    def test_labels_are_found_under_both_names_and_longer_ones_may_be_missing(self) -> None:
        frame = pd.DataFrame({"iap_revenue_d7": [0.0, 1.0], "iap_revenue_d14": [np.nan, 2.0]})
        window = prepare_window(np.zeros((2, 1)), frame)
        assert window.d7.tolist() == [0.0, 1.0]
        assert np.isnan(window.revenue[:, 2]).all()

    @pytest.mark.parametrize("name", ["period", "row_id"])
    def test_lengths_must_agree(self, name: str) -> None:
        with pytest.raises(DataError, match=name):
            prepare_window(np.zeros((3, 1)), np.ones(3), **{name: [1, 2]})

    def test_joined_windows_keep_time_order_and_categories(self) -> None:
        first = prepare_window(pd.DataFrame({"c": pd.Categorical(["a", "b"])}), np.ones(2), ["d1", "d2"])
        second = prepare_window(pd.DataFrame({"c": pd.Categorical(["z", "a"])}), np.ones(2), ["d3", "d3"])
        both = concat_windows(first, second)
        assert both.period.tolist() == [0, 1, 2, 2]
        assert both.X["c"].tolist() == ["a", "b", "z", "a"]
        assert isinstance(both.X["c"].dtype, pd.CategoricalDtype)


class TestLeakage:
    def test_out_of_fold_encodings_do_not_know_the_held_out_labels(self) -> None:
        """Changing the labels of a fold must change neither the encodings of its rows nor those that train its models."""
        data = world(1200, 3)
        changed = data.revenue.copy()
        held = data.period == 2
        changed.loc[held, "d7"] = np.roll(data.revenue.loc[held, "d7"].to_numpy(), 17) + 1.0
        before = Design(prepare_window(data.X, data.revenue["d7"], data.period), SMALL, 0).fold(2)
        after = Design(prepare_window(data.X, changed["d7"], data.period), SMALL, 0).fold(2)
        assert (before.held_rows == np.flatnonzero(held)).all()
        np.testing.assert_array_equal(before.train.values, after.train.values)
        np.testing.assert_array_equal(before.held.values, after.held.values)

    def test_out_of_fold_scores_of_a_fold_do_not_know_its_labels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With tree counts and penalties given, a fold's own labels are nowhere in its rows' scores."""

        def five_trees(self: Trainer, matrix: Matrix, label: Floats, params: Params, *args: Any, **rows: Any) -> Chosen:
            rows.pop("later_start", None)
            model = self.train(matrix, label, params, 5, **rows)
            return Chosen(5, {"rmsle": [0.0]}, model, model)

        monkeypatch.setattr(Trainer, "choose_rounds", five_trees)
        monkeypatch.setattr("ltv_assets.modeling.base_learners.fewest_within_noise", lambda scores, label: 0)
        monkeypatch.setattr(linear, "STRENGTHS_PAYERS", (2.0,))
        monkeypatch.setattr(linear, "STRENGTHS_DIRECT", (1.0,))
        monkeypatch.setattr("ltv_assets.modeling.base_learners.NOISE_GAIN", -np.inf)
        data = world(1200, 3)
        lines = SMALL.linear.model_copy(update={"penalties": (0.01,)})
        changed = data.revenue.copy()
        held = data.period == 1
        changed.loc[held, :] = np.roll(data.revenue[held].to_numpy(), 17, axis=0)
        both = [fit_window(_context(replace(data, revenue=revenue), linear=lines)) for revenue in (data.revenue, changed)]
        assert not any(m.stacker.settings.skipped for m in both)
        scores = [
            np.column_stack([m.classifier.oof["buyer_log_odds"], *(m.stacker.oof[f"component_{n}"] for n in COMPONENTS[1:])]) for m in both
        ]
        np.testing.assert_array_equal(scores[0][held], scores[1][held])
        assert (scores[0][~held] != scores[1][~held]).any()

    def test_refit_calibrates_and_gates_by_scores_of_models_that_had_not_seen_the_rows(self) -> None:
        """The holdout day's scores are the evaluated model's, and its labels are in none of them."""
        data = world(2500, 5)
        train, last = data.rows(data.period < 4), data.rows(data.period == 4)
        evaluated = fit_window(_context(train))
        rows = encode(evaluated.classifier.encoder, last.X)
        before = {name: values for stage in evaluated.stages.values() for name, values in stage.oof.items()}
        calibrators = []
        for revenue in (last.revenue, last.revenue.iloc[::-1].reset_index(drop=True) * 2.0):
            served = refit(evaluated, _context(train), prepare_window(last.X, revenue, last.period, last.row_id))
            oof = {name: values for stage in served.stages.values() for name, values in stage.oof.items()}
            scored = evaluated.held_out_arrays(rows)
            for name in ("buyer_log_odds", "buyer_probability", "score", "component_linear"):
                np.testing.assert_array_equal(oof[name], np.concatenate([before[name], scored[name]]), err_msg=name)
            calibrators.append(served.classifier.calibrator.to_dict())
        assert calibrators[0] != calibrators[1]


class TestCalibration:
    def test_prior_shift_undoes_oversampling_exactly(self) -> None:
        payer = np.array([1.0] * 10 + [0.0] * 90)
        multiplicity = np.where(payer > 0, 4.0, 1.0)
        sampled_odds = np.log((10 * 4) / 90)
        assert sigmoid(np.array([sampled_odds + prior_shift(payer, multiplicity)]))[0] == pytest.approx(0.1)

    def test_prior_shift_of_one_class_is_zero(self) -> None:
        assert prior_shift(np.zeros(5), np.ones(5)) == 0.0

    def test_sigmoid_recovers_a_known_distortion(self) -> None:
        rng = np.random.default_rng(0)
        odds = rng.normal(-2, 1.5, 60_000)
        payer = (rng.random(60_000) < sigmoid(odds)).astype(float)
        calibrator = fit_calibrator("sigmoid", 2.0 * odds + 1.0, payer, 30)
        assert calibrator.slope == pytest.approx(0.5, abs=0.02)
        assert calibrator.intercept == pytest.approx(-0.5, abs=0.05)

    def test_isotonic_interpolates_as_scikit_learn_does(self) -> None:
        rng = np.random.default_rng(1)
        odds = rng.normal(size=2000)
        payer = (rng.random(2000) < sigmoid(odds - 1)).astype(float)
        ours = fit_calibrator("isotonic", odds, payer, 30).probability(np.linspace(-5, 5, 101))
        theirs = IsotonicRegression(out_of_bounds="clip").fit(odds, payer).predict(np.linspace(-5, 5, 101))
        np.testing.assert_allclose(ours, np.clip(theirs, 1e-6, 1 - 1e-6), atol=1e-12)

    @pytest.mark.parametrize("payer", [np.zeros(100), np.ones(100), np.r_[np.ones(5), np.zeros(95)]])
    def test_one_class_or_few_payers_fall_back_to_the_prior_correction(self, payer: np.ndarray) -> None:
        odds = np.linspace(-3, 3, 100)
        calibrator = fit_calibrator("sigmoid", odds, payer, 30)
        assert calibrator.kind == "none"
        np.testing.assert_allclose(calibrator.probability(odds), sigmoid(odds))

    def test_reversed_ranking_keeps_the_rate_and_no_ranking(self) -> None:
        rng = np.random.default_rng(2)
        odds = rng.normal(size=5000)
        payer = (rng.random(5000) < sigmoid(-odds)).astype(float)
        p = fit_calibrator("sigmoid", odds, payer, 30).probability(odds)
        assert p.std() < 1e-12
        assert p.mean() == pytest.approx(payer.mean())

    def test_automatic_choice_takes_the_lower_loss_on_later_rows(self) -> None:
        rng = np.random.default_rng(3)
        odds = rng.uniform(-4, 4, 40_000)
        step = np.where(odds > 0, 0.6, 0.02)  # a step no sigmoid can follow
        payer = (rng.random(40_000) < step).astype(float)
        kind, losses = choose_kind(odds[:30_000], payer[:30_000], odds[30_000:], payer[30_000:], CalibrationConfig())
        assert kind == "isotonic"
        assert losses["log_loss_later_isotonic"] < losses["log_loss_later_sigmoid"]

    @pytest.mark.parametrize("calibrator", [Calibrator("none"), Calibrator("sigmoid", 0.7, -0.3)])
    def test_state_survives(self, calibrator: Calibrator) -> None:
        odds = np.linspace(-9, 9, 50)
        assert (Calibrator.from_dict(calibrator.to_dict()).probability(odds) == calibrator.probability(odds)).all()


class TestLevel:
    def test_level_grows_with_rows_and_moves_the_final_log_odds_only(self) -> None:
        data = world(3000, 4)
        classifier = fit_window(_context(data)).classifier
        level = classifier.diagnostics["level"]
        assert 1.0 <= level <= 1.2
        multiplicity = histos_plan(_context(data)).multiplicity
        assert classifier.shift == pytest.approx(prior_shift((data.revenue["d7"] > 0).to_numpy(float), multiplicity) - np.log(level))

    def test_mean_probability_of_new_rows_is_near_the_payer_rate(self) -> None:
        """Averaged over worlds, so that chance in the number of payers does not hide a bias."""
        ratios = []
        for seed in range(4):
            model, _, last = fitted(seed)
            ratios.append(model.predict_frame(last.X)["buyer_probability"].mean() / last.probability.mean())
        assert np.mean(ratios) == pytest.approx(1.0, abs=0.06)


class TestGate:
    def test_upper_bound_is_clopper_pearson(self) -> None:
        assert upper_bound(0, 10, 0.975) == pytest.approx(0.3085, abs=1e-4)  # 1 - 0.025 ** (1/10)
        assert upper_bound(10, 10, 0.975) == 1.0

    def test_cap_repairs_overconfidence(self) -> None:
        rng = np.random.default_rng(0)
        truth = rng.uniform(0, 0.3, 20_000)
        payer = (rng.random(20_000) < truth).astype(float)
        cap = probability_cap(3.0 * truth, payer, GatingConfig())
        assert 0.25 < cap < 0.5

    def test_top_rows_has_its_least_size(self) -> None:
        assert len(top_rows(np.arange(1000.0), 0.002, 50)) == 50
        assert top_rows(np.arange(10.0), 0.1, 50).tolist() == list(range(9, -1, -1))

    def test_matching_gate_meets_the_target_and_costs_what_it_says(self) -> None:
        model, train, _ = fitted()
        gating, gate = model.models_.gating, model.models_.stacker.gate
        assert gate.summary["predicted_zero_rate"] == pytest.approx(gating.target_zero_rate, abs=1 / len(train.X))
        zero = (train.revenue["d7"] == 0).groupby(train.period).mean()
        assert gating.target_zero_rate == pytest.approx(float(zero @ gating.level.weights))

    def test_cost_of_the_gate_is_the_mean_square_of_gated_scores_when_scores_are_right(self) -> None:
        rng = np.random.default_rng(0)
        n = 200_000
        score = rng.uniform(0.0, 0.4, n)
        log_revenue = np.where(rng.random(n) < 0.2, score / 0.2, 0.0)
        gate = ScoreGate(0.2, 0.0, 1.0, 0.5, {})
        zero = gate.is_zero(score, np.zeros(n), np.zeros(n, dtype=bool))
        paid = np.mean((np.where(zero, 0, score) - log_revenue) ** 2) - np.mean((score - log_revenue) ** 2)
        assert paid == pytest.approx(np.mean(score**2 * zero), rel=0.05)

    def test_ties_are_broken_by_the_raw_score_and_whales_stay_open(self) -> None:
        model, _, _ = fitted()
        score, tie = np.zeros(10), np.arange(10.0)
        whale = np.zeros(10, dtype=bool)
        whale[0] = True
        gating = model.models_.gating
        target, gating.target_zero_rate = gating.target_zero_rate, 0.6
        try:
            gate = fit_score_gate(score, tie, whale, np.zeros(10), np.full(10, 0.1), gating)
        finally:
            gating.target_zero_rate = target
        assert gate.is_zero(score, tie, whale).tolist() == [False] + [True] * 6 + [False] * 3

    def test_gate_off_gates_nothing(self) -> None:
        data = world(1500, 3)
        models = fit_window(_context(data, gating=GatingConfig(zero_rate="off")))
        frame = models.score(data.X)
        assert not frame["predicted_zero"].any()
        assert (frame["iap_revenue_d7"] == frame["ltv_d7"]).all()


class TestHeads:
    def test_expected_revenue_adds_up_where_it_was_fitted(self) -> None:
        rng = np.random.default_rng(0)
        p = rng.uniform(0.001, 0.3, 20_000)
        mu = rng.normal(1.5, 0.3, 20_000)
        revenue = np.where(rng.random(20_000) < p, np.expm1(mu + rng.normal(size=20_000)).clip(0), 0.0)
        cap, tail = revenue_cap(revenue, 0.999)
        head = fit_expected_revenue(revenue, cap, tail, p, mu, np.full(20_000, 0.01))
        predicted = head.predict(p, mu, np.full(20_000, 0.01))
        assert predicted.sum() == pytest.approx(np.minimum(revenue, cap).sum(), rel=1e-3)
        assert predicted.max() <= cap
        again = ExpectedRevenue.from_dict(head.to_dict()).predict(p, mu, np.full(20_000, 0.01))
        assert (again == predicted).all()

    def test_cap_is_the_quantile_over_all_rows_or_the_maximum(self) -> None:
        revenue = np.r_[np.zeros(900), np.arange(1.0, 101.0)]
        cap, tail = revenue_cap(revenue, 0.95)
        assert cap == np.quantile(revenue, 0.95)
        assert tail == pytest.approx(revenue.sum() / np.minimum(revenue, cap).sum())
        assert revenue_cap(np.r_[np.zeros(9999), 5.0], 0.999)[0] == 5.0

    def test_horizons_never_cross(self) -> None:
        model, train, last = fitted()
        for rows in (train, last):
            frame = model.predict_frame(rows.X)
            assert (frame["ltv_d7"] <= frame["ltv_d14"]).all()
            assert (frame["ltv_d14"] <= frame["ltv_d28"]).all()
        assert (frame["ltv_d7"] < frame["ltv_d28"]).any()

    def test_absent_horizons_are_skipped_and_say_so(self) -> None:
        data = world(1500, 3)
        revenue = data.revenue.assign(d28=np.nan)
        context = WindowContext(prepare_window(data.X, revenue, data.period), SMALL, SamplingConfig())
        models = fit_window(context)
        frame = models.score(data.X)
        assert set(models.regressor.increments) == {"d14"}
        assert models.regressor.diagnostics["has_d28"] == 0.0
        assert (frame["ltv_d28"] == frame["ltv_d14"]).all()

    def test_wrong_monotone_constraint_is_dropped(self) -> None:
        data = world(3000, 4)
        kept = fit_window(_context(data, monotone={"spend": 1})).regressor
        dropped = fit_window(_context(data, monotone={"spend": -1})).regressor
        assert not dropped.monotone_kept
        if kept.monotone_kept:
            assert "monotone_constraints" in kept.head.text

    def test_training_curves_hold_rmsle_and_mae(self) -> None:
        model, _, _ = fitted()
        curves = model.models_.regressor.curves
        assert set(curves["head_d7"]) == {"rmsle", "mae_usd"}
        assert len(curves["reference"]["rmsle"]) == len(curves["reference"]["mae_usd"]) > 0


class TestLinear:
    def test_shaped_rows_are_finite_standardised_and_row_wise(self) -> None:
        design = Design(prepare_window(world().X, world().revenue, world().period), SMALL, 0)
        shaper = Shaper.fit(design.train, SMALL.linear)
        shaped = shaper.transform(design.train.values)
        assert np.isfinite(shaped).all()
        assert np.abs(shaped[:, : len(shaper.numeric)].mean(axis=0)).max() < 0.05
        np.testing.assert_array_equal(shaper.transform(design.train.values[5:9]), shaped[5:9])
        np.testing.assert_array_equal(Shaper.from_dict(shaper.to_dict()).transform(design.train.values), shaped)

    def test_state_survives(self) -> None:
        model, train, _ = fitted()
        linear = model.models_.stacker.base.linear
        matrix = Design(prepare_window(train.X, train.revenue, train.period), SMALL, 0).train
        again = LinearModels.from_dict(linear.to_dict())
        for a, b in zip(linear.scores(matrix), again.scores(matrix), strict=True):
            assert (a == b).all()

    def test_sums_in_blocks_give_the_elastic_nets_and_the_screening_of_all_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ltv_assets.modeling.preprocessing.BLOCK_ROWS", 700)
        rng = np.random.default_rng(0)
        X = np.clip(rng.normal(size=(3000, 12)) + rng.normal(size=12), -4, 4).astype(np.float32)
        y = np.where(rng.random(3000) < 0.4, 0.0, np.maximum(X @ np.linspace(-1, 1, 12) + rng.normal(0, 1, 3000) + 5.0, 0.1))
        as_they_are = Shaper(np.arange(12), np.zeros(12, bool), np.zeros(12, np.float32), np.ones(12, np.float32), np.arange(0), ())
        rows = ShapedRows(as_they_are, Matrix(X, tuple(map(str, range(12))), ()))
        for sums, chosen in zip(_Sums.of(rows, y), (np.ones(3000, bool), y > 0), strict=True):
            for w, strength in zip(sums.elastic_nets((5.0, 0.5), 0.5), (5.0, 0.5), strict=True):
                alpha = strength * y[chosen].std() / np.sqrt(chosen.sum())
                model = ElasticNet(alpha=alpha, l1_ratio=0.5, tol=1e-8, max_iter=10_000)
                known = model.fit(X[chosen].astype(np.float64), y[chosen])
                np.testing.assert_allclose(w, np.append(known.coef_, known.intercept_), atol=2e-3)
        correlations = [abs(np.corrcoef(X[:, j], y > 0)[0, 1]) for j in range(12)]
        assert _Sums.of(rows, y)[0].screened().tolist() == np.flatnonzero(np.array(correlations) * np.sqrt(3000) > linear.SCREEN_Z).tolist()
        np.testing.assert_array_equal(rows.columns(np.array([2, 7]), y > 0), X[y > 0][:, [2, 7]])
        w = np.append(np.linspace(0, 1, 12), 3.0)
        np.testing.assert_allclose(rows.lines([w])[:, 0], X.astype(np.float64) @ w[:-1] + 3.0, atol=1e-4)

    @pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
    def test_logistic_regression_is_the_one_of_scikit_learn_with_an_elastic_net(self, l1_ratio: float) -> None:
        rng = np.random.default_rng(0)
        X = (rng.normal(size=(4000, 30)) @ rng.normal(size=(30, 30)) * 0.2 + rng.normal(size=30)).astype(np.float32)
        y = np.where(rng.random(4000) < sigmoid(X @ rng.normal(0, 0.3, 30) - 3.0), 2.0, 0.0)
        as_they_are = Shaper(np.arange(30), np.zeros(30, bool), np.zeros(30, np.float32), np.ones(30, np.float32), np.arange(0), ())
        rows = ShapedRows(as_they_are, Matrix(X, tuple(map(str, range(30))), ()))
        logistic = _Logistic.of(rows, _Sums.of(rows, y)[0], y > 0)
        chosen = logistic.columns.astype(np.float64)
        together = logistic.fit((0.003, 0.03, 1.0), l1_ratio)

        def loss(w: Floats, intercept: float, c: float) -> float:
            z = chosen @ w + intercept
            penalty = l1_ratio * np.abs(w).sum() + 0.5 * (1.0 - l1_ratio) * (w @ w)
            return float(np.logaddexp(0.0, z).sum() - z[y > 0].sum() + penalty / c)

        for c, found in zip((0.003, 0.03, 1.0), together, strict=True):
            known = LogisticRegression(C=c, l1_ratio=l1_ratio, solver="saga", tol=1e-6, max_iter=5000).fit(chosen, y > 0)
            least = loss(known.coef_[0], known.intercept_[0], c)
            for one in (found, *logistic.fit((c,), l1_ratio), *logistic.fit((c,), l1_ratio, together[0])):
                assert loss(one[logistic.chosen], one[-1], c) - least < 0.02
                expected = chosen @ known.coef_[0] + known.intercept_[0]
                np.testing.assert_allclose(rows.lines([one])[:, 0], expected, atol=0.05)
        assert (np.delete(together[0][:-1], logistic.chosen) == 0).all()

    def test_drawn_zeros_are_weighed_back_in_the_logistic_regression(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(0)
        X = rng.normal(size=(60_000, 8)).astype(np.float32)
        y = np.where(rng.random(60_000) < sigmoid(X @ np.linspace(-0.5, 0.5, 8) - 3.5), 2.0, 0.0)
        as_they_are = Shaper(np.arange(8), np.zeros(8, bool), np.zeros(8, np.float32), np.ones(8, np.float32), np.arange(0), ())
        rows = ShapedRows(as_they_are, Matrix(X, tuple(map(str, range(8))), ()))
        sums = _Sums.of(rows, y)[0]
        every = _Logistic.of(rows, sums, y > 0)
        monkeypatch.setattr(linear, "LOGISTIC_VALUES", 60_000 * 8 // 4)
        drawn = _Logistic.of(rows, sums, y > 0)
        assert len(drawn.payer) < 0.3 * len(every.payer)
        assert drawn.payer.sum() == every.payer.sum()
        assert drawn.weight.sum() == pytest.approx(60_000)
        ((one,), (other,)) = every.fit((1.0,), 0.5), drawn.fit((1.0,), 0.5)
        assert sigmoid(drawn.line(other)).sum() == pytest.approx((y > 0).sum(), rel=0.02)
        np.testing.assert_allclose(one, other, atol=0.05)

    def test_steps_that_a_line_misses_are_found_among_noise(self) -> None:
        """A threshold among a line that the model knows, a gap and noise."""
        rng = np.random.default_rng(0)
        X = rng.normal(size=(40_000, 12)).astype(np.float32)
        X[rng.random(40_000) < 0.2, 1] = np.nan
        odds = -3.0 + 0.5 * X[:, 2] + 1.0 * np.isnan(X[:, 1])
        payer = rng.random(40_000) < sigmoid(odds + 0.8 * (X[:, 5] > 1.2))
        matrix = Matrix(X, tuple(map(str, range(12))), (11,))
        p = sigmoid(odds) * payer.mean() / sigmoid(odds).mean()
        found = missed_steps(matrix, payer - p, p * (1.0 - p))
        thresholds = [threshold for column, threshold in found if column == 5]
        assert min(abs(threshold - 1.2) for threshold in thresholds) < 0.1
        others = {column for column, _ in found} - {5}
        assert others <= set(range(11))  # a category has no steps
        assert len(others) <= 6  # of ten, each with 31 tries at two standard errors
        flagged = X[:, 3] > np.quantile(X[:, 3], 0.5)
        excess = np.where(flagged, 0.01, -0.01)
        assert missed_steps(Matrix(X[:, 3:4], ("x",), ()), excess, np.full(40_000, 0.02))[0][0] == 0
        assert missed_steps(Matrix(np.full((500, 1), np.nan, np.float32), ("x",), ()), np.zeros(500), np.full(500, 0.02)) == ()

    def test_steps_are_columns_of_the_shaper_and_a_gap_is_above_none(self) -> None:
        shaper = Shaper(
            np.array([0]), np.zeros(1, bool), np.zeros(1, np.float32), np.ones(1, np.float32), np.arange(0), (), ((1, 0.5), (0, 2.0))
        )
        values = np.array([[3.0, 0.5], [2.0, np.nan], [np.nan, 0.75]], np.float32)
        np.testing.assert_array_equal(shaper.transform(values), np.array([[3, 0, 1], [2, 0, 0], [0, 1, 0]], np.float32))
        np.testing.assert_array_equal(shaper.only(np.array([True, False, True])).transform(values)[:, 1], [1.0, 0.0, 0.0])
        assert Shaper.from_dict(shaper.to_dict()).steps == shaper.steps

    def test_sums_of_more_columns_are_those_of_all_at_once(self) -> None:
        rng = np.random.default_rng(0)
        X = rng.normal(size=(3000, 6)).astype(np.float32)
        y = np.where(rng.random(3000) < 0.2, np.exp(rng.normal(size=3000)), 0.0)
        first = Shaper(np.arange(6), np.zeros(6, bool), np.zeros(6, np.float32), np.ones(6, np.float32), np.arange(0), ())
        matrix = Matrix(X, tuple(map(str, range(6))), ())
        more = ShapedRows(replace(first, steps=((0, 0.3), (4, -1.0))), matrix)
        together = _Sums.of(more, y)
        for one, other in zip(_Sums.of(more, y, _Sums.of(ShapedRows(first, matrix), y)), together, strict=True):
            np.testing.assert_allclose(one.gram, other.gram, atol=1e-2)
            np.testing.assert_array_equal(one.products, other.products)

    def test_without_a_second_class_or_a_column_the_logistic_regression_is_the_prior(self) -> None:
        X = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
        as_they_are = Shaper(np.arange(3), np.zeros(3, bool), np.zeros(3, np.float32), np.ones(3, np.float32), np.arange(0), ())
        rows = ShapedRows(as_they_are, Matrix(X, ("a", "b", "c"), ()))
        nobody = np.zeros(300)
        for w in _Logistic.of(rows, _Sums.of(rows, nobody)[0], nobody > 0).fit((0.01, 1.0), 0.5):
            assert (w[:-1] == 0).all()
            assert w[-1] == log_odds(0.0)

    def test_penalties_are_chosen_by_the_held_out_rows_of_all_folds(self) -> None:
        """The choice is the least of a plain sum over folds, made here from models that are fitted one by one."""
        data = world(2500, 3)
        design = Design(prepare_window(data.X, data.revenue["d7"], data.period), SMALL, 0)
        config = SMALL.linear.model_copy(update={"penalties": (0.001, 0.05)})
        choice = choose_linear(design, config)
        y = design.held_out.log_d7

        def error(c: float) -> float:
            total = 0.0
            for k in range(design.folds.n_folds):
                split = design.fold(k)
                one = fit_linear(split.train, y[split.train_rows], config, Penalties(c, choice.penalties.payers, choice.penalties.direct))
                total += float(((one.scores(split.held)[0] - y[split.held_rows]) ** 2).sum())
            return total

        errors = {c: error(c) for c in (0.001, 0.05)}
        assert abs(errors[0.001] - errors[0.05]) > 0.5
        assert choice.penalties.c == min(errors, key=lambda c: errors[c])
        split = design.stopping
        again = fit_linear(split.train, y[split.train_rows], config, choice.penalties)
        np.testing.assert_allclose(choice.folds[-1].scores(split.held)[0], again.scores(split.held)[0], atol=0.02)


class TestTrees:
    def test_as_few_trees_are_taken_as_held_out_rows_cannot_tell_from_the_best(self) -> None:
        n, label = 5000, np.zeros(5000)
        best = 2.0 + np.random.default_rng(0).exponential(size=n)
        swing = np.where(np.arange(n) % 2, 0.5, -0.5)  # a paired difference with a standard error of .007

        def chosen(*losses: Floats) -> int:
            return fewest_within_noise(np.sqrt(np.column_stack(losses)), label)

        near, far = best + swing + 0.006, best + swing + 0.009
        assert chosen(far, near, best) == 1
        assert chosen(far, best, near) == 1
        assert chosen(best, near) == 0
        assert chosen(best) == 0

    def test_growth_is_the_score_of_the_first_trees(self) -> None:
        rng = np.random.default_rng(0)
        values = rng.normal(size=(400, 6)).astype(np.float32)
        matrix = Matrix(values, tuple("abcdef"), (), max_bin=63)
        model = Trainer(0, 2).train(matrix, values[:, 2] + values[:, 4] ** 2, {"objective": "regression"}, 9, start=0.5)
        whole = lgb.Booster(model_str=model.text)
        expected = np.column_stack([whole.predict(values, raw_score=True, num_iteration=k) for k in (1, 4, 9)])
        np.testing.assert_allclose(model.growth(values, (1, 4, 9)), expected, rtol=1e-12, atol=1e-12)

    def test_all_folds_decide_on_the_trees_of_a_booster(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The chosen number has the lowest squared error over all held-out rows, and its scores are those of boosters of that size."""
        monkeypatch.setattr("ltv_assets.modeling.base_learners.NOISE_GAIN", -np.inf)
        monkeypatch.setattr("ltv_assets.modeling.base_learners.NOISE_ERRORS", 0.0)
        data = world(2000, 4)
        alike = (data.X["sessions"] > 0) == (data.X["noise"] > 0)  # no line says this
        design = Design(prepare_window(data.X, data.revenue["d7"] + 5.0 * alike, data.period), SMALL, 0)
        trainer, y = Trainer(0, 2), design.held_out.log_d7
        settings, scores = choose_base(design, SMALL, trainer, np.zeros(len(design.stopping.held_rows)))
        lines = choose_linear(design, SMALL.linear).folds
        place, params = BASE_COMPONENTS.index("additive_boosting"), booster_params(SMALL.boosting, "regression")

        def under(trees: int) -> Floats:
            out = np.empty(len(y))
            for k, fold in enumerate(lines):
                split = design.fold(k)
                own = y[split.train_rows]
                model = trainer.train(split.train, own, params, trees, start=fold.scores(split.train)[0])
                score = model.predict(split.held.values, start=np.clip(fold.scores(split.held)[0], 0.0, own.max()))
                out[split.held_rows] = np.clip(score, 0.0, own.max())
            return out

        chosen = settings.additive_rounds
        assert chosen > 1
        np.testing.assert_allclose(scores[:, place], under(chosen), rtol=1e-9, atol=1e-12)
        error = {trees: float(np.mean((under(trees) - y) ** 2)) for trees in (1, chosen // 2, chosen)}
        assert min(error, key=lambda trees: error[trees]) == chosen


class TestSelection:
    def test_columns_of_one_value_or_gap_are_left_out(self) -> None:
        nan = np.nan
        values = np.array([[1, nan, 2, nan, 5], [1, nan, 2, 3, 6], [1, nan, 2, 3, 5]], dtype=np.float32)
        assert varying_columns([values[:1], values[1:]]).tolist() == [3, 4]
        assert varying_columns([np.ones((4, 3), dtype=np.float32)]).tolist() == [0]

    def test_steps_lines_and_gaps_are_found_among_noise(self) -> None:
        rng = np.random.default_rng(0)
        values = rng.normal(size=(20_000, 40)).astype(np.float32)
        values[rng.random(20_000) < 0.3, 11] = np.nan
        odds = -3.0 + 0.5 * values[:, 3] + 2.0 * (np.abs(values[:, 7]) > 1.5) + 0.7 * np.isnan(values[:, 11])
        y = np.where(rng.random(20_000) < sigmoid(odds), 2.0, 0.0)
        chosen = most_telling(values, y, (), 6, seed=0, threads=2)
        assert {3, 7, 11} <= set(chosen.tolist())
        assert len(chosen) == 6
        assert chosen.tolist() == most_telling(values, y, (), 6, seed=0, threads=2).tolist()

    def test_models_of_few_columns_say_how_many_and_load_as_they_were(self) -> None:
        data = world(1500, 3)
        models = fit_window(_context(data, max_features=5))
        assert models.classifier.diagnostics["features"] == 5
        assert len(models.classifier.model.names) == 5
        frame = models.score(data.X)
        pd.testing.assert_frame_equal(WindowModels.from_files(models.to_files()).score(data.X), frame)
        assert np.isfinite(frame["ltv_d7"]).all()


class TestStacker:
    def test_a_cap_is_set_where_scores_promise_more_than_comes_and_nowhere_else(self) -> None:
        rng = np.random.default_rng(0)
        score = rng.exponential(0.1, 50_000)
        honest = np.where(rng.random(50_000) < np.minimum(score, 1) / 2, 2.0, 0.0)
        assert component_cap(score, honest) == score.max()
        bounded = np.where(rng.random(50_000) < np.minimum(score, 0.3) / 2, 2.0, 0.0)
        assert component_cap(score, bounded) < 0.6 < score.max()

    def test_whales_get_a_factor_only_when_it_is_beyond_chance(self) -> None:
        rng = np.random.default_rng(0)
        score, whale = np.full(400, 1.0), np.ones(400, dtype=bool)
        assert _whale_factor(score, rng.normal(1.0, 1.0, 400), whale) == 1.0
        assert _whale_factor(score, rng.normal(2.0, 1.0, 400), whale) > 1.5
        assert _whale_factor(score, rng.normal(2.0, 1.0, 400), ~whale) == 1.0

    def test_blend_is_never_worse_than_its_components_where_it_was_fitted(self) -> None:
        rng = np.random.default_rng(0)
        signal = rng.exponential(0.2, 5000)
        y = signal + rng.normal(0, 0.5, 5000)
        components = np.column_stack([np.abs(signal + rng.normal(0, 0.1, 5000)) for _ in range(3)] + [rng.random(5000)])
        blend = fit_blend(components, y)
        assert (blend.weights >= 0).all()
        capped = blend.capped(components)
        assert (capped <= blend.caps).all()
        loss = np.mean((blend.predict(components) - y) ** 2)
        assert all(loss <= np.mean((c - y) ** 2) + 1e-9 for c in capped.T)

    def test_noise_gets_no_weight(self) -> None:
        rng = np.random.default_rng(1)
        y = np.where(rng.random(20_000) < 0.03, 2.0, 0.0)
        blend = fit_blend(y.mean() + np.abs(rng.normal(0, 0.05, (20_000, 4))), y)
        assert np.std(blend.predict(y.mean() + np.abs(rng.normal(0, 0.05, (20_000, 4))))) < 0.01

    def test_stacker_off_serves_probability_times_log_revenue(self) -> None:
        data = world(1500, 3)
        models = fit_window(_context(data, stacker=SMALL.stacker.model_copy(update={"enabled": False})))
        frame = models.score(data.X)
        product = frame["buyer_probability"] * frame["log_revenue_if_buyer"]
        whale = models.gating.likely_whale(models.signals(encode(models.classifier.encoder, data.X)).whale)
        np.testing.assert_allclose(np.log1p(frame["ltv_d7"])[~whale], product[~whale], rtol=1e-12)

    def test_meta_learner_is_served_only_if_it_beats_the_blend_it_starts_from(self) -> None:
        rng = np.random.default_rng(0)
        y = rng.exponential(1.0, 4000)
        good, bad = y + rng.normal(0, 0.1, 4000), y + rng.normal(0, 1.0, 4000)
        assert winner(y, meta=good, blend=bad, component=bad) == "meta"
        assert winner(y, meta=bad, blend=good, component=bad) == "blend"

    def test_best_component_is_served_when_the_stacker_loses_beyond_noise(self) -> None:
        rng = np.random.default_rng(1)
        y = rng.exponential(1.0, 4000)
        good = y + rng.normal(0, 0.1, 4000)
        assert winner(y, meta=good + 0.5, blend=good + 0.5, component=good) == "component"
        assert winner(y, meta=good, blend=good + 1e-4, component=good) != "component"

    def test_what_is_served_is_said(self) -> None:
        model, _, _ = fitted()
        stacker = model.models_.stacker
        assert stacker.kind in ("meta", "blend", "component")
        assert {f"last_fold_mse_{k}" for k in ("meta", "blend", "component", "reference")} <= set(stacker.diagnostics)

    def test_reference_is_served_where_the_stacker_loses_to_it_beyond_noise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing a stacker can do helps against a bar that knows the answer: it is served, also after a refit, and survives its files."""
        data = world(2500, 5)
        train, last = data.rows(data.period < 4), data.rows(data.period == 4)
        monkeypatch.setattr("ltv_assets.modeling.meta_learner.FALLBACK_ERRORS", -1e9)
        evaluated = fit_window(_context(train))
        assert evaluated.stacker.serves_reference
        np.testing.assert_allclose(evaluated.score(last.X)["ltv_d7"], evaluated.reference_ltv(last.X), rtol=1e-9)
        served = refit(evaluated, _context(train), prepare_window(last.X, last.revenue, last.period, last.row_id))
        assert served.stacker.serves_reference
        again = WindowModels.from_files(served.to_files())
        np.testing.assert_array_equal(again.score(last.X)["ltv_d7"], served.score(last.X)["ltv_d7"])

    def test_learners_without_weight_or_left_out_are_not_fitted(self) -> None:
        data = world(2000, 4)
        models = fit_window(_context(data, stacker=SMALL.stacker.model_copy(update={"without": ("forest", "boosting")})))
        base = models.stacker.base
        assert (base.forest, base.boosting, base.additive) == (None, None, None)
        assert models.stacker.diagnostics["skipped_forest"] == 1.0
        weights = dict(zip(COMPONENTS, models.stacker.blend.weights, strict=True))
        assert weights["forest"] == weights["boosting"] == weights["additive_boosting"] == 0.0
        again = WindowModels.from_files(models.to_files())
        pd.testing.assert_frame_equal(again.score(data.X), models.score(data.X), check_exact=True)


class TestScoringFast:
    """Whatever scoring leaves out changes no prediction."""

    def test_trees_on_the_used_columns_alone_predict_the_same(self) -> None:
        models, rows = fitted()[0].models_, fitted()[2]
        matrix = encode(models.classifier.encoder, rows.X)
        forest = Trainer(0, 2).train(
            matrix, matrix.values[:, 0].astype(float), {"boosting": "rf", "bagging_fraction": 0.5, "bagging_freq": 1}, 5
        )
        for model in (models.classifier.model, models.regressor.reference, forest):
            whole = lgb.Booster(model_str=model.text)
            first_tree = whole.model_to_string(num_iteration=1)
            assert len(narrowed(first_tree)[0]) < matrix.values.shape[1]
            for given in (model.text, first_tree):
                used, text = narrowed(given)
                expected = lgb.Booster(model_str=given).predict(matrix.values, raw_score=True)
                np.testing.assert_array_equal(lgb.Booster(model_str=text).predict(matrix.values[:, used], raw_score=True), expected)

    def test_a_model_without_splits_is_a_constant_on_one_column(self) -> None:
        data = lgb.Dataset(np.arange(12.0).reshape(6, 2), np.full(6, 3.0), params={"verbose": -1})
        used, text = narrowed(lgb.train({"verbose": -1}, data, 2).model_to_string())
        assert used.tolist() == [0]
        assert lgb.Booster(model_str=text).predict(np.zeros((2, 1))).tolist() == [3.0, 3.0]

    def test_boosters_without_weight_are_not_asked(self) -> None:
        models, rows = fitted()[0].models_, fitted()[2]
        matrix = encode(models.classifier.encoder, rows.X)
        label = np.log1p(rows.revenue["d7"].to_numpy())
        settings = replace(models.stacker.settings, skipped=())
        base = fit_base(matrix, label, SMALL, settings, Trainer(0, 2))
        every = base.scores(matrix)
        some = base.scores(matrix, ("forest",))
        assert (some[:, [0, 1, 2]] == every[:, [0, 1, 2]]).all() and not some[:, [3, 4]].any()
        assert every[:, [3, 4]].any()
        signals = models.signals(matrix)
        for kind, wanted in (("meta", set(COMPONENTS)), ("component", {"forest"})):
            stacker = replace(models.stacker, kind=kind, component="forest")
            assert set(stacker._wanted) == wanted
        single = replace(models.stacker, kind="component", component="forest", base=base, settings=settings).score(signals, matrix)
        np.testing.assert_array_equal(single, np.minimum(every[:, 2], models.stacker.log_max))

    def test_linear_inputs_without_coefficient_are_left_out(self) -> None:
        linear, rows = fitted()[0].models_.stacker.base.linear, fitted()[2]
        matrix = encode(fitted()[0].models_.classifier.encoder, rows.X)
        shaped = linear.shaper.transform(matrix.values).astype(np.float64)
        assert linear._in_use[0].width < linear.shaper.width
        np.testing.assert_allclose(linear.parts(matrix)[0], shaped @ linear.odds[:-1] + linear.odds[-1], rtol=1e-4, atol=1e-4)


class Shelf(RowStore):
    """A store that hands out copies of a frame's rows, and remembers which blocks it was asked for."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame, self.asked = frame.reset_index(drop=True), list[tuple[int, int]]()

    @property
    def columns(self) -> pd.Index:
        return self.frame.columns

    def __len__(self) -> int:
        return len(self.frame)

    def read(self, low: int, high: int, rows: np.ndarray | None = None) -> pd.DataFrame:
        self.asked.append((low, high))
        part = self.frame.iloc[slice(low, high) if rows is None else rows].reset_index(drop=True)
        return part.apply(lambda c: c.cat.remove_unused_categories() if isinstance(c.dtype, pd.CategoricalDtype) else c)

    def select(self, columns: Sequence[str]) -> pd.DataFrame:
        return self.frame[list(columns)].copy()


class TestRepeatable:
    def test_threads_of_the_environment_change_nothing(self) -> None:
        """A library that leaves OPENBLAS_NUM_THREADS=1 behind once made another component win the stacker."""
        data, made = world(2000, 4), []
        noise = np.random.default_rng(5).normal(size=(2000, 120)).astype(np.float32)  # products of few columns are never divided
        wide = replace(data, X=data.X.join(pd.DataFrame(noise, columns=[f"n{i}" for i in range(120)])))
        for threads in (1, 2):
            with threadpool_limits(threads, user_api="blas"):
                made.append(fit_window(_context(wide)).to_files())
        assert made[0] == made[1]

    def test_threads_of_the_configuration_are_those_of_linear_algebra(self) -> None:
        seen: list[int] = []

        @repeatable
        def stage(context: WindowContext) -> None:
            seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")

        for threads in (1, 2):
            stage(replace(_context(world()), threads=threads))
        assert set(seen[: len(seen) // 2]) == {1} and set(seen[len(seen) // 2 :]) == {2}


class TestStoredRows:
    """Rows that are read block by block make the same models as rows in memory."""

    @pytest.mark.parametrize("max_features", [None, 12])
    def test_models_and_scores_are_the_same_bit_for_bit(self, max_features: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("dataset", "design_matrix", "model_set"):
            monkeypatch.setattr(f"ltv_assets.modeling.{module}.BLOCK_ROWS", 700)
        data = world(3000, 4)
        changes = {"max_auxiliary_rows": 1500, "max_features": max_features}
        shelf = Shelf(data.X)
        stored = prepare_window(shelf, data.revenue, data.period, data.row_id)
        there = fit_window(WindowContext(stored, SMALL.model_copy(update=changes), SamplingConfig()))
        assert 0 < max(high - low for low, high in shelf.asked) <= 700
        here = fit_window(_context(data, **changes))
        assert there.to_files() == here.to_files()
        pd.testing.assert_frame_equal(there.score(Shelf(data.X)), here.score(data.X.reset_index(drop=True)), check_exact=True)
        np.testing.assert_array_equal(there.reference_ltv(Shelf(data.X)), here.reference_ltv(data.X))

    @pytest.mark.parametrize("zeros", [None, 1200], ids=["all rows", "drawn zeros"])
    def test_served_models_of_stored_rows_are_the_same_bit_for_bit(self, zeros: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("dataset", "design_matrix", "model_set", "evaluated"):
            monkeypatch.setattr(f"ltv_assets.modeling.{module}.BLOCK_ROWS", 700)
        data = world(4000, 5)
        train, last = data.rows(data.period < 4), data.rows(data.period == 4)
        settings = SMALL.model_copy(update={"max_auxiliary_rows": 1500, "zero_budget_rows": zeros})
        served = []
        for kind in (Shelf, lambda X: X):
            window, holdout = (prepare_window(kind(w.X), w.revenue, w.period, w.row_id) for w in (train, last))
            context = WindowContext(window, settings, SamplingConfig())
            served.append(refit(fit_window(context), context, holdout))
        assert served[0].to_files() == served[1].to_files()
        assert served[0].classifier.diagnostics["training_rows"] == 4000
        assert (served[0].classifier.diagnostics["served_rows"] < 2000) == (zeros is not None)

    def test_served_and_auxiliary_rows_come_from_one_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("dataset", "design_matrix"):
            monkeypatch.setattr(f"ltv_assets.modeling.{module}.BLOCK_ROWS", 700)
        data = world(4000, 5)
        shelf = Shelf(data.X)
        window = prepare_window(shelf, data.revenue, data.period, data.row_id)
        design = Design(window, SMALL.model_copy(update={"max_auxiliary_rows": 1500, "zero_budget_rows": 1200}), 0)
        pd.testing.assert_frame_equal(
            design.aux.X.astype({"country": str, "make": str}),
            data.X.iloc[design.auxiliary].reset_index(drop=True).astype({"country": str, "make": str}),
        )
        assert len(design.train) < 2000 and len(design.aux_train) == 1500
        template, *blocks = shelf.asked
        assert template == (0, 1) and blocks == [(low, min(low + 700, 4000)) for low in range(0, 4000, 700)]

    def test_rows_are_read_for_their_bins_only_once_and_part_of_them_trains_the_same_trees(self) -> None:
        """LightGBM would ask for a subset's raw values, float64 and all at once, and keep them."""
        read: list[int] = []

        class Counted(EncodedRows):
            def __len__(self) -> int:
                return len(values)

            def rows(self, low: int, high: int) -> NDArray[np.float32]:
                read.append(high - low)
                return values[low:high]

        generator = np.random.default_rng(3)
        values = generator.normal(size=(4000, 3)).astype(np.float32)
        label = values[:, 0] + generator.normal(size=4000)
        part = np.flatnonzero(values[:, 1] > 0)
        away, trainer = Matrix(Counted(), ("a", "b", "c"), ()), Trainer(0, 1)
        params = booster_params(SMALL.revenue_head, "regression")
        trained = [trainer.train(away, label[part], params, 5, rows=part).text for _ in range(2)]
        assert sum(read) == len(values)
        here = Matrix(values, ("a", "b", "c"), ())
        assert trained == [trainer.train(here, label[part], params, 5, rows=part).text] * 2
        # Weights and starts of the booster before belong to that booster.
        for matrix in (away, here):
            trainer.train(matrix, label, params, 2, weight=np.full(len(values), 0.1), start=np.full(len(values), 9.0))
            assert trainer.train(matrix, label[part], params, 5, rows=part).text == trained[0]
        everything = np.arange(len(values))
        assert trainer.train(away, label, params, 5, rows=everything).text == trainer.train(here, label, params, 5).text

    def test_nothing_is_printed_where_commands_print_their_json(self, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """LightGBM warns of many categories before it has read that it is to be quiet."""
        kept = EncodedFile(2, tmp_path)
        kept.append((np.arange(2 * 70_000, dtype=np.float32) % 600).reshape(-1, 2))
        Matrix(kept, ("make", "model"), (0, 1)).binned()
        assert capfd.readouterr().out == ""

    def test_blocks_of_several_threads_come_in_order_and_give_the_same_lines(self, tmp_path: Path) -> None:
        """Of rows in memory and of rows in a file that the threads share."""
        rng = np.random.default_rng(0)
        X = rng.normal(size=(40_000, 6)).astype(np.float32)
        X[rng.random(40_000) < 0.2, 1] = np.nan
        y = np.where(rng.random(40_000) < sigmoid(-3.0 + X[:, 0] + (X[:, 2] > 1.0)), np.exp(X[:, 3]), 0.0)
        here = Matrix(X, tuple(map(str, range(6))), ())
        away = here.put_away(tmp_path)
        for matrix in (here, away):
            found = list(matrix.each_block(lambda where, values: (where.start, values), 1000, threads=3))
            assert [where.start for where, _ in found] == [start for _, (start, _) in found] == list(range(0, 40_000, 1000))
            np.testing.assert_array_equal(np.concatenate([values for _, (_, values) in found]), X)
        penalties = Penalties(0.05, 2.5, 2.0)
        states = [fit_linear(m, np.log1p(y), LinearConfig(), penalties, n).to_dict() for m, n in ((here, 1), (here, 2), (away, 2))]
        assert states[0] == states[1] == states[2]
        assert states[0]["shaper"]["steps"]

    def test_encoded_rows_beyond_two_gigabytes_are_found_by_32_bit_numbers(self, tmp_path: Path) -> None:
        """LightGBM asks for its sample in int32; 4 bytes x columns x row then overflows."""
        columns, row = 10_000, 60_000
        kept = EncodedFile(columns, tmp_path)
        kept._file.truncate(4 * columns * row)  # a hole: two gigabytes that need no disk
        kept._file.seek(0, 2)
        kept.append(np.full((1, columns), 7, np.float32))
        assert (kept.rows(np.int32(row), np.int32(row + 1)) == 7).all()

    def test_rows_are_taken_and_joined_by_their_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ltv_assets.modeling.dataset.BLOCK_ROWS", 64)
        X = world(500, 2).X.reset_index(drop=True)
        joined = JoinedRows([Shelf(X.iloc[:130]), X.iloc[130:300], Shelf(X.iloc[300:])])
        rows = np.flatnonzero(np.arange(500) % 7 == 3)
        for found, expected in (
            (joined.take(rows), X.iloc[rows]),
            (joined.read(100, 310), X.iloc[100:310]),
            (joined.take(rows[:0]), X[:0]),
        ):
            pd.testing.assert_frame_equal(
                found.astype(dict.fromkeys(found.select_dtypes("category"), object)),
                expected.reset_index(drop=True).astype(dict.fromkeys(X.select_dtypes("category"), object)),
            )
        assert list(joined.select(["country"])["country"].astype(object)) == list(X["country"].astype(object))


class TestComposition:
    def test_stages_in_separate_processes_give_the_same_bytes(self) -> None:
        """Every stage is fitted from the window's rows, the files of the stages before and their out-of-fold arrays."""
        from ltv_assets.modeling.classifier import BuyerClassifier
        from ltv_assets.modeling.gating import BuyerGating
        from ltv_assets.modeling.regressor import RevenueRegressor
        from ltv_assets.modeling.stages import buyer_classifier, buyer_gating, final_stacker, revenue_regressor

        data = world(2000, 4)
        whole = fit_window(_context(data))
        first = buyer_classifier(_context(data), histos_plan(_context(data)))
        first = BuyerClassifier.from_files(first.to_files(), first.oof)
        second = buyer_gating(_context(data), first)
        second = BuyerGating.from_files(second.to_files(), second.oof)
        third = revenue_regressor(_context(data), hhistus_plan(_context(data)), second)
        third = RevenueRegressor.from_files(third.to_files(), third.oof)
        fourth = final_stacker(_context(data), first, second, third)
        assert WindowModels(first, second, third, fourth).to_files() == whole.to_files()

    def test_refit_sees_the_holdout_and_keeps_the_tree_counts(self) -> None:
        data = world(2500, 5)
        train, last = data.rows(data.period < 4), data.rows(data.period == 4)
        context = _context(train)
        evaluated = fit_window(context)
        served = refit(evaluated, context, prepare_window(last.X, last.revenue, last.period, last.row_id))
        assert served.classifier.rounds == evaluated.classifier.rounds
        assert served.regressor.rounds == evaluated.regressor.rounds
        steps = [models.stacker.base.linear.shaper.steps for models in (served, evaluated) if models.stacker.base]
        assert steps[0]
        assert steps[0] == steps[1]
        assert len(served.classifier.oof["buyer_log_odds"]) == len(data.X)
        assert served.gating.window["last"] == "4"
        assert served.gating.level.days == ("0", "1", "2", "3", "4")
        assert served.gating.level.payers[-1] == int((last.revenue["d7"] > 0).sum())
        assert served.to_files() != evaluated.to_files()

    def test_auxiliary_sample_bounds_out_of_fold_rows_only(self) -> None:
        data = world(3000, 4)
        context = _context(data, max_auxiliary_rows=1500)
        models = fit_window(context)
        assert len(models.classifier.oof["buyer_log_odds"]) == 1500
        assert len(context.design.train) == 3000
        assert np.isfinite(models.score(data.X).select_dtypes("number")).all().all()

    def test_drawn_zeros_bound_the_rows_of_served_boosters_and_move_no_level(self) -> None:
        """Every payer stays, columns and encodings are those of all rows, and probabilities keep the natural rate."""
        data = world(6000, 5, payer_log_odds=-3.4)
        train, last = data.rows(data.period < 4), data.rows(data.period == 4)
        context = _context(train, zero_budget_rows=1500)
        models, whole = fit_window(context), fit_window(_context(train))
        payers = np.flatnonzero(train.revenue["d7"] > 0)
        assert set(payers) <= set(context.design.served_rows)
        assert len(context.design.train) == len(context.design.served_rows) == models.classifier.diagnostics["served_rows"] < 1700
        assert models.classifier.diagnostics["zero_weight"] > 2.0
        assert models.classifier.encoder.to_dict()["encodings"] == whole.classifier.encoder.to_dict()["encodings"]
        assert len(context.design.aux_train) == len(train.X)
        rates = [m.score(last.X)["buyer_probability"].mean() for m in (models, whole)]
        assert rates[0] == pytest.approx(rates[1], rel=0.12)

    def test_swapped_plan_is_refused(self) -> None:
        from ltv_assets.modeling.stages import buyer_classifier

        data = world(1200, 3)
        plan = histos_plan(_context(world(1500, 3)))
        with pytest.raises(DataError, match="plan has 1500 rows, the window 1200"):
            buyer_classifier(_context(data), plan)
