"""Who is champion: decided in order of time from what the warehouse holds, by hand only among windows that passed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ltv_assets.core.check_specs import blocking_checks
from ltv_assets.core.config import Config
from ltv_assets.core.errors import ModelFileError, StaleError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.promotion import promotion
from ltv_assets.promotion.promotion import Comparison, promote, rollback, settle_champion, unpin, update_champion
from ltv_assets.storage.champion import (
    CHAMPION_FILE,
    champion_in_use,
    eligible_windows,
    is_judged,
    read_champion,
    read_history,
    write_champion,
)
from ltv_assets.storage.warehouse import Verdict, Warehouse

DAYS = tuple(PartitionKey(f"2025-10-0{day}") for day in (3, 4, 5, 6))


class Bench:
    """A warehouse of windows without models, and a table of what each comparison would find."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.warehouse = Warehouse(root)
        self.project: Any = SimpleNamespace(warehouse=self.warehouse, config=Config())
        self.worse: set[tuple[str, str]] = set()
        self.compared: list[tuple[str, str]] = []
        monkeypatch.setattr(promotion, "_compare", self._compare)

    def _compare(self, project: Any, challenger: str, champion: str, identity: tuple[str, str]) -> Comparison:
        self.compared.append((challenger, champion))
        low = 0.01 if (challenger, champion) in self.worse else -0.01
        return Comparison(challenger, champion, *identity, 0.41, 0.40, difference_low=low, difference_high=0.02)

    def evaluate(self, key: str, *, content: str = "", passed: bool = True) -> None:
        """Publish the evaluation of a window with the verdicts of its blocking checks."""
        metrics = self._write("holdout_metrics", key, f"metrics {key} {content}", {})
        for check in blocking_checks("holdout_metrics"):
            ok = passed or check != "rmsle"
            self.warehouse.record_verdict(Verdict("holdout_metrics", key, check, ok, True, metrics, "b", "RMSLE 9 is above 1"))

    def serve(self, key: str, *, content: str = "") -> None:
        """Publish the served model of the window's present evaluation."""
        metrics = self.warehouse.fingerprint("holdout_metrics", key) or ""
        self._write("served_model", key, f"model {key} {content}", {f"holdout_metrics/{key}": metrics})

    def train(self, key: str, **settings: Any) -> None:
        self.evaluate(key, **settings)
        self.serve(key)

    def _write(self, asset: str, key: str, text: str, inputs: dict[str, str]) -> str:
        def fill(folder: Path) -> dict[str, int | None]:
            (folder / "content.txt").write_text(text)
            return {"content.txt": None}

        return self.warehouse.write(asset, key, fill, code_version="1", config="c", inputs=inputs).fingerprint

    @property
    def champion(self) -> str | None:
        champion = read_champion(self.warehouse)
        return champion.window if champion else None


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_first_window_that_passed_is_champion(bench: Bench) -> None:
    bench.train(DAYS[0])
    assert update_champion(bench.project).window == DAYS[0]


def test_newer_window_takes_over_unless_it_is_worse_beyond_its_interval(bench: Bench) -> None:
    bench.worse = {(DAYS[2], DAYS[1])}
    for key in DAYS[:3]:
        bench.train(key)
    champion = update_champion(bench.project)
    assert champion.window == DAYS[1]
    assert f"window {DAYS[2]} refused: RMSLE 0.4100 against 0.4000 of window {DAYS[1]} on day {DAYS[2]}" in champion.why
    bench.train(DAYS[3])
    assert update_champion(bench.project).window == DAYS[3], "a refused window does not stand in the way of the next one"
    assert (DAYS[3], DAYS[1]) in bench.compared, "the challenger meets the champion, not the window that was refused"


