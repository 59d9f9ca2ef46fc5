"""The contract is complete and agrees with itself."""

from __future__ import annotations

import ast
import re
from datetime import date
from pathlib import Path

import duckdb
import pytest

from ltv_assets.core import columns as contract
from ltv_assets.core.asset_specs import ASSET_NAMES, RELATIONS, relations
from ltv_assets.core.columns import SCORED_COLUMNS
from ltv_assets.core.config import PROJECT_ROOT, Config
from ltv_assets.core.contract import ROW_ID, SHIPPED, SQL_KEYWORDS, contract_of, load_contract, parse_contract
from ltv_assets.core.errors import ConfigError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.core.time_layout import time_layout
from ltv_assets.features.registry import load_registry
from ltv_assets.ingestion.calendar import Horizon
from ltv_assets.state.freshness import Lineage
from ltv_assets.storage.warehouse import Warehouse


@pytest.mark.contest
def test_contract_has_the_85_columns_of_the_data() -> None:
    assert len(contract.RAW_COLUMNS) == len(contract.BY_NAME) == 85
    assert sum(c.is_nested for c in contract.RAW_COLUMNS) == 42
    assert len(contract.LABEL_NAMES) == 17
    assert sum(not c.is_label for c in contract.RAW_COLUMNS) == 68


@pytest.mark.contest
def test_every_column_is_described_and_nested_ones_say_what_their_keys_are() -> None:
    for column in contract.RAW_COLUMNS:
        assert column.description
        assert (column.keyed_by is not None) == column.is_nested, column.name
        assert 0.0 <= column.missing_rate <= 1.0


@pytest.mark.contest
def test_scored_columns_are_those_the_models_make() -> None:
    assert tuple(c.name for c in RELATIONS["predictions"][2:]) == SCORED_COLUMNS
    assert SCORED_COLUMNS == (
        "buyer_probability",
        "log_revenue_if_buyer",
        "ltv_d7",
        "expected_revenue_d7",
        "ltv_d14",
        "ltv_d28",
        "predicted_zero",
        "iap_revenue_d7",
    )


@pytest.mark.parametrize("revenue", ["{30: a}", "{1: a, 3: b, 30: c, 90: d}"])
def test_relations_follow_the_horizons_and_the_names_of_the_contract(revenue: str) -> None:
    text = SMALL.replace("{30: spend_30, 90: spend_90}", revenue).replace(
        "  - {name: spend_30, role: label, type: double, meaning: amount, unit: EUR}\n"
        "  - {name: spend_90, role: label, type: double, meaning: amount, unit: EUR}\n",
        "".join(f"  - {{name: {name}, role: label, type: double, meaning: amount}}\n" for name in "abcd" if f": {name}" in revenue),
    )
    other = parse_contract(text, Path("shop.yaml"))
    found = relations(other)
    assert [c.name for c in found["predictions"]] == ["row_id", "day", *other.scores.columns]
    assert [c.name for c in found["submission"]] == ["customer", "a"]
    assert other.scores.ltv == tuple(f"ltv_d{days}" for days in other.horizons)
    assert other.scores.observed not in other.scores.columns
    assert len(other.scores.violations()) == len(other.horizons) - 1
    assert {name: c for name, c in found.items() if name not in ("predictions", "submission")}.items() <= RELATIONS.items()


def test_every_asset_has_a_relation() -> None:
    assert {*RELATIONS, "flattened_features"} == set(ASSET_NAMES)


# ------------------------------------------------------------------------------------------------ contracts of one's own

SMALL = """\
name: shop
identifier: customer
time: {layout: date=%Y-%m-%d, column: null}
labels:
  payer: null
  revenue: {30: spend_30, 90: spend_90}
own_keys: {category: section}
segments: [section]
columns:
  - {name: customer, role: identifier, type: string, meaning: identifier}
  - {name: spend_30, role: label, type: double, meaning: amount, unit: EUR}
  - {name: spend_90, role: label, type: double, meaning: amount, unit: EUR}
  - {name: section, type: string, meaning: category}
  - {name: visits, type: "map<string,int64>", meaning: count, keyed_by: category}
  - {name: plan, source: "Plan (current)", type: string, meaning: category}
"""


