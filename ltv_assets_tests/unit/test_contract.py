"""The contract is complete and agrees with itself."""

from __future__ import annotations

from ltv_assets.core import columns as contract
from ltv_assets.modeling.model_set import SCORED_COLUMNS


def test_contract_has_the_85_columns_of_the_data() -> None:
    assert len(contract.RAW_COLUMNS) == len(contract.BY_NAME) == 85
    assert sum(c.is_nested for c in contract.RAW_COLUMNS) == 42
    assert len(contract.LABELS) == 17
    assert sum(not c.is_label for c in contract.RAW_COLUMNS) == 68


def test_every_column_is_described_and_nested_ones_say_what_their_keys_are() -> None:
    for column in contract.RAW_COLUMNS:
        assert column.description
        assert (column.keyed_by is not None) == column.is_nested, column.name
        assert 0.0 <= column.missing_rate <= 1.0


def test_scored_columns_are_those_the_models_make() -> None:
    assert tuple(c.name for c in contract.RELATIONS["predictions"][2:]) == SCORED_COLUMNS


def test_every_asset_has_a_relation() -> None:
    assert {*contract.RELATIONS, "flattened_features"} == set(contract.ASSET_NAMES)
