"""The registry says exactly what is computed, refuses what cannot be, and lets no label in."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from ltv_assets.core.columns import LABEL_NAMES, RAW_COLUMNS
from ltv_assets.core.errors import ConfigError
from ltv_assets.features.registry import Registry, load_registry
from ltv_assets.features.schema import categorical_names, column_table, feature_names, flattened_schema
from ltv_assets.features.sql import explain_sql

pytestmark = pytest.mark.contest

CONFIG = Path(__file__).parents[2] / "config" / "features.yaml"


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry(CONFIG)


def edited(tmp_path: Path, old: str, new: str) -> Path:
    text = CONFIG.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "features.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def test_every_column_contributes_or_the_contract_says_why_not(registry: Registry) -> None:
    inputs = [c.name for c in RAW_COLUMNS if not c.is_label]
    assert len(inputs) == 68
    silent = {name for name in inputs if not any(f == name or f.startswith(f"{name}__") for f in feature_names(registry))}
    # The hour itself is what every recency and the device's age are counted from; the flattener's tests show that it matters.
    assert silent == {"row_id", "datetime"}


def test_there_are_many_features_and_no_label_among_them(registry: Registry) -> None:
    names = feature_names(registry)
    assert len(names) >= 150
    assert len(set(names)) == len(names)
    assert not [name for name in names for label in LABEL_NAMES if name == label or name.startswith(f"{label}__")]


def test_the_schema_separates_keys_labels_and_features(registry: Registry) -> None:
    schema = flattened_schema(registry)
    roles = {field.name: field.metadata[b"role"] for field in schema}
    assert [name for name, role in roles.items() if role == b"key"] == ["row_id", "datetime"]
    labels = [name for name, role in roles.items() if role == b"label"]
    assert set(labels) < set(LABEL_NAMES)
    assert not [name for name in labels if name == "registration" or name.startswith("retention")]
    assert [name for name, role in roles.items() if role == b"feature"] == feature_names(registry)
    for name in feature_names(registry):
        text = name in categorical_names(registry)
        assert schema.field(name).type == (pa.dictionary(pa.int32(), pa.string()) if text else pa.float32())
    assert all(description for _, _, _, description in column_table(registry))


def test_a_group_that_is_switched_off_is_gone(tmp_path: Path, registry: Registry) -> None:
    smaller = load_registry(edited(tmp_path, "  ads:\n    enabled: true", "  ads:\n    enabled: false"))
    gone = set(feature_names(registry)) - set(feature_names(smaller))
    assert gone and all(name.startswith(("cpm", "ctr")) for name in gone)
    assert smaller.fingerprint() != registry.fingerprint()
    assert load_registry(CONFIG).fingerprint() == registry.fingerprint()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("last_buy: [days_ago]", "last_buy: [days_since]", "unknown statistic 'days_since'"),
        ("last_buy: [days_ago]", "iap_revenue_d7: [value]", "is a label"),
        ("last_buy: [days_ago]", "row_id: [value]", "is never a feature"),
        ("last_buy: [days_ago]", "last_bye: [days_ago]", "no such column"),
        ("last_buy: [days_ago]", "last_buy: []", "expected at least one"),
        ("    enabled: true", "    enabled: 'maybe'", "groups.context.enabled: expected true or false"),
        ("    enabled: true", "    enabeld: true", "enabeld"),
        ("price_tiers: [100, 200", "price_tiers: [200, 100", "ascending"),
        ("of: new_bundles", "of: bcat", "not a list column"),
        ("carrier: [carrier]", "carrier: [buyer_d7]", "not a non-label column"),
        ("sql: cpm__mean * ctr__mean", "sql: cpm__mean * iap_revenue_d7", "neither a possible feature nor an allowed function"),
        ("sql: cpm__mean * ctr__mean", "sql: cpm__mean; DROP TABLE x", "one SQL expression"),
        ("price_tiers: [100", "price_tiers: [100, {", "not valid YAML"),
    ],
)
def test_a_mistake_in_the_registry_names_file_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = edited(tmp_path, old, new)
    with pytest.raises(ConfigError, match=message) as raised:
        load_registry(path)
    assert str(path) in str(raised.value)


def test_a_missing_registry_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_registry(tmp_path / "nowhere.yaml")


def test_explain_prints_one_feature_or_all_of_a_column(registry: Registry) -> None:
    one = explain_sql(registry, "cpm__std")
    assert one.startswith("-- cpm__std [USD per 1000]") and one.count('AS "cpm__') == 2
    assert "ctr" not in one and "user_bundles" not in one
    every = explain_sql(registry, "cpm")
    assert all(f'"{name}"' in every for name in feature_names(registry) if name.startswith("cpm__"))


def test_explain_of_an_unknown_name_suggests_near_ones(registry: Registry) -> None:
    with pytest.raises(ConfigError, match=r"did you mean .*cpm__sum"):
        explain_sql(registry, "cpm__smu")