def test_a_contract_of_ones_own_is_asked_by_role() -> None:
    shop = parse_contract(SMALL, Path("shop.yaml"))
    assert (shop.identifier, shop.horizons, shop.revenue, shop.target, shop.payer) == (
        "customer",
        (30, 90),
        ("spend_30", "spend_90"),
        "spend_30",
        None,
    )
    assert [c.name for c in shop.inputs] == ["section", "visits", "plan"]
    assert shop.by_name["visits"].own_key == "section"
    assert shop.by_name["plan"].in_files == "Plan (current)"
    assert shop.required(labelled=True) == ("customer", "spend_30")
    assert not shop.is_shipped


BAD = {
    "unknown role": ("{name: section, type", "{name: section, role: segment, type", "shop.yaml:13: columns.3.role: expected 'identifier'"),
    "two identifiers": (
        "{name: section, type",
        "{name: section, role: identifier, type",
        "shop.yaml:13: columns.3.role: section is a second identifier next to customer; give one of them role: feature, or remove it",
    ),
    "label that is a feature": (
        "spend_90, role: label",
        "spend_90, role: feature",
        "shop.yaml:6: labels.revenue.90: column spend_90 has role feature, so it would be a feature; give it",
    ),
    "label that no section names": (
        "{name: plan, source",
        "{name: plan, role: label, source",
        "shop.yaml:15: columns.5.role: label plan stands nowhere under labels; add it to labels.others, or say which label it is",
    ),
    "horizon twice": ("{30: spend_30, 90:", "{30: spend_30, 30:", "shop.yaml:6: key '30' stands twice (first on line 6); remove one"),
    "longer horizon first": ("{30: spend_30, 90: spend_90}", "{90: spend_90, 30: spend_30}", "labels.revenue: expected the shortest"),
    "horizon that is no number": ("{30: spend_30,", "{month: spend_30,", "shop.yaml:6: labels.revenue.month: expected a whole number"),
    "no horizon": ("{30: spend_30, 90: spend_90}", "{}", "shop.yaml:6: labels.revenue: expected at least one value"),
    "pattern without a day": ("date=%Y-%m-%d", "month=%Y-%m", "shop.yaml:3: time.layout: the pattern 'month=%Y-%m' has no day;"),
    "directive nobody knows": ("date=%Y-%m-%d", "date=%Y-%b-%d", "shop.yaml:3: time.layout: unknown directive '%b'"),
    "pattern that leaves the root": ("date=%Y-%m-%d", "../date=%Y-%m-%d", "time.layout: expected folder names below the data root"),
    "no layout and no column": ("layout: date=%Y-%m-%d", "layout: null", "shop.yaml:3: time.column: missing; where layout is null, name"),
    "own key that is no column": ("category: section}", "category: aisle}", "shop.yaml:7: own_keys.category: no column 'aisle' is"),
    "segment that is a number": ("segments: [section]", "segments: [visits]", "shop.yaml:8: segments.0: column visits is a map<"),
    "map whose keys are nothing": (", keyed_by: category}", "}", "shop.yaml:14: columns.4.keyed_by: missing; say what the keys"),
    "name of a word of SQL": ("name: plan,", "name: order,", "shop.yaml:15: columns.5.name: 'order' is a word of SQL; rename it"),
    "name in capitals": ("name: plan,", "name: Plan,", "columns.5.name: expected lower-case letters"),
    "misspelt key": ("segments:", "segment:", "shop.yaml:8: segment: unknown key; did you mean segments?"),
    "one column twice": ("name: plan, source: \"Plan (current)\"", "name: section", "columns.5.name: column section is declared twice"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_contract_is_one_message_with_file_line_key_and_remedy(what: str) -> None:
    old, new, message = BAD[what]
    assert SMALL.count(old) == 1
    with pytest.raises(ConfigError) as raised:
        parse_contract(SMALL.replace(old, new), Path("shop.yaml"))
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1, str(raised.value)


@pytest.mark.contest
def test_the_shipped_contract_leaves_days_of_earlier_warehouses_fresh() -> None:
    """Its fingerprint is no input of a day; that of any other contract is."""
    assert load_contract().is_shipped


@pytest.mark.contest
def test_what_came_has_a_name_of_its_own_beside_the_scores() -> None:
    text = SMALL.replace("30: spend_30", "30: revenue_d30").replace("name: spend_30", "name: revenue_d30")
    assert parse_contract(text, Path("shop.yaml")).scores.observed == "revenue_d30_observed"
    assert load_contract().scores.observed == "revenue_d7"


def test_words_that_are_refused_as_names_are_those_the_engine_keeps() -> None:
    kept = duckdb.sql("SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category IN ('reserved', 'type_function')").fetchall()
    assert {name for (name,) in kept} == SQL_KEYWORDS


@pytest.mark.parametrize(
    ("pattern", "names", "found"),
    [
        ("datetime=%Y-%m-%d-%H-00", ["datetime=2025-10-01-07-00"], (date(2025, 10, 1), 7)),
        ("datetime=%Y-%m-%d-%H-00", ["datetime=2025-10-01-24-00"], None),
        ("date=%Y-%m-%d", ["date=2025-02-28"], (date(2025, 2, 28), 0)),
        ("date=%Y-%m-%d", ["date=2025-02-29"], None),
        ("dt=%Y%m%d/hour=%H", ["dt=20250131", "hour=23"], (date(2025, 1, 31), 23)),
        ("%Y/%-m/%-d", ["2025", "1", "31"], (date(2025, 1, 31), 0)),
        ("y=%Y/d=%j", ["y=2024", "d=366"], (date(2024, 12, 31), 0)),
        ("y=%Y/d=%j", ["y=2025", "d=366"], None),
        ("y=%Y/date=%Y-%m-%d", ["y=2024", "date=2025-01-01"], None),
    ],
)
def test_folders_are_read_as_the_pattern_writes_them(pattern: str, names: list[str], found: tuple[date, int] | None) -> None:
    layout = time_layout(pattern)
    assert layout.read(names) == found
    if found is not None:
        assert layout.folder(*found) == "/".join(names)


def words_of(path: Path) -> set[str]:
    """Names and texts of a module's code; its documentation is not among them."""
    tree = ast.parse(path.read_text())
    told = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in told]
    names = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)] + [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    return {word for text in (*texts, *names) for word in re.findall(r"\w+", text)}


@pytest.mark.contest
def test_only_the_contract_and_what_is_made_for_it_name_columns() -> None:
    """The identifier and the hour are called as the contest calls them in every warehouse; single words are words of English."""
    names = {c.name for c in contract.RAW_COLUMNS if "_" in c.name} - {ROW_ID}
    names |= {f"{kind}_d{days}" for kind in ("ltv", "expected_revenue") for days in load_contract().horizons}
    package = PROJECT_ROOT / "ltv_assets"
    found = {
        f"{path.relative_to(package)}: {name}"
        for path in package.rglob("*.py")
        if "simulator" not in path.parts
        for name in names & words_of(path)
    }
    assert found == set()
    templates = [path for kind in ("*.html", "*.j2", "*.md") for path in package.rglob(kind)]
    assert {f"{p.name}: {n}" for p in templates for n in names & set(re.findall(r"\w+", p.read_text()))} == set()


@pytest.mark.contest
def test_what_a_change_of_the_contract_makes_stale_is_what_is_made_from_it(tmp_path: Path) -> None:
    """Segments touch figures only, encodings models only; whatever names columns touches days, and all that is made from them."""

    def hashes(old: str, new: str) -> dict[str, str]:
        assert SHIPPED.read_text().count(old) == 1
        (tmp_path / "contract.yaml").write_text(SHIPPED.read_text().replace(old, new))
        config = Config.model_validate({"contract": str(tmp_path / "contract.yaml"), "data": {"root": str(tmp_path)}})
        registry = load_registry(PROJECT_ROOT / "config" / "features.yaml", contract_of(config))
        horizon = Horizon((date(2025, 10, 1),), (), 2, 7, 0, frozenset())
        lineage = Lineage(config, horizon, Warehouse(tmp_path / "warehouse"), registry.fingerprint())
        return {asset: lineage.config_hash(asset, PartitionKey("2025-10-01")) for asset in ASSET_NAMES if asset != "submission"}

    before = hashes("name: smadex", "name: another")

    def changed(old: str, new: str) -> set[str]:
        return {asset for asset, found in hashes(old, new).items() if found != before[asset]}

    models = {"buyer_classifier", "buyer_gating", "revenue_regressor", "stacker", "served_model"}
    assert changed("segments: [country,", "segments: [region,") == {"holdout_metrics", "cohort_forecast", "cohort_errors"}
    assert changed("ranked_within: [country,", "ranked_within: [region,") == models
    assert changed("description: mobile carrier", "description: carrier of the phone") == {"raw_partitions", "flattened_features"}
