"""The configuration rejects before any work starts, and every key of it is used."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ltv_assets.core.config import PROJECT_ROOT, Config, load_config, parse_config, walk_keys
from ltv_assets.core.errors import ConfigError
from ltv_assets.core.memory import columns_in_memory, rows_in_memory
from ltv_assets.defs.partitions import training_days_mapping, window_partitions
from ltv_assets.ingestion.calendar import Horizon, discover, mature_horizons

FILE = Path("some.yaml")


def _default(key: str) -> Any:
    value: Any = Config()
    for part in key.split("."):
        value = getattr(value, part, None)
    return value


def test_shipped_configurations_load_and_describe_the_contest() -> None:
    full = load_config(PROJECT_ROOT / "config/config.yaml")
    assert not isinstance(full.data.dates, str)
    assert [str(d) for d in full.data.dates.train.days()] == [f"2025-10-0{i}" for i in range(1, 7)]
    assert [str(d) for d in full.data.dates.test.days()] == ["2025-10-08", "2025-10-09", "2025-10-10", "2025-10-11"]
    assert full.data.train.sampling_fraction == 1.0
    assert load_config(PROJECT_ROOT / "config/config_test.yaml").data.dates == "auto"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("windows:\n  min_train_days: 2\n  max_trian_days: 7\n", 3, "windows.max_trian_days: unknown key; did you mean max_train_days?"),
        ("windows:\n  min_train_days: two\n", 2, "windows.min_train_days"),
        ("seed: 1\ncontract: config/0x1F\n", 2, "contract: expected a file such as config/contract.yaml"),
        (f"contract: {'long' * 100}\n", 1, "contract: expected a file such as config/contract.yaml"),
        ("windows:\n  min_train_days: 9\n  max_train_days: 3\n", 1, "max_train_days 3 is below min_train_days 9"),
        ("checks:\n  rmsle_max: .nan\n", 2, "checks.rmsle_max"),
        (
            "data:\n  dates:\n    train: {first: 2025-10-06, last: 2025-10-01}\n    test: {first: 2025-10-08, last: 2025-10-09}\n",
            3,
            "lies before first day",
        ),
        ("data:\n  train:\n    sampling_fraction: 0\n", 3, "data.train.sampling_fraction"),
        ("seed: 1\nseed: 2\n", 2, "stands twice"),
        ("seed: [1\n", 2, "not valid YAML"),
        ("- 1\n", 1, "expected a mapping"),
        ("data:\n  root: ../elsewhere\n", 2, "leaves the project"),
    ],
)
def test_wrong_configuration_names_file_line_and_key(text: str, line: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, FILE)
    message = str(caught.value)
    assert words in message
    assert f"some.yaml:{line}" in message, message


def test_missing_file_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set LTV_CONFIG to an existing file"):
        load_config(tmp_path / "absent.yaml")


def test_environment_redirects_data_and_warehouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTV_WAREHOUSE", str(tmp_path / "w"))
    config = load_config(PROJECT_ROOT / "config/config_test.yaml")
    assert config.warehouse.root == tmp_path / "w"
    assert config.data.root == tmp_path / "w" / "simulated"
    monkeypatch.setenv("LTV_DATA_ROOT", str(tmp_path / "d"))
    assert load_config(PROJECT_ROOT / "config/config_test.yaml").data.root == tmp_path / "d"
    assert load_config(PROJECT_ROOT / "config/config.yaml").data.root == tmp_path / "d"


def test_data_that_is_not_inside_the_warehouse_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two absolute paths have their first part in common, which says nothing."""
    monkeypatch.setenv("LTV_WAREHOUSE", str(tmp_path / "w"))
    config = tmp_path / "config.yaml"
    config.write_text("data: {root: /srv/impressions}\nwarehouse: {root: /srv/warehouse}\n")
    assert load_config(config).data.root == Path("/srv/impressions")
    config.write_text("data: {root: /srv/warehouse/raw/days}\nwarehouse: {root: /srv/warehouse}\n")
    assert load_config(config).data.root == tmp_path / "w" / "raw" / "days"


def test_tree_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 3  # type: ignore[misc]


