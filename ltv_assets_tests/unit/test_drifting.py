"""Moved rows, moved scores and bad figures are seen, named with their numbers, and stable ones are left in peace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltv_assets.core.asset_specs import RELATIONS
from ltv_assets.core.check_specs import standing_checks
from ltv_assets.core.config import load_config
from ltv_assets.core.errors import DataError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.defs.asset_checks.health import champion_fresh, standing_failures
from ltv_assets.defs.asset_checks.scoring import forecast_coverage
from ltv_assets.features.registry import load_registry
from ltv_assets.features.schema import feature_names
from ltv_assets.monitoring import adversarial as drifting
from ltv_assets.monitoring.adversarial import adversarial_separation
from ltv_assets.monitoring.psi import score_shift, without_calendar
from ltv_assets.monitoring.retraining import look, watched
from ltv_assets.sampling.draws import row_hashes
from ltv_assets.state.project import Project
from ltv_assets.storage.champion import Champion, write_champion
from ltv_assets.storage.warehouse import SCORES_FILE

FEATURES = ["spend", "sessions", "country", "weekday", "hour__sin"]
LIMITS: dict[str, Any] = {"threads": 2, "memory_limit": "1GB"}


def rows(seed: int, size: int = 3000, shift: float = 0.0, countries: tuple[str, ...] = ("us", "de", "fr")) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "row_id": [f"{seed}-{i}" for i in range(size)],
            "spend": np.where(rng.random(size) < 0.2, np.nan, rng.exponential(3.0, size) + shift).astype(np.float32),
            "sessions": rng.normal(size=size).astype(np.float32),
            "country": rng.choice(countries, size),
            "weekday": np.full(size, seed % 7, dtype=np.float32),
            "hour__sin": np.full(size, seed, dtype=np.float32),
        }
    )


def stored(path: Path, frame: pd.DataFrame) -> list[Path]:
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
    return [path]


def separation(tmp_path: Path, before: pd.DataFrame, new: pd.DataFrame, **settings: Any) -> Any:
    sides = stored(tmp_path / "a.parquet", before), stored(tmp_path / "b.parquet", new)
    return adversarial_separation(*sides, list(before.columns[1:]), threads=2, **settings)


@pytest.mark.contest
def test_rows_of_one_distribution_cannot_be_told_apart(tmp_path: Path) -> None:
    """Within sampling error: the standard error of an AUC of 2 x 3000 rows is 0.0075. The calendar columns would betray them."""
    found = separation(tmp_path, rows(1), rows(2))
    assert abs(found.auc - 0.5) < 0.03
    assert not {name for name, _ in found.features} & {"weekday", "hour__sin"}


@pytest.mark.contest
def test_shifted_feature_is_found_and_named(tmp_path: Path) -> None:
    found = separation(tmp_path, rows(1), rows(2, shift=3.0))
    assert found.auc > 0.7
    assert found.features[0][0] == "spend"


@pytest.mark.contest
def test_new_categories_are_found_and_named(tmp_path: Path) -> None:
    found = separation(tmp_path, rows(1), rows(2, countries=("us", "jp", "br")))
    assert found.auc > 0.7
    assert found.features[0][0] == "country"


@pytest.mark.contest
def test_only_features_of_calendar_columns_are_left_out() -> None:
    """What users do by the hour is theirs: its columns begin like the hour of the impression, and are watched all the same."""
    features = feature_names(load_registry(load_config().features))
    left_out = set(features) - set(without_calendar(features))
    assert left_out == {
        *("hour", "hour__sin", "hour__cos", "weekday", "weekday__sin", "weekday__cos"),
        "release_date__age_months",
    }
    assert "hour_ratio__max" in without_calendar(features)


@pytest.mark.contest
def test_shift_of_a_feature_that_begins_like_a_calendar_column_is_found(tmp_path: Path) -> None:
    renamed = {"spend": "hour_ratio__max"}
    found = separation(tmp_path, rows(1).rename(columns=renamed), rows(2, shift=3.0).rename(columns=renamed))
    assert found.auc > 0.7
    assert found.features[0][0] == "hour_ratio__max"


@pytest.mark.parametrize("block", [7, 1000, 65_536])
def test_sample_is_of_the_smallest_hashes_whatever_is_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Over two files; the hash is that of the project's own draws, which no new version of DuckDB changes."""
    monkeypatch.setattr(drifting, "HASHED_ROWS", block)
    drifting._sample_of_file.cache_clear()
    parts = [rows(1, 800), rows(2, 500)]
    files = [path for number, part in enumerate(parts) for path in stored(tmp_path / f"{number}.parquet", part)]
    found = drifting._sample(files, ("spend", "country"), 300)
    everything = pd.concat(parts, ignore_index=True)
    wanted = everything.assign(h=row_hashes(everything["row_id"])).sort_values("h", ignore_index=True).head(300)
    pd.testing.assert_frame_equal(found, wanted[["h", "spend", "country"]], check_dtype=False)
    assert len(drifting._sample(files, ("spend",), 5000)) == 1300


