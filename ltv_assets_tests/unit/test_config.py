"""The configuration rejects before any work starts, and every key of it is used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ltv_assets.config import PROJECT_ROOT, Config, load_config, parse_config, walk_keys
from ltv_assets.errors import ConfigError

FILE = Path("some.yaml")


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
        ("windows:\n  min_train_days: 2\n  max_trian_days: 7\n", 3, "windows.max_trian_days: Extra inputs are not permitted"),
        ("windows:\n  min_train_days: two\n", 2, "windows.min_train_days"),
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


def test_tree_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 3  # type: ignore[misc]


def test_every_key_is_described_and_read_somewhere() -> None:
    code = "\n".join(
        path.read_text()
        for path in (PROJECT_ROOT / "ltv_assets").rglob("*.py")
        if path.name != "config.py" and "simulator" not in path.parts
    )
    own = (PROJECT_ROOT / "ltv_assets/config.py").read_text()
    for key, description in walk_keys():
        name = key.rpartition(".")[2]
        assert description, f"{key} has no description"
        used = re.search(rf"\.{name}\b|[\"']{name}[\"']|[\"'][a-z_.{{}}]*\.{name}[\"']", code)
        assert used or re.search(rf"\b(self|config\.data|config\.warehouse|config)\.{name}\b", own), f"nothing reads {key}"