@pytest.mark.parametrize("order", list(itertools.permutations(DAYS)))
def test_order_in_which_runs_finish_cannot_matter(bench: Bench, order: tuple[str, ...]) -> None:
    bench.worse = {(DAYS[2], DAYS[1]), (DAYS[1], DAYS[0])}
    for key in order:
        bench.train(key)
        update_champion(bench.project)
    assert bench.champion == DAYS[3]
    record = read_champion(bench.warehouse)
    assert record is not None and f"of window {DAYS[2]} on day {DAYS[3]}" in record.why, "2 beats 0 once 1 was refused, 3 beats 2"


def test_window_that_failed_a_blocking_check_is_never_champion(bench: Bench) -> None:
    bench.train(DAYS[0])
    bench.train(DAYS[1], passed=False)
    assert update_champion(bench.project).window == DAYS[0]
    with pytest.raises(StaleError, match=f"{DAYS[1]} cannot be champion: its check rmsle failed: RMSLE 9 .*that can: {DAYS[0]}"):
        promote(bench.project, DAYS[1])


def fail(bench: Bench, key: str) -> None:
    """A check that is executed again finds what it did not find before; nothing else runs after it."""
    metrics = bench.warehouse.fingerprint("holdout_metrics", key) or ""
    bench.warehouse.record_verdict(Verdict("holdout_metrics", key, "rmsle", False, True, metrics, "b", "RMSLE 9 is above 1"))


def test_failed_verdict_alone_lets_the_champion_give_way_where_it_is_read(bench: Bench) -> None:
    for key in DAYS[:3]:
        bench.train(key)
    assert update_champion(bench.project).window == DAYS[2]
    record = (bench.warehouse.root / CHAMPION_FILE).read_bytes()
    fail(bench, DAYS[2])
    in_use = champion_in_use(bench.warehouse)
    assert in_use is not None and in_use.window == DAYS[1]
    assert in_use.why == f"window {DAYS[2]} gave way because its check rmsle failed: RMSLE 9 is above 1"
    assert (bench.warehouse.root / CHAMPION_FILE).read_bytes() == record, "reading writes nothing"
    assert not is_judged(bench.warehouse, DAYS[2]), "the next run makes the record again"
    settle_champion(bench.project)
    assert bench.champion == DAYS[1]


def test_window_that_was_never_compared_waits_for_the_promotion_step(bench: Bench) -> None:
    for key in DAYS[:2]:
        bench.train(key)
    bench.worse = {(DAYS[2], DAYS[1])}
    bench.train(DAYS[2])
    assert update_champion(bench.project).window == DAYS[1]
    fail(bench, DAYS[1])
    in_use = champion_in_use(bench.warehouse)
    assert in_use is not None and in_use.window == DAYS[0], "the third was compared with the second only"
    settle_champion(bench.project)
    assert bench.champion == DAYS[2]


def test_pinned_champion_and_the_last_one_give_way_to_a_failed_check_too(bench: Bench) -> None:
    for key in DAYS[:2]:
        bench.train(key)
    promote(bench.project, DAYS[1])
    fail(bench, DAYS[1])
    in_use = champion_in_use(bench.warehouse)
    assert in_use is not None and (in_use.window, in_use.pinned) == (DAYS[0], False)
    fail(bench, DAYS[0])
    settle_champion(bench.project)
    assert champion_in_use(bench.warehouse) is None and bench.champion is None


def test_champion_that_passes_is_left_as_it_is(bench: Bench) -> None:
    bench.train(DAYS[0])
    update_champion(bench.project)
    bench.train(DAYS[1])
    settle_champion(bench.project)
    assert bench.champion == DAYS[0], "a window that was only evaluated competes when it is served"


def test_champion_whose_check_fails_later_gives_way_to_the_one_before(bench: Bench) -> None:
    for key in DAYS[:2]:
        bench.train(key)
    assert update_champion(bench.project).window == DAYS[1]
    bench.evaluate(DAYS[1], passed=False)
    assert update_champion(bench.project).window == DAYS[0]


def test_without_any_eligible_window_the_record_says_that_there_is_none(bench: Bench) -> None:
    bench.train(DAYS[0])
    update_champion(bench.project)
    bench.evaluate(DAYS[0], passed=False)
    with pytest.raises(StaleError, match="there is no champion"):
        update_champion(bench.project)
    assert read_champion(bench.warehouse) is None
    assert [r.window for r in read_history(bench.warehouse)] == [DAYS[0]], "the history is not forgotten"


