"""What `ltv init` guesses of a table it has never seen: every guess here could be another one."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltv_assets.core.contract import load_contract, parse_contract
from ltv_assets.core.errors import DataError
from ltv_assets.ingestion.profile import proposal as proposing
from ltv_assets.ingestion.profile import sample as sampling
from ltv_assets.ingestion.profile.folders import look
from ltv_assets.ingestion.profile.proposal import Proposal, propose
from ltv_assets.ingestion.profile.roles import horizon_of
from ltv_assets.ingestion.profile.write import FILES, texts_of, write_proposal
from ltv_assets_tests.foreign.tables import FOREIGN, Foreign

ROWS = 300
DAYS = [date(2024, 5, 1) + timedelta(days=i) for i in range(4)]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Foreign]:
    return {name: make(tmp_path_factory.mktemp(name) / "data", rows=600) for name, make in FOREIGN.items()}


@pytest.fixture(scope="module")
def proposed(tables: dict[str, Foreign]) -> dict[str, Proposal]:
    return {name: propose(table.root) for name, table in tables.items()}


# --------------------------------------------------------------------------------------------------- the foreign tables


@pytest.mark.parametrize("name", FOREIGN)
def test_roles_of_a_foreign_table_are_found(name: str, tables: dict[str, Foreign], proposed: dict[str, Proposal]) -> None:
    table, found = tables[name], proposed[name]
    assert found.column("identifier").facts.source == table.identifier
    assert found.revenue == table.labels
    assert (found.labelled_days, found.unlabelled_days) == (table.train_days, table.test_days)
    assert found.edits == ()
    assert found.moment == {"shop": None, "game": "installed_at", "subscriptions": None}[name]
    assert found.folders.pattern == {"shop": "date=%Y-%m-%d", "game": None, "subscriptions": "dt=%Y-%m-%d/hour=%H"}[name]
    assert found.payer == {"shop": None, "game": "is_payer", "subscriptions": "converted"}[name]


@pytest.mark.parametrize("name", FOREIGN)
def test_the_planted_leak_is_named_with_its_figure_and_is_no_feature(
    name: str, tables: dict[str, Foreign], proposed: dict[str, Proposal]
) -> None:
    found, leak = proposed[name], tables[name].leak
    [said] = [g for g in found.guesses if g.about == f"column {leak}"]
    assert said.why.startswith("leak: ") and "AUC 0." in said.why.replace("AUC 1.", "AUC 0.") and said.certainty == "high"
    assert found.others == (leak,)
    assert [g.about for g in found.guesses if g.why.startswith("leak")] == [f"column {leak}"]
    features = texts_of(found, Path("/nowhere"))["features.yaml"]
    assert not any(line.strip().startswith(f"{leak}:") for line in features.splitlines())


def test_types_of_the_game_are_those_its_texts_have(proposed: dict[str, Proposal]) -> None:
    found = {c.facts.source: (c.facts.type, c.facts.meaning, c.role) for c in proposed["game"].columns}
    assert found["session_minutes"] == ("map<string,double>", "number", "feature")
    assert found["ad_views"] == ("map<string,int64>", "count", "feature")
    assert found["levels_done"] == ("list<string>", "identifier", "feature")
    assert found["account_created_at"] == ("int64", "timestamp", "feature")
    assert found["sdk"][2] == "left out"
    shop = {c.facts.source: (c.facts.type, c.facts.meaning) for c in proposed["shop"].columns}
    assert shop["signed_up"] == ("int64", "timestamp")
    assert shop["newsletter"] == ("int32", "flag")
    assert shop["country"] == ("string", "category")


def test_the_same_files_give_the_same_texts(tables: dict[str, Foreign], proposed: dict[str, Proposal]) -> None:
    again = propose(tables["game"].root)
    assert texts_of(again, Path("/nowhere")) == texts_of(proposed["game"], Path("/nowhere"))


def test_nothing_is_changed_and_nothing_is_overwritten(tmp_path: Path, tables: dict[str, Foreign], proposed: dict[str, Proposal]) -> None:
    root = tables["subscriptions"].root
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in root.rglob("*")}
    written = write_proposal(propose(root), tmp_path / "out")
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in root.rglob("*")} == before
    assert [p.name for p in written] == list(FILES)
    for name in FILES[1:]:
        (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / FILES[0]).write_text("mine")
    with pytest.raises(
        DataError, match=r"config\.yaml: exists already and is not overwritten; remove it, or give another folder with --out"
    ):
        write_proposal(proposed["subscriptions"], tmp_path / "out")
    assert (tmp_path / "out" / FILES[0]).read_text() == "mine" and len(list((tmp_path / "out").iterdir())) == 1


# ------------------------------------------------------------------------------------------------------ the contest's own


def test_the_contests_files_are_guessed_as_their_contract_declares_them(simulated_small: Path) -> None:
    """Somebody else declared these 85 columns by hand: every role is the same, and nearly every type."""
    contract, found = load_contract(), propose(simulated_small)
    guessed = {c.name: c for c in found.columns}
    assert set(guessed) == set(contract.by_name) - {"datetime"}
    roles = {name: c.role for name, c in guessed.items()}
    assert roles == {name: contract.by_name[name].role for name in guessed}
    assert (found.revenue, found.payer, found.cold_start) == (contract.labels.revenue, contract.payer, contract.cold_start)
    assert found.folders.pattern == contract.time.layout and found.split_folders == ("train", "test")
    features = [name for name, role in roles.items() if role == "feature"]
    other = {name for name in features if guessed[name].facts.type != contract.by_name[name].type}
    assert other <= {"hour", "bundles_cat", "bundles_cat_bottom_taxonomy", "whale_users_bundle_total_num_buys"}
    own = {name: (contract.by_name[name].own_key, guessed[name].own_key) for name in features}
    right = [name for name, (declared, guess) in own.items() if guess is not None and guess == declared]
    wrong = {name for name, (declared, guess) in own.items() if guess not in (None, declared)}
    assert wrong <= {
        "advertiser_actions_action_count",
        "advertiser_actions_action_last_timestamp",
    }  # by kind of action, as the last action is
    assert len(right) >= 0.7 * sum(declared is not None for declared, _ in own.values())
    assert found.features <= proposing.FEATURE_BUDGET
    assert found.edits == ()


# -------------------------------------------------------------------------------------------------------------- horizons


@pytest.mark.parametrize(
    ("name", "days"),
    [
        ("revenue_d30", 30),
        ("ltv_90", 90),
        ("rev7", 7),
        ("d1_revenue", 1),
        ("spend_30d", 30),
        ("iapRevenueD14", 14),
        ("ltv365", 365),
        ("gmv_4w", 28),
        ("revenue_12m", 360),
        ("day_7_revenue", 7),
        ("buyer_d7", 7),
        ("ipv4", None),
        ("level_3", None),
        ("revenue", None),
        ("d", None),
    ],
)
def test_horizon_of_a_name(name: str, days: int | None) -> None:
    found = horizon_of(name)
    assert (found[0] if found is not None else None) == days


# --------------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize(
    ("folder", "pattern", "splits"),
    [
        ("datetime=2024-05-01-07-00", "datetime=%Y-%m-%d-%H-00", ()),
        ("train/datetime=2024-05-01-07-00", "datetime=%Y-%m-%d-%H-00", ("train",)),
        ("date=2024-05-01", "date=%Y-%m-%d", ()),
        ("dt=20240501/hour=7", "dt=%Y%m%d/hour=%-H", ()),
        ("day=2024-05-01/hour=07", "day=%Y-%m-%d/hour=%H", ()),
        ("2024/05/01", "%Y/%m/%d", ()),
        ("year=2024/month=5/day=1", "year=%Y/month=%-m/day=%-d", ()),
        ("2024-05-01T07", "%Y-%m-%dT%H", ()),
        ("export_20240501_v2", "export_%Y%m%d_v2", ()),
        ("100%/2024.05.01", "%Y.%m.%d", ()),
    ],
)
def test_pattern_of_folders(tmp_path: Path, folder: str, pattern: str, splits: tuple[str, ...]) -> None:
    place = tmp_path / folder
    place.mkdir(parents=True)
    pq.write_table(pa.table({"x": [1]}), place / "a.parquet")
    found = look(tmp_path)
    assert (found.pattern, found.days, found.splits) == (pattern, (date(2024, 5, 1),), splits)


def test_days_below_three_folders_are_refused(tmp_path: Path) -> None:
    for name in ("spain", "france", "italy"):
        (tmp_path / name / "date=2024-05-01").mkdir(parents=True)
        pq.write_table(pa.table({"x": [1]}), tmp_path / name / "date=2024-05-01" / "a.parquet")
    with pytest.raises(DataError, match="days stand below 3 folders \\(france, italy, spain\\); expected them side by side"):
        look(tmp_path)


def test_folder_without_files_and_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file ending in \.parquet below it"):
        look(tmp_path)
    with pytest.raises(DataError, match="folder not found"):
        look(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------------- a table of one's own


def written(root: Path, change: Callable[[dict[str, Any], int, np.ndarray], None] | None = None, days: list[date] = DAYS) -> Path:
    """Daily folders of a plain table; ``change(columns, number of the day, who pays)`` edits each day's columns."""
    for number, day in enumerate(days):
        rng = np.random.default_rng(number)
        payer = rng.random(ROWS) < 0.1
        columns: dict[str, Any] = {
            "id": [f"{number}-{i}" for i in range(ROWS)],
            "visits": rng.poisson(3.0, ROWS),
            "plan": rng.choice(["a", "b", "c"], ROWS),
            "revenue_d7": np.where(payer, 5.0 + rng.random(ROWS), 0.0),
        }
        if change is not None:
            change(columns, number, payer)
        folder = root / f"date={day}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / "a.parquet")
    return root


