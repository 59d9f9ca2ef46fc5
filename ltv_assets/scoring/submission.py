"""The submission CSV: written in one stream from the predictions, and validated as a stranger would.

The header is the contract's identifier and its target; the order is that of the sample file when one is configured, else that of
the days and their rows. `validate_submission` reads the file as text and reports every problem with its line.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from ltv_assets.core.contract import Contract, load_contract
from ltv_assets.core.database import open_duckdb
from ltv_assets.core.errors import DataError

MAX_PROBLEMS = 20
MAX_HEADER = 100_000
FORMULA = r"^[=+@\-\t\r]"
_FORMULA = f"regexp_matches(row_id, '{FORMULA}')"


def header_of(contract: Contract) -> str:
    """First line of a submission: the contract's identifier and its target."""
    return f"{contract.identifier},{contract.target}"


def write_submissions(
    predictions: Sequence[Path], sample: Path | None, folder: Path, *, threads: int, memory_limit: str, contract: Contract | None = None
) -> int:
    """Write ``submission.csv`` (gated) and ``submission_ungated.csv`` (RMSLE-optimal) into ``folder``; returns the rows.

    ``predictions`` are the parquet files of all test days in order. Raises DataError if an id would be read as a formula
    by a spreadsheet, stands twice, or is missing from (or unknown to) the sample. Without a contract, the shipped one names the columns.
    """
    contract = contract or load_contract()
    target, ltv = contract.target, contract.scores.ltv[0]
    with open_duckdb(threads=threads, memory_limit=memory_limit) as connection:
        connection.execute("SET enable_progress_bar = false")
        connection.execute(f"CREATE VIEW scored AS SELECT row_id, {target}, {ltv} FROM read_parquet({_listed(predictions)})")
        rows = _one(connection, "SELECT count(*) FROM scored")
        _refuse(connection, f"SELECT row_id FROM scored WHERE {_FORMULA} LIMIT 1", "would be read as a formula by a spreadsheet")
        _refuse(connection, "SELECT row_id FROM scored GROUP BY row_id HAVING count(*) > 1 LIMIT 1", "stands on several test days or rows")
        source = "scored"
        if sample is not None:
            _read_sample(connection, sample, "sample_order", contract)
            _refuse(
                connection,
                "SELECT row_id FROM scored ANTI JOIN sample_order USING (row_id) LIMIT 1",
                f"is not in the sample file {sample}",
                _OTHER_SAMPLE,
            )
            _refuse(
                connection,
                "SELECT row_id FROM sample_order ANTI JOIN scored USING (row_id) LIMIT 1",
                f"is in the sample file but was not scored ({sample})",
                _OTHER_SAMPLE,
            )
            source = "(SELECT scored.* FROM scored JOIN sample_order USING (row_id) ORDER BY line)"
        for name, column in (("submission.csv", target), ("submission_ungated.csv", ltv)):
            file = str(folder / name).replace("'", "''")
            named = f"row_id AS {contract.identifier}, {column} AS {target}"
            connection.execute(f"COPY (SELECT {named} FROM {source}) TO '{file}' (FORMAT csv, HEADER)")
    return int(rows)


def _listed(files: Sequence[Path]) -> str:
    """A list of file names as SQL; a view takes no parameters."""
    return "[" + ", ".join("'" + str(f).replace("'", "''") + "'" for f in files) + "]"


def refuse_formulas(row_ids: pa.ChunkedArray, where: str) -> None:
    """Raise DataError naming the first id that a spreadsheet would execute when it opens a CSV."""
    found = row_ids.filter(pc.match_substring_regex(row_ids, FORMULA))
    if len(found):
        raise DataError(
            f"{where}: row_id {found[0].as_py()!r} would be read as a formula by a spreadsheet; write .parquet, or repair the data"
        )


def _one(connection: duckdb.DuckDBPyConnection, query: str, parameters: Sequence[object] = ()) -> int:
    row = connection.execute(query, list(parameters)).fetchone()
    return int(row[0]) if row and row[0] is not None else 0


_REPAIR = "repair the test data and score the days again"
_OTHER_SAMPLE = "give the sample file of these test days"


def _refuse(connection: duckdb.DuckDBPyConnection, query: str, reason: str, remedy: str = _REPAIR) -> None:
    row = connection.execute(query).fetchone()
    if row is not None:
        raise DataError(f"submission: row_id {row[0]!r} {reason}; {remedy}")