def test_every_key_is_described_and_read_somewhere() -> None:
    code = "\n".join(
        path.read_text()
        for path in (PROJECT_ROOT / "ltv_assets").rglob("*.py")
        if path.parent != PROJECT_ROOT / "ltv_assets/core/config" and "simulator" not in path.parts
    )
    own = "\n".join(path.read_text() for path in (PROJECT_ROOT / "ltv_assets/core/config").glob("*.py"))
    for key, description in walk_keys():
        name = key.rpartition(".")[2]
        assert description, f"{key} has no description"
        used = re.search(rf"\.{name}\b|[\"']{name}[\"']|[\"'][a-z_.{{}}]*\.{name}[\"']", code)
        assert used or re.search(rf"\b(self|config\.data|config\.warehouse|config)\.{name}\b", own), f"nothing reads {key}"


@pytest.mark.parametrize("written", ["off", "'off'", "false"])
def test_off_is_a_word_of_the_gate_however_yaml_reads_it(written: str) -> None:
    assert parse_config(f"models:\n  gating: {{zero_rate: {written}}}\n", FILE).models.gating.zero_rate == "off"


def test_words_that_old_yaml_takes_for_truth_stay_words() -> None:
    config = parse_config("tracking: {experiment: no, enabled: off}\nmodels: {refit: yes, monotone: {on: 1}}\n", FILE)
    assert (config.tracking.experiment, config.tracking.enabled, config.models.refit) == ("no", False, True)
    assert config.models.monotone == {"on": 1}


@pytest.mark.parametrize("cron", ["0 25 * * *", "6:00", "* * * * * *", "0 0 31 2 *", "61 * * * *", "tomorrow"])
def test_cron_expression_that_dagster_would_refuse_is_refused_with_its_line(cron: str) -> None:
    from dagster import DagsterInvalidDefinitionError, ScheduleDefinition

    with pytest.raises(DagsterInvalidDefinitionError):
        ScheduleDefinition(job_name="any", cron_schedule=cron)
    with pytest.raises(ConfigError, match=r"some.yaml:2: automation.weekly_retraining: expected a cron expression"):
        parse_config(f"automation:\n  weekly_retraining: '{cron}'\n", FILE)


@pytest.mark.parametrize("cron", ["*/15 * * * *", "0 3 * * MON", "@daily", "0 6 1,15 * *"])
def test_cron_expression_of_dagster_is_accepted(cron: str) -> None:
    assert parse_config(f"automation: {{daily_health: '{cron}'}}\n", FILE).automation.daily_health == cron


NUMBERS = [key for key, _ in walk_keys() if isinstance(_default(key), int | float) and not isinstance(_default(key), bool)]


@pytest.mark.parametrize("key", NUMBERS)
def test_no_number_whatever_overflows(key: str) -> None:
    """Each number of the tree at its largest accepted value, found by trying: the project opens, and days can be reckoned with."""
    for value in ("9" * 30, "100000000", "999999", "1e308", ".inf", "-1e308"):
        *sections, name = key.split(".")
        text = "".join(f"{'  ' * i}{part}:\n" for i, part in enumerate(sections)) + f"{'  ' * len(sections)}{name}: {value}\n"
        try:
            config = parse_config(text, FILE)
        except ConfigError as error:
            assert f"some.yaml:{len(sections) + 1}: {key}: " in str(error) or "min_train_days" in str(error)
            continue
        horizon = Horizon(
            (date(2025, 10, 1), date(2025, 10, 2), date(2025, 10, 3)),
            (),
            2,
            config.windows.max_train_days,
            config.windows.embargo_days,
            frozenset(),
        )
        horizon.window_keys()
        window_partitions(config, horizon)
        training_days_mapping(config)
        mature_horizons(config, date(2025, 10, 1))
        assert rows_in_memory(config.compute, 500) >= 1000 and columns_in_memory(config.compute, 1000) >= 10


def test_day_beside_the_calendar_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in ("0001-01-01", "9999-12-31", "2025-02-30", "20251001", "1759276800"):
        with pytest.raises(ConfigError, match=r"some.yaml:1: data.gap_days.0: expected a day such as 2025-10-06"):
            parse_config(f"data: {{gap_days: [{day}]}}\n", FILE)
    for folder in ("datetime=0001-01-01-00-00", "datetime=9999-12-31-23-00"):
        (tmp_path / "train" / folder).mkdir(parents=True)
    monkeypatch.setenv("LTV_DATA_ROOT", str(tmp_path))
    assert discover(load_config(PROJECT_ROOT / "config/config_test.yaml")).is_empty


@pytest.mark.parametrize("variable", ["LTV_CONFIG", "LTV_DATA_ROOT", "LTV_WAREHOUSE"])
@pytest.mark.parametrize("value", ["~nobody-of-that-name/x", "x" * 5000])
def test_path_that_cannot_exist_names_its_variable(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"environment variable {variable}: expected a path, found '"):
        load_config()