def column(found: Proposal, source: str) -> proposing.PlannedColumn:
    return next(c for c in found.columns if c.facts.source == source)


def test_past_spend_is_a_feature_whatever_days_its_name_says(tmp_path: Path) -> None:
    def change(columns: dict[str, Any], number: int, payer: np.ndarray) -> None:
        columns["spend_last_30d"] = np.random.default_rng(number).gamma(1.0, 9.0, ROWS)

    found = propose(written(tmp_path, change))
    assert found.revenue == {7: "revenue_d7"}
    assert column(found, "spend_last_30d").role == "feature"


def test_not_a_number_is_no_value(tmp_path: Path) -> None:
    """As pandas writes it: labels of the newest day, and a voucher that only payers have, are NaN where they are missing."""

    def change(columns: dict[str, Any], number: int, payer: np.ndarray) -> None:
        newest = number == len(DAYS) - 1
        columns["voucher"] = np.where(payer & ~np.full(ROWS, newest), 5.0, np.nan)
        if newest:
            columns["revenue_d7"] = np.full(ROWS, np.nan)

    found = propose(written(tmp_path, change))
    assert found.unlabelled_days == (DAYS[-1],)
    assert column(found, "voucher").role == "label"
    assert column(found, "voucher").facts.missing > 0.8


