"""A search tries what it says it tries, and what it writes down can be pasted."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from ltv_assets.cli.app import main
from ltv_assets.cli.tune import SPACE, Outcome, Range, SearchedWindow, Settings, present_settings, with_settings
from ltv_assets.core.config import BoosterConfig, load_config, parse_config
from ltv_assets.modeling.dataset import prepare_window
from ltv_assets.modeling.stages import WindowContext, fit_window
from ltv_assets_tests.model_world import SMALL, World, world

NAMES = [name for part in SPACE.values() for name in part]


def outcome(settings: Settings, **more: object) -> Outcome:
    found = Outcome("study", 7, ("2025-10-04", "2025-10-05"), 3, 0.43, 0.44, settings, None, None)
    return replace(found, **more)  # type: ignore[arg-type]


def test_every_searched_key_exists_and_its_range_is_legal_in_the_configuration() -> None:
    models = load_config().models
    for name, allowed in ((n, r) for part in SPACE.values() for n, r in part.items()):
        for value in (allowed.low, allowed.high):
            assert present_settings(with_settings(models, {name: value}), [name]) == {name: value}


def test_present_value_outside_the_range_can_still_be_the_first_trial() -> None:
    assert Range(3, 63).containing(200) == Range(3, 200)
    assert Range(0.01, 0.1, log=True).containing(0.001) == Range(0.001, 0.1, log=True)


def test_changed_settings_leave_the_others_alone() -> None:
    models = load_config().models
    changed = with_settings(models, {"stacker.booster.num_leaves": 9})
    assert changed.stacker.booster == models.stacker.booster.model_copy(update={"num_leaves": 9})
    assert changed.model_copy(update={"stacker": models.stacker}) == models


@pytest.mark.parametrize("part", SPACE)
def test_pasted_snippet_gives_exactly_the_settings_that_were_tried(part: str) -> None:
    settings: Settings = {n: r.high if isinstance(r.high, int) else float(f"{(r.low + r.high) / 3:.4g}") for n, r in SPACE[part].items()}
    found = outcome(settings, check=("2025-10-06", 0.431, 0.44, -0.012, -0.003))
    pasted = parse_config("windows: {max_train_days: 5}\n" + found.snippet(), Path("mine.yaml"))
    assert pasted.models == with_settings(parse_config("", Path("none.yaml")).models, settings)
    assert "2025-10-06, not searched: 0.43100 against 0.44000, difference -0.01200 .. -0.00300" in found.snippet()


def test_snippet_says_when_nothing_better_was_found() -> None:
    assert "no trial was better" in outcome({"revenue_head.num_leaves": 7}, best=0).snippet()
    assert "no trial was better" not in outcome({"revenue_head.num_leaves": 7}).snippet()


@pytest.mark.contest
def test_trial_is_judged_by_a_complete_fit_whatever_was_tried_before(monkeypatch: pytest.MonkeyPatch) -> None:
    # So few rows would do without the boosting.
    monkeypatch.setattr("ltv_assets.modeling.base_learners.NOISE_GAIN", -np.inf)
    monkeypatch.setattr("ltv_assets.modeling.base_learners.fewest_within_noise", lambda scores, label: scores.shape[1] - 1)
    whole = world(rows=1500)
    early, late = whole.rows(whole.period < 3), whole.rows(whole.period == 3)

    def data(part: World) -> object:
        return prepare_window(part.X, part.revenue, part.period, part.row_id)

    config = load_config()
    context = WindowContext(data(early), SMALL, config.sampling, 0, 1)  # type: ignore[arg-type]
    window = SearchedWindow(context, data(late))  # type: ignore[arg-type]
    tried: list[Settings] = [
        {},
        {"boosting.learning_rate": 0.4},
        {"revenue_head.learning_rate": 0.3},
        {"buyer_classifier.num_leaves": 9},
    ]
    seen = []
    for settings in tried:
        models = with_settings(SMALL, settings)
        fresh = fit_window(WindowContext(context.data, models, config.sampling, 0, 1)).score(window.holdout.X)
        pd.testing.assert_frame_equal(window.fit(models).score(window.holdout.X), fresh, check_exact=True)
        assert not any(fresh.equals(other) for other in seen), f"{settings} has no effect"
        seen.append(fresh)
    loss = np.log1p(seen[-1]["ltv_d7"].to_numpy()) - window.holdout.log_d7
    assert window.figures(models)["rmsle"] == pytest.approx(float(np.sqrt(np.mean(loss**2))), rel=1e-12)


def test_without_optuna_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setenv("LTV_WAREHOUSE", str(tmp_path))
    result = CliRunner().invoke(main, ["tune", "--trials", "1"])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == ["error: `ltv tune` needs Optuna: pip install 'ltv-assets[tune]'"]


def test_four_digits_are_what_is_tried_and_what_is_written() -> None:
    import optuna

    study = optuna.create_study()
    trial = study.ask()
    value = Range(0.01, 0.15, log=True).suggest(trial, "learning_rate")
    assert value == float(f"{value:.4g}")
    assert BoosterConfig(learning_rate=value).learning_rate == value
