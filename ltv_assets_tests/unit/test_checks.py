"""Checks fail when they should, and name the rows or figures at fault."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltv_assets.cli.runner import _warnings
from ltv_assets.core.asset_specs import ASSET_NAMES, RELATIONS
from ltv_assets.core.check_specs import Outcome, blocking_checks, check_bounds, check_specs
from ltv_assets.core.config import Config
from ltv_assets.core.errors import DataError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.defs.asset_checks import features, ingestion, registry, scoring, training
from ltv_assets.defs.asset_checks.registry import run_check
from ltv_assets.defs.asset_checks.training import sampling_allowance
from ltv_assets.defs.resources import CatalogueResource
from ltv_assets.features.schema import categorical_names, feature_names
from ltv_assets.ingestion.calendar import Horizon
from ltv_assets.modeling.levels import follow_level
from ltv_assets.state import readiness
from ltv_assets.state.project import Project
from ltv_assets.state.status import headline_figures
from ltv_assets.storage.champion import Champion, write_champion
from ltv_assets.storage.warehouse import Warehouse

DAY, LATER = PartitionKey("2025-10-01"), PartitionKey("2025-10-02")
GOOD = {"rows_in": 10, "rows_out": 8, "rows_sampled_out": 0, "rows_quarantined": {"row_id repeated": 2}}


def project(root: Path, **sections: dict[str, Any]) -> Project:
    config = Config()
    for name, values in sections.items():
        config = config.model_copy(update={name: getattr(config, name).model_copy(update=values)})
    return Project(config, Horizon((), (), 2, 7, 0, frozenset()), Warehouse(root))


def publish(
    p: Project, asset: str, table: pa.Table | None = None, facts: dict[str, Any] | None = None, *, key: str = DAY, **texts: str
) -> None:
    def fill(folder: Path) -> dict[str, int | None]:
        listed: dict[str, int | None] = {}
        if table is not None:
            pq.write_table(table, folder / "part.parquet")
            listed["part.parquet"] = table.num_rows
        for name, text in texts.items():
            (folder / f"{name}.json").write_text(text)
            listed[f"{name}.json"] = None
        return listed

    p.warehouse.write(asset, key, fill, code_version="1", config="c", inputs={}, facts=facts or {})


def flattened(
    p: Project, rows: int, names: tuple[tuple[str, str], ...] = (("x", "feature"), ("iap_revenue_d7", "label")), **facts: Any
) -> None:
    fields = [pa.field(name, pa.float32(), metadata={"role": role}) for name, role in names]
    table = pa.table([pa.array([1.0] * rows, pa.float32())] * len(fields), schema=pa.schema(fields))
    publish(p, "flattened_features", table, {**GOOD, "rows_out": rows, **facts})


@pytest.mark.parametrize(("duckdb_gb", "whole_gb", "expected"), [(1.0, 8.0, "953.6 MiB"), (3.0, 4.0, "1.8 GiB")])
def test_databases_keep_to_the_configured_threads_and_memory(tmp_path: Path, duckdb_gb: float, whole_gb: float, expected: str) -> None:
    """At most half of what one process may use, in memory and in the catalogue, which says who opened it."""
    p = project(tmp_path, compute={"threads": 1, "duckdb_memory_gb": duckdb_gb, "max_memory_gb": whole_gb})
    with p.open_duckdb() as memory, CatalogueResource()._connector(p)() as catalogue:
        for connection in (memory, catalogue):
            settings = "SELECT current_setting('threads'), current_setting('memory_limit'), current_setting('TimeZone')"
            assert connection.execute(settings).fetchone() == (1, expected, "UTC")
        assert catalogue.execute("PRAGMA user_agent").fetchone()[0].endswith("dagster")
    assert (tmp_path / "ltv.duckdb").is_file()


def two_days_of_random_features(p: Project) -> None:
    texts, rng = set(categorical_names(p.registry)), np.random.default_rng(0)
    for day in (DAY, LATER):
        table: dict[str, Any] = {"row_id": [f"{day} {number}" for number in range(60)]}
        table |= {f: ["a"] * 60 if f in texts else rng.normal(size=60).astype(np.float32) for f in feature_names(p.registry)}
        publish(p, "flattened_features", pa.table(table), GOOD, key=day)


@pytest.mark.contest
@pytest.mark.parametrize("check", ["row_ids_new", "scores_valid", "drift", "submission_valid"])
def test_check_that_reads_rows_opens_no_database_of_other_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    """Every database of these checks, also those opened further down, has the limits of the configuration."""
    config = project(tmp_path, compute={"threads": 1, "duckdb_memory_gb": 0.25}).config
    p = Project(config, Horizon((), (date(2025, 10, 1),), 2, 7, 0, frozenset()), Warehouse(tmp_path))
    two_days_of_random_features(p)
    scores(p)
    submit(p, 2)
    opened: list[tuple[Any, Any]] = []
    connect = duckdb.connect

    def watched(*place: Any, config: dict[str, Any]) -> duckdb.DuckDBPyConnection:
        opened.append((config.get("threads"), config.get("memory_limit")))
        return connect(*place, config=config)

    monkeypatch.setattr("duckdb.connect", watched)
    spec = next(spec for spec in check_specs() if spec.name == check)
    spec.function(p, {"flattened_features": LATER, "predictions": DAY, "submission": p.submission_key}[spec.asset])
    assert opened and set(opened) == {(1, "0.25GB")}


def test_window_that_was_never_evaluated_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holdout_metrics 2025-10-01: metric rmsle is missing, as in one made by an older version"):
        training.rmsle(project(tmp_path), DAY)


def test_verdict_on_repeated_row_ids_depends_on_how_many_days_were_compared(tmp_path: Path) -> None:
    assert project(tmp_path, windows={"max_train_days": 7}).lineage().bounds_hash("row_ids_new") != (
        project(tmp_path, windows={"max_train_days": 14}).lineage().bounds_hash("row_ids_new")
    )


@pytest.mark.parametrize("check", [c for c in blocking_checks("holdout_metrics") if c in check_bounds()])
def test_bound_of_a_check_that_blocks_a_window_makes_it_another_window(tmp_path: Path, check: str) -> None:
    """Automation asks for a window once for each set of inputs; a bound that was loosened lets it ask again."""
    day = date(2025, 10, 1)
    days = tuple(day + timedelta(days=d) for d in range(3))

    def identity(config: Config) -> str:
        p = Project(config, Horizon(days, (), 2, 7, 0, frozenset()), Warehouse(tmp_path))
        return readiness.identity(p.lineage(), "served_model", PartitionKey("2025-10-03"))

    (name, *_) = check_bounds()[check]
    section, key = name.split(".")
    config = Config()
    changed = getattr(config, section).model_copy(update={key: 0.123})
    assert identity(config.model_copy(update={section: changed})) != identity(config)


def test_lost_rows_are_noticed(tmp_path: Path) -> None:
    p = project(tmp_path, data={"max_bad_row_share": 0.5})
    publish(p, "raw_partitions", facts={"rows": 10})
    flattened(p, 8)
    assert features.flattened_rows_reconciled(p, DAY).passed
    flattened(p, 7)
    outcome = features.flattened_rows_reconciled(p, DAY)
    assert not outcome.passed
    assert "10 raw rows but 9 accounted for (1 lost)" in outcome.message


def test_too_many_quarantined_rows_fail_with_the_reason(tmp_path: Path) -> None:
    p = project(tmp_path)
    publish(p, "raw_partitions", facts={"rows": 10})
    flattened(p, 8)
    outcome = features.flattened_rows_reconciled(p, DAY)
    assert not outcome.passed
    assert "2 of 10 rows quarantined, more than max_bad_row_share = 5.0%; most: row_id repeated" in outcome.message


@pytest.mark.contest
@pytest.mark.parametrize(
    "column", ["iap_revenue_d7", "buyer_d1", "iap_revenue_d28__sum", "retention_d1", "registration", "retentiond7__value"]
)
def test_label_among_the_features_fails(tmp_path: Path, column: str) -> None:
    p = project(tmp_path)
    flattened(p, 8)
    assert features.no_label_among_features(p, DAY).passed
    flattened(p, 8, (("x", "feature"), (column, "feature")))
    outcome = features.no_label_among_features(p, DAY)
    assert not outcome.passed
    assert column in outcome.message


@pytest.mark.contest
def test_label_among_the_models_inputs_fails(tmp_path: Path) -> None:
    p = project(tmp_path)
    publish(p, "buyer_classifier", encoder=json.dumps({"columns": ["x", "country"]}))
    assert training.no_label_in_model(p, DAY).passed
    publish(p, "buyer_classifier", encoder=json.dumps({"columns": ["x", "iap_revenue_d14"]}))
    outcome = training.no_label_in_model(p, DAY)
    assert not outcome.passed
    assert "iap_revenue_d14 is an input of the models" in outcome.message


def metrics(p: Project, **values: float | tuple[float, float, float]) -> None:
    base: dict[str, float | tuple[float, float, float]] = {
        "rows": 10_000.0,
        "rmsle": 0.41,
        "rmsle_reference": 0.42,
        "rmsle_gated": 0.415,
        "rmsle_minus_reference": (-0.01, -0.02, -0.001),
        "zero_rate_observed": 0.97,
        "zero_rate_predicted": 0.971,
        "ece": 0.003,
        "mean_p_over_rate": 1.0,
        "bias_ratio_capped": 1.0,
    }
    rows = []
    for name, value in {**base, **values}.items():
        middle, low, high = value if isinstance(value, tuple) else (value, None, None)
        rows.append({"window_key": DAY, "metric": name, "segment": "all", "value": middle, "low": low, "high": high})
    schema = pa.schema([(c.name, pa.string() if c.type == "VARCHAR" else pa.float64()) for c in RELATIONS["holdout_metrics"]])
    publish(p, "holdout_metrics", pa.Table.from_pylist(rows, schema=schema))
    newest_day(p, payers=300, rows=10_000)


def newest_day(p: Project, payers: int, rows: int) -> None:
    """The level that the window's gate was set to, after training days of which only the newest counts here."""
    days = np.repeat([0, 1], rows)
    paid = np.concatenate([np.ones(rows), np.arange(rows) < payers]).astype(np.float64)
    level = follow_level(paid, days, ("2025-09-29", "2025-09-30"))
    publish(p, "buyer_gating", buyer_gating=json.dumps({"level": level.to_dict()}))


