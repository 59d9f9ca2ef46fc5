"""The command line explains itself, and its exit codes mean something."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from ltv_assets.cli.app import main


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, list(words), catch_exceptions=False)
    return done.exit_code, done.output


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help_with_an_example(name: str) -> None:
    code, text = run(name, "--help")
    assert code == 0
    assert "Example:" in text
    assert f"ltv {name}" in text


def test_wrong_configuration_is_one_message_and_exit_2(place: Callable[..., Path]) -> None:
    place(config="windows: {min_train_dayz: 3}\n")
    code, text = run("status")
    assert code == 2
    assert "windows.min_train_dayz" in text
    assert "Traceback" not in text


def test_run_without_data_says_how_to_get_some(place: Callable[..., Path], tmp_path: Path) -> None:
    place(tmp_path / "nothing")
    code, text = run("run")
    assert code == 2
    assert "run `ltv simulate`, or set LTV_DATA_ROOT" in text


def test_status_without_data_says_so(place: Callable[..., Path], tmp_path: Path) -> None:
    place(tmp_path / "nothing")
    code, text = run("status")
    assert code == 0
    assert "no day found" in text


def test_predict_without_champion_says_what_to_run(place: Callable[..., Path], simulated_small: Path, tmp_path: Path) -> None:
    place(simulated_small)
    code, text = run("predict", "--in", str(simulated_small / "test"), "--out", str(tmp_path / "x.csv"))
    assert code == 2
    assert "run `ltv run` first" in text
    assert not (tmp_path / "x.csv").exists()


def test_unwritable_warehouse_is_named(tmp_path: Path, simulated_small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LTV_WAREHOUSE", str(tmp_path / "file" / "warehouse"))
    monkeypatch.setenv("LTV_DATA_ROOT", str(simulated_small))
    code, text = run("run")
    assert code == 2
    assert "the warehouse cannot be written" in text
    assert "LTV_WAREHOUSE" in text


def test_good_data_passes_the_check(place: Callable[..., Path], simulated_small: Path) -> None:
    place()
    code, text = run("check-data", str(simulated_small))
    assert code == 0, text
    assert "4 days, 96 files" in text
    assert run("check-data", str(simulated_small / "train"), "--no-rows")[0] == 0


def test_each_bad_file_gets_one_line_and_exit_2(place: Callable[..., Path], simulated_small: Path, tmp_path: Path) -> None:
    place()
    data = tmp_path / "data"
    shutil.copytree(simulated_small / "train" / "datetime=2025-10-01-00-00", data / "train" / "datetime=2025-10-01-00-00")
    good = next((data / "train" / "datetime=2025-10-01-00-00").glob("*.parquet"))
    table = pq.read_table(good, partitioning=None)

    def hour(number: int) -> Path:
        folder = data / "train" / f"datetime=2025-10-01-{number:02d}-00"
        folder.mkdir()
        return folder / "part-0.parquet"

    hour(1).write_bytes(b"")
    hour(2).write_bytes(good.read_bytes()[:-9])
    hour(3).write_text("no parquet")
    shutil.copy(good, hour(4))
    pq.write_table(table.drop_columns(["buyer_d7"]), hour(5))
    (data / "train" / "2025-10-01").mkdir()
    code, text = run("check-data", str(data))
    assert code == 2
    lines = [line for line in text.splitlines() if "part-0.parquet" in line or "hourly folder" in line]
    assert len(lines) == 6, text
    for words in (
        "zero bytes",
        "not a readable parquet file",
        "same content as",
        "required column buyer_d7 is missing",
        "not an hourly folder",
    ):
        assert any(words in line for line in lines), words


def test_bad_rows_are_counted_by_reason(place: Callable[..., Path], simulated_small: Path, tmp_path: Path) -> None:
    place()
    source = next((simulated_small / "train" / "datetime=2025-10-01-00-00").glob("*.parquet"))
    table = pq.read_table(source, partitioning=None)
    revenue = table["iap_revenue_d7"].to_pylist()
    revenue[0], revenue[1] = -1.0, float("nan")
    folder = tmp_path / "data" / "train" / "datetime=2025-10-01-00-00"
    folder.mkdir(parents=True)
    pq.write_table(table.set_column(table.column_names.index("iap_revenue_d7"), "iap_revenue_d7", pa.array(revenue)), folder / "p.parquet")
    code, text = run("check-data", str(tmp_path / "data"))
    assert code == 2
    assert "1 rows" in text
    assert "iap_revenue_d7" in text


@pytest.mark.contest
def test_explain_sql_prints_an_expression(place: Callable[..., Path]) -> None:
    place()
    code, text = run("explain-sql", "iap_revenue_usd_bundle__own_share")
    assert code == 0
    assert "iap_revenue_usd_bundle" in text
    code, text = run("explain-sql", "no_such_column")
    assert code == 2
    assert "no_such_column" in text


@pytest.mark.contest
def test_simulate_says_what_it_wrote(tmp_path: Path) -> None:
    code, text = run("simulate", "--out", str(tmp_path / "s"), "--train-days", "1", "--test-days", "0", "--rows-per-hour", "5")
    assert code == 0
    assert "training and 0 test impressions (law additive, seed 0)" in text
    assert len(list((tmp_path / "s" / "train").iterdir())) == 24


@pytest.mark.parametrize("day", ["0001-01-01", "9999-12-31", "2025-13-01", "soon", ""])
@pytest.mark.parametrize(
    "words", [("run", "--window"), ("report", "--window"), ("ablate", "--window"), ("promote",), ("quarantine", "replay")], ids=" ".join
)
def test_day_that_is_none_is_refused_where_it_is_read(
    place: Callable[..., Path], simulated_small: Path, words: tuple[str, ...], day: str
) -> None:
    place(simulated_small)
    code, text = run(*words, day)
    assert code == 2
    assert "Invalid value" in text


@pytest.mark.contest
def test_path_that_cannot_be_is_one_message(place: Callable[..., Path], tmp_path: Path) -> None:
    place()
    (tmp_path / "file").write_text("")
    for words in (
        ("check-data", "x" * 5000),
        ("validate-submission", "x" * 5000),
        ("simulate", "--out", str(tmp_path / "file" / "below"), "--train-days", "1", "--test-days", "0", "--rows-per-hour", "1"),
    ):
        code, text = run(*words)
        assert code == 2
        assert len(text.strip().splitlines()) == 1 and ("give another path" in text or "not found" in text), text


def test_sample_file_that_is_none_is_refused_before_anything_is_made(
    place: Callable[..., Path], simulated_small: Path, tmp_path: Path
) -> None:
    sample = tmp_path / "sample.csv"
    sample.write_text("id,target\n")
    warehouse = place(simulated_small, f"data: {{sample_submission: {sample}}}\n")
    code, text = run("run")
    assert code == 2
    assert f"{sample}:1: expected a header with the column row_id" in text
    assert not (warehouse / "lake").exists()


def test_hours_that_no_partition_reads_are_a_problem_of_the_data(place: Callable[..., Path], simulated_small: Path, tmp_path: Path) -> None:
    place()
    shutil.copytree(simulated_small / "train" / "datetime=2025-10-01-00-00", tmp_path / "train" / "datetime=2025-10-01-00-00")
    shutil.copytree(simulated_small / "train" / "datetime=2025-10-01-01-00", tmp_path / "test" / "datetime=2025-10-01-01-00")
    code, text = run("check-data", str(tmp_path), "--no-rows")
    assert code == 2
    assert f"day 2025-10-01 counts as train, so its 1 hours under {tmp_path}/test are read by nobody: 01" in text