def test_without_a_day_to_score_what_tells_too_well_is_a_label_and_what_tells_well_is_named(tmp_path: Path) -> None:
    def change(columns: dict[str, Any], number: int, payer: np.ndarray) -> None:
        rng = np.random.default_rng(number + 100)
        columns["invoices"] = np.where(payer, rng.integers(1, 4, ROWS), 0)
        columns["interest"] = rng.normal(size=ROWS) + 2.2 * payer

    found = propose(written(tmp_path, change))
    assert found.unlabelled_days == ()
    assert column(found, "invoices").role == "label"
    assert column(found, "interest").role == "feature"
    [note] = found.notes
    assert note.startswith("interest tells payers apart suspiciously well (leak? AUC 0.9")
    assert "LOOK AT THIS: leak? AUC 0.9" in texts_of(found, tmp_path)["contract.yaml"]


def test_a_moment_after_the_day_is_known_only_afterwards(tmp_path: Path) -> None:
    def change(columns: dict[str, Any], number: int, payer: np.ndarray) -> None:
        start = datetime(DAYS[number].year, DAYS[number].month, DAYS[number].day, tzinfo=UTC)
        columns["last_seen_at"] = pa.array([start + timedelta(days=2 + i % 5) for i in range(ROWS)], pa.timestamp("s", tz="UTC"))
        columns["created_at"] = pa.array([start - timedelta(days=i % 50) for i in range(ROWS)], pa.timestamp("s", tz="UTC"))

    found = propose(written(tmp_path, change))
    assert column(found, "last_seen_at").role == "label"
    assert column(found, "last_seen_at").why == "leak: 100% of its moments lie after the row's day"
    assert column(found, "created_at").role == "feature"


def test_a_table_without_an_identifier_is_told_how_to_get_one(tmp_path: Path) -> None:
    def change(columns: dict[str, Any], number: int, payer: np.ndarray) -> None:
        columns["id"] = np.arange(ROWS) % 50

    with pytest.raises(
        DataError, match=r"no column tells rows apart; nearest are .*Add one, for example with DuckDB: COPY \(SELECT \*, md5"
    ):
        propose(written(tmp_path, change))