@pytest.mark.parametrize(
    ("check", "values", "words"),
    [
        (training.rmsle, {"rmsle": 0.61}, "RMSLE 0.6100 is above rmsle_max = 0.6"),
        (training.rmsle, {"rmsle_minus_reference": (0.01, 0.002, 0.02)}, "worse than the reference's 0.4200 beyond noise"),
        (training.zero_rate, {"zero_rate_predicted": 0.98}, "gap 0.0100 is more than zero_rate_tolerance = 0.006"),
        (training.calibration, {"ece": 0.03}, "ECE 0.0300"),
        (training.expected_revenue, {"bias_ratio_capped": 2.5}, "outside 0.5 .. 2"),
    ],
)
def test_bad_figure_fails_and_stands_in_the_message(
    tmp_path: Path, check: Callable[..., Outcome], values: dict[str, Any], words: str
) -> None:
    p = project(tmp_path)
    metrics(p)
    assert check(p, DAY).passed
    metrics(p, **values)
    outcome = check(p, DAY)
    assert not outcome.passed
    assert words in outcome.message


@pytest.mark.parametrize(
    ("check", "metric"), [(training.calibration, "mean_p_over_rate"), (training.expected_revenue, "bias_ratio_capped")]
)
def test_holdout_without_a_payer_cannot_be_judged_and_says_so(tmp_path: Path, check: Callable[..., Outcome], metric: str) -> None:
    p = project(tmp_path)
    metrics(p, zero_rate_observed=1.0, rows=480.0, **{metric: float("nan")})
    outcome = check(p, DAY)
    assert not outcome.passed
    assert "no payer among the 480 rows of the holdout day, so" in outcome.message and "cannot be judged" in outcome.message
    assert "materialize" not in outcome.message, "the same rows would give the same figures"


