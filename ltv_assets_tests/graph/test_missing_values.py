"""A missing value is missing however it is written: the same features and scores in batch, in ``ltv predict`` and served."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltv_assets.core.columns import BY_NAME, SCORED_COLUMNS
from ltv_assets.core.columns import INPUTS as COLUMNS
from ltv_assets.features.statistics import kind_of
from ltv_assets.scoring.mlflow_model import write_files
from ltv_assets.scoring.online import ERROR_COLUMN, OnlineModel
from ltv_assets.simulator import simulate
from ltv_assets.state.project import Project
from ltv_assets_tests.conftest import Ran

pytestmark = pytest.mark.slow
ROWS_PER_HOUR = 417
NUMBERS = [c.name for c in COLUMNS if kind_of(c) == "number" and c.type == "double"]
WAYS = (None, math.nan, math.inf, -math.inf)


def disguised(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """The table with every missing number written as NULL, NaN or an infinity, and missing map values added as each of them."""
    for name in NUMBERS:
        column = table.column(name)
        missing = column.is_null().to_numpy()
        ways = rng.integers(len(WAYS), size=len(missing))
        values = np.where(missing, np.array([np.nan, np.nan, np.inf, -np.inf])[ways], column.to_numpy())
        table = table.set_column(table.column_names.index(name), name, pa.array(values, mask=missing & (ways == 0)))
    return table


def with_gaps(table: pa.Table, value: Any) -> pa.Table:
    """The table with one more entry in each map of prices, whose value is missing in the given way."""
    name = "cpm"
    rows = [None if row is None else [*row, ("nothing known", value)] for row in table.column(name).to_pylist()]
    return table.set_column(table.column_names.index(name), name, pa.array(rows, table.schema.field(name).type))


def as_request(row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """An impression as a caller writes it: what is missing is null, NaN, infinite, or not mentioned."""
    request: dict[str, Any] = {}
    for name, value in row.items():
        if value is not None:
            request[name] = (
                dict(value) if BY_NAME[name].type.startswith("map") and not BY_NAME[name].type.startswith("map<string,map") else value
            )
        elif (way := rng.integers(5)) < 4:
            request[name] = WAYS[way] if name in NUMBERS else None
    return request


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same ten thousand impressions, every missing value NULL, and written in every way there is."""
    plain, other = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("other")
    simulate(plain, train_days=1, test_days=1, rows_per_hour=ROWS_PER_HOUR, seed=11)
    rng = np.random.default_rng(0)
    for path in sorted((plain / "test").glob("*/*.parquet")):
        table = pq.read_table(path, partitioning=None)
        target = other / "test" / path.parent.name / path.name
        target.parent.mkdir(parents=True)
        pq.write_table(with_gaps(disguised(table, rng), rng.choice([np.nan, np.inf])), target)
        pq.write_table(with_gaps(table, None), path)
    return plain / "test", other / "test"


def predicted(ran: Ran, data: Path, out: Path) -> pa.Table:
    """What `ltv predict` says of the files of a folder."""
    done = ran.ltv("predict", "--in", str(data), "--out", str(out))
    assert done.exit_code == 0, done.stdout + done.stderr
    return pq.read_table(out)


@pytest.fixture(scope="module")
def expected(ran: Ran, worlds: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The scores of the rows whose missing values are NULL."""
    return predicted(ran, worlds[0], tmp_path_factory.mktemp("scores") / "plain.parquet")


def test_missing_values_written_in_any_way_give_the_same_scores(
    ran: Ran, worlds: tuple[Path, Path], expected: pa.Table, tmp_path: Path
) -> None:
    assert expected.num_rows >= 10_000
    assert predicted(ran, worlds[1], tmp_path / "other.parquet").equals(expected)


@pytest.mark.parametrize("hours", [3, pytest.param(24, marks=pytest.mark.soak)])
def test_served_rows_get_the_scores_of_the_batch(
    ran: Ran, worlds: tuple[Path, Path], expected: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    scores = expected.to_pandas().set_index("row_id")
    for name, value in ran.environment().items():
        monkeypatch.setenv(name, value)
    project = Project.open()
    champion = project.lineage().champion()
    assert champion is not None
    write_files(project.config, project.warehouse, champion.window, tmp_path / "model")
    model = OnlineModel.load(tmp_path / "model")
    rng = np.random.default_rng(1)
    seen = 0
    for path in sorted(worlds[0].glob("*/*.parquet"))[:: 24 // hours]:
        rows = pq.read_table(path, partitioning=None).to_pylist()
        hour = path.parent.name.removeprefix("datetime=")
        requests = [{**as_request({k: v for k, v in row.items() if k in BY_NAME}, rng), "datetime": hour} for row in rows]
        answer = model.predict(pd.DataFrame(requests, dtype=object)).set_index("row_id")
        assert answer[ERROR_COLUMN].isna().all(), answer[ERROR_COLUMN].dropna().iloc[0]
        for name in SCORED_COLUMNS:
            np.testing.assert_allclose(
                answer[name].astype(float), scores.loc[answer.index, name].astype(float), rtol=1e-9, atol=1e-12, err_msg=name
            )
        seen += len(answer)
    assert seen == len(scores) if hours == 24 else seen > 1000