def test_an_identifier_that_comes_again_on_another_day_is_taken_with_a_note(tmp_path: Path) -> None:
    def change(columns: dict[str, Any], number: int, payer: np.ndarray) -> None:
        columns["customer_id"] = columns.pop("id")
        columns["customer_id"] = [f"c{i}" for i in range(ROWS)]

    found = propose(written(tmp_path, change))
    assert found.column("identifier").name == "customer_id"
    assert any(note.startswith("customer_id tells rows apart within a day only") for note in found.notes)


def test_a_table_without_revenue_or_without_time_is_told_what_to_add(tmp_path: Path) -> None:
    def change(columns: dict[str, Any], number: int, payer: np.ndarray) -> None:
        del columns["revenue_d7"]

    with pytest.raises(
        DataError, match="no column looks like revenue within a number of days; expected a name such as revenue_d30, ltv_90, rev7"
    ):
        propose(written(tmp_path / "a", change))
    (tmp_path / "b").mkdir()
    pq.write_table(pa.table({"id": ["a", "b"], "revenue_d7": [0.0, 1.0]}), tmp_path / "b" / "a.parquet")
    with pytest.raises(DataError, match="no folder is named after a day and no column holds moments of several days"):
        propose(tmp_path / "b")


def test_revenue_without_a_horizon_asks_for_an_edit(tmp_path: Path) -> None:
    def change(columns: dict[str, Any], number: int, payer: np.ndarray) -> None:
        columns["revenue"] = columns.pop("revenue_d7")

    found = propose(written(tmp_path, change))
    assert found.revenue == {7: "revenue"}
    assert found.edits == ("no horizon is named: correct the number of days under labels.revenue in contract.yaml",)


def test_missing_days_become_gaps_and_one_labelled_day_an_edit(tmp_path: Path) -> None:
    found = propose(written(tmp_path / "a", days=[DAYS[0], DAYS[1], DAYS[3]]))
    assert found.gap_days == (DAYS[2],)
    assert f"gap_days: [{DAYS[2]}]" in texts_of(found, tmp_path)["config.yaml"]
    found = propose(written(tmp_path / "b", days=DAYS[:1]))
    assert found.edits == ("a window needs a labelled day to train on and one to be measured on, found 1; add labelled days",)


def test_awkward_names_are_renamed_and_read_from_where_they_stand(tmp_path: Path) -> None:
    def change(columns: dict[str, Any], number: int, payer: np.ndarray) -> None:
        rng = np.random.default_rng(number)
        for name in ("Order", "Plan (current)", "2nd visit", "max_visits", "datetime", "Größe", "a__b", "row_id", "day"):
            columns[name] = rng.random(ROWS)
        columns["ltv_d7"] = columns.pop("revenue_d7")

    found = propose(written(tmp_path, change))
    names = {c.facts.source: c.name for c in found.columns}
    assert names["ltv_d7"] == "ltv_d7_label"
    assert names["Order"] == "order_value"
    assert names["Plan (current)"] == "plan_current"
    assert names["datetime"] == "datetime_value"
    assert len(set(names.values())) == len(names)
    write_proposal(found, tmp_path / "out")  # which the contract's own reader has to accept


def test_text_that_is_json_a_number_a_code_or_a_moment_is_told_apart(tmp_path: Path) -> None:
    def change(columns: dict[str, Any], number: int, payer: np.ndarray) -> None:
        rng = np.random.default_rng(number)
        amount = rng.integers(1, 99, ROWS)
        columns |= {
            "as_pairs": [json.dumps([["x", int(a)]]) for a in amount],
            "as_twice": [json.dumps(json.dumps({"x": 1.5 * int(a)})) for a in amount],
            "as_maps": [json.dumps({"x": {"y": int(a)}}) for a in amount],
            "as_words": [json.dumps({"x": "red"}) for _ in amount],
            "as_number": [f"{a / 7:.3f}" for a in amount],
            "as_code": [f"0{a:03d}" for a in amount],
            "seen_ms": 1_700_000_000_000 + amount,
            "seen_at": [f"2024-04-{1 + a % 28:02d} 12:00:00" for a in amount],
            "prose": [f"text number {number} {i}" for i in range(ROWS)],
            "store_type": amount % 4,
        }

    found = propose(written(tmp_path, change))
    types = {c.facts.source: c.facts.type for c in found.columns}
    roles = {c.facts.source: c.role for c in found.columns}
    assert types["as_pairs"] == "map<string,int64>"
    assert types["as_twice"] == "map<string,double>"
    assert types["as_maps"] == "map<string,map<string,int64>>"
    assert types["as_number"] == "double"
    assert types["as_code"] == types["store_type"] == "string"
    assert types["seen_at"] == "int64"
    assert [name for name, role in roles.items() if role == "left out"] == ["as_words", "seen_ms", "prose"]
    assert "column seen_ms: divide seen_ms by 1000 in the files and declare it as int64 with meaning: timestamp" in found.notes