def test_figure_that_is_undefined_is_told_from_one_that_is_missing(tmp_path: Path) -> None:
    p = project(tmp_path)
    metrics(p, ece=float("nan"))
    with pytest.raises(DataError, match=r"metric ece is undefined on this holdout; look whether the labels of 2025-10-01 have arrived"):
        training.calibration(p, DAY)
    with pytest.raises(DataError, match=r"metric auc is missing, .* materialize --select holdout_metrics --partition 2025-10-01"):
        training._value(headline_figures(p, DAY), "auc", DAY)


def test_hours_that_no_partition_reads_are_named_by_the_check_of_hours(tmp_path: Path) -> None:
    p = project(tmp_path)
    publish(p, "raw_partitions", facts={"missing_hours": [], "empty_hours": []})
    assert ingestion.hours_complete(p, DAY).passed
    publish(p, "raw_partitions", facts={"missing_hours": [], "empty_hours": [], "hours_uncovered": ["day 2025-10-01 counts as train"]})
    outcome = ingestion.hours_complete(p, DAY)
    assert not outcome.passed
    assert "day 2025-10-01 counts as train" in outcome.message


def test_worse_than_the_reference_within_noise_passes(tmp_path: Path) -> None:
    p = project(tmp_path)
    metrics(p, rmsle=0.425, rmsle_minus_reference=(0.005, -0.001, 0.011))
    assert training.rmsle(p, DAY).passed


