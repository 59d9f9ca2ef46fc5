"""A submission that is not what it should be is named by its line, and never half written."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltv_assets.core.errors import DataError
from ltv_assets.scoring.submission import write_submissions
from ltv_assets_tests.faults.catalogue import Fault, fault
from ltv_assets_tests.faults.evidence import ltv, nothing_changes

HEADER = "row_id,iap_revenue_d7\n"


@fault("output", "missing id", answer="reject", message="<file>: row_id 'c' is missing (1 in all)", inject="a,1\nb,1\n")
@fault("output", "unknown id", answer="reject", message="<file>: line 5: row_id 'z' is not a test row", inject="a,1\nb,1\nc,1\nz,1\n")
@fault("output", "id twice", answer="reject", message="<file>: line 5: row_id 'a' stands already on line 2", inject="a,1\nb,1\nc,1\na,1\n")
@fault("output", "empty id", answer="reject", message="<file>: line 2: row_id is empty (<found>)", inject=",1\na,1\nb,1\nc,1\n")
@fault("output", "not a number", answer="reject", message="<file>: line 3: value is not a number (<found>)", inject="a,1\nb,x\nc,1\n")
@fault("output", "NaN", answer="reject", message="<file>: line 2: value is not finite (<found>)", inject="a,nan\nb,1\nc,1\n")
@fault("output", "infinite", answer="reject", message="<file>: line 2: value is not finite (<found>)", inject="a,inf\nb,1\nc,1\n")
@fault("output", "negative", answer="reject", message="<file>: line 4: value is negative (<found>)", inject="a,1\nb,1\nc,-0.1\n")
@fault(
    "output",
    "wrong order",
    answer="reject",
    message="<file>: line 3: expected row_id 'b' as in the sample file, found 'c'",
    inject="a,1\nc,1\nb,1\n",
)
@fault("output", "a third column", answer="reject", message="<file>: not a two-column CSV: <detail>", inject="a,1,3\nb,1\nc,1\n")
@fault(
    "output",
    "half written",
    answer="reject",
    message="<file>: last line: no line end; the file was cut while it was written",
    inject="a,1\nb,1\nc,0.0",
)
def test_damaged_submission_is_named_by_its_line(fault: Fault, tmp_path: Path) -> None:
    (tmp_path / "sample.csv").write_text(HEADER + "a,0\nb,0\nc,0\n")
    (tmp_path / "mine.csv").write_text(HEADER + fault.inject)
    with nothing_changes(tmp_path):
        code, text = ltv("validate-submission", tmp_path / "mine.csv", "--sample", tmp_path / "sample.csv")
    assert code == 2
    assert fault.told(text)["file"] == str(tmp_path / "mine.csv")


@fault(
    "output",
    "wrong header",
    answer="reject",
    message="<file>: line 1: expected the header '<expected>', found '<found>'",
    inject=b"row_id,x\na,1\n",
)
@fault("output", "no file", answer="reject", message="<file>: <path>: file not found", inject=None)
@fault(
    "output",
    "bytes that are no text",
    answer="reject",
    message="<file>: line 1: expected the header '<expected>', found '<found>'",
    inject=b"\xff\x00" * 40,
)
def test_file_that_is_no_submission_is_refused(fault: Fault, tmp_path: Path) -> None:
    if fault.inject is not None:
        (tmp_path / "mine.csv").write_bytes(fault.inject)
    code, text = ltv("validate-submission", tmp_path / "mine.csv")
    assert code == 2
    fault.told(text)


def scored(folder: Path, ids: list[str]) -> Path:
    values = pa.array([0.5] * len(ids))
    pq.write_table(pa.table({"row_id": ids, "iap_revenue_d7": values, "ltv_d7": values}), folder / "scores.parquet")
    return folder / "scores.parquet"


@fault(
    "output",
    "row_id a spreadsheet would take for a formula",
    answer="reject",
    message="submission: row_id <id> would be read as a formula by a spreadsheet; repair the test data and score the days again",
    inject=["a", "=1+1", "c"],
)
@fault(
    "output",
    "row_id on two test days",
    answer="reject",
    message="submission: row_id <id> stands on several test days or rows; repair the test data and score the days again",
    inject=["a", "b", "a"],
)
@fault(
    "output",
    "row_id that is not in the sample file",
    answer="reject",
    message="submission: row_id <id> is not in the sample file <file>; give the sample file of these test days",
    inject=["a", "b", "c", "d"],
)
@fault(
    "output",
    "row_id of the sample file that was not scored",
    answer="reject",
    message="submission: row_id <id> is in the sample file but was not scored (<file>); give the sample file of these test days",
    inject=["a", "b"],
)
def test_unusable_ids_write_nothing(fault: Fault, tmp_path: Path) -> None:
    (tmp_path / "sample.csv").write_text(HEADER + "a,0\nb,0\nc,0\n")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError) as caught:
        write_submissions([scored(tmp_path, fault.inject)], tmp_path / "sample.csv", out, threads=1, memory_limit="0.5GB")
    fault.told(str(caught.value))
    assert list(out.iterdir()) == []