def test_a_category_whose_values_are_keys_of_a_map_is_the_rows_own_key(tmp_path: Path) -> None:
    def change(columns: dict[str, Any], number: int, payer: np.ndarray) -> None:
        columns["visits_by_plan"] = [json.dumps({"a": 1, "b": int(v)}) for v in columns["visits"]]

    found = propose(written(tmp_path, change))
    assert found.own_keys == {"plan": "plan"}
    assert column(found, "visits_by_plan").keyed_by == "plan"
    assert {"own", "own_share"} <= set(column(found, "visits_by_plan").statistics)


def test_features_beyond_the_budget_are_left_out_the_least_telling_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(columns: dict[str, Any], number: int, payer: np.ndarray) -> None:
        rng = np.random.default_rng(number)
        columns["telling"] = rng.normal(size=ROWS) + payer
        columns |= {f"noise_{i}": rng.normal(size=ROWS) for i in range(6)}

    monkeypatch.setattr(proposing, "FEATURE_BUDGET", 3)
    found = propose(written(tmp_path, change))
    kept = [c.name for c in found.columns if c.statistics]
    assert len(kept) == 3 and "telling" in kept
    assert sum("beyond the budget of 3 features" in g.why for g in found.guesses) == 6


def test_a_sample_is_bounded_spread_over_the_days_and_knows_the_newest_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = [DAYS[0] + timedelta(days=i) for i in range(12)]

    def change(columns: dict[str, Any], number: int, payer: np.ndarray) -> None:
        if number == len(days) - 1:
            del columns["revenue_d7"]

    monkeypatch.setattr(sampling, "MOST_FILES", 4)
    monkeypatch.setattr(sampling, "MOST_ROWS", 400)
    monkeypatch.setattr(sampling, "LEAST_ROWS_A_FILE", 50)
    found = propose(written(tmp_path, change, days=days))
    assert len(found.columns[0].facts.present) == 400
    assert found.unlabelled_days == (days[-1],) and found.labelled_days == tuple(days[:-1])
    assert found.rows == 12 * ROWS


def test_a_file_beside_the_days_is_noted_before_check_data_reports_it(tmp_path: Path) -> None:
    root = written(tmp_path)
    (root / "README.md").write_text("about this table")
    (root / "rows.csv").write_text("user,revenue")
    (root / "_SUCCESS").touch()
    assert propose(root).notes == (
        "rows.csv: no folder of a day; `ltv check-data` reports it as a problem, `ltv run` leaves it out and says so",
    )


def test_damaged_files_are_left_out_of_the_look(tmp_path: Path) -> None:
    root = written(tmp_path)
    (root / f"date={DAYS[0]}" / "b.parquet").write_bytes(b"PAR1 not really")
    assert propose(root).revenue == {7: "revenue_d7"}
    for path in root.rglob("*.parquet"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 5 files looked at can be used; first: "):
        propose(root)


def test_what_was_spent_has_a_name_that_no_score_has(proposed: dict[str, Proposal]) -> None:
    """`revenue_d30` is what a shop calls its label, what its gated score is called, and what would stand beside both."""
    for name, observed in (("shop", "revenue_d30_observed"), ("game", "revenue_d1"), ("subscriptions", "revenue_d365")):
        scores = parse_contract(texts_of(proposed[name], Path("/nowhere"))["contract.yaml"], Path("contract.yaml")).scores
        assert scores.observed == observed and observed not in scores.columns


def test_same_day_values_move_with_the_calendar(tmp_path: Path) -> None:
    def change(columns: dict[str, Any], number: int, payer: np.ndarray) -> None:
        columns["promo_level"] = np.full(ROWS, number * 1.5)

    found = propose(written(tmp_path, change))
    assert column(found, "promo_level").facts.calendar and not column(found, "visits").facts.calendar