def test_tolerance_of_nothing_passes_nothing_but_equality(tmp_path: Path) -> None:
    p = project(tmp_path, checks={"zero_rate_tolerance": 0.0})
    metrics(p)
    assert not training.zero_rate(p, DAY).passed
    assert sampling_allowance(0.03 * 0.97 / 100, 0.0) == 0.0
    assert sampling_allowance(0.03 * 0.97 / 1e9, 0.006) < 1e-4
    assert sampling_allowance(0.03 * 0.97 / 100, 0.006) == 0.006


MOVED_DAY = {"rows": 23_570.0, "zero_rate_observed": 0.9740, "zero_rate_predicted": 0.9823}
"""Real purchases: a week in which 2.6 % of the customers paid, after weeks of 1.8 %."""


def test_a_day_that_moved_by_itself_passes_and_says_so(tmp_path: Path) -> None:
    p = project(tmp_path)
    metrics(p, **MOVED_DAY)
    newest_day(p, payers=424, rows=23_570)
    spec = next(s for s in check_specs() if s.name == "zero_rate")
    outcome = run_check(p, spec, DAY)
    assert outcome.passed
    assert "gap 0.0083 is more than zero_rate_tolerance = 0.006 plus 0.0021" in outcome.message
    assert "not more than the 0.0080 by which the 0.9820 of the newest training day 2025-09-30 misses" in outcome.message
    assert outcome.message.endswith("the day itself moved")
    assert outcome.figures["warning"] is True
    [verdict] = p.warehouse.verdicts("holdout_metrics", DAY)
    assert verdict.passed  # what makes a window eligible as champion
    assert verdict.remark == outcome.message  # what `ltv status` and the report show


@pytest.mark.parametrize(("predicted", "observed", "newest"), [(0.990, 0.974, 0.982), (0.960, 0.970, 0.970), (0.975, 0.960, 0.970)])
def test_a_gate_that_is_off_blocks_on_a_day_that_moved_as_well(tmp_path: Path, predicted: float, observed: float, newest: float) -> None:
    p = project(tmp_path)
    metrics(p, rows=50_000.0, zero_rate_observed=observed, zero_rate_predicted=predicted)
    newest_day(p, payers=round((1 - newest) * 50_000), rows=50_000)
    outcome = training.zero_rate(p, DAY)
    assert not outcome.passed
    assert outcome.message.endswith("the gate is off")
    assert f"and more than the {abs(newest - observed):.4f} by which" in outcome.message


def test_a_blocking_check_that_passes_with_a_warning_is_among_the_warnings_of_a_run() -> None:
    @dg.asset
    def holdout() -> None: ...

    @dg.asset_check(asset=holdout, blocking=True)
    def warns() -> dg.AssetCheckResult:
        return registry._result(Outcome(True, "the day itself moved", {"warning": True}), blocking=True)

    @dg.asset_check(asset=holdout, blocking=True)
    def passes() -> dg.AssetCheckResult:
        return registry._result(Outcome(True, "all is well"), blocking=True)

    result = dg.materialize([holdout, warns, passes])
    assert result.success
    assert _warnings(result) == ["holdout: warns: the day itself moved"]


