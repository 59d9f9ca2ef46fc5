"""What is added to a copy of the project in as few places as CONTRIBUTING says is seen everywhere it should be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ltv_assets.core.config import PROJECT_ROOT

STAGE_ASSET = """    AssetSpec(
        "added_stage",
        "window",
        "models",
        "models",
        code_version="1",
        description="A stage that was added: the mean of what the classifier says.",
        kinds=("lightgbm",),
        upstream=(_TRAINING_DAYS, Upstream("buyer_classifier")),
        config_keys=("seed", "models"),
        relation=_STAGE_METRICS,
    ),
"""
ASSET = """    AssetSpec(
        "added_asset",
        "day",
        "ingestion",
        "lake",
        code_version="1",
        description="An asset that was added: one row for each day.",
        kinds=("parquet",),
        upstream=(Upstream("flattened_features"),),
        relation=(OutputColumn("day", "VARCHAR", "day that was added"),),
        automated=False,
    ),
"""
STAGE_MODULE = '''"""A stage that was added."""

from __future__ import annotations

import json
from typing import Any


class AddedStage:
    def __init__(self, mean: float) -> None:
        self.mean, self.oof = mean, {}

    @property
    def diagnostics(self) -> dict[str, float]:
        return {"mean": self.mean}

    def to_files(self) -> dict[str, bytes]:
        return {"added.json": json.dumps({"mean": self.mean}).encode()}

    @classmethod
    def from_files(cls, files: Any, *, oof: Any = None) -> AddedStage:
        return cls(json.loads(files["added.json"])["mean"])


def fit_added(context: Any, classifier: Any, evaluated: Any = None) -> AddedStage:
    return AddedStage(float(classifier))
'''
STAGE_SPEC = """    StageSpec("added_stage", AddedStage, fit_added, needs=("buyer_classifier",)),
"""
CHECK = '''

@check("holdout_metrics", blocking=True, bounds=("checks.ece_max",))
def added_check(project: Project, key: str) -> Outcome:
    """A check that was added, which always passes."""
    return Outcome(True, "nothing to see")
'''
METRIC = """        "added_metric": Metric("rows", "a metric that was added", "none", lambda f: float(f.n), headline=(99, "added metric")),
"""
ASSET_FUNCTION = """

def added_asset(work: Publication) -> dg.MaterializeResult:
    return work.result(work.publish(lambda folder: {}))
"""
SEEN = """
import json, sys
sys.path.insert(0, "docs")
import generate
from ltv_assets.core.check_specs import blocking_checks
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.definitions import build_defs
from ltv_assets.modeling.evaluation.segments import HEADLINE
from ltv_assets.modeling.model_set import WindowModels
from ltv_assets.modeling.stages import STAGES
from ltv_assets.state.project import Project

repository = build_defs().get_repository_def()
graph = repository.asset_graph
project = Project.open()
project.sync_catalogue()
with project.open_duckdb(database=project.warehouse.database) as connection:
    relations = [row[0] for row in connection.execute("SHOW TABLES").fetchall()]
fitted = {stage.name: stage.name for stage in STAGES} | {"added_stage": next(s for s in STAGES if s.name == "added_stage").fit(None, 2)}
pages = {name: generate.BLOCKS[name]() for name in ("relations", "staleness", "checks", "metrics")}
json.dump({
    "assets": sorted(key.to_user_string() for key in graph.materializable_asset_keys),
    "checks": sorted(f"{key.asset_key.to_user_string()}.{key.name}" for key in graph.asset_check_keys),
    "train_window": sorted(node.name for node in repository.get_job("train_window").nodes),
    "blocking": blocking_checks("holdout_metrics"),
    "pages": pages,
    "relations": relations,
    "headline": dict(HEADLINE),
    "files": {name: project.lineage().status(name, PartitionKey("2025-10-05")).state for name in ("added_stage", "added_asset")},
    "stages": list(WindowModels.of(fitted).stages),
    "kept": WindowModels.of(fitted).stages["added_stage"].diagnostics,
}, sys.stdout)
"""


def insert(path: Path, before: str, text: str) -> None:
    """Put text in front of the only place where ``before`` stands."""
    source = path.read_text()
    assert source.count(before) == 1, f"{path.name}: {before!r} stands there {source.count(before)} times"
    path.write_text(source.replace(before, text + before))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a copy of the project shows after a check, a stage, an asset and a metric were added to it."""
    root = tmp_path_factory.mktemp("added") / "project"
    for name in ("ltv_assets", "docs", "config"):
        shutil.copytree(PROJECT_ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    package = root / "ltv_assets"
    # a check: one place
    training = package / "defs/asset_checks/training.py"
    training.write_text(training.read_text() + CHECK)
    # a metric: one place
    insert(package / "modeling/evaluation/segments.py", '        "horizon_violations": Metric(', METRIC)
    # a stage: three places
    (package / "modeling/added.py").write_text(STAGE_MODULE)
    stages = package / "modeling/stages.py"
    insert(stages, ')\n"""Every stage, each after those it needs', STAGE_SPEC)
    insert(stages, "from ltv_assets.modeling.boosting import", "from ltv_assets.modeling.added import AddedStage, fit_added\n")
    specs = package / "core/asset_specs.py"
    insert(specs, '    AssetSpec(\n        "holdout_metrics",', STAGE_ASSET)
    # an asset: two places
    insert(specs, '    AssetSpec(\n        "histos_train",', ASSET)
    ingestion = package / "defs/assets/ingestion.py"
    ingestion.write_text(ingestion.read_text() + ASSET_FUNCTION)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("LTV_")},
        "PYTHONPATH": str(root),
        "LTV_CONFIG": str(root / "config/config.yaml"),
        "LTV_DATA_ROOT": str(root / "data"),
        "LTV_WAREHOUSE": str(root / "warehouse"),
    }
    done = subprocess.run([sys.executable, "-c", SEEN], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_check_added_in_one_place_is_bound_blocks_and_is_documented(seen: dict[str, Any]) -> None:
    assert "holdout_metrics.added_check" in seen["checks"]
    assert "added_check" in seen["blocking"]
    assert "| `holdout_metrics` | `added_check` | yes | A check that was added, which always passes. |" in seen["pages"]["checks"]
    assert "| `added_check` | `checks.ece_max` |" in seen["pages"]["staleness"]


def test_metric_added_in_one_place_is_documented_and_in_the_headline(seen: dict[str, Any]) -> None:
    assert "| `added_metric` | rows | none | a metric that was added |" in seen["pages"]["metrics"]
    assert seen["headline"]["added_metric"] == "added metric"


def test_stage_added_in_three_places_is_trained_kept_and_shown(seen: dict[str, Any]) -> None:
    assert "added_stage" in seen["assets"] and "added_stage" in seen["train_window"] and "added_stage" in seen["relations"]
    assert seen["stages"][-1] == "added_stage" and seen["kept"] == {"mean": 2.0}, "it is part of the served model, beside the score"
    assert "### added_stage" in seen["pages"]["relations"] and "| `added_stage` | `seed`, `models` |" in seen["pages"]["staleness"]


def test_asset_added_in_two_places_is_in_the_graph_the_catalog_and_the_documentation(seen: dict[str, Any]) -> None:
    assert "added_asset" in seen["assets"] and "added_asset" in seen["relations"]
    assert "### added_asset" in seen["pages"]["relations"]
    assert set(seen["files"].values()) == {"missing"}, "freshness knows both"
