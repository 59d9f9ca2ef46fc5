"""A submission is complete, ordered and numeric, or the line at fault is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltv_assets.core.errors import DataError
from ltv_assets.scoring.submission import sample_form, validate_submission, write_submissions

pytestmark = pytest.mark.contest

LIMITS: dict[str, Any] = {"threads": 2, "memory_limit": "0.5GB"}


def predictions(path: Path, ids: list[str], values: list[float]) -> Path:
    pq.write_table(pa.table({"row_id": ids, "iap_revenue_d7": [0.0 if v < 1 else v for v in values], "ltv_d7": values}), path)
    return path


def write(tmp_path: Path, files: list[Path], sample: Path | None = None) -> Path:
    (tmp_path / "out").mkdir(exist_ok=True)
    write_submissions(files, sample, tmp_path / "out", **LIMITS)
    return tmp_path / "out"


def test_rows_keep_the_order_of_days_and_rows(tmp_path: Path) -> None:
    files = [predictions(tmp_path / "a.parquet", ["b", "a"], [2.5, 0.25]), predictions(tmp_path / "b.parquet", ["c"], [7.0])]
    out = write(tmp_path, files)
    assert (out / "submission.csv").read_text() == "row_id,iap_revenue_d7\nb,2.5\na,0.0\nc,7.0\n"
    assert (out / "submission_ungated.csv").read_text() == "row_id,iap_revenue_d7\nb,2.5\na,0.25\nc,7.0\n"
    assert validate_submission(out / "submission.csv", expected=files, **LIMITS) == []


def test_sample_file_gives_the_order(tmp_path: Path) -> None:
    sample = tmp_path / "sample.csv"
    sample.write_text("row_id,iap_revenue_d7\nc,0\na,0\nb,0\n")
    out = write(tmp_path, [predictions(tmp_path / "a.parquet", ["a", "b", "c"], [1.0, 2.0, 3.0])], sample)
    assert (out / "submission.csv").read_text().splitlines()[1:] == ["c,3.0", "a,1.0", "b,2.0"]
    assert validate_submission(out / "submission.csv", sample, **LIMITS) == []


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1e12, allow_subnormal=True), min_size=1, max_size=50))
def test_numbers_survive_the_text_exactly(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    folder = tmp_path_factory.mktemp("numbers")
    out = write(folder, [predictions(folder / "a.parquet", [f"id{i}" for i in range(len(values))], values)])
    read = [float(line.split(",")[1]) for line in (out / "submission_ungated.csv").read_text().splitlines()[1:]]
    assert read == values


@pytest.mark.parametrize(("ids", "words"), [(["a", "a"], "stands on several"), (["=1+1", "b"], "read as a formula")])
def test_unusable_ids_are_refused(tmp_path: Path, ids: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        write(tmp_path, [predictions(tmp_path / "a.parquet", ids, [1.0, 2.0])])


def test_sample_and_scores_must_have_the_same_ids(tmp_path: Path) -> None:
    sample = tmp_path / "sample.csv"
    file = predictions(tmp_path / "a.parquet", ["a", "b"], [1.0, 2.0])
    sample.write_text("row_id,iap_revenue_d7\na,0\nb,0\nc,0\n")
    with pytest.raises(DataError, match="'c' is in the sample file but was not scored"):
        write(tmp_path, [file], sample)
    sample.write_text("row_id,iap_revenue_d7\na,0\n")
    with pytest.raises(DataError, match="'b' is not in the sample file"):
        write(tmp_path, [file], sample)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("row_id,revenue\na,1\n", "line 1: expected the header"),
        ("row_id,iap_revenue_d7\na,1\nb,x\n", "line 3: value is not a number"),
        ("row_id,iap_revenue_d7\na,nan\nb,1\n", "line 2: value is not finite"),
        ("row_id,iap_revenue_d7\na,inf\nb,1\n", "line 2: value is not finite"),
        ("row_id,iap_revenue_d7\na,-0.1\nb,1\n", "line 2: value is negative"),
        ("row_id,iap_revenue_d7\na,1\nb,1\na,2\n", "line 4: row_id 'a' stands already on line 2"),
        ("row_id,iap_revenue_d7\na,1\n", "row_id 'b' is missing (1 in all)"),
        ("row_id,iap_revenue_d7\na,1\nb,1\nz,1\n", "line 4: row_id 'z' is not a test row"),
        ("row_id,iap_revenue_d7\n,1\na,1\nb,1\n", "line 2: row_id is empty"),
        ("row_id,iap_revenue_d7\na,1\nb,1", "cut while it was written"),
        ("row_id,iap_revenue_d7\na,1,3\nb,1\n", "not a two-column CSV"),
    ],
)
def test_damage_is_named_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    expected = predictions(tmp_path / "a.parquet", ["a", "b"], [1.0, 1.0])
    (tmp_path / "s.csv").write_text(text)
    problems = validate_submission(tmp_path / "s.csv", expected=[expected], **LIMITS)
    assert any(words in p for p in problems), problems


def test_wrong_order_names_the_first_line_that_differs(tmp_path: Path) -> None:
    (tmp_path / "sample.csv").write_text("row_id,iap_revenue_d7\na,0\nb,0\nc,0\n")
    (tmp_path / "s.csv").write_text("row_id,iap_revenue_d7\na,0\nc,0\nb,0\n")
    assert validate_submission(tmp_path / "s.csv", tmp_path / "sample.csv", **LIMITS) == [
        "line 3: expected row_id 'b' as in the sample file, found 'c'"
    ]


def test_missing_file_is_a_problem_not_a_traceback(tmp_path: Path) -> None:
    assert "file not found" in validate_submission(tmp_path / "none.csv", **LIMITS)[0]


A, B = ["a", "b"], "row_id,iap_revenue_d7\nb,1.0\na,1.0\n"


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (A, "row_id\nb\na\n"),
        (A, "row_id\nb\na\n\n\n"),
        (A, "\ufeffrow_id,x\r\nb,0\r\na,0"),
        (A, "row_id;x\nb;0\na;0\n"),
        (A, "x\trow_id\n0\tb\n0\ta\n"),
        (A, '"row_id","x"\n"b","0"\n"a",0\n'),
        (["u0;x", "u1;y"], "row_id\nu1;y\nu0;x\n"),
        (["u0|x", "u1|y"], "row_id,iap_revenue_d7\nu1|y,0\nu0|x,0\n"),
        (["u0,x", "u1,y"], 'row_id\n"u1,y"\n"u0,x"\n'),
        (["001", "1"], "row_id\n1\n001\n"),
        (["NULL", "nan"], "row_id\nnan\nNULL\n"),
    ],
)
def test_sample_file_is_read_by_its_header_whatever_its_ids_hold(tmp_path: Path, ids: list[str], text: str) -> None:
    (tmp_path / "sample.csv").write_text(text, newline="")
    out = write(tmp_path, [predictions(tmp_path / "a.parquet", ids, [1.0, 1.0])], tmp_path / "sample.csv")
    lines = (out / "submission.csv").read_text().splitlines()
    assert [line.rpartition(",")[0].strip('"') for line in lines[1:]] == ids[::-1]
    assert validate_submission(out / "submission.csv", tmp_path / "sample.csv", **LIMITS) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,target\na,0\nb,0\n", ":1: expected a header with the column row_id, such as 'row_id,iap_revenue_d7', found 'id,target'"),
        ("a,0\nb,0\n", ":1: expected a header with the column row_id, such as 'row_id,iap_revenue_d7', found 'a,0'"),
        ("row_id,row_id\na,a\n", ":1: expected a header with the column row_id"),
        ("", ": the sample file is empty; expected the header 'row_id,iap_revenue_d7' and one line for each test row"),
        ("\n", ": the sample file is empty"),
        ("row_id,x\n", ": the sample file has a header and no row; expected one line for each test row"),
        ("row_id,x\na,0\nb,0\na,0\n", ":4: row_id 'a' stands already on line 2; repair the sample file"),
        ("row_id,x\na,0\nb,0,1\n", ":3: expected 2 columns as in the header, found 3; repair the sample file"),
        ("row_id,x\na\nb,0\n", ":2: expected 2 columns as in the header, found 1"),
        ("row_id,x\n,0\nb,0\n", ":2: row_id is empty; repair the sample file"),
        ('row_id,x\n"a,0\nb,0\n', ':2: a quote (") is opened and not closed; repair the sample file'),
        ("row_id,x\na,0\né,0\n", ": not UTF-8 text"),
    ],
)
def test_sample_file_that_is_none_is_refused_in_one_line_that_names_it(tmp_path: Path, text: str, words: str) -> None:
    file, sample = predictions(tmp_path / "a.parquet", A, [1.0, 1.0]), tmp_path / "sample.csv"
    sample.write_bytes(text.encode("latin-1"))
    (tmp_path / "s.csv").write_text(B)
    with pytest.raises(DataError) as refused:
        write(tmp_path, [file], sample)
    (problem,) = validate_submission(tmp_path / "s.csv", sample, **LIMITS)
    for message in (str(refused.value), problem):
        assert message.startswith(f"{sample}{words}")
        assert "\n" not in message


def test_sample_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for sample, reason in ((tmp_path / "absent.csv", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(DataError, match=f"the sample file cannot be read \\({reason}\\); set data.sample_submission to a CSV file"):
            sample_form(sample)