def test_check_that_fails_writes_its_verdict_and_nothing_else(tmp_path: Path) -> None:
    """Who scores new days follows from the verdict where it is read; the check itself promotes nobody."""
    p = project(tmp_path)
    metrics(p, rmsle=0.61)
    write_champion(p.warehouse, Champion(DAY, "content", "the first window that passed its checks"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert not run_check(p, next(s for s in check_specs() if s.name == "rmsle"), DAY).passed
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    verdict = tmp_path / "verdicts" / "holdout_metrics" / DAY / "rmsle.json"
    assert after.pop(verdict) and after == before
    assert p.lineage().champion() is None


def test_a_gate_as_right_as_it_can_be_says_nothing_of_movement(tmp_path: Path) -> None:
    p = project(tmp_path)
    metrics(p)
    outcome = training.zero_rate(p, DAY)
    assert outcome.passed
    assert "warning" not in outcome.figures


def test_gate_that_is_off_is_not_judged(tmp_path: Path) -> None:
    gating = Config().models.gating.model_copy(update={"zero_rate": "off"})
    p = project(tmp_path, models={"gating": gating})
    metrics(p, zero_rate_predicted=0.0)
    assert training.zero_rate(p, DAY).passed


def scores(p: Project, **changed: Any) -> None:
    row: dict[str, Any] = {
        "row_id": "a",
        "day": DAY,
        "buyer_probability": 0.1,
        "log_revenue_if_buyer": 2.0,
        "ltv_d7": 0.2,
        "expected_revenue_d7": 1.0,
        "ltv_d14": 0.3,
        "ltv_d28": 0.4,
        "predicted_zero": False,
        "iap_revenue_d7": 0.2,
    }
    publish(p, "predictions", pa.Table.from_pylist([row, {**row, "row_id": "bad", **changed}]))


@pytest.mark.contest
@pytest.mark.parametrize(
    "changed",
    [
        {"ltv_d7": float("nan")},
        {"ltv_d28": float("inf")},
        {"expected_revenue_d7": -1.0},
        {"buyer_probability": 1.5},
        {"ltv_d14": 0.1},
        {"predicted_zero": True},
    ],
)
def test_impossible_score_fails_and_names_its_row(tmp_path: Path, changed: dict[str, Any]) -> None:
    p = project(tmp_path)
    scores(p)
    assert scoring.scores_valid(p, DAY).passed
    scores(p, **changed)
    outcome = scoring.scores_valid(p, DAY)
    assert not outcome.passed
    assert "row_id bad" in outcome.message


def forecast(p: Project, **changed: Any) -> None:
    scores(p)
    sums = {"expected_payers": 2.0, "payers_low": 1.0, "payers_high": 3.0}
    money = {"expected_revenue_usd": 5.0, "revenue_low_usd": 0.5, "revenue_high_usd": 9.0}
    whole = {"day": DAY, "segment": "all", "value": "all", "rows": 2, **sums, **money}
    half = {name: value / 2 for name, value in (sums | money).items()}
    groups = [{**whole, **half, "segment": "country", "value": value, "rows": 1} for value in ("de", "(other)")]
    publish(p, "cohort_forecast", pa.Table.from_pylist([whole, {**groups[0], **changed}, groups[1]]))


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"rows": 2}, "segment country does not add up to the day"),
        ({"expected_revenue_usd": 2.5 + 1e-12}, "segment country does not add up to the day"),
        ({"revenue_low_usd": 3.0}, "country = de lies outside its own interval"),
        ({"payers_high": float("nan")}, "country = de lies outside its own interval"),
    ],
)
def test_forecast_whose_groups_do_not_add_up_fails(tmp_path: Path, changed: dict[str, Any], fault: str) -> None:
    p = project(tmp_path)
    forecast(p)
    assert scoring.groups_add_up(p, DAY).passed
    forecast(p, **changed)
    outcome = scoring.groups_add_up(p, DAY)
    assert not outcome.passed
    assert fault in outcome.message


BLOCKING = {
    "raw_partitions": ("files_readable", "schema_contract"),
    "flattened_features": ("rows_reconciled", "no_label_among_features"),
    "buyer_classifier": ("training_rows_reconciled", "no_leak", "no_label_in_model"),
    "holdout_metrics": ("holdout_rows_reconciled", "zero_rate", "rmsle"),
    "predictions": ("rows_reconciled", "scores_valid", "no_leak"),
    "cohort_forecast": ("groups_add_up",),
    "submission": ("submission_rows_reconciled", "submission_valid"),
}
BOUNDS = {
    "files_readable": ("data.max_bad_file_share", "data.require_all_hours"),
    "row_ids_new": ("windows.max_train_days",),
    "rows_reconciled": ("data.max_bad_row_share", "data.max_bad_file_share", "checks.min_rows_per_day"),
    "no_leak": ("checks.leak_auc_max", "checks.leak_exclusive_max"),
    "zero_rate": ("checks.zero_rate_tolerance",),
    "rmsle": ("checks.rmsle_max",),
    "calibration": ("checks.ece_max",),
    "expected_revenue": ("checks.expected_revenue_ratio_min", "checks.expected_revenue_ratio_max"),
    "drift": ("checks.psi_warn",),
    "adversarial_drift": ("checks.adversarial_auc_warn",),
    "forecast_coverage": ("checks.forecast_coverage_min", "checks.forecast_days"),
}