def test_file_that_was_written_anew_is_sampled_anew(tmp_path: Path) -> None:
    before = drifting._sample(stored(tmp_path / "a.parquet", rows(1)), ("spend",), 50)
    again = drifting._sample(stored(tmp_path / "a.parquet", rows(2)), ("spend",), 50)
    assert not before["h"].isin(again["h"]).any()


def test_hashes_that_choose_the_sample_are_the_same_everywhere() -> None:
    assert row_hashes(["row-1", "row-2"]).tolist() == [5196174240566528515, 2711793334054562430]


def test_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    before, new = rows(1), rows(2, shift=0.5)
    mixed = [frame.sample(frac=1.0, random_state=0) for frame in (before, new)]
    assert separation(tmp_path, before, new) == separation(tmp_path, *mixed)


def test_sample_is_balanced_and_bounded(tmp_path: Path) -> None:
    found = separation(tmp_path, rows(1, 5000), rows(2, 700), max_rows=1000)
    assert (found.rows_before, found.rows_new) == (700, 700)


def test_handful_of_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 20 rows on each side, found 3000 and 5"):
        separation(tmp_path, rows(1), rows(2, 5))


def scores(seed: int, factor: float = 1.0, size: int = 4000) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"row_id": [f"{seed}-{i}" for i in range(size)], "ltv_d7": rng.exponential(0.3 * factor, size)})


def test_shift_of_scores_is_small_for_equal_laws_and_large_for_others(tmp_path: Path) -> None:
    same = score_shift(stored(tmp_path / "a.parquet", scores(1)), stored(tmp_path / "b.parquet", scores(2)), "ltv_d7", **LIMITS)
    other = score_shift(stored(tmp_path / "a.parquet", scores(1)), stored(tmp_path / "c.parquet", scores(2, 3.0)), "ltv_d7", **LIMITS)
    assert same < 0.02
    assert other > 0.25


# ---------------------------------------------------------------------------------------------- reasons to retrain


WINDOW, DAY = PartitionKey("2025-10-06"), PartitionKey("2025-10-08")


class World:
    """A champion with its holdout, and one day it scored."""

    def __init__(self, warehouse_root: Path) -> None:
        self.project = Project.open()
        self.warehouse = self.project.warehouse
        assert self.warehouse.root == warehouse_root

    def evaluated(self, rmsle: float = 0.4, zero_rate: float = 0.97) -> None:
        def fill(folder: Path) -> dict[str, int | None]:
            table = [
                {"window_key": WINDOW, "metric": m, "segment": "all", "value": v, "low": None, "high": None}
                for m, v in (("rmsle", rmsle), ("zero_rate_observed", zero_rate))
            ]
            schema = pa.schema(
                [(n, pa.string()) for n in ("window_key", "metric", "segment")] + [(n, pa.float64()) for n in ("value", "low", "high")]
            )
            pq.write_table(pa.Table.from_pylist(table, schema=schema), folder / "metrics.parquet")
            stored(folder / SCORES_FILE, scores(1))
            return {"metrics.parquet": 2, SCORES_FILE: None}

        self.warehouse.write("holdout_metrics", WINDOW, fill, code_version="1", config="c", inputs={})
        write_champion(self.warehouse, Champion(WINDOW, "f", "because"))

    def scored(self, zero_rate: float = 0.97, factor: float = 1.0, champion: str = "f") -> None:
        def fill(folder: Path) -> dict[str, int | None]:
            frame = scores(2, factor)
            frame["predicted_zero"] = np.arange(len(frame)) < zero_rate * len(frame)
            stored(folder / "scores.parquet", frame)
            return {"scores.parquet": len(frame)}

        self.warehouse.write("predictions", DAY, fill, code_version="1", config="c", inputs={f"champion/{WINDOW}": champion})


@pytest.fixture
def world(place: Callable[..., Path], tmp_path: Path) -> World:
    return World(place(tmp_path / "data", "automation: {retrain_rmsle_max: 0.5, retrain_zero_rate_gap: 0.01, retrain_score_psi: 0.25}\n"))


@pytest.mark.contest
def test_figures_within_bounds_are_no_reason(world: World) -> None:
    world.evaluated()
    world.scored()
    watch = look(world.project)
    assert watch.reasons == ()
    assert set(watch.figures) == {"rmsle", "zero_rate_gap", "score_psi"}


@pytest.mark.contest
@pytest.mark.parametrize(
    ("evaluated", "scored", "words"),
    [
        ({"rmsle": 0.7}, {}, "RMSLE of champion 2025-10-06 on day 2025-10-06 is 0.7000, above retrain_rmsle_max = 0.5"),
        ({}, {"zero_rate": 0.9}, "zero rate of the predictions of day 2025-10-08 is 0.9000 against 0.9700"),
        ({}, {"factor": 4.0}, "scores of day 2025-10-08 moved by PSI"),
    ],
)
def test_each_figure_out_of_bounds_is_a_reason_with_its_numbers(world: World, evaluated: Any, scored: Any, words: str) -> None:
    world.evaluated(**evaluated)
    world.scored(**scored)
    reasons = look(world.project).reasons
    assert len(reasons) == 1
    assert words in reasons[0]