def test_served_model_of_an_older_evaluation_is_not_eligible(bench: Bench) -> None:
    bench.train(DAYS[0])
    bench.evaluate(DAYS[0], content="evaluated again")
    assert eligible_windows(bench.warehouse) == ()
    bench.serve(DAYS[0])
    assert eligible_windows(bench.warehouse) == (DAYS[0],)


def test_comparison_is_made_once_for_the_same_content(bench: Bench) -> None:
    for key in DAYS[:3]:
        bench.train(key)
    for _ in range(3):
        update_champion(bench.project)
    assert bench.compared == [(DAYS[1], DAYS[0]), (DAYS[2], DAYS[1])]
    bench.train(DAYS[2], content="trained on a repaired day")
    update_champion(bench.project)
    assert bench.compared[2:] == [(DAYS[2], DAYS[1])]


def test_comparison_that_was_won_is_not_forgotten_by_a_run_killed_before_the_record(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is written first; a run that dies before the record is written leaves the window unjudged, not refused."""
    first, second, third = DAYS[:3]
    bench.train(first)
    update_champion(bench.project)
    for key, judged in ((second, False), (third, True)):
        bench.train(key)
        if key == third:
            bench.worse = {(third, second)}
        with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
            patch.setattr(promotion, "write_champion", lambda warehouse, champion: (_ for _ in ()).throw(OSError("killed")))
            update_champion(bench.project)
        assert (bench.warehouse.root / "comparisons" / f"{key}_against_{DAYS[DAYS.index(key) - 1]}.json").is_file()
        assert is_judged(bench.warehouse, key) is judged
        update_champion(bench.project)
    assert bench.champion == second
    bench.train(third, content="again")
    assert not is_judged(bench.warehouse, third), "the refusal was of other content"
    promote(bench.project, first)
    assert is_judged(bench.warehouse, second), "a pin stands, whoever won"


def test_damaged_comparison_is_made_again(bench: Bench) -> None:
    for key in DAYS[:2]:
        bench.train(key)
    update_champion(bench.project)
    (bench.warehouse.root / "comparisons" / f"{DAYS[1]}_against_{DAYS[0]}.json").write_text("{")
    assert update_champion(bench.project).window == DAYS[1]
    assert len(bench.compared) == 2


def test_pinned_window_stays_whatever_is_trained_until_it_is_let_go(bench: Bench) -> None:
    for key in DAYS[:3]:
        bench.train(key)
    update_champion(bench.project)
    assert promote(bench.project, DAYS[0]).pinned
    bench.train(DAYS[3])
    assert update_champion(bench.project).window == DAYS[0]
    assert unpin(bench.project).window == DAYS[3]
    assert not (read_champion(bench.warehouse) or pytest.fail("no champion")).pinned


def test_window_that_was_refused_can_be_promoted_by_hand(bench: Bench) -> None:
    bench.worse = {(DAYS[1], DAYS[0])}
    for key in DAYS[:2]:
        bench.train(key)
    assert update_champion(bench.project).window == DAYS[0]
    assert promote(bench.project, DAYS[1]).window == DAYS[1]
    assert update_champion(bench.project).window == DAYS[1]


def test_pin_follows_a_retrained_window_and_ends_when_it_fails(bench: Bench) -> None:
    for key in DAYS[:2]:
        bench.train(key)
    before = promote(bench.project, DAYS[0])
    bench.serve(DAYS[0], content="refitted")
    after = update_champion(bench.project)
    assert (after.window, after.pinned) == (DAYS[0], True)
    assert after.fingerprint != before.fingerprint
    bench.evaluate(DAYS[0], passed=False)
    champion = update_champion(bench.project)
    assert (champion.window, champion.pinned) == (DAYS[1], False)
    assert f"the pin on window {DAYS[0]} ended because its check rmsle failed" in champion.why


def test_rollback_goes_to_the_champion_before_and_again_further_back(bench: Bench) -> None:
    for key in DAYS[:3]:
        bench.train(key)
        update_champion(bench.project)
    assert rollback(bench.project).window == DAYS[1]
    assert rollback(bench.project).window == DAYS[0]
    with pytest.raises(StaleError, match="no earlier champion to go back to"):
        rollback(bench.project)
    assert [r.window for r in read_history(bench.warehouse)] == [*DAYS[:3], DAYS[1], DAYS[0]]


def test_rollback_takes_back_a_promotion_by_hand(bench: Bench) -> None:
    for key in DAYS[:3]:
        bench.train(key)
        update_champion(bench.project)
    promote(bench.project, DAYS[0])
    assert rollback(bench.project).window == DAYS[2]


def test_rollback_skips_a_champion_that_is_gone(bench: Bench) -> None:
    for key in DAYS[:3]:
        bench.train(key)
        update_champion(bench.project)
    bench.evaluate(DAYS[1], passed=False)
    assert rollback(bench.project).window == DAYS[0]


def test_promoting_the_present_champion_pins_it(bench: Bench) -> None:
    bench.train(DAYS[0])
    update_champion(bench.project)
    assert promote(bench.project, DAYS[0]).pinned


def test_recomputing_an_unchanged_champion_writes_nothing(bench: Bench) -> None:
    bench.train(DAYS[0])
    update_champion(bench.project)
    path = bench.warehouse.root / CHAMPION_FILE
    stamp = path.stat().st_mtime_ns
    update_champion(bench.project)
    assert path.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"window": "2025-10-03"}', '{"window": "2025-10-03", "fingerprint": "f", "why": "w", "history": [1]}']
)
def test_damaged_record_names_the_remedy_and_is_written_again(bench: Bench, text: str) -> None:
    bench.train(DAYS[0])
    path = bench.warehouse.root / CHAMPION_FILE
    path.write_text(text)
    with pytest.raises(ModelFileError, match="ltv promote --unpin"):
        read_champion(bench.warehouse)
        read_history(bench.warehouse)
    assert update_champion(bench.project).window == DAYS[0]
    assert json.loads(path.read_text())["window"] == DAYS[0]


def test_history_is_bounded(bench: Bench, make_champion: Callable[[int], Any]) -> None:
    for number in range(70):
        write_champion(bench.warehouse, make_champion(number))
    history = read_history(bench.warehouse)
    assert len(history) == 50
    assert history[-1].fingerprint == "69"


@pytest.fixture
def make_champion() -> Callable[[int], Any]:
    from ltv_assets.storage.champion import Champion

    return lambda number: Champion(DAYS[0], str(number), "because")


def test_commands_promote_roll_back_and_let_go(place: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from ltv_assets.cli.app import main

    def ltv(*arguments: str) -> Any:
        return CliRunner().invoke(main, list(arguments))

    bench = Bench(place(tmp_path / "data", "tracking: {enabled: false}\n"), monkeypatch)
    assert "champion: none yet" in ltv("promote").output
    for key in DAYS[:2]:
        bench.train(key)
        update_champion(bench.project)
    assert f"champion: window {DAYS[0]}, pinned (promoted by hand)" in ltv("promote", DAYS[0]).output
    assert f"champion: window {DAYS[1]}, pinned (rolled back by hand from window {DAYS[0]})" in ltv("rollback").output
    assert f"champion: window {DAYS[1]} (not worse" in ltv("promote", "--unpin").output
    listed = ltv("promote").output.splitlines()
    assert [line.split("window ")[1][:10] for line in listed[:4]] == [DAYS[0], DAYS[1], DAYS[0], DAYS[1]]
    refused = ltv("promote", DAYS[3])
    assert refused.exit_code == 2
    assert ltv("promote", DAYS[0], "--unpin").exit_code == 2
    assert ltv("promote", "yesterday").exit_code == 2