# -------------------------------------------------------------------------------------------------------------- sample


@dataclass(frozen=True, slots=True)
class SampleForm:
    """How a sample file is written: what separates its columns, how many there are, and which of them is ``row_id``."""

    delimiter: str
    columns: int
    row_id: int


def sample_form(sample: Path, contract: Contract | None = None) -> SampleForm:
    """The form of a sample file, told from its header alone: ids may hold any character.

    Raises DataError naming the file if it cannot be read, is empty, or has no column ``row_id``.
    """
    contract = contract or load_contract()
    identifier, header = contract.identifier, header_of(contract)
    try:
        with sample.open(encoding="utf-8-sig", newline="") as handle:
            written = handle.readline(MAX_HEADER).rstrip("\r\n")
            more = handle.read(1)
    except UnicodeDecodeError as error:
        raise DataError(f"{sample}: not UTF-8 text (byte {error.start}); expected a CSV with a column {identifier}") from None
    except OSError as error:
        raise DataError(f"{sample}: the sample file cannot be read ({error.strerror}); set data.sample_submission to a CSV file") from None
    if not written and not more:
        raise DataError(f"{sample}: the sample file is empty; expected the header {header!r} and one line for each test row")
    for delimiter in ",;\t|":
        try:
            names = next(csv.reader([written], delimiter=delimiter, strict=True))
        except (csv.Error, StopIteration):
            continue
        if names.count(identifier) == 1:
            return SampleForm(delimiter, len(names), names.index(identifier))
    raise DataError(f"{sample}:1: expected a header with the column {identifier}, such as {header!r}, found {written[:80]!r}")


def _read_sample(connection: duckdb.DuckDBPyConnection, sample: Path, table: str, contract: Contract) -> None:
    """Read the ids of a sample file into a table of ``line`` and ``row_id``. Raises DataError naming the file and the line at fault."""
    form = sample_form(sample, contract)
    columns = ", ".join(f"'{'row_id' if i == form.row_id else f'other_{i}'}': 'VARCHAR'" for i in range(form.columns))
    try:
        connection.execute(
            f"CREATE TABLE {table} AS SELECT row_number() OVER () + 1 AS line, row_id FROM read_csv(?, header = false, skip = 1, "
            f"delim = '{form.delimiter}', quote = '\"', escape = '\"', columns = {{{columns}}}, auto_detect = false, null_padding = false)",
            [str(sample)],
        )
    except duckdb.Error as error:
        line, words = _csv_complaint(error, form.columns)
        raise DataError(f"{sample}{f':{line}' if line else ''}: {words}; repair the sample file") from None
    empty = connection.execute(f"SELECT min(line) FROM {table} WHERE row_id IS NULL OR row_id = ''").fetchone()
    last = _one(connection, f"SELECT coalesce(max(line), 1) FROM {table} WHERE row_id <> ''")
    if empty is not None and empty[0] is not None and empty[0] <= last:
        raise DataError(f"{sample}:{empty[0]}: row_id is empty; repair the sample file")
    connection.execute(f"DELETE FROM {table} WHERE line > {last}")  # empty lines at the end
    if not _one(connection, f"SELECT count(*) FROM {table}"):
        raise DataError(f"{sample}: the sample file has a header and no row; expected one line for each test row")
    twice = connection.execute(
        f"SELECT row_id, min(line), max(line) FROM {table} GROUP BY row_id HAVING count(*) > 1 ORDER BY 2 LIMIT 1"
    ).fetchone()
    if twice is not None:
        raise DataError(f"{sample}:{twice[2]}: row_id {twice[0]!r} stands already on line {twice[1]}; repair the sample file")


def _csv_complaint(error: duckdb.Error, columns: int) -> tuple[str | None, str]:
    """(line, what is wrong) of a CSV that DuckDB refuses, in our words where its own are known."""
    text = " ".join(str(error).split())
    line = re.search(r"error on line: (\d+)", text, re.IGNORECASE)
    found = re.search(r"expected number of columns: \d+ found: (\d+)", text, re.IGNORECASE)
    known = (("unicode", "not UTF-8 text"), ("utf-8", "not UTF-8 text"), ("unterminated quote", 'a quote (") is opened and not closed'))
    words = next((words for sign, words in known if sign in text.lower()), f"cannot be read as a CSV of {columns} columns")
    return line and line[1], f"expected {columns} columns as in the header, found {found[1]}" if found else words