def test_checks_that_block_and_their_bounds_are_those_of_before_they_were_declared_once() -> None:
    """Another bound, or one check more, would ask for new verdicts on every partition of a warehouse."""
    assert {asset: blocking_checks(asset) for asset in ASSET_NAMES if blocking_checks(asset)} == BLOCKING
    assert check_bounds() == BOUNDS


def test_a_process_knows_every_check_without_dagster_or_is_told_that_it_knows_none() -> None:
    """A check that is not known to block would let a failed partition pass."""
    asked = (
        "import sys; from ltv_assets.core.check_specs import blocking_checks, check_specs; "
        "print(len(check_specs()), *blocking_checks('holdout_metrics'), 'dagster' in sys.modules)"
    )
    loaded = f"import ltv_assets.defs.asset_checks.ingestion; {asked}"
    told = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split()
    assert told == [str(len(check_specs())), *BLOCKING["holdout_metrics"], "False"]
    refused = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    assert refused.returncode != 0 and "write `import ltv_assets.defs.asset_checks` where the program begins" in refused.stderr


def test_verdict_of_a_check_is_remembered(tmp_path: Path) -> None:
    p = project(tmp_path)
    metrics(p)
    for spec in check_specs():
        if spec.asset == "holdout_metrics" and spec.name in ("zero_rate", "rmsle"):
            run_check(p, spec, DAY)
    assert {v.check: v.passed for v in p.warehouse.verdicts("holdout_metrics", DAY)} == {"zero_rate": True, "rmsle": True}


def test_rows_lost_on_the_way_into_a_window_are_noticed(tmp_path: Path) -> None:
    days = tuple(date(2025, 10, number) for number in (1, 2, 3))
    p = Project(Config(), Horizon(days, (), 2, 7, 0, frozenset()), Warehouse(tmp_path))

    def flattened_day(key: str, rows: int) -> None:
        def fill(folder: Path) -> dict[str, int | None]:
            pq.write_table(pa.table({"x": [1.0] * rows}), folder / "part.parquet")
            return {"part.parquet": rows}

        p.warehouse.write("flattened_features", key, fill, code_version="1", config="c", inputs={})

    def trained(rows: int) -> None:
        def fill(folder: Path) -> dict[str, int | None]:
            (folder / "buyer_classifier.json").write_text(json.dumps({"diagnostics": {"training_rows": float(rows)}}))
            return {"buyer_classifier.json": None}

        p.warehouse.write("buyer_classifier", "2025-10-03", fill, code_version="1", config="c", inputs={})

    flattened_day("2025-10-01", 5)
    flattened_day("2025-10-02", 4)
    trained(9)
    assert training.training_rows_reconciled(p, PartitionKey("2025-10-03")).passed
    trained(8)
    outcome = training.training_rows_reconciled(p, PartitionKey("2025-10-03"))
    assert not outcome.passed
    assert "9 flattened rows of 2025-10-01 .. 2025-10-02, 8 trained on" in outcome.message


def test_rows_lost_between_holdout_and_figures_are_noticed(tmp_path: Path) -> None:
    p = project(tmp_path)
    flattened(p, 8)
    metrics(p, rows=8.0)
    assert training.holdout_rows_reconciled(p, DAY).passed
    metrics(p, rows=7.0)
    assert "8 flattened rows, 7 evaluated" in training.holdout_rows_reconciled(p, DAY).message


def submit(p: Project, rows: int) -> None:
    def fill(folder: Path) -> dict[str, int | None]:
        (folder / "submission.csv").write_text("row_id,iap_revenue_d7\n" + "a,1\n" * rows)
        return {"submission.csv": rows}

    p.warehouse.write("submission", p.submission_key, fill, code_version="1", config="c", inputs={})


def test_lines_lost_between_scores_and_submission_are_noticed(tmp_path: Path) -> None:
    p = Project(Config(), Horizon((), (date(2025, 10, 1),), 2, 7, 0, frozenset()), Warehouse(tmp_path))
    scores(p)
    for rows, passed in ((2, True), (1, False)):
        submit(p, rows)
        assert scoring.submission_rows_reconciled(p, "2025-10-01_2025-10-01").passed == passed