def test_scores_of_another_champion_say_nothing_about_this_one(world: World) -> None:
    world.evaluated()
    world.scored(zero_rate=0.5, factor=9.0, champion="another")
    assert look(world.project).reasons == ()


def test_new_scores_and_new_figures_are_looked_at_again(world: World) -> None:
    assert watched(world.project) is None
    world.evaluated()
    first = watched(world.project)
    world.scored()
    second = watched(world.project)
    assert first != second
    assert second == watched(world.project)


def observed_day(world: World, day: str, held: int, *, window: str = WINDOW, labelled: int = 100, age: int = 2) -> None:
    """Ten groups of which so many lie in their intervals."""
    import pandas as pd

    from ltv_assets.training.cohorts import write_relation

    names = [c.name for c in RELATIONS["cohort_outcome"]]
    frame = pd.DataFrame({name: np.full(10, 1.0) for name in names}).astype(object)
    frame = frame.assign(day=day, segment=["all", *["country"] * 9], value=[f"v{i}" for i in range(10)], model_window=window)
    frame = frame.assign(
        rows=100, rows_labelled=labelled, model_age_days=age, payers=1, payers_inside=np.arange(10) < held, revenue_inside=True
    )

    def fill(folder: Path) -> dict[str, int | None]:
        return {"outcome.parquet": write_relation(folder / "outcome.parquet", "cohort_outcome", frame)}

    world.warehouse.write("cohort_outcome", day, fill, code_version="1", config="c", inputs={})


def test_forecasts_that_did_not_hold_are_a_reason_only_where_they_are_asked_for(place: Callable[..., Path], tmp_path: Path) -> None:
    world = World(place(tmp_path / "data", "automation: {retrain_forecast_coverage: 0.5}\n"))
    world.evaluated()
    before = watched(world.project)
    observed_day(world, DAY, 4)
    assert watched(world.project) != before
    (reason,) = look(world.project).reasons
    assert reason == (
        "payers of 40% of 10 groups that champion 2025-10-06 forecast lie in their 80 % intervals, "
        "fewer than retrain_forecast_coverage = 0.5"
    )
    observed_day(world, "2025-10-09", 9)
    assert look(world.project).reasons == (), "13 of 20"
    observed_day(world, "2025-10-09", 9, window="2025-10-01")
    assert len(look(world.project).reasons) == 1, "what another model forecast says nothing about this one"
    place(tmp_path / "data", "automation: {}\n")
    unasked = look(Project.open())
    assert unasked.reasons == () and "forecast_coverage" not in unasked.figures


def test_coverage_is_judged_on_days_that_no_model_had_seen_and_whose_rows_are_the_same(world: World) -> None:
    observed_day(world, "2025-10-08", 9)
    observed_day(world, "2025-10-09", 0)
    good, bad = (forecast_coverage(world.project, day) for day in ("2025-10-08", "2025-10-09"))
    assert good.passed and "payers of 90% and revenue of 100% of 10 groups of 1 days" in good.message
    assert not bad.passed and "payers of 45% and revenue of 100% of 20 groups of 2 days" in bad.message
    assert "fewer than forecast_coverage_min = 0.5" in bad.message and len(bad.rows) == 10
    observed_day(world, "2025-10-09", 0, age=0)
    assert forecast_coverage(world.project, "2025-10-09").passed, "its model had seen the day"
    observed_day(world, "2025-10-09", 0, labelled=99)
    assert "its labels came for other rows than were scored" in forecast_coverage(world.project, "2025-10-09").message


# -------------------------------------------------------------------------------------------- the warehouse as a whole


def test_empty_warehouse_has_no_standing_failure_but_no_champion_either(world: World) -> None:
    assert standing_failures(world.project).passed
    assert "there is no champion" in champion_fresh(world.project).message


@pytest.mark.contest
def test_old_champion_is_a_warning(place: Callable[..., Path], tmp_path: Path) -> None:
    for day in ("2025-10-06", "2025-10-20"):
        (tmp_path / "data" / "train" / f"datetime={day}-00-00").mkdir(parents=True)
    place(tmp_path / "data", "checks: {champion_max_age_days: 7}\n")
    project = Project.open()
    write_champion(project.warehouse, Champion(WINDOW, "f", "because", pinned=True))
    outcome = champion_fresh(project)
    assert not outcome.passed
    assert (
        "champion 2025-10-06 (pinned) is 14 days behind the newest day with final labels, more than champion_max_age_days = 7"
        in outcome.message
    )


def test_every_standing_check_explains_itself(world: World) -> None:
    for check in standing_checks():
        assert (check.__doc__ or "").endswith(".")
        assert check(world.project).message