def validate_submission(
    path: Path,
    sample: Path | None = None,
    *,
    expected: Sequence[Path] = (),
    threads: int,
    memory_limit: str,
    contract: Contract | None = None,
) -> list[str]:
    """Problems of a submission file, each naming its line; an empty list means it is valid.

    ``sample`` gives the ids and their order; ``expected`` are prediction files whose ids must all be there;
    ``threads`` and ``memory_limit`` are DuckDB's.
    """
    contract = contract or load_contract()
    if not path.is_file():
        return [f"{path}: file not found"]
    with path.open("rb") as handle:
        first = handle.readline().decode(errors="replace").rstrip("\r\n")
        header = header_of(contract)
        if first != header:
            return [f"line 1: expected the header {header!r}, found {first[:80]!r}"]
        handle.seek(0, 2)
        if handle.tell():
            handle.seek(-1, 2)
            if handle.read(1) not in (b"\n", b"\r"):
                return ["last line: no line end; the file was cut while it was written"]
    problems: list[str] = []
    with open_duckdb(threads=threads, memory_limit=memory_limit) as connection:
        connection.execute("SET enable_progress_bar = false")
        try:
            connection.execute(
                "CREATE TABLE given AS SELECT row_number() OVER () + 1 AS line, row_id, value FROM "
                "read_csv(?, header = false, skip = 1, delim = ',', quote = '\"', escape = '\"', "
                "columns = {'row_id': 'VARCHAR', 'value': 'VARCHAR'}, auto_detect = false, null_padding = false)",
                [str(path)],
            )
        except duckdb.Error as error:
            line, words = _csv_complaint(error, 2)
            return [f"not a two-column CSV: {f'line {line}: ' if line else ''}{words}"]
        for condition, text in (
            ("row_id IS NULL OR row_id = ''", "row_id is empty"),
            (_FORMULA, "row_id would be read as a formula by a spreadsheet"),
            ("TRY_CAST(value AS DOUBLE) IS NULL", "value is not a number"),
            ("NOT coalesce(isfinite(TRY_CAST(value AS DOUBLE)), true)", "value is not finite"),
            ("TRY_CAST(value AS DOUBLE) < 0", "value is negative"),
        ):
            rows = connection.execute(f"SELECT line, row_id, value FROM given WHERE {condition} ORDER BY line LIMIT 3").fetchall()
            problems += [f"line {line}: {text} (row_id {row_id!r}, value {value!r})" for line, row_id, value in rows]
        repeated = connection.execute(
            "SELECT row_id, min(line), max(line) FROM given GROUP BY row_id HAVING count(*) > 1 ORDER BY 2 LIMIT 3"
        ).fetchall()
        problems += [f"line {last}: row_id {row_id!r} stands already on line {first_line}" for row_id, first_line, last in repeated]
        problems += _against_expected(connection, sample, expected, contract)
    return problems[:MAX_PROBLEMS]


def _against_expected(
    connection: duckdb.DuckDBPyConnection, sample: Path | None, expected: Sequence[Path], contract: Contract
) -> list[str]:
    if sample is not None:
        try:
            _read_sample(connection, sample, "wanted", contract)
        except DataError as error:
            return [str(error)]
    elif expected:
        connection.execute(f"CREATE TABLE wanted AS SELECT 0 AS line, row_id FROM read_parquet({_listed(expected)})")
    else:
        return []
    problems = []
    missing = connection.execute("SELECT row_id FROM wanted ANTI JOIN given USING (row_id) LIMIT 3").fetchall()
    total = _one(connection, "SELECT count(*) FROM wanted ANTI JOIN given USING (row_id)")
    problems += [f"row_id {row_id!r} is missing ({total} in all)" for (row_id,) in missing[:1]]
    extra = connection.execute("SELECT line, row_id FROM given ANTI JOIN wanted USING (row_id) ORDER BY line LIMIT 3").fetchall()
    problems += [f"line {line}: row_id {row_id!r} is not a test row" for line, row_id in extra]
    if sample is not None and not problems:
        row = connection.execute(
            "SELECT given.line, given.row_id, wanted.row_id FROM given JOIN wanted USING (line) "
            "WHERE given.row_id <> wanted.row_id ORDER BY 1 LIMIT 1"
        ).fetchone()
        if row is not None:
            problems.append(f"line {row[0]}: expected row_id {row[2]!r} as in the sample file, found {row[1]!r}")
    return problems
