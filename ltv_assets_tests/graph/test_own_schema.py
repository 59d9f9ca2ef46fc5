"""A schema of one's own, by the steps of docs/data.md: columns declared, statistics asked for, nothing else touched."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltv_assets.simulator import simulate
from ltv_assets_tests.conftest import HANGS, PROJECT
from ltv_assets_tests.graph.conftest import environment
from ltv_assets_tests.live.harness import CONFIG
from ltv_assets_tests.markdown import DOCS, blocks

DROPPED = ("whale_users_bundle_revenue_prank", "carrier", "cpm")
"""Columns of the contest that the foreign files do not have."""


def edited_copy(root: Path) -> Path:
    """The project with exactly what the page says to add."""
    for name in ("ltv_assets", "config"):
        shutil.copytree(PROJECT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "dagster.yaml", root)
    declared, asked = (b for b in blocks(DOCS / "data.md", "yaml") if "loyalty_points" in b)
    contract = root / "config" / "contract.yaml"
    contract.write_text(contract.read_text().rstrip("\n") + "\n" + declared)
    features = root / "config" / "features.yaml"
    features.write_text(
        re.sub(r"(\n  behaviour:\n.*?    columns:\n)", lambda m: m[1] + asked, features.read_text(), count=1, flags=re.DOTALL)
    )
    return root


FLATTEN = """
import sys
from pathlib import Path
from click.testing import CliRunner
from ltv_assets.cli.app import main
from ltv_assets.cli.flatten_benchmark import find_days
from ltv_assets.core.config import PROJECT_ROOT
from ltv_assets.features.flatten import flatten_files
from ltv_assets.features.registry import load_registry
for words in (["explain-sql", "loyalty_points"], ["check-data", sys.argv[1]]):
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    print(done.output)
    assert done.exit_code == 0, done.output
(files,) = find_days(Path(sys.argv[1])).values()
flatten_files(files, registry=load_registry(PROJECT_ROOT / "config" / "features.yaml"), labelled=True, out=Path(sys.argv[2]))
"""


def foreign_files(data: Path, **size: int) -> dict[str, tuple[float, dict[str, float], str]]:
    """Impressions with two new columns and without three known ones; returns what stands in the new ones by row_id.

    Loyal users pay: nine payers in ten have points, one other user in fifty.
    """
    simulate(data, seed=11, **size)
    rng, truth = np.random.default_rng(0), {}
    for path in sorted(data.rglob("part-*.parquet")):
        table = pq.read_table(path, partitioning=None)
        shops = table["advertiser_bundle"].to_pylist()
        if "iap_revenue_d7" in table.column_names:
            chance = np.where(table["iap_revenue_d7"].to_numpy() > 0, 0.9, 0.02)
        else:
            chance = np.full(len(shops), 0.05)
        points = np.where(rng.random(len(shops)) < chance, rng.integers(50, 500, len(shops)), 0).astype(float)
        coupons = [{shop: float(1 + i % 4), "elsewhere": float(i % 3)} for i, shop in enumerate(shops)]
        for row_id, p, c, shop in zip(table["row_id"].to_pylist(), points, coupons, shops, strict=True):
            truth[row_id] = (p, c, shop)
        table = table.drop_columns([c for c in DROPPED if c in table.column_names])
        table = table.append_column("loyalty_points", pa.array(points))
        table = table.append_column("coupons_by_shop", pa.array([list(c.items()) for c in coupons], pa.map_(pa.string(), pa.float64())))
        pq.write_table(table, path)
    return truth


def test_columns_declared_as_the_page_says_are_explained_and_read(tmp_path: Path) -> None:
    """The statement of a declared column, and its values on one day of files, in a process that sees the edited copy."""
    project, data = edited_copy(tmp_path / "project"), tmp_path / "data"
    truth = foreign_files(data, train_days=1, test_days=0, rows_per_hour=10)
    env = environment(data, tmp_path / "warehouse", PYTHONPATH=str(project))
    words = [sys.executable, "-c", FLATTEN, str(data), str(tmp_path / "day.parquet")]
    done = subprocess.run(words, env=env, cwd=project, capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "loyalty_points" in done.stdout
    assert_values(tmp_path / "day.parquet", truth, rows=24 * 10)


def assert_values(path: Path, truth: dict[str, tuple[float, dict[str, float], str]], rows: int) -> None:
    """The flattened columns hold what was written into the foreign ones."""
    names = ["row_id", "loyalty_points", *(f"coupons_by_shop__{s}" for s in ("n_keys", "sum", "own"))]
    found = pq.read_table(path, partitioning=None).select(names).to_pylist()
    assert len(found) == rows
    for row in found:
        points, coupons, shop = truth[row["row_id"]]
        assert row["loyalty_points"] == pytest.approx(points)
        assert row["coupons_by_shop__n_keys"] == len(coupons)
        assert row["coupons_by_shop__sum"] == pytest.approx(sum(coupons.values()))
        assert row["coupons_by_shop__own"] == pytest.approx(coupons[shop])


@pytest.mark.soak
def test_columns_declared_as_the_page_says_reach_the_models(tmp_path: Path) -> None:
    project, data = edited_copy(tmp_path / "project"), tmp_path / "data"
    truth = foreign_files(data, train_days=3, test_days=1, rows_per_hour=40)
    config = tmp_path / "small.yaml"
    config.write_text(CONFIG)
    env = environment(data, tmp_path / "warehouse", LTV_CONFIG=str(config), PYTHONPATH=str(project))

    def ltv(*words: str) -> subprocess.CompletedProcess[str]:
        call = [sys.executable, "-m", "ltv_assets.cli.app", *words]
        return subprocess.run(call, env=env, cwd=project, capture_output=True, text=True, timeout=HANGS, check=False)

    explained = ltv("explain-sql", "loyalty_points")
    assert explained.returncode == 0, explained.stderr
    assert "loyalty_points" in explained.stdout
    assert ltv("check-data", str(data)).returncode == 0
    done = ltv("run")
    assert done.returncode == 0, done.stderr[-3000:]

    day = next((tmp_path / "warehouse/lake/flattened_features/day=2025-10-02").glob("*.parquet"))
    assert_values(day, truth, rows=24 * 40)
    booster = json.loads((tmp_path / "warehouse/models/window=2025-10-03/buyer_classifier/buyer_booster.json").read_text())
    assert {"loyalty_points", "coupons_by_shop__own"} <= set(booster["names"])
    report = (tmp_path / "warehouse/reports/window=2025-10-03/report.html").read_text()
    section = report.split('<section id="features">')[1].split("</section>")[0]
    who_pays = {
        name: float(share) for name, share in re.findall(r'<code>(\w+)</code></td><td class="number"><data value="([\d.e-]+)"', section)
    }
    assert max(who_pays, key=who_pays.__getitem__) == "loyalty_points", who_pays
    assert "columns read as missing: " in report
    submission = next((tmp_path / "warehouse/submissions").glob("*/submission.csv"))
    assert len(submission.read_text().splitlines()) == 24 * 40 + 1
    assert os.fspath(PROJECT) not in done.stderr
